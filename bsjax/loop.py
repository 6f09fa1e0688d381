"""The training loop: walks through a plan, logs, evaluates, and leaves a run's files in its workdir."""

import collections
import contextlib
import math
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax

from bsjax.engine import METRICS, Engine
from bsjax.metrics import MetricWriter, Progress, write_json
from bsjax.parallel import first_replica
from bsjax.plan import Plan, Update

# The metrics of an update are read when this many later ones are dispatched: the device never waits.
_READ_BEHIND = 2


class DivergedError(RuntimeError):
    """The loss is not finite any more."""


def train(
    engine: Engine,
    plan: Plan,
    workdir: pathlib.Path,
    eval_every_epochs: float = 1.0,
    log_every_epochs: float = 1.0,
    show: str = "auto",
) -> dict[str, Any]:
    """Trains along a plan.

    Writes `metrics.jsonl` (a line per `log_every_epochs` with the means over the updates since the last
    one, and a line per evaluation) and, at the end, `summary.json`.

    Args:
      engine: runs the updates.
      plan: what they are.
      workdir: an existing folder.
      eval_every_epochs: evaluate after the first update that ends at or past each multiple of this, and at the end.
      log_every_epochs: likewise.
      show: see `bsjax.metrics.Progress`.

    Returns:
      The summary.

    Raises:
      DivergedError: the loss is NaN or infinite. What was logged stays, and the summary says where it happened.
    """
    started = time.perf_counter()
    writer = MetricWriter(workdir / "metrics.jsonl")
    progress = Progress(plan.num_examples, plan.dataset_size, show)
    log = _TrainLog(engine, plan, writer, progress, log_every_epochs)

    def finish(**outcome: Any) -> dict[str, Any]:
        summary = {
            **outcome,
            "num_updates": log.num_updates,
            "examples_seen": log.examples_seen,
            "final_train_loss": log.train_loss,
            "examples_per_second": round(log.examples_seen / log.seconds, 1),
            "wall_time_s": round(time.perf_counter() - started, 3),
            "compile_time_s": round(engine.compile_time_s, 3),
            "compile_stall_time_s": round(engine.stall_time_s, 3),
            "num_compilations": engine.num_compilations,
            "num_devices": engine.num_devices,
        }
        write_json(workdir / "summary.json", summary)
        return summary

    with contextlib.closing(writer), contextlib.closing(progress):
        try:
            evaluation = _walk(engine, plan, log, writer, progress, eval_every_epochs)
        except DivergedError as error:
            finish(completed=False, error=str(error))
            raise
        return finish(completed=True, **{f"final_{name}": value for name, value in evaluation.items()})


def _walk(
    engine: Engine, plan: Plan, log: "_TrainLog", writer: MetricWriter, progress: Progress, eval_every_epochs: float
) -> dict[str, float]:
    """Runs every update; returns the last evaluation."""
    state = engine.init()
    next_batch_sizes = iter([phase.batch_size for phase in plan.phases[1:]])
    batch_size = None
    is_eval_due = _Every(eval_every_epochs * plan.dataset_size)
    evaluation: dict[str, float] = {}
    for update in plan:
        with log.training():
            state, metrics = engine.update(
                state, update.examples_seen, update.batch_size, update.learning_rate, update.momentum
            )
            log.dispatched(update, metrics)
        if update.batch_size != batch_size:
            batch_size = update.batch_size
            for next_batch_size in next_batch_sizes:
                engine.compile_ahead(state, next_batch_size)
                break
        if is_eval_due(update) or update.update == plan.num_updates - 1:
            with log.training():
                log.read_all()
            evaluation = engine.evaluate(state)
            where = {"update": log.num_updates, "examples_seen": log.examples_seen}
            writer.write(**where, epoch=log.examples_seen / plan.dataset_size, **evaluation)
            progress.evaluated(**evaluation)
    return evaluation


class _Every:
    """Whether an update is the first to end at or past another multiple of so many examples."""

    def __init__(self, num_examples: float):
        self._num_examples = num_examples
        self._count = 0

    def __call__(self, update: Update) -> bool:
        # The small number keeps 3 × 0.1 epochs from ending a hair past 0.3.
        count = int((update.examples_seen + update.batch_size) / self._num_examples + 1e-9)
        due, self._count = count > self._count, count
        return due


class _TrainLog:
    """Reads the metrics of past updates and writes their means; keeps the time.

    Attributes:
      num_updates, examples_seen: up to the last update that has been read.
      train_loss: the mean over the last stretch that was logged; None before the first.
      seconds: of training, without compilation and evaluation.
    """

    def __init__(self, engine: Engine, plan: Plan, writer: MetricWriter, progress: Progress, log_every_epochs: float):
        self.num_updates = 0
        self.examples_seen = 0
        self.train_loss: float | None = None
        self.seconds = 1e-9
        self._engine = engine
        self._plan = plan
        self._writer = writer
        self._progress = progress
        self._is_due = _Every(log_every_epochs * plan.dataset_size)
        self._pending: collections.deque[tuple[Update, jax.Array]] = collections.deque()
        self._sums = dict.fromkeys(METRICS, 0.0)
        self._logged_at = (0, 0.0)  # examples, seconds

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Counts the time inside as training, but for compilation."""
        start = time.perf_counter() - self._engine.stall_time_s
        yield
        self.seconds += time.perf_counter() - self._engine.stall_time_s - start

    def dispatched(self, update: Update, metrics: jax.Array) -> None:
        self._pending.append((update, metrics))
        if len(self._pending) > _READ_BEHIND:
            self._read(*self._pending.popleft())

    def read_all(self) -> None:
        while self._pending:
            self._read(*self._pending.popleft())

    def _read(self, update: Update, metrics: jax.Array) -> None:
        values = dict(zip(METRICS, first_replica(metrics).tolist(), strict=True))
        if not math.isfinite(values["loss"]):
            raise DivergedError(
                f"train_loss is {values['loss']} at update {update.update} "
                f"(epoch {update.examples_seen / self._plan.dataset_size:.4g}) with batch_size {update.batch_size}, "
                f"learning_rate {update.learning_rate:.4g}, momentum {update.momentum:.4g}; try a smaller learning rate"
            )
        self.num_updates = update.update + 1
        self.examples_seen = update.examples_seen + update.batch_size
        for name, value in values.items():
            self._sums[name] += value * update.batch_size
        where = {
            "update": self.num_updates,
            "examples_seen": self.examples_seen,
            "batch_size": update.batch_size,
            "learning_rate": update.learning_rate,
        }
        self._progress.update(**where)
        if self._is_due(update) or self.num_updates == self._plan.num_updates:
            examples, seconds = self.examples_seen - self._logged_at[0], self.seconds - self._logged_at[1]
            means = {f"train_{name}": total / examples for name, total in self._sums.items()}
            self.train_loss = means["train_loss"]
            self._logged_at = self.examples_seen, self.seconds
            self._sums = dict.fromkeys(METRICS, 0.0)
            line = {
                **where,
                "epoch": self.examples_seen / self._plan.dataset_size,
                "momentum": update.momentum,
                **means,
                "examples_per_second": examples / max(seconds, 1e-9),
            }
            self._writer.write(**line)
            self._progress.update(**line)
