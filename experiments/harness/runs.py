"""Trains one run unless it is complete, or many runs side by side."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import math
import pathlib
import platform
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from bsjax import run as bsjax_run
from bsjax.engine.devices import first_replica, is_first_process, largest_of_all_processes
from bsjax.errors import DivergedError, InvalidArgument, RunError
from bsjax.run import identity
from bsjax.run import workdir as workdirs
from bsjax.run.checkpoint import Checkpoint, Checkpoints
from bsjax.run.metrics import read_json, read_metrics, read_summary
from bsjax.run.progress import Show
from experiments.harness import build
from experiments.harness.config import Config
from experiments.harness.control import Control
from experiments.harness.display import Display, Status, Task
from experiments.harness.pool import (
    Board,
    StoppedEarly,
    available_cores,
    default_jobs,
    is_worker_to_stop,
    worker_pool,
    write_where,
    writing_to,
)

# In bytes. File systems take 255, with what a file's name adds to its run's.
_LONGEST_NAME = 200


class Result(NamedTuple):
    """The files of a run that has ended."""

    summary: dict[str, Any]
    metrics: list[dict[str, Any]]  # the lines of its metrics.jsonl


_DEFAULT = Control()


def train(
    config: Config,
    workdir: pathlib.Path,
    control: Control = _DEFAULT,
    tell: Callable[[float, int], None] | None = None,
    fork_from: pathlib.Path | None = None,
) -> dict[str, Any]:
    """Trains a run from its last checkpoint, unless it is complete already.

    Args:
      config: what to train.
      workdir: the folder of this run; it may be empty or missing.
      control: where its data is, its devices, and when it writes or stops.
      tell: is called with the epoch and the batch size, a few times a second; default, the progress is shown.
      fork_from: the folder of another run; this run begins with its last checkpoint, not with new parameters.

    Returns:
      Its summary.

    Raises:
      InvalidArgument: a flag is wrong, or the folder is another run's. Nothing is written then.
      RunError: it cannot continue, or it diverged.
      StoppedEarly: `control.stop_at` has come.
      Interrupted: a signal came.
    """
    about = check_folder(config, workdir, fork_from)
    if ended := read_summary(workdir):
        if not ended["completed"]:
            raise DivergedError(ended["error"])
        return ended
    dataset = build.dataset(config, control.data_dir, control.num_workers)
    fork, start = None, about.get("start", 0)
    if fork_from is not None:
        if not list(workdir.glob("checkpoints/[0-9]*[0-9]")):
            fork, start = _read_fork(config, dataset, fork_from)
        _check_fork(config, len(dataset.train), fork_from, start)
    controller = build.controller(config, len(dataset.train), start)
    engine = build.engine(config, dataset, controller, control.images_on, control.devices, control.shard_optimizer)
    with workdirs.catch_signals() as caught:
        try:
            summary = bsjax_run.train(
                engine,
                controller,
                workdir,
                control.intervals(config),
                should_stop=lambda: (
                    is_worker_to_stop(trains=True) or caught() is not None or time.time() > control.stop_at
                ),
                about={"config": _settings(config, fork_from), "start": start, **surroundings()},
                fork=fork,
                show=_show(control, tell, len(dataset.train)),
                peak_flops_per_s=control.peak_flops_per_s,
                log_to=control.log_to,
            )
        except OSError as error:
            reason = error if error.filename else f"{workdir} cannot be written: {error.strerror or error}"
            raise RunError(str(reason)) from None
        if summary is None and (signum := largest_of_all_processes(caught() or 0)):
            raise workdirs.Interrupted(signum)
    if summary is None:
        raise StoppedEarly(f"{workdir} stopped; the same command continues.")
    return summary


def _show(control: Control, tell: Callable[[float, int], None] | None, dataset_size: int) -> Show:
    if tell is None:
        return "none" if control.quiet else "noise" if control.show_noise else "auto"
    return lambda latest: tell(latest["examples_seen"] / dataset_size, latest["batch_size"])


def check_folder(config: Config, workdir: pathlib.Path, fork_from: pathlib.Path | None = None) -> dict[str, Any]:
    """Returns the folder's config.json, {} if there is none; raises if the folder belongs to another run."""
    settings = _settings(config, fork_from)
    identity.is_claimed(workdir, "run")
    if not identity.is_kept(workdir):
        return {}
    if about := read_surroundings(workdir):
        identity.check_same(workdir, about["config"], settings)
    else:
        identity.is_claimed(workdir, "run", {"config": settings})
    return about


