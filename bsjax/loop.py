"""The training loop: walks through a plan, logs, evaluates, and leaves a run's files in its workdir."""

import collections
import contextlib
import itertools
import math
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from bsjax.checkpoint import Checkpoints
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
    checkpoint_every_epochs: float = math.inf,
    stop_after_s: float = math.inf,
    show: str = "auto",
) -> dict[str, Any] | None:
    """Trains along a plan, from the last checkpoint if there is one.

    Writes `metrics.jsonl` (a line per `log_every_epochs` with the means over the updates since the last
    one, and a line per evaluation) and, at the end, `summary.json`.

    Args:
      engine: runs the updates.
      plan: what they are.
      workdir: an existing folder.
      eval_every_epochs: evaluate after the first update that ends at or past each multiple of this, and at the end.
      log_every_epochs: likewise.
      checkpoint_every_epochs: likewise; infinite: only to stop early.
      stop_after_s: write a checkpoint and return after the first update that ends this many seconds after the call.
      show: see `bsjax.metrics.Progress`.

    Returns:
      The summary, or None if the run stopped early: call again to go on.

    Raises:
      DivergedError: the loss is NaN or infinite. What was logged stays, and the summary says where it happened.
    """
    started = time.perf_counter()
    with contextlib.ExitStack() as exits:
        checkpoints = exits.enter_context(contextlib.closing(Checkpoints(workdir / "checkpoints")))
        state = engine.init()
        before: dict[str, Any] = {"metrics_size": 0, "log": {}, "times": {}}
        if checkpoints.latest is not None:
            replica, before = checkpoints.restore(first_replica(state))
            state = engine.place(replica)
        writer = exits.enter_context(
            contextlib.closing(MetricWriter(workdir / "metrics.jsonl", before["metrics_size"]))
        )
        progress = exits.enter_context(contextlib.closing(Progress(plan.num_examples, plan.dataset_size, show)))
        log = _TrainLog(engine, plan, writer, progress, log_every_epochs, **before["log"])

        def times() -> dict[str, float]:
            """Over all the calls that the run took."""
            these = {
                "wall_time_s": time.perf_counter() - started,
                "compile_time_s": engine.compile_time_s,
                "compile_stall_time_s": engine.stall_time_s,
            }
            return {name: round(seconds + before["times"].get(name, 0), 3) for name, seconds in these.items()}

        def finish(**outcome: Any) -> dict[str, Any]:
            summary = {
                **outcome,
                "num_updates": log.num_updates,
                "examples_seen": log.examples_seen,
                "final_train_loss": log.train_loss,
                "examples_per_second": round(log.examples_seen / log.seconds, 1),
                **times(),
                "num_compilations": engine.num_compilations,
                "num_devices": engine.num_devices,
            }
            write_json(workdir / "summary.json", summary)
            return summary

        is_eval_due = _Every(eval_every_epochs * plan.dataset_size, log.examples_seen)
        is_checkpoint_due = _Every(checkpoint_every_epochs * plan.dataset_size, log.examples_seen)
        next_batch_sizes = iter([phase.batch_size for phase in plan.phases if phase.start_update > log.num_updates])
        batch_size = None
        try:
            for update in map(plan.__getitem__, range(log.num_updates, plan.num_updates)):
                with log.training():
                    state, metrics = engine.update(
                        state, update.examples_seen, update.batch_size, update.learning_rate, update.momentum
                    )
                    log.dispatched(update, metrics)
                if update.batch_size != batch_size:
                    batch_size = update.batch_size
                    for next_batch_size in itertools.islice(next_batch_sizes, 1):
                        engine.compile_ahead(state, next_batch_size)
                is_last = update.update == plan.num_updates - 1
                if is_eval_due(update) or is_last:
                    log.read_all()
                    evaluation = engine.evaluate(state)
                    log.evaluated(evaluation)
                is_stop_due = time.perf_counter() - started > stop_after_s and not is_last
                if is_checkpoint_due(update) or is_stop_due:
                    log.read_all()
                    where = {"metrics_size": writer.size, "log": log.to_json(), "times": times()}
                    checkpoints.save(log.num_updates, first_replica(state), where)
                if is_stop_due:
                    return None
        except DivergedError as error:
            finish(completed=False, error=str(error))
            raise
        return finish(completed=True, **{f"final_{name}": value for name, value in evaluation.items()})


class _Every:
    """Whether an update is the first to end at or past another multiple of so many examples."""

    def __init__(self, num_examples: float, examples_seen: int):
        if not num_examples > 0:
            raise ValueError(f"an interval of {num_examples} examples; it must be positive")
        self._num_examples = num_examples
        self._count = self._multiples(examples_seen)

    def __call__(self, update: Update) -> bool:
        count = self._multiples(update.examples_seen + update.batch_size)
        due, self._count = count > self._count, count
        return due

    def _multiples(self, examples_seen: int) -> int:
        # The small number keeps 3 × 0.1 epochs from ending a hair past 0.3.
        return int(examples_seen / self._num_examples + 1e-9)


class _TrainLog:
    """Reads the metrics of past updates and writes their means; keeps the time.

    Attributes:
      num_updates, examples_seen: up to the last update that has been read.
      train_loss: the mean over the last stretch that was logged; None before the first.
      seconds: of training, without compilation and evaluation.
    """

    def __init__(
        self,
        engine: Engine,
        plan: Plan,
        writer: MetricWriter,
        progress: Progress,
        log_every_epochs: float,
        num_updates: int = 0,
        examples_seen: int = 0,
        train_loss: float | None = None,
        seconds: float = 1e-9,
        sums: dict[str, float] | None = None,
        logged_at: Sequence[float] = (0, 0.0),
    ):
        self.num_updates = num_updates
        self.examples_seen = examples_seen
        self.train_loss = train_loss
        self.seconds = seconds
        self._sums = sums or dict.fromkeys(METRICS, 0.0)
        self._logged_at = logged_at  # examples, seconds
        self._engine = engine
        self._plan = plan
        self._writer = writer
        self._progress = progress
        self._is_due = _Every(log_every_epochs * plan.dataset_size, examples_seen)
        self._pending: collections.deque[tuple[Update, jax.Array]] = collections.deque()

    def to_json(self) -> dict[str, Any]:
        """What the last arguments of the constructor take, to go on from here."""
        names = ("num_updates", "examples_seen", "train_loss", "seconds")
        return {name: getattr(self, name) for name in names} | {"sums": self._sums, "logged_at": self._logged_at}

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
        with self.training():
            while self._pending:
                self._read(*self._pending.popleft())

    def evaluated(self, evaluation: dict[str, float]) -> None:
        where = {"update": self.num_updates, "examples_seen": self.examples_seen}
        self._writer.write(**where, epoch=self.examples_seen / self._plan.dataset_size, **evaluation)
        self._progress.evaluated(**evaluation)

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
