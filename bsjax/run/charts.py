"""Charts that people know, beside the JSON lines: TensorBoard, Weights & Biases, trackio, or one's own.

Each gets the numbers of the lines of `metrics.jsonl`. A package is imported only if it is asked for. Charts that fail
warn once and are left out from then on: the run, whose own file is complete, does not stop.
"""

import functools
import importlib.util
import math
import os
import pathlib
import secrets
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from bsjax.errors import InvalidArgument, check_choice
from bsjax.run.metrics import MetricWriter, Position, read_json, write_json

_IDS = "charts.json"  # in the folder of a run: the ids of the run in services


class Charts(Protocol):
    """Takes a run's numbers; any object with these two methods may stand in `log_to`."""

    def write(self, update: int, values: Mapping[str, float]) -> None:
        """Takes finite numbers by name, after `update` updates. May come twice for the same update after a restart."""
        ...

    def close(self) -> None:
        """Sends what is left; the run has ended, or continues in another process."""
        ...


class Opening(NamedTuple):
    """What charts know of a run when they are opened."""

    workdir: pathlib.Path
    config: Mapping[str, Any]  # of the run, as JSON
    num_updates: int  # those that the run goes on from; 0 at its beginning


class TensorBoard:
    """Event files in the folder `tensorboard` of the run. What a restart repeats replaces what was there."""

    def __init__(self, opening: Opening):
        from tensorboardX import SummaryWriter

        purge = opening.num_updates + 1 if opening.num_updates else None
        self._writer = SummaryWriter(str(opening.workdir / "tensorboard"), purge_step=purge)

    def write(self, update: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, update)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A run of Weights & Biases, with updates as the charts' x. A restart goes on in the same run by its id."""

    def __init__(self, opening: Opening):
        import wandb

        options: dict[str, Any] = {
            "project": os.environ.get("WANDB_PROJECT", "bsjax"),
            "name": opening.workdir.resolve().name,
        }
        options |= {"dir": str(opening.workdir), "config": dict(opening.config)}
        self._run = wandb.init(id=_id_of(opening.workdir, "wandb"), resume="allow", **options)
        # wandb's own steps only grow, so that it would refuse what a restart repeats.
        self._run.define_metric("update")
        self._run.define_metric("*", step_metric="update")

    def write(self, update: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "update": update})

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run of trackio. A restart goes on in the same run by its name."""

    def __init__(self, opening: Opening):
        import trackio

        name = f"{opening.workdir.resolve().name}-{_id_of(opening.workdir, 'trackio')}"
        options: dict[str, Any] = {
            "project": os.environ.get("TRACKIO_PROJECT", "bsjax"),
            "config": dict(opening.config),
        }
        self._run = trackio.init(name=name, resume="allow", embed=False, **options)

    def write(self, update: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=update)

    def close(self) -> None:
        self._run.finish()


_KINDS: dict[str, tuple[str, Callable[[Opening], Charts]]] = {  # the package of each
    "tensorboard": ("tensorboardX", TensorBoard),
    "wandb": ("wandb", Wandb),
    "trackio": ("trackio", Trackio),
}
CHARTS = tuple(_KINDS)


def check(log_to: str | Iterable[str | Charts]) -> tuple[str | Charts, ...]:
    """Returns the charts, or refuses those that cannot be opened.

    Raises:
      InvalidArgument: there are none of this name, the package is not installed, or an object has no `write` and
        `close`.

    >>> check(["tensorbord"])
    Traceback (most recent call last):
    ...
    bsjax.errors.InvalidArgument: log_to is 'tensorbord'; it must be one of tensorboard, wandb, trackio; \
nearest: tensorboard
    """
    checked = (log_to,) if isinstance(log_to, str) else tuple(log_to)
    for one in checked:
        if isinstance(one, str):
            package, _ = _KINDS[check_choice("log_to", one, CHARTS)]
            if importlib.util.find_spec(package) is None:
                raise InvalidArgument("log_to", one, f"of an installed package: pip install 'bsjax[{one}]'")
        elif not (callable(getattr(one, "write", None)) and callable(getattr(one, "close", None))):
            raise InvalidArgument("log_to", one, f"one of {', '.join(CHARTS)}, or have methods write and close")
    return checked


class LogWriter:
    """Writes the lines of a run: to its `metrics.jsonl`, whose errors end the run, and to charts, whose errors do not.

    Args:
      path: of the JSON lines.
      position: where they continue, see `MetricWriter`.
      log_to: names of charts, or objects with their methods.
      opening: of the charts.
    """

    def __init__(
        self,
        path: pathlib.Path,
        position: Position | None = None,
        log_to: Sequence[str | Charts] = (),
        opening: Opening | None = None,
    ):
        self._lines = MetricWriter(path, position)
        self._charts: list[Charts] = []
        for one in log_to:
            assert opening is not None
            self._try(one, functools.partial(self._open, one, opening))

    def write(self, **values: Any) -> None:
        """Writes a line; the charts get its finite numbers."""
        self._lines.write(**values)
        numbers = {name: value for name, value in values.items() if name != "update" and _is_number(value)}
        for charts in list(self._charts):
            self._try(charts, functools.partial(charts.write, values["update"], numbers))

    def flush(self) -> Position:
        """Waits until the lines are on the disk, and returns their end."""
        return self._lines.flush()

    def close(self) -> None:
        """Closes the file and the charts."""
        self._lines.close()
        for charts in list(self._charts):
            self._try(charts, charts.close)

    def _open(self, one: str | Charts, opening: Opening) -> None:
        self._charts.append(_KINDS[one][1](opening) if isinstance(one, str) else one)

    def _try(self, one: str | Charts, work: Callable[[], Any]) -> None:
        """Calls charts; if they fail, says so, and leaves them out from then on."""
        try:
            work()
        except Exception as error:  # whatever a service raises
            self._charts = [charts for charts in self._charts if charts is not one]
            name = one if isinstance(one, str) else type(one).__name__.lower()
            reason = (str(error).splitlines() or [""])[0][:200]
            text = f"log_to={name} fails ({type(error).__name__}: {reason}); the run goes on without it"
            warnings.warn(text, stacklevel=3)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _id_of(workdir: pathlib.Path, service: str) -> str:
    """The id of the run in a service: a new one the first time, which stays in the run's folder."""
    path = workdir / _IDS
    ids = read_json(path, way_out="remove it, and the run begins new charts") if path.exists() else {}
    if service not in ids:
        ids[service] = secrets.token_hex(4)
        write_json(path, ids)
    return ids[service]