def read_surroundings(workdir: pathlib.Path) -> dict[str, Any]:
    """The config.json of a run, {} if there is none; see `surroundings`."""
    if not (path := workdir / "config.json").exists():
        return {}
    return read_json(path, ("config", "versions", "devices"), "mend or remove this file; the run can do without it")


def headlines(summary: dict[str, Any]) -> list[str]:
    """The results of a complete run: the task's metrics, if it has any, and the loss.

    >>> headlines({"final_test_loss": 0.0375, "final_test_accuracy": 0.9861})
    ['test accuracy 98.61 %', 'test loss 0.0375']
    >>> headlines({"final_test_loss": 1.9, "final_test_accuracy": 0.761, "final_test_top5_accuracy": 0.9292})
    ['test accuracy 76.10 %', 'test top5 accuracy 92.92 %', 'test loss 1.9000']
    """
    texts = []
    for metric in _metrics_of(summary):
        value = summary[f"final_test_{metric}"]
        text = f"{100 * value:.2f} %" if metric.endswith("accuracy") else f"{value:.4f}"
        texts.append(f"test {metric.replace('_', ' ')} {text}")
    return texts


def metric_of(summary: dict[str, Any]) -> str:
    """The name of the task's first metric, or "loss"."""
    return _metrics_of(summary)[0]


def _metrics_of(summary: dict[str, Any]) -> list[str]:
    """The names of the task's metrics, and then "loss"."""
    names = [name.removeprefix("final_test_") for name in summary if name.startswith("final_test_")]
    return [*(name for name in names if name != "loss"), "loss"]


def _settings(config: Config, fork_from: pathlib.Path | None) -> dict[str, Any]:
    """The settings that a run's numbers depend on, as JSON, by concern."""
    return json.loads(json.dumps({**dataclasses.asdict(config), "fork_from": fork_from and str(fork_from)}))


def _read_fork(config: Config, dataset: Any, folder: pathlib.Path) -> tuple[Checkpoint, int]:
    """The last checkpoint of another run, and its position in the examples."""
    found = None
    if (folder / "checkpoints").is_dir():
        engine = build.engine(config, dataset, build.recipe(config, len(dataset.train)).plan())
        with contextlib.closing(Checkpoints(folder / "checkpoints", read_only=True)) as checkpoints:
            found = checkpoints.restore(first_replica(engine.init()))
    if found is None:
        raise InvalidArgument("fork_from", str(folder), "the folder of a run with checkpoints")
    return found, found.progress["log"]["examples_seen"]


def _check_fork(config: Config, dataset_size: int, fork_from: pathlib.Path, start: int) -> None:
    if config.controller.controller != "planned":
        raise InvalidArgument("controller", config.controller.controller, "planned with --fork_from", "planned")
    if start >= build.recipe(config, dataset_size).num_examples:
        allowed = f"above the {start / dataset_size:g} epochs that {fork_from} has seen"
        raise InvalidArgument("num_epochs", config.recipe.num_epochs, allowed, math.floor(start / dataset_size) + 1)


