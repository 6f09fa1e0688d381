"""What a run logs: reads the metrics of past updates, averages them, estimates their noise, and keeps the time."""

import collections
import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from bsjax import gradient_noise
from bsjax.controllers import Observation
from bsjax.engine import METRICS, Engine
from bsjax.errors import DivergedError
from bsjax.gradient_noise import Averages, Estimate
from bsjax.metrics import MetricWriter, Progress
from bsjax.parallel import first_replica
from bsjax.plan import Update

# The metrics of an update are read when this many later ones are dispatched: the device never waits.
_READ_BEHIND = 2
# Of so many updates at once estimates are made, if nobody asks before: one by one they take three times as long.
_TAKE_UP_AT_ONCE = 256
# Averages; B_simple = trace / grad_sq in examples, and its 95 % interval.
_NOISE = ("gradient_noise_scale", "gradient_noise_scale_low", "gradient_noise_scale_high", "grad_sq", "grad_trace")
_LOGGED = ("loss", "accuracy", "grad_norm")  # as means over examples


class Every:
    """Whether a position is the first at or past another multiple of so many examples."""

    def __init__(self, num_examples: float, examples_seen: int):
        if not num_examples > 0:
            raise ValueError(f"an interval of {num_examples} examples; it must be positive")
        self._num_examples = num_examples
        self._count = self._multiples(examples_seen)

    def __call__(self, examples_seen: int) -> bool:
        count = self._multiples(examples_seen)
        due, self._count = count > self._count, count
        return due

    def _multiples(self, examples_seen: int) -> int:
        # The small number keeps 3 × 0.1 epochs from ending a hair past 0.3.
        return int(examples_seen / self._num_examples + 1e-9)


