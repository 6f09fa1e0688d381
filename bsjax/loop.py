"""The training loop: walks through a plan, logs, evaluates, and leaves a run's files in its workdir."""

import collections
import contextlib
import itertools
import json
import math
import os
import pathlib
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from bsjax.checkpoint import Checkpoint, Checkpoints, Unusable
from bsjax.engine import METRICS, Engine
from bsjax.errors import InvalidArgument, RunError
from bsjax.metrics import MetricWriter, Position, Progress, holds, write_json
from bsjax.parallel import barrier, check_same_everywhere, first_replica, is_first_process
from bsjax.plan import Plan, Update
from bsjax.workdir import lock

# The metrics of an update are read when this many later ones are dispatched: the device never waits.
_READ_BEHIND = 2


# Before a phase with at least this share of the examples, a checkpoint is written.
_LONG_PHASE = 0.01


class DivergedError(RunError):
    """The loss, or its gradient, is not finite any more."""


def train(
    engine: Engine,
    plan: Plan,
    workdir: pathlib.Path,
    eval_every_epochs: float = 1.0,
    log_every_epochs: float = 1.0,
    checkpoint_every_epochs: float = math.inf,
    keep_checkpoints: int = 2,
    should_stop: Callable[[], bool] = lambda: False,
    about: Mapping[str, Any] | None = None,
    fork: Checkpoint | None = None,
    show: str = "auto",
) -> dict[str, Any] | None:
    """Trains along a plan, from the last checkpoint if there is one.

    Writes `metrics.jsonl` (a line per `log_every_epochs` with the means over the updates since the last
    one, and a line per evaluation) and, at the end, `summary.json`. Checkpoints are written where the batch size
    changes (for a hundredth of the run or longer), when it stops, and at its end. Holds the folder meanwhile.
    With many processes, each calls this with the same arguments; the first one writes.

    Args:
      engine: runs the updates.
      plan: what they are.
      workdir: an existing folder, which all processes see.
      eval_every_epochs: evaluate after the first update that ends at or past each multiple of this, and at the end.
      log_every_epochs: likewise.
      checkpoint_every_epochs: likewise; infinite: not for this reason.
      keep_checkpoints: how many of the newest stay.
      should_stop: is asked after each update whether to write a checkpoint and return; if any process's says so,
        all stop after the same update.
      about: is written to `config.json`; a checkpoint with another entry "config" is refused.
      fork: where to begin if the folder has no checkpoint: the state of another run, whose
        `progress["log"]["examples_seen"]` is the plan's start.
      show: see `bsjax.metrics.Progress`.

    Returns:
      The summary, or None if the run stopped early: call again to go on.

    Raises:
      DivergedError: the loss is NaN or infinite. What was logged stays, and the summary says where it happened.
      InvalidArgument: the folder's checkpoint is of another run.
      RunError: the folder is in use, or no checkpoint in it can be used, or one cannot be written.
    """
    started = time.perf_counter()
    is_first, is_alone = is_first_process(), jax.process_count() == 1
    metrics_path = workdir / "metrics.jsonl"
    config = (about or {}).get("config", {})
    identity = json.loads(json.dumps({**engine.identity, "plan": _fingerprint(plan), **config}))

    check_same_everywhere(identity)

    def check(progress: dict[str, Any]) -> None:
        _check_same_run(workdir, progress["identity"], identity)
        if not holds(metrics_path, Position(*progress["metrics"])):
            raise Unusable("metrics.jsonl does not reach so far, or differs")

    with contextlib.ExitStack() as exits:
        if is_first:
            exits.enter_context(lock(workdir))
        checkpoints = exits.enter_context(contextlib.closing(Checkpoints(workdir / "checkpoints", keep_checkpoints)))
        state = engine.init()
        before: dict[str, Any] = {"metrics": Position(), "log": {"examples_seen": plan.start}, "times": {}}
        found = checkpoints.restore(first_replica(state), check)
        if begin := found or fork:
            state = engine.place(begin.state)
        if found:
            before = found.progress
        barrier("all have read the checkpoint")
        if is_first and about is not None:
            write_json(workdir / "config.json", about)
        position = Position(*before["metrics"])
        writer = MetricWriter(metrics_path, position) if is_first else MetricWriter(pathlib.Path(os.devnull))
        exits.enter_context(contextlib.closing(writer))
        progress = Progress(plan.num_examples, plan.dataset_size, show if is_first else "none", start=plan.start)
        exits.enter_context(contextlib.closing(progress))
        log = _TrainLog(engine, plan, writer, progress, log_every_epochs, **before["log"])

        def times() -> dict[str, float]:
            """Over all the calls that the run took."""
            these = {
                "wall_time_s": time.perf_counter() - started,
                "compile_time_s": engine.compile_time_s,
                "compile_stall_time_s": engine.stall_time_s,
            }
            return {name: round(seconds + before["times"].get(name, 0), 3) for name, seconds in these.items()}

        def save() -> None:
            log.read_all()
            where = {"identity": identity, "metrics": writer.flush(), "log": log.to_json(), "times": times()}
            where["evaluation"] = evaluation  # the last one, for a run that ends before its summary is written
            checkpoints.save(Checkpoint(log.num_updates, first_replica(state), where))

        def finish(**outcome: Any) -> dict[str, Any]:
            summary = {
                **outcome,
                "num_updates": log.num_updates,
                "examples_seen": log.examples_seen,
                "final_train_loss": log.train_loss,
                "examples_per_second": round((log.examples_seen - plan.start) / log.seconds, 1),
                **times(),
                "num_compilations": engine.num_compilations,
                "num_devices": engine.num_devices,
            }
            if is_first:
                write_json(workdir / "summary.json", summary)
            barrier("the summary is written")
            return summary

        evaluation: dict[str, float] = before.get("evaluation", {})
        if fork and not found:
            save()  # from now on the other run is not needed
        is_eval_due = _Every(eval_every_epochs * plan.dataset_size, log.examples_seen)
        is_checkpoint_due = _Every(checkpoint_every_epochs * plan.dataset_size, log.examples_seen)
        phase_starts = _starts_of_long_phases(plan)
        next_batch_sizes = iter([phase.batch_size for phase in plan.phases if phase.start_update > log.num_updates])
        batch_size, stopping = None, False
        try:
            for update in map(plan.__getitem__, range(log.num_updates, plan.num_updates)):
                with log.training():
                    state, metrics = engine.update(state, *update[1:], stopping)
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
                stopping = should_stop()
                is_stop_due = (stopping if is_alone else log.num_stops > 0) and not is_last
                if is_checkpoint_due(update) or update.update + 1 in phase_starts or is_stop_due or is_last:
                    save()
                if is_stop_due:
                    return None
        except DivergedError as error:
            finish(completed=False, error=str(error))
            raise
        checkpoints.wait()
        return finish(completed=True, **{f"final_{name}": value for name, value in evaluation.items()})


