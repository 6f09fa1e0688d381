"""The updates that a run has read, and their means between two lines of its log."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bsjax.errors import DivergedError
from bsjax.plan import Update


class ReadUpdate(NamedTuple):
    """An update whose metrics have been read from the device."""

    update: Update
    metrics: Mapping[str, float]  # see `bsjax.engine.UpdateMetrics.read`

    def check_finite(self, dataset_size: int) -> None:
        """Raises DivergedError if the loss or the gradient is not finite."""
        update, loss, grad_norm = self.update, self.metrics["loss"], self.metrics["grad_norm"]
        if not math.isfinite(loss) or not math.isfinite(grad_norm):
            raise DivergedError(
                f"train_loss is {loss:.4g} at update {update.update} (epoch {update.examples_seen / dataset_size:.4g}) "
                f"with batch_size {update.batch_size}, learning_rate {update.learning_rate:.4g}, "
                f"momentum {update.momentum:.4g}, gradient norm {grad_norm:.4g}; "
                "try a smaller learning rate, in another folder"
            )


class LogState(NamedTuple):
    """Where a run is, up to the last update that has been read, and the content of its next line."""

    start: int  # position in the example stream where the run began
    examples_seen: int  # position after `last`
    last: Update | None = None
    num_updates: int = 0
    branch_examples: int = 0  # examples that the branches of a controller took in addition
    train_loss: float | None = None  # the mean of the last line
    sums: Mapping[str, float] = {}  # of the metrics since the last line, each times its batch size
    logged_examples: int = 0  # examples_seen of the last line
    logged_s: float = 0.0  # seconds of training at the last line
    logged_wait_s: float = 0.0  # seconds of waiting for examples at the last line

    @classmethod
    def at(cls, start: int, names: Sequence[str]) -> "LogState":
        """The state of a run that begins at this position and logs these metrics.

        >>> from bsjax.plan import Update
        >>> state = LogState.at(0, ["loss"])
        >>> state = add(state, ReadUpdate(Update(0, 0, 2, 0.1, 0.9), {"loss": 1.0}))
        >>> state = add(state, ReadUpdate(Update(1, 2, 4, 0.1, 0.9), {"loss": 4.0}))
        >>> means, times, _ = line(state, training_s=2.0, input_wait_s=0.5)
        >>> means, times.columns(), times.input_share
        ({'train_loss': 3.0}, {'examples_per_second': 3.0, 'input_wait_s': 0.5}, 0.25)
        """
        return cls(start, start, sums=dict.fromkeys(names, 0.0), logged_examples=start)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "LogState":
        """The state from the JSON of its `_asdict()`."""
        return cls(**{**value, "last": value["last"] and Update(*value["last"])})


class Times(NamedTuple):
    """The time between two lines of a log."""

    examples_per_second: float
    input_wait_s: float | None  # seconds that updates waited for examples; None where these are on the devices
    input_share: float  # of the seconds of training

    def columns(self) -> dict[str, float]:
        """What a line says of it."""
        columns = {"examples_per_second": self.examples_per_second}
        return columns if self.input_wait_s is None else columns | {"input_wait_s": self.input_wait_s}


def add(state: LogState, read: ReadUpdate) -> LogState:
    """The state after another update."""
    update, metrics = read
    return state._replace(
        last=update,
        num_updates=update.update + 1,
        examples_seen=update.examples_seen + update.batch_size,
        sums={name: total + metrics[name] * update.batch_size for name, total in state.sums.items()},
    )


def line(state: LogState, training_s: float, input_wait_s: float | None) -> tuple[dict[str, float], Times, LogState]:
    """The means over the examples since the last line, their time, and the state after this line.

    Args:
      state: before the line.
      training_s: seconds of training since the run began.
      input_wait_s: seconds of them that waited for examples; None where examples are on the devices.
    """
    examples, seconds = state.examples_seen - state.logged_examples, max(training_s - state.logged_s, 1e-9)
    waited = None if input_wait_s is None else input_wait_s - state.logged_wait_s
    times = Times(examples / seconds, waited, (waited or 0.0) / seconds)
    means = {f"train_{name}": total / examples for name, total in state.sums.items()}
    sums, loss = dict.fromkeys(state.sums, 0.0), means.get("train_loss")
    state = state._replace(sums=sums, train_loss=loss, logged_examples=state.examples_seen, logged_s=training_s)
    return means, times, state._replace(logged_wait_s=input_wait_s or 0.0)
