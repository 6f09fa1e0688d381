"""What a run leaves behind and what it shows: JSON lines, JSON files, a progress bar or plain lines."""

import contextlib
import errno
import json
import math
import os
import pathlib
import sys
import time
import zlib
from typing import Any, NamedTuple, TextIO

from bsjax.errors import RunError


class Position(NamedTuple):
    """How far a metrics file had been written when a checkpoint was: its size in bytes, and their CRC-32."""

    size: int = 0
    crc32: int = 0


class MetricWriter:
    """Writes one JSON object a line, each at once, so that whatever stops the run loses none.

    Args:
      path: of the file.
      position: where to go on, default at its beginning; what lies behind it is cut off.
    """

    def __init__(self, path: pathlib.Path, position: Position | None = None):
        self._position = position = position or Position()
        self._file = open(path, "r+b" if position.size else "wb", buffering=0)  # noqa: SIM115  (see close)
        if position.size:
            self._file.truncate(position.size)
            self._file.seek(position.size)

    def write(self, **values: Any) -> None:
        line = (json.dumps({name: _rounded(value) for name, value in values.items()}) + "\n").encode()
        if self._file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)
        self._position = Position(self._position.size + len(line), zlib.crc32(line, self._position.crc32))

    def flush(self) -> Position:
        """Sees to it that everything is on the disk, and says how much that is."""
        with contextlib.suppress(OSError):  # which not every file knows how to do
            os.fsync(self._file.fileno())
        return self._position

    def close(self) -> None:
        self._file.close()


def holds(path: pathlib.Path, position: Position) -> bool:
    """Whether a metrics file still begins as it did then."""
    if not position.size:
        return True
    try:
        with open(path, "rb") as file:
            return zlib.crc32(file.read(position.size)) == position.crc32 and path.stat().st_size >= position.size
    except OSError:
        return False


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl.

    Raises:
      RunError: it is not there, or damaged.
    """
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}") from None


def read_json(path: pathlib.Path) -> Any:
    """The value of a JSON file.

    Raises:
      RunError: it is not there, or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}") from None


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


class Progress:
    """Shows how far a run is: a bar on a terminal, else a line per evaluation.

    Speed and time left are computed from examples, so they stay right while the batch grows.

    Args:
      num_examples: position in the example stream where the run ends.
      dataset_size: an epoch.
      show: "auto"; "noise" for the gradient noise scale as well; or "none" to show nothing.
      file: where; default, stderr.
      start: position in the example stream where the run begins.
    """

    def __init__(
        self, num_examples: int, dataset_size: int, show: str = "auto", file: TextIO | None = None, start: int = 0
    ):
        self._file = file or sys.stderr
        self._start = start
        self._num_examples = num_examples
        self._dataset_size = dataset_size
        self._latest: dict[str, Any] = {}
        self._shown_at = 0.0
        self._show = show
        self._bar = None
        if show != "none" and self._file.isatty():
            import tqdm  # here, so that training needs it on terminals alone

            layout = "{percentage:3.0f}% |{bar:20}| {desc}"
            self._bar = tqdm.tqdm(total=num_examples - start, bar_format=layout, file=self._file, dynamic_ncols=True)

    def update(self, **latest: Any) -> None:
        """Takes in the latest values; redraws a bar a few times a second."""
        self._latest.update(latest)
        now = time.perf_counter()
        if self._bar is not None and now - self._shown_at > 0.2:
            self._shown_at = now
            self._bar.n = self._latest["examples_seen"] - self._start
            self._bar.set_description_str(self.line())

    def evaluated(self, **latest: Any) -> None:
        """Takes in an evaluation; without a bar, prints a line."""
        self._latest.update(latest)
        if self._bar is None and self._show != "none":
            print(self.line(), file=self._file, flush=True)

    def line(self) -> str:
        """The latest values in a line.

        >>> progress = Progress(num_examples=2000, dataset_size=100, show="none")
        >>> progress.update(update=50, examples_seen=1000, batch_size=20, learning_rate=0.1, train_loss=0.5)
        >>> progress.update(examples_per_second=500.0, test_accuracy=0.75)
        >>> progress.line()
        'epoch 10.0/20  update 50  B 20  lr 0.1  loss 0.5000  test 75.00 %  500 images/s  0:02 left'
        """
        values = self._latest
        parts = [
            f"epoch {values['examples_seen'] / self._dataset_size:.1f}/{self._num_examples / self._dataset_size:.4g}",
            f"update {values['update']:,}",
            f"B {values['batch_size']:,}",
            f"lr {values['learning_rate']:.4g}",
        ]
        if "train_loss" in values:
            parts.append(f"loss {values['train_loss']:.4f}")
        if "test_accuracy" in values:
            parts.append(f"test {100 * values['test_accuracy']:.2f} %")
        if self._show == "noise":
            scale = values.get("gradient_noise_scale")
            parts.append("noise scale unknown" if scale is None else f"noise scale {scale:,.0f}")
        speed = values.get("examples_per_second")
        if speed:
            seconds = max(0, self._num_examples - values["examples_seen"]) / speed
            parts += [f"{speed:,.0f} images/s", f"{_clock(seconds)} left"]
        return "  ".join(parts)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.n = self._latest.get("examples_seen", self._start) - self._start
            self._bar.set_description_str(self.line() if self._latest else "")
            self._bar.close()


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}" if minutes >= 60 else f"{minutes}:{second:02}"


def _rounded(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.7g}") if math.isfinite(value) else None  # JSON has neither NaN nor infinity
