"""The training loop: runs the updates of a plan or a controller."""

import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bsjax.controllers import Controller, Planned
from bsjax.engine import Engine
from bsjax.engine.devices import check_same_everywhere, largest_of_all_processes
from bsjax.errors import DivergedError, InvalidArgument, check_positive
from bsjax.plan import Plan
from bsjax.run import charts
from bsjax.run import identity as identities
from bsjax.run import workdir as workdirs
from bsjax.run.checkpoint import Checkpoint
from bsjax.run.intervals import Intervals
from bsjax.run.metrics import read_summary
from bsjax.run.profile import check_range
from bsjax.run.progress import Show
from bsjax.run.run import Run


def train(
    engine: Engine,
    plan: Plan | Controller,
    workdir: str | pathlib.Path,
    intervals: Intervals | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    about: Mapping[str, Any] | None = None,
    fork: Checkpoint | None = None,
    show: Show = "auto",
    peak_flops_per_s: float | None = None,
    log_to: str | Iterable[str | charts.Charts] = (),
) -> dict[str, Any] | None:
    """Trains by a plan or a controller, from the last checkpoint if there is one.

    Writes into its folder: `identity.json`; `metrics.jsonl`, with lines of means over the updates since the previous
    line and the gradient noise scale, and a line per evaluation; and, at the end, `summary.json`. It also writes a
    checkpoint where the batch size changes (after a hundredth of the run at least), where the run stops, and at its
    end; a fork, after its first update; and, if `intervals` asks for it, a trace in the folder `profile`. A complete
    run is not repeated: its summary is returned. A folder without a checkpoint or a summary, such as one where the loss
    has failed, takes any run. With many processes, each calls this with the same arguments, and the first one writes.

    Args:
      engine: runs the updates.
      plan: the updates, or a controller that decides them.
      workdir: a folder, which all processes see; it is made if it is missing.
      intervals: how often to evaluate, log and write checkpoints; default, `Intervals()`.
      should_stop: is called after each update; if it returns True in any process, all processes stop after the same
        update, with a checkpoint.
      about: is written to `config.json`. Its entry "config" belongs to the run's identity, for settings that neither
        the engine nor the controller knows.
      fork: where to begin if the folder has no checkpoint: the state of another run, whose
        `progress["log"]["examples_seen"]` is the plan's start.
      show: see `bsjax.run.Progress`.
      peak_flops_per_s: of one device, for the summary's `model_flop_utilisation`; default, the vendor's where it is
        known, see `bsjax.analysis.flops`.
      log_to: charts beside `metrics.jsonl`: "tensorboard", "wandb", "trackio", or an object with the methods of
        `bsjax.run.Charts`. Those that fail warn, and do not stop the run.

    Returns:
      The summary, or None if the run stopped early: call again to continue.

    Raises:
      DivergedError: the loss is NaN or infinite. The log stays, and the summary names the update.
      InvalidArgument: the folder belongs to another run, the plan does not fit the engine, or a value is out of range.
        Nothing is written then.
      RunError: the folder is in use, no checkpoint in it can be used, or a file cannot be read or written.
      Interrupted: `bsjax.run.catch_signals` noted a signal before the first update.
    """
    controller = Planned(plan) if isinstance(plan, Plan) else plan
    if not hasattr(controller, "decide"):
        raise InvalidArgument("plan", type(plan).__name__, "a plan or a controller", "recipe.plan()")
    workdir = pathlib.Path(workdir)
    intervals = intervals or Intervals()
    _check_fit(engine, controller)
    if intervals.profile_updates is not None and isinstance(controller, Planned):
        check_range(intervals.profile_updates, controller.plan.num_updates)
    if peak_flops_per_s is not None:
        check_positive("peak_flops_per_s", peak_flops_per_s)
    log_to = charts.check(log_to)
    identity = identities.of_run(engine.identity, controller.identity(), (about or {}).get("config", {}))
    check_same_everywhere(identities.flatten(identity))
    if (ended := _summary_of_ended(workdir, identity)) is not None:
        return ended
    _check_no_signal()
    workdirs.make(workdir)
    stopping = False
    with Run(engine, controller, workdir, intervals, identity, about, fork, show, peak_flops_per_s, log_to) as run:
        _check_no_signal()
        try:
            while (update := run.state.update) is not None:
                run.update(stopping)
                run.decide()
                if run.is_evaluation_due(update):
                    run.evaluate()
                stopping = should_stop()
                is_stop_due = run.is_stop_due(stopping)
                if run.is_checkpoint_due(update) or is_stop_due:
                    run.save()
                if is_stop_due:
                    return None
        except DivergedError as error:
            run.diverge(error)
            raise
        return run.complete()


def _check_fit(engine: Engine, controller: Controller) -> None:
    """Refuses a plan for another data set, or for another optimizer."""
    if controller.dataset_size != engine.dataset_size:
        allowed = f"{engine.dataset_size}, the number of training examples that the engine has"
        raise InvalidArgument("dataset_size", controller.dataset_size, allowed, engine.dataset_size)
    update, _ = controller.decide(controller.init())
    if update is not None:
        engine.check_hyperparameters(update.hyperparameters)


def _check_no_signal() -> None:
    """Ends the run if `catch_signals` has noted a signal in any process."""
    if signum := largest_of_all_processes(workdirs.caught_signal() or 0):
        raise workdirs.Interrupted(signum)


def _summary_of_ended(workdir: pathlib.Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The summary of this run if it is complete; raises if it diverged, or if the folder belongs to another run."""
    is_claimed = identities.is_claimed(workdir, "run", identity)
    if (summary := read_summary(workdir)) is None:
        return None
    if not is_claimed:
        allowed = "empty or of this run: it has a summary.json without an identity.json; choose another, or remove it"
        raise InvalidArgument("workdir", str(workdir), allowed)
    if not summary["completed"]:
        raise DivergedError(summary.get("error", "the run diverged"))
    return summary
