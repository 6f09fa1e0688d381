"""An open run: its state, and the operations on it."""

import collections
import contextlib
import dataclasses
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from bsjax.controllers import LAG, Controller
from bsjax.engine import Engine, UpdateMetrics
from bsjax.engine.devices import barrier, first_replica, is_first_process
from bsjax.errors import DivergedError
from bsjax.plan import Update
from bsjax.run import identity as identities
from bsjax.run import log
from bsjax.run.charts import Charts, LogWriter, Opening
from bsjax.run.checkpoint import Checkpoint, Checkpoints, Unusable
from bsjax.run.cost import CostMeter
from bsjax.run.input import BadExamples, warning
from bsjax.run.intervals import CheckpointClock, Intervals, is_due
from bsjax.run.log import LogState, ReadUpdate
from bsjax.run.metrics import Position, holds, write_json
from bsjax.run.noise import NoiseMeter, noise_in_units
from bsjax.run.profile import Profile
from bsjax.run.progress import Progress, ProgressLine, Show
from bsjax.run.state import RunState
from bsjax.run.timing import Timer
from bsjax.run.workdir import lock

# The metrics of an update are read once this many later ones are dispatched: the device never waits.
_READ_BEHIND = 2


class Run:
    """A run between two updates, which holds its folder and its files until it is closed.

    It begins with the last checkpoint in the folder if there is one. The arguments are those of `bsjax.run.train`, and
    the identity that `bsjax.run.identity.of_run` returns.

    Attributes:
      state: a RunState.

    Raises:
      InvalidArgument: the folder's checkpoint is of another run.
      RunError: the folder is in use, or no checkpoint can be used.
    """

    def __init__(
        self,
        engine: Engine,
        controller: Controller,
        workdir: pathlib.Path,
        intervals: Intervals,
        identity: Mapping[str, Any],
        about: Mapping[str, Any] | None,
        fork: Checkpoint | None,
        show: Show,
        peak_flops_per_s: float | None,
        log_to: Sequence[str | Charts],
    ):
        self._engine, self._controller, self._workdir = engine, controller, workdir
        self._intervals, self._identity = intervals, identity
        self._dataset_size, self._batch_sizes = controller.dataset_size, sorted(controller.batch_sizes)
        self._timer, self._cost = Timer(engine), CostMeter(engine, peak_flops_per_s)
        self._bad_examples, self._warns_of_input = BadExamples(engine, workdir), True
        self._unread: collections.deque[tuple[Update, UpdateMetrics]] = collections.deque()
        half_life = intervals.noise_half_life_epochs * controller.dataset_size
        self._noise = NoiseMeter(engine.num_shards, engine.dataset_size, half_life, controller.needs_observations)
        self.state: RunState
        self._compiled: int | None = None
        self._is_fork_to_save = False
        self._num_stops = 0.0  # devices whose process wants to stop, by the last update that has been read
        with contextlib.ExitStack() as exits:
            if is_first_process():
                exits.enter_context(lock(workdir))
            self._checkpoints = Checkpoints(workdir / "checkpoints", intervals.keep_checkpoints)
            exits.enter_context(contextlib.closing(self._checkpoints))
            found, position = self._restore(fork)
            barrier("all have read the checkpoint")
            unit = engine.task.unit, engine.task.units_per_example
            layouts = engine.layout_choice.describe(self._batch_sizes, *unit)  # measures if need be
            self._writer = exits.enter_context(contextlib.closing(self._open_files(about, position, log_to)))
            self._progress = exits.enter_context(contextlib.closing(self._make_progress(show)))
            self._progress.note(layouts)
            profile = Profile(intervals.profile_updates, workdir / "profile", self.state.log.num_updates)
            self._profile = exits.enter_context(contextlib.closing(profile))
            if jax.process_count() > 1:  # their clocks differ
                intervals = dataclasses.replace(intervals, checkpoint_min_s=0.0)
            num_examples, now = controller.num_examples - self.state.log.start, time.perf_counter()
            self._checkpoint_clock = CheckpointClock(
                intervals, self._dataset_size, num_examples, self.state.log.examples_seen, now
            )
            # After its first update, not before: a loss that fails leaves no checkpoint.
            self._is_fork_to_save = fork is not None and not found
            self._exits = exits.pop_all()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._exits.__exit__(*exception)

    def update(self, stop: bool) -> None:
        """Dispatches the next update, reads older ones, and begins to compile the next larger batch size."""
        update = self.state.update
        assert update is not None
        with self._profile.update(update.update, lambda: self.state.train), self._timer.training():
            train, metrics = self._engine.update(self.state.train, update, stop)
            self.state = self.state._replace(train=train)
            self._unread.append((update, metrics))
            self._read(behind=_READ_BEHIND)
        self._cost.add(update.batch_size)
        if update.batch_size != self._compiled:
            self._compiled = update.batch_size
            for larger in [size for size in self._batch_sizes if size > update.batch_size][:1]:
                self._engine.compile_ahead(self.state.train, larger)

    def decide(self) -> None:
        """Lets the controller observe updates, `LAG` updates late, try branches, and decide the next update."""
        update, controller = self.state.update, self.state.controller
        assert update is not None
        if self._controller.needs_observations:
            observations, noise = self._noise.observations(self.state.noise, before=update.update - LAG + 1)
            self.state = self.state._replace(noise=noise)
            for observation in observations:
                controller = self._controller.observe(controller, observation)
        if branches := self._controller.branches(controller):
            self._read_all()
            controller = self._controller.observe_branches(controller, self._try(branches))
        following, controller = self._controller.decide(controller)
        self.state = self.state._replace(update=following, controller=controller)

    def is_evaluation_due(self, update: Update) -> bool:
        """Whether to evaluate after this update."""
        return is_due(self._intervals.eval_every_epochs * self._dataset_size, update) or self.state.update is None

    def evaluate(self) -> None:
        """Evaluates, and writes its line; at the end of the run, the last line of means before."""
        self._read_all()
        if self.state.update is None and self.state.log.examples_seen > self.state.log.logged_examples:
            self._write_line()
        evaluation = self._engine.evaluate(self.state.train)
        self._bad_examples.write()
        self.state = self.state._replace(evaluation=evaluation)
        self._writer.write(**self._position(), epoch=self._epoch(), **evaluation)
        self._progress.evaluated(**evaluation)

    def is_stop_due(self, stopping: bool) -> bool:
        """Whether all processes stop here, if `stopping` is what this one wants."""
        wanted = stopping if jax.process_count() == 1 else self._num_stops > 0
        return wanted and self.state.update is not None

    def is_checkpoint_due(self, update: Update) -> bool:
        """Whether to write a checkpoint after this update."""
        is_first, self._is_fork_to_save = self._is_fork_to_save, False
        return is_first or self._checkpoint_clock.is_due(update, self.state.update, time.perf_counter())

    def save(self) -> None:
        """Begins to write a checkpoint of the state."""
        self._read_all()
        self.state = self.state._replace(noise=self._noise.estimate(self.state.noise))
        progress = {
            "identity": self._identity,
            "metrics": self._writer.flush(),
            "times": self._timer.to_json(),
            "measured_times": self._engine.layout_choice.measured,
            "cost": self._cost.to_json(),
            **self.state.to_json(),
        }
        checkpoint = Checkpoint(self.state.log.num_updates, first_replica(self.state.train), progress)
        self._checkpoints.save(checkpoint)
        self._checkpoint_clock.saved(time.perf_counter())

    def complete(self) -> dict[str, Any]:
        """Writes the summary of a run at its end, once its last checkpoint is on the disk, and returns it."""
        self._checkpoints.wait()
        final = {f"final_{name}": value for name, value in self.state.evaluation.items()}
        return self._write_summary(completed=True, **final)

    def diverge(self, error: DivergedError) -> None:
        """Writes the summary of a run that cannot continue."""
        self._write_summary(completed=False, error=str(error))

    def _write_summary(self, **outcome: Any) -> dict[str, Any]:
        where = self.state.log
        num_examples = where.examples_seen - where.start
        noise = self._noise.summary(self._noise.estimate(self.state.noise), where.last)
        summary = {
            **outcome,
            "num_updates": where.num_updates,
            "examples_seen": where.examples_seen,
            "branch_examples": where.branch_examples,
            "final_train_loss": where.train_loss,
            **noise,
            **noise_in_units(self._engine.task, noise),
            **self._timer.speeds(num_examples),
            **self._cost.summary(num_examples, self._timer.training_s),
            **self._timer.totals(),
            "num_compilations": self._engine.num_compilations,
            "num_devices": self._engine.num_devices,
        }
        if is_first_process():
            write_json(self._workdir / "summary.json", summary)
        barrier("the summary is written")
        return summary

    def _read_all(self) -> None:
        with self._timer.training():
            self._read(behind=0)

    def _read(self, behind: int) -> None:
        """Reads and logs the oldest updates, until only `behind` are unread."""
        while len(self._unread) > behind:
            update, metrics = self._unread.popleft()
            read = ReadUpdate(update, metrics.read())
            self._num_stops = read.metrics["num_stops"]
            read.check_finite(self._dataset_size)
            logged, noise = log.add(self.state.log, read), self._noise.add(self.state.noise, read)
            self.state = self.state._replace(log=logged, noise=noise)
            self._progress.update(**self._where())
            if is_due(self._intervals.log_every_epochs * self._dataset_size, update):
                self._write_line()

    def _write_line(self) -> None:
        means, times, logged = log.line(self.state.log, self._timer.training_s, self._timer.input_wait_s)
        self.state = self.state._replace(log=logged, noise=self._noise.estimate(self.state.noise))
        assert logged.last is not None
        line = self._where() | {"epoch": self._epoch(), **logged.last.hyperparameters, **means}
        line |= {**self._noise.columns(self.state.noise), **times.columns()}
        self._writer.write(**line)
        self._progress.update(**line, input_share=times.input_share)
        self._bad_examples.write()
        if self._warns_of_input and (text := warning(times)):
            self._warns_of_input = False
            self._progress.note(text)

    def _try(self, branches: Sequence[Sequence[Update]]) -> list[list[float]]:
        """The losses of the updates of each branch, which begins with a copy of the state."""
        replica, losses = first_replica(self.state.train), []
        for branch in branches:
            train, metrics = self._engine.place(replica), []
            for update in branch:
                train, values = self._engine.update(train, update)
                metrics.append(values)
            losses.append([values.read()["loss"] for values in metrics])
        examples = self.state.log.branch_examples + sum(update.batch_size for branch in branches for update in branch)
        where = self.state.log._replace(branch_examples=examples)
        self.state = self.state._replace(train=self._engine.place(replica), log=where)
        return losses

    def _position(self) -> dict[str, int]:
        return {"update": self.state.log.num_updates, "examples_seen": self.state.log.examples_seen}

    def _where(self) -> dict[str, Any]:
        last = self.state.log.last
        assert last is not None
        return self._position() | {"batch_size": last.batch_size, "learning_rate": last.learning_rate}

    def _epoch(self) -> float:
        return self.state.log.examples_seen / self._dataset_size

    def _restore(self, fork: Checkpoint | None) -> tuple[bool, Position]:
        """Sets the state. Returns whether it is that of a checkpoint, and the size of the metrics at that time."""

        def check(progress: Mapping[str, Any]) -> None:
            identities.check_same(self._workdir, progress["identity"], self._identity)
            if not holds(self._workdir / "metrics.jsonl", Position(*progress["metrics"])):
                raise Unusable("metrics.jsonl ends before it, or differs")

        train = self._engine.init()
        found = self._checkpoints.restore(first_replica(train), check)
        if begin := found or fork:
            train = self._engine.place(begin.state)
        if found:
            self._engine.layout_choice.adopt(found.progress.get("measured_times"))
            self.state = RunState.from_json(train, self._controller, found.progress)
            self._timer.resume(found.progress["times"])
            self._cost.resume(found.progress.get("cost"))
            return True, Position(*found.progress["metrics"])
        update, controller = self._controller.decide(self._controller.init())
        assert update is not None
        logged = ("loss", *self._engine.task.metrics, "grad_norm")
        self.state = RunState(train, controller, update, LogState.at(update.examples_seen, logged))
        return False, Position()

    def _open_files(
        self, about: Mapping[str, Any] | None, position: Position, log_to: Sequence[str | Charts]
    ) -> LogWriter:
        if not is_first_process():
            return LogWriter(pathlib.Path(os.devnull))
        identities.claim(self._workdir, "run", self._identity)
        if about is not None:
            write_json(self._workdir / "config.json", {**about, "measured_times": self._engine.layout_choice.measured})
        opening = Opening(self._workdir, (about or {}).get("config") or self._identity, self.state.log.num_updates)
        return LogWriter(self._workdir / "metrics.jsonl", position, log_to, opening)

    def _make_progress(self, show: Show) -> Progress:
        end, task = self._controller.num_examples, self._engine.task
        line = ProgressLine(end, self._dataset_size, task.unit, task.units_per_example, show == "noise")
        return Progress(line, self.state.log.start, show if is_first_process() else "none")