class TrainLog:
    """Reads the metrics of past updates and writes their means; keeps the time.

    Args:
      engine: that runs the updates.
      writer: of `metrics.jsonl`.
      progress: to show.
      dataset_size: N.
      log_every_epochs: how often a line is written.
      noise_half_life_epochs: of the averages behind the gradient noise scale.
      keep_observations: whether `observations` will be called.
      start: position in the example stream where the run began. This and what follows is what `to_json` returns.

    Attributes:
      num_updates, examples_seen: up to the last update that has been read.
      train_loss: the mean over the last stretch that was logged; None before the first.
      seconds: of training, without compilation and evaluation.
      branch_examples: that a controller's branches took, besides.
      num_stops: on how many devices their process wanted to stop at the last update that has been read.
    """

    def __init__(
        self,
        engine: Engine,
        writer: MetricWriter,
        progress: Progress,
        dataset_size: int,
        log_every_epochs: float,
        noise_half_life_epochs: float,
        keep_observations: bool,
        start: int,
        num_updates: int = 0,
        examples_seen: int | None = None,
        train_loss: float | None = None,
        seconds: float = 1e-9,
        sums: dict[str, float] | None = None,
        logged_at: Sequence[float] | None = None,
        averages: Mapping[str, float] | None = None,
        observations: Sequence[Sequence] = (),
        branch_examples: int = 0,
    ):
        self.num_updates = num_updates
        self.examples_seen = start if examples_seen is None else examples_seen
        self.train_loss = train_loss
        self.seconds = seconds
        self.num_stops = 0.0
        self.branch_examples = branch_examples
        self._start = start
        self._sums = sums or dict.fromkeys(_LOGGED, 0.0)
        self._logged_at = logged_at or (self.examples_seen, 0.0)  # examples, seconds
        self._averages = Averages(**averages) if averages else gradient_noise.zero_averages()
        self._observations = collections.deque(
            Observation(Update(*update), loss, Estimate(*noise), Averages(*means))
            for update, loss, noise, means in observations
        )
        self._engine = engine
        self._writer = writer
        self._progress = progress
        self._dataset_size = dataset_size
        self._half_life = noise_half_life_epochs * dataset_size
        self._keep_observations = keep_observations
        self._not_taken_up: list[tuple[Update, dict[str, float]]] = []
        self._is_due = Every(log_every_epochs * dataset_size, self.examples_seen)
        self._pending: collections.deque[tuple[Update, jax.Array]] = collections.deque()
        self._update: Update | None = None  # the last one that has been read

    def to_json(self) -> dict[str, Any]:
        """What the last arguments of the constructor take, to go on from here."""
        self._take_up()
        names = ("num_updates", "examples_seen", "train_loss", "seconds", "branch_examples")
        return {name: getattr(self, name) for name in names} | {
            "start": self._start,
            "sums": self._sums,
            "logged_at": self._logged_at,
            "averages": self._averages._asdict(),
            "observations": list(self._observations),
        }

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Counts the time inside as training, but for compilation."""
        start = time.perf_counter() - self._engine.stall_time_s
        yield
        self.seconds += time.perf_counter() - self._engine.stall_time_s - start

    def dispatched(self, update: Update, metrics: jax.Array) -> None:
        """Takes an update's metrics, to be read when later ones are under way."""
        self._pending.append((update, metrics))
        if len(self._pending) > _READ_BEHIND:
            self._read(*self._pending.popleft())

    def read_all(self, is_end: bool = False) -> None:
        """Waits for all updates; at the end of the run, a line is due."""
        with self.training():
            while self._pending:
                self._read(*self._pending.popleft())
        if is_end and self.examples_seen > self._logged_at[0]:
            self._write()

    def observations(self, before: int) -> Iterator[Observation]:
        """Those of updates before this one, each once."""
        self._take_up()
        while self._observations and self._observations[0].update.update < before:
            yield self._observations.popleft()

    def evaluated(self, evaluation: dict[str, float]) -> None:
        """Writes the line of an evaluation."""
        where = {"update": self.num_updates, "examples_seen": self.examples_seen}
        self._writer.write(**where, epoch=self.examples_seen / self._dataset_size, **evaluation)
        self._progress.evaluated(**evaluation)

    def noise_summary(self) -> dict[str, Any]:
        """The gradient noise scale in the end, or why there is none."""
        noise, reason = self._noise(), gradient_noise.reason(self._averages)
        if self._averages.weight == 0 and self._update is not None:
            reason = "one microbatch on one device: at least two are needed"
            if self._engine.num_shards(self._update.batch_size) == 0:
                reason = "devices share ghosts, whose parts are not independent: larger microbatches are needed"
        return {name: noise.get(name) for name in _NOISE} | {"gradient_noise_scale_reason": reason}

    def _read(self, update: Update, metrics: jax.Array) -> None:
        *numbers, self.num_stops = first_replica(metrics).tolist()
        values = dict(zip(METRICS, numbers, strict=True))
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            raise DivergedError(
                f"train_loss is {values['loss']:.4g} at update {update.update} "
                f"(epoch {update.examples_seen / self._dataset_size:.4g}) with batch_size {update.batch_size}, "
                f"learning_rate {update.learning_rate:.4g}, momentum {update.momentum:.4g}, "
                f"gradient norm {values['grad_norm']:.4g}; try a smaller learning rate"
            )
        self._update = update
        self.num_updates = update.update + 1
        self.examples_seen = update.examples_seen + update.batch_size
        for name in _LOGGED:
            self._sums[name] += values[name] * update.batch_size
        self._not_taken_up.append((update, values))
        if len(self._not_taken_up) == _TAKE_UP_AT_ONCE:
            self._take_up()
        self._progress.update(**self._where())
        if self._is_due(self.examples_seen):
            self._write()

    def _take_up(self) -> None:
        """What the updates read since the last call say of the noise."""
        for update, values in self._not_taken_up:
            num_shards = self._engine.num_shards(update.batch_size)
            noise = Estimate(math.nan, math.nan, update.batch_size, num_shards)
            if num_shards > 1:
                noise = gradient_noise.estimate(
                    values["weighted_grad_sq"],
                    values["grad_norm"] ** 2,
                    update.batch_size,
                    num_shards,
                    self._dataset_size,
                )
            if num_shards > 1 or self._averages.weight:
                self._averages = gradient_noise.update_averages(self._averages, noise, self._half_life)
            if self._keep_observations:
                self._observations.append(Observation(update, values["loss"], noise, self._averages))
        self._not_taken_up.clear()

    def _where(self) -> dict[str, Any]:
        assert self._update is not None
        return {
            "update": self.num_updates,
            "examples_seen": self.examples_seen,
            "batch_size": self._update.batch_size,
            "learning_rate": self._update.learning_rate,
        }

    def _noise(self) -> dict[str, float | None]:
        """What is known of the noise, {} before anything is."""
        self._take_up()
        averages = self._averages
        if averages.weight == 0:
            return {}
        numbers = (
            gradient_noise.gradient_noise_scale(averages),
            *gradient_noise.confidence_interval(averages),
            averages.grad_sq,
            averages.trace,
        )
        return {
            name: float(number) if math.isfinite(number) else None for name, number in zip(_NOISE, numbers, strict=True)
        }

    def _write(self) -> None:
        assert self._update is not None
        examples, seconds = self.examples_seen - self._logged_at[0], self.seconds - self._logged_at[1]
        means = {f"train_{name}": total / examples for name, total in self._sums.items()}
        self.train_loss = means["train_loss"]
        self._logged_at = self.examples_seen, self.seconds
        self._sums = dict.fromkeys(_LOGGED, 0.0)
        line = {
            **self._where(),
            "epoch": self.examples_seen / self._dataset_size,
            "momentum": self._update.momentum,
            **means,
            **self._noise(),
            "examples_per_second": examples / max(seconds, 1e-9),
        }
        self._writer.write(**line)
        self._progress.update(**line)