def surroundings() -> dict[str, Any]:
    """How a result was made: the command, versions, devices."""
    packages = ("bsjax", "jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "command": " ".join(["python", "-m", *sys.orig_argv[2:]]),
        "versions": {"python": platform.python_version()} | dict(zip(packages, map(_version, packages), strict=True)),
        "devices": [device.device_kind for device in jax.devices()],
        "cores": len(available_cores()),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def train_all(
    configs: Sequence[Config],
    reference: Config,
    workdir: pathlib.Path,
    jobs: int | None = None,
    control: Control = _DEFAULT,
) -> list[Result]:
    """Trains runs side by side, each in a folder named after its differences from the reference.

    Complete runs are not repeated. A run that diverges is a result, too.

    Args:
      configs: the runs, in order of importance.
      reference: the preset's config, see above.
      workdir: holds their folders.
      jobs: processes; None takes one per core, or one process where there is an accelerator.
      control: of all runs; `stop_at` is one time for all of them.

    Returns:
      Their results, in order.

    Raises:
      StoppedEarly: `control.stop_at` came before all runs were complete.
      Interrupted: a signal came; the current runs have written a checkpoint.
    """
    folders = [workdir / run_name(config, reference) for config in configs]
    for config, folder in zip(configs, folders, strict=True):
        check_folder(config, folder)
    by_folder = dict(zip(folders, configs, strict=True))
    todo = {folder: config for folder, config in by_folder.items() if read_summary(folder) is None}
    jobs = min(default_jobs() if jobs is None else jobs, len(todo))
    num_complete, board = len(by_folder) - len(todo), Board(max(jobs, 1))
    status = Status([Task(folder.name, one.recipe.num_epochs) for folder, one in todo.items()], num_complete)
    with Display(status, board, is_quiet=control.quiet or not todo or not is_first_process()) as display:
        for number, run in enumerate(_train_each(todo, jobs, control, board), start=num_complete + 1):
            display.end(run, _outcome(list(todo)[run], f"[{number}/{len(by_folder)}]"))
    summaries = [read_summary(folder) for folder in folders]
    if None in summaries:
        complete = len(folders) - summaries.count(None)
        raise StoppedEarly(f"{complete} of {len(folders)} runs are complete; the same command continues.")
    found = zip(summaries, folders, strict=True)
    return [Result(summary, read_metrics(folder / "metrics.jsonl")) for summary, folder in found if summary is not None]


def run_name(config: Config, reference: Config) -> str:
    """The name of a run's folder; of one that is too long for a file system, the start, a checksum and the seed.

    >>> run_name(Config().replace(schedule="increase_batch_size", seed=2), Config())
    'schedule=increase_batch_size,seed=2'
    """
    theirs = reference.flat()
    name = ",".join(
        f"{name}={_text(value)}" for name, value in config.flat().items() if value != theirs[name] or name == "seed"
    )
    if len(name.encode()) <= _LONGEST_NAME:
        return name
    start = name.encode()[: _LONGEST_NAME - 30].decode(errors="ignore")
    return f"{start}~{zlib.crc32(name.encode()):08x},seed={config.run.seed}"


def _text(value: Any) -> str:
    """A value in the name of a folder; for a controller, the options that differ from their defaults."""
    if isinstance(value, tuple):
        return "+".join(map(str, value))
    if not dataclasses.is_dataclass(value):
        return str(value)
    fields = sorted(dataclasses.fields(value), key=lambda field: field.name not in type(value).__annotations__)
    options = {
        field.name: getattr(value, field.name) for field in fields if getattr(value, field.name) != field.default
    }
    texts = {name: f"{x:g}" if isinstance(x, float) else json.dumps(x) for name, x in options.items()}
    return "+".join(f"{name}={text}" for name, text in texts.items())


def _outcome(folder: pathlib.Path, number: str) -> str:
    """A line about a run that has ended; of many processes, the first one writes it."""
    if not is_first_process() or not (summary := read_summary(folder)):
        return ""
    outcome = headlines(summary)[0].removeprefix("test accuracy ") if summary["completed"] else summary["error"]
    return f"{number} {folder.name}: {outcome} after {summary['num_updates']:,} updates, {summary['wall_time_s']:.1f} s"


def _train_each(todo: dict[pathlib.Path, Config], jobs: int, control: Control, board: Board) -> Iterator[int]:
    """Trains runs, in this process or in others, and yields the number of each as soon as it has ended."""
    tasks = [(config, folder, control, number) for number, (folder, config) in enumerate(todo.items())]
    if jobs <= 1:
        with writing_to(board):
            yield from (task[-1] for task in tasks if _train_one(*task))
        return
    with worker_pool(jobs, board) as submit:
        futures = {submit(_train_one, *task): task[-1] for task in tasks}
        yield from (futures[future] for future in concurrent.futures.as_completed(futures) if future.result())


def _train_one(config: Config, folder: pathlib.Path, control: Control, number: int) -> bool:
    """Trains a run unless it is time to stop; returns whether it has ended."""
    if time.time() < control.stop_at and not is_worker_to_stop():
        write_where(number)
        with contextlib.suppress(DivergedError, StoppedEarly):  # its files record this
            train(config, folder, control, functools.partial(write_where, number))
        write_where(-1)
    return read_summary(folder) is not None
