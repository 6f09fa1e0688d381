"""The training loop: update after update, as a plan or a controller says, and a run's files in its workdir."""

import bisect
import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from bsjax.checkpoint import Checkpoint, Checkpoints, Unusable
from bsjax.controllers import LAG, Controller
from bsjax.controllers.planned import Planned
from bsjax.engine import Engine
from bsjax.errors import DivergedError, InvalidArgument
from bsjax.metrics import MetricWriter, Position, Progress, holds, write_json
from bsjax.parallel import barrier, check_same_everywhere, first_replica, is_first_process
from bsjax.plan import Plan, Update
from bsjax.step import TrainState
from bsjax.train_log import Every, TrainLog
from bsjax.workdir import lock

# Before the batch size changes a checkpoint is written, if it has stayed for at least this share of the run.
_LONG_PHASE = 0.01


def train(
    engine: Engine,
    plan: Plan | Controller,
    workdir: pathlib.Path,
    eval_every_epochs: float = 1.0,
    log_every_epochs: float = 1.0,
    checkpoint_every_epochs: float = math.inf,
    checkpoint_min_s: float = 0.0,
    keep_checkpoints: int = 2,
    should_stop: Callable[[], bool] = lambda: False,
    noise_half_life_epochs: float = 0.5,
    about: Mapping[str, Any] | None = None,
    fork: Checkpoint | None = None,
    show: str = "auto",
) -> dict[str, Any] | None:
    """Trains along a plan, or as a controller decides, from the last checkpoint if there is one.

    Writes `metrics.jsonl` (a line per `log_every_epochs` with the means over the updates since the last
    one and the gradient noise scale, and a line per evaluation) and, at the end, `summary.json`. Checkpoints are
    written where the batch size changes (if it has stayed for a hundredth of the run), when it stops, and at its end.
    Holds the folder meanwhile. With many processes, each calls this with the same arguments; the first one writes.

    Args:
      engine: runs the updates.
      plan: what they are, or what decides them; a controller is used up.
      workdir: an existing folder, which all processes see.
      eval_every_epochs: evaluate after the first update that ends at or past each multiple of this, and at the end.
      log_every_epochs: likewise.
      checkpoint_every_epochs: likewise; infinite: not for this reason.
      checkpoint_min_s: a checkpoint that is due sooner than this after the one before (or the beginning) waits, so
        that short runs do not spend their time on them. With many processes, whose clocks differ, none waits.
      keep_checkpoints: how many of the newest stay.
      should_stop: is asked after each update whether to write a checkpoint and return; if any process's says so,
        all stop after the same update.
      noise_half_life_epochs: of the averages behind the gradient noise scale.
      about: is written to `config.json`; a checkpoint with other values in its entry "config" is refused.
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
    controller = Planned(plan) if isinstance(plan, Plan) else plan
    dataset_size = controller.dataset_size
    is_first, is_alone = is_first_process(), jax.process_count() == 1
    metrics_path = workdir / "metrics.jsonl"
    config = (about or {}).get("config", {})
    identity = json.loads(json.dumps({**engine.identity, **controller.identity(), **config}))
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
        found = checkpoints.restore(first_replica(state), check)
        if begin := found or fork:
            state = engine.place(begin.state)
        if found:
            before = found.progress
            controller.restore(before["controller"])
            update = before["update"] and Update(*before["update"])
        else:
            update = controller.next_update()
            assert update is not None
            before = {"metrics": Position(), "log": {"start": update.examples_seen}, "times": {}}
        barrier("all have read the checkpoint")
        if is_first and about is not None:
            write_json(workdir / "config.json", about)
        position = Position(*before["metrics"])
        writer = MetricWriter(metrics_path, position) if is_first else MetricWriter(pathlib.Path(os.devnull))
        exits.enter_context(contextlib.closing(writer))
        start, end = before["log"]["start"], controller.num_examples
        progress = Progress(end, dataset_size, show if is_first else "none", start=start)
        exits.enter_context(contextlib.closing(progress))
        log = TrainLog(
            engine,
            writer,
            progress,
            dataset_size,
            log_every_epochs,
            noise_half_life_epochs,
            controller.needs_observations,
            **before["log"],
        )

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
            where = {
                "identity": identity,
                "metrics": writer.flush(),
                "log": log.to_json(),
                "times": times(),
                "controller": controller.state(),
                "update": update,  # the next one, already decided
                "evaluation": evaluation,  # the last one, for a run that ends before its summary is written
            }
            checkpoints.save(Checkpoint(log.num_updates, first_replica(state), where))

        def finish(**outcome: Any) -> dict[str, Any]:
            summary = {
                **outcome,
                "num_updates": log.num_updates,
                "examples_seen": log.examples_seen,
                "branch_examples": log.branch_examples,
                "final_train_loss": log.train_loss,
                **log.noise_summary(),
                "examples_per_second": round((log.examples_seen - start) / log.seconds, 1),
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
        is_eval_due = Every(eval_every_epochs * dataset_size, log.examples_seen)
        is_checkpoint_due = Every(checkpoint_every_epochs * dataset_size, log.examples_seen)
        batch_sizes = sorted(controller.batch_sizes)
        compiled, phase_start, stopping = None, log.examples_seen, False
        saved_at, is_save_due = started, False
        try:
            while update is not None:
                with log.training():
                    _, examples_seen, batch_size, learning_rate, momentum = update
                    state, metrics = engine.update(state, examples_seen, batch_size, learning_rate, momentum, stopping)
                    log.dispatched(update, metrics)
                if batch_size != compiled:
                    compiled = batch_size
                    for larger in batch_sizes[bisect.bisect_right(batch_sizes, batch_size) :][:1]:
                        engine.compile_ahead(state, larger)
                if controller.needs_observations:
                    for observation in log.observations(before=update.update - LAG + 1):
                        controller.observe(observation)
                examples_seen += batch_size
                if branches := controller.branches():
                    log.read_all()
                    state = _try(engine, controller, state, branches)
                    log.branch_examples += sum(tried.batch_size for branch in branches for tried in branch)
                update = controller.next_update()
                is_last = update is None
                if is_eval_due(examples_seen) or is_last:
                    log.read_all(is_last)
                    evaluation = engine.evaluate(state)
                    log.evaluated(evaluation)
                stopping = should_stop()
                is_stop_due = (stopping if is_alone else log.num_stops > 0) and not is_last
                is_save_due |= is_checkpoint_due(examples_seen)
                if update is not None and update.batch_size != batch_size:
                    is_save_due |= examples_seen - phase_start >= _LONG_PHASE * (end - start)
                    phase_start = examples_seen
                is_early = is_alone and time.perf_counter() - saved_at < checkpoint_min_s
                if (is_save_due and not is_early) or is_stop_due or is_last:
                    save()
                    saved_at, is_save_due = time.perf_counter(), False
                if is_stop_due:
                    return None
        except DivergedError as error:
            finish(completed=False, error=str(error))
            raise
        checkpoints.wait()
        return finish(completed=True, **{f"final_{name}": value for name, value in evaluation.items()})


def _try(engine: Engine, controller: Controller, state: TrainState, branches: Sequence[Sequence[Update]]) -> TrainState:
    """Runs each branch on a copy of the state; returns the state from before."""
    replica, losses = first_replica(state), []
    for branch in branches:
        copy, metrics = engine.place(replica), []
        for update in branch:
            copy, values = engine.update(
                copy, update.examples_seen, update.batch_size, update.learning_rate, update.momentum
            )
            metrics.append(values)
        losses.append([float(first_replica(values)[0]) for values in metrics])
    controller.observe_branches(losses)
    return engine.place(replica)


def _check_same_run(workdir: pathlib.Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    # What only this run names is a setting that there was not yet; `config.json` says whether it is at its default.
    differing = [name for name in there if here.get(name) != there[name]]
    if differing:
        fields = "; ".join(f"{name} {there[name]!r} there, {here.get(name)!r} here" for name in differing)
        raise InvalidArgument("workdir", str(workdir), f"empty or of this run; its checkpoint has {fields}")
