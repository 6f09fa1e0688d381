"""The wall time of a run, and its parts."""

import contextlib
import time
from collections.abc import Iterator, Mapping

from bsjax.engine import Engine


class Timer:
    """Measures the time of a run, over all the calls of `bsjax.run.train` that the run takes.

    Args:
      engine: measures its own compilation.
    """

    def __init__(self, engine: Engine):
        self._engine = engine
        self._started = time.perf_counter()
        self._before: Mapping[str, float] = {}
        self._training_s = 1e-9
        self._since: float | None = None  # when the training that runs began
        self._input_wait_s: float | None = None

    @property
    def training_s(self) -> float:
        """Seconds of updates until now, without compilation and evaluation."""
        return self._training_s + (0.0 if self._since is None else self._now() - self._since)

    @property
    def input_wait_s(self) -> float | None:
        """Seconds of `training_s` that updates waited for examples; None where these are on the devices."""
        return self._input_wait_s

    def resume(self, before: Mapping[str, float]) -> None:
        """Adds the times that `to_json` returned in the previous call."""
        self._before, self._training_s = before, before["training_s"]
        self._input_wait_s = before.get("input_wait_s")

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Counts the time inside as training, without the time that waits for compilation."""
        self._since, waited = self._now(), self._engine.input_wait_s or 0.0
        try:
            yield
        finally:
            self._training_s, self._since = self.training_s, None
            if (waiting := self._engine.input_wait_s) is not None:
                self._input_wait_s = (self._input_wait_s or 0.0) + waiting - waited

    def _now(self) -> float:
        return time.perf_counter() - self._engine.stall_time_s

    def speeds(self, num_examples: int) -> dict[str, float]:
        """Examples, and what people count where an example has several, such as tokens, per second of training."""
        speed, task = num_examples / self.training_s, self._engine.task
        speeds = {"examples_per_second": speed}
        if task.units_per_example > 1:
            speeds[f"{task.unit}_per_second"] = speed * task.units_per_example
        return {name: round(value, 1) for name, value in speeds.items()}

    def totals(self) -> dict[str, float]:
        """Seconds of the whole run, of compilation, and of training's waits for compilation and for examples."""
        these = {
            "wall_time_s": time.perf_counter() - self._started,
            "compile_time_s": self._engine.compile_time_s,
            "compile_stall_time_s": self._engine.stall_time_s,
        }
        totals = {name: round(seconds + self._before.get(name, 0), 3) for name, seconds in these.items()}
        return totals if self._input_wait_s is None else totals | {"input_wait_s": round(self._input_wait_s, 3)}

    def to_json(self) -> dict[str, float]:
        return self.totals() | {"training_s": self.training_s}
