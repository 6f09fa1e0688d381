"""What a run says of its input: that it is slow, and which examples were damaged."""

import contextlib
import pathlib

import jax

from bsjax.engine import Engine
from bsjax.run.log import Times
from bsjax.run.metrics import read_json, write_json

LARGE_SHARE = 0.1  # of the seconds of training that wait for examples
_LEAST_S = 1.0  # of waiting: shorter ones are those of a beginning


def warning(times: Times) -> str:
    """A line about input that holds training up, for more than a tenth of the time and for a second; else ""."""
    if times.input_share <= LARGE_SHARE or (times.input_wait_s or 0.0) < _LEAST_S:
        return ""
    return (
        f"warning: updates waited for examples {times.input_wait_s:.1f} s since the last line of the log, "
        f"{100 * times.input_share:.0f} % of the time: the source is slower than the devices"
    )


class BadExamples:
    """Keeps `bad_examples.json`, which names the damaged examples that sources have skipped, by split and index.

    With many processes, each reads other examples: the file of process 1 is `bad_examples-1.json`, and so on.

    Args:
      engine: has the sources; those with an attribute `bad_examples` skip some.
      workdir: the run's folder.
    """

    def __init__(self, engine: Engine, workdir: pathlib.Path):
        process = jax.process_index()
        self._path = workdir / (f"bad_examples-{process}.json" if process else "bad_examples.json")
        self._found = {split: getattr(source, "bad_examples", None) for split, source in engine.sources.items()}
        self._written: dict[str, dict[str, str]] = {}

    def write(self) -> None:
        """Writes the file if there are new ones.

        Raises:
          RunError: it cannot be written, or is damaged.
        """
        found = {split: {str(i): bad[i] for i in sorted(bad)} for split, bad in self._found.items() if bad}
        if found == self._written:
            return
        before: dict[str, dict[str, str]] = {}
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_size:
                before = read_json(self._path)
        write_json(self._path, {split: before.get(split, {}) | found.get(split, {}) for split in {**before, **found}})
        self._written = found
