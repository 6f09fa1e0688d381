"""Runs: train one unless it is complete, and many side by side."""

import concurrent.futures
import contextlib
import dataclasses
import importlib.metadata
import json
import math
import multiprocessing
import os
import pathlib
import platform
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from absl import flags

from bsjax import InvalidArgument, loop
from bsjax.data import load_dataset
from bsjax.errors import check_choice
from bsjax.feed import IMAGES_ON
from bsjax.metrics import read_metrics, write_json
from experiments.config import Config


class Result(NamedTuple):
    """A run that has ended."""

    config: Config
    summary: dict[str, Any]
    metrics: list[dict[str, Any]]  # the lines of its metrics.jsonl


class StoppedEarly(Exception):  # noqa: N818  (all is well)
    """Time is up: the same call goes on."""


class Control(NamedTuple):
    """What does not change a run's numbers: where its data is, and when it writes or stops."""

    data_dir: str | None = None
    images_on: str = "auto"
    checkpoint_every_epochs: float = 10.0
    stop_at: float = math.inf  # by the clock of time.time()


_DEFAULT = Control()


def define_flags() -> None:
    """Defines a flag for each field of Control."""
    flags.DEFINE_string("data_dir", None, "Folder of prepared data sets; default $BSJAX_DATA_DIR, else ~/.cache/bsjax.")
    where = f"Where images are kept while training. One of {', '.join(IMAGES_ON)} (on the devices if they fit)."
    flags.DEFINE_string("images_on", _DEFAULT.images_on, where)
    flags.DEFINE_float("checkpoint_every_epochs", _DEFAULT.checkpoint_every_epochs, "Checkpoint this often, in epochs.")
    flags.DEFINE_float("stop_after_s", None, "Stop cleanly after this many seconds; the same command goes on.")


def control_from_flags() -> Control:
    """The Control that the command line gives."""
    values = flags.FLAGS
    for name in ("checkpoint_every_epochs", "stop_after_s"):
        if (value := getattr(values, name)) is not None and not value > 0:
            raise InvalidArgument(name, value, "positive")
    images_on = check_choice("images_on", values.images_on, IMAGES_ON)
    stop_at = math.inf if values.stop_after_s is None else time.time() + values.stop_after_s
    return Control(values.data_dir, images_on, values.checkpoint_every_epochs, stop_at)


def train(run: Config, workdir: pathlib.Path, control: Control = _DEFAULT, show: str = "auto") -> dict[str, Any]:
    """Trains a run from its last checkpoint, unless it is complete already.

    Args:
      run: what to train.
      workdir: a folder of this run, an empty one, or one to be made.
      control: see there.
      show: "auto" or "none".

    Returns:
      Its summary.

    Raises:
      InvalidArgument: a flag is wrong, or the folder is another run's. Nothing is written then.
      DivergedError: the loss is not finite.
      StoppedEarly: `control.stop_at` has come.
    """
    _check_same_run(run, workdir)
    if has_ended(workdir):
        ended = read_summary(workdir)
        if not ended["completed"]:
            raise loop.DivergedError(ended["error"])
        return ended
    dataset = load_dataset(run.dataset, control.data_dir)
    plan = run.recipe(len(dataset.train.labels)).plan()
    engine = run.create_engine(dataset, plan, control.images_on)
    make_workdir(workdir)
    write_json(workdir / "config.json", {"config": dataclasses.asdict(run), **surroundings()})
    summary = loop.train(
        engine,
        plan,
        workdir,
        run.eval_every_epochs,
        run.log_every_epochs,
        control.checkpoint_every_epochs,
        control.stop_at - time.time(),
        show,
    )
    if summary is None:
        raise StoppedEarly(f"{workdir} stopped; the same command goes on.")
    return summary


def has_ended(workdir: pathlib.Path) -> bool:
    """Whether a run has come to its end there, or diverged."""
    return (workdir / "summary.json").exists()


def read_summary(workdir: pathlib.Path) -> dict[str, Any]:
    """The summary of a run that has ended."""
    return json.loads((workdir / "summary.json").read_text())


def read_surroundings(workdir: pathlib.Path) -> dict[str, Any]:
    """What a run was trained with, see `surroundings`."""
    return json.loads((workdir / "config.json").read_text())


def _check_same_run(run: Config, workdir: pathlib.Path) -> None:
    path = workdir / "config.json"
    if not path.exists():
        return
    there = json.loads(path.read_text())["config"]
    here = json.loads(json.dumps(dataclasses.asdict(run)))
    differing = [
        f"{name} {there.get(name)!r} there, {value!r} here" for name, value in here.items() if there.get(name) != value
    ]
    if differing:
        raise InvalidArgument("workdir", str(workdir), f"empty or of this run; it has {'; '.join(differing)}")