def _fingerprint(plan: Plan) -> str:
    return f"{plan.num_updates:,} updates from example {plan.start:,}, CRC-32 {zlib.crc32(plan.to_json().encode())}"


def _check_same_run(workdir: pathlib.Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    differing = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    if differing:
        fields = "; ".join(f"{name} {there.get(name)!r} there, {here.get(name)!r} here" for name in differing)
        raise InvalidArgument("workdir", str(workdir), f"empty or of this run; its checkpoint has {fields}")


def _starts_of_long_phases(plan: Plan) -> set[int]:
    long = _LONG_PHASE * (plan.num_examples - plan.start)
    return {phase.start_update for phase in plan.phases[1:] if phase.num_updates * phase.batch_size >= long}


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
      num_stops: on how many devices their process wanted to stop at the last update that has been read.
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
        logged_at: Sequence[float] | None = None,
    ):
        self.num_updates = num_updates
        self.examples_seen = examples_seen
        self.train_loss = train_loss
        self.seconds = seconds
        self._sums = sums or dict.fromkeys(METRICS, 0.0)
        self._logged_at = logged_at or (examples_seen, 0.0)  # examples, seconds
        self.num_stops = 0.0
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
        *numbers, self.num_stops = first_replica(metrics).tolist()
        values = dict(zip(METRICS, numbers, strict=True))
        if not (math.isfinite(values["loss"]) and math.isfinite(values["grad_norm"])):
            raise DivergedError(
                f"train_loss is {values['loss']:.4g} at update {update.update} "
                f"(epoch {update.examples_seen / self._plan.dataset_size:.4g}) with batch_size {update.batch_size}, "
                f"learning_rate {update.learning_rate:.4g}, momentum {update.momentum:.4g}, "
                f"gradient norm {values['grad_norm']:.4g}; try a smaller learning rate"
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