def surroundings() -> dict[str, Any]:
    """What a result was made with: the command, versions, devices."""
    packages = ("bsjax", "jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "command": " ".join(["python", "-m", *sys.orig_argv[2:]]),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in packages},
        "devices": [device.device_kind for device in jax.devices()],
        "cores": len(available_cores()),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def make_workdir(workdir: pathlib.Path) -> None:
    """Makes a run's folder.

    Raises:
      InvalidArgument: it cannot be made or written to.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        allowed = f"a folder that can be made and written to ({error.strerror})"
        raise InvalidArgument("workdir", str(workdir), allowed) from None


def train_all(
    configs: Sequence[Config],
    reference: Config,
    workdir: pathlib.Path,
    jobs: int | None = None,
    control: Control = _DEFAULT,
) -> list[Result]:
    """Trains runs side by side, each in a folder named after what differs from the reference.

    Runs that are complete are not run again. One that diverges is a result too.

    Args:
      configs: the runs, in order of importance.
      reference: see above.
      workdir: where their folders are made.
      jobs: processes; None takes one per core, or one process where there is an accelerator.
      control: of all of them together.

    Returns:
      Their results, in order.

    Raises:
      StoppedEarly: `control.stop_at` has come, and not all are complete.
    """
    folders = [workdir / run_name(config, reference) for config in configs]
    for config, folder in zip(configs, folders, strict=True):
        _check_same_run(config, folder)
    todo = {folder: config for folder, config in zip(folders, configs, strict=True) if not has_ended(folder)}
    if jobs is None:
        jobs = len(available_cores()) if jax.default_backend() == "cpu" else 1
    jobs = min(jobs, len(todo))
    num_ended = len(set(folders)) - len(todo)

    def finished(folder: pathlib.Path) -> None:
        nonlocal num_ended
        if not has_ended(folder):
            return
        summary = read_summary(folder)
        num_ended += 1
        outcome = f"{100 * summary['final_test_accuracy']:.2f} %" if summary["completed"] else summary["error"]
        print(
            f"[{num_ended}/{len(set(folders))}] {folder.name}: {outcome} "
            f"after {summary['num_updates']:,} updates, {summary['wall_time_s']:.1f} s",
            flush=True,
        )

    if jobs <= 1:
        show = "auto" if sys.stderr.isatty() else "none"
        for folder, config in todo.items():
            _train_one(config, folder, control, show)
            finished(folder)
    else:
        _train_in_processes(todo, jobs, control, finished)
    num_complete = sum(map(has_ended, folders))
    if num_complete < len(folders):
        raise StoppedEarly(f"{num_complete} of {len(folders)} runs are complete; the same command goes on.")
    return [
        Result(config, read_summary(folder), read_metrics(folder / "metrics.jsonl"))
        for config, folder in zip(configs, folders, strict=True)
    ]


def run_name(config: Config, reference: Config) -> str:
    """What a run's folder is called.

    >>> run_name(dataclasses.replace(Config(), schedule="increase_batch_size", seed=2), Config())
    'schedule=increase_batch_size,seed=2'
    """
    ours, theirs = dataclasses.asdict(config), dataclasses.asdict(reference)
    return ",".join(f"{name}={value}" for name, value in ours.items() if value != theirs[name] or name == "seed")


def _train_one(config: Config, folder: pathlib.Path, control: Control, show: str = "none") -> None:
    if time.time() < control.stop_at:
        with contextlib.suppress(loop.DivergedError, StoppedEarly):  # its files say so
            train(config, folder, control, show)


def _train_in_processes(
    todo: dict[pathlib.Path, Config], jobs: int, control: Control, finished: Callable[[pathlib.Path], None]
) -> None:
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    available = available_cores()
    for job in range(jobs):
        cores.put(available[job::jobs] or available)
    with concurrent.futures.ProcessPoolExecutor(jobs, context, _begin_worker, (cores,)) as pool:
        futures = {pool.submit(_train_one, config, folder, control): folder for folder, config in todo.items()}
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
                finished(futures[future])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin_worker(cores: Any) -> None:
    """Gives a process cores of its own: runs that share all of them take longer."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # end without a traceback; the parent says that it was interrupted
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores.get())


def available_cores() -> list[int]:
    """The numbers of the cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
