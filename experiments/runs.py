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
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from absl import flags

from bsjax import InvalidArgument, loop
from bsjax import workdir as workdirs
from bsjax.checkpoint import Checkpoint, Checkpoints
from bsjax.data import Dataset, load_dataset
from bsjax.errors import DivergedError, check_choice
from bsjax.feed import IMAGES_ON
from bsjax.metrics import read_json, read_metrics
from bsjax.parallel import first_replica, is_first_process, largest_of_all_processes
from experiments.config import Config


class Result(NamedTuple):
    """A run that has ended."""

    config: Config
    summary: dict[str, Any]
    metrics: list[dict[str, Any]]  # the lines of its metrics.jsonl


class StoppedEarly(Exception):  # noqa: N818  (all is well)
    """Time is up: the same call goes on."""


class Control(NamedTuple):
    """What does not change a run's numbers: where its data is, what runs it, and when it writes or stops."""

    data_dir: str | None = None
    images_on: str = "auto"
    devices: str = "all"
    checkpoint_every_epochs: float = 10.0
    checkpoint_min_s: float = 2.0
    keep_checkpoints: int = 2
    show_noise: bool = False
    stop_at: float = math.inf  # by the clock of time.time()


_DEFAULT = Control()


def define_flags() -> None:
    """Defines a flag for each field of Control."""
    flags.DEFINE_string("data_dir", None, "Folder of prepared data sets; default $BSJAX_DATA_DIR, else ~/.cache/bsjax.")
    where = f"Where images are kept while training. One of {', '.join(IMAGES_ON)} (on the devices if they fit)."
    flags.DEFINE_string("images_on", _DEFAULT.images_on, where)
    flags.DEFINE_string("devices", _DEFAULT.devices, "all, a number of them, or auto: as many as make a batch fastest.")
    often = "Checkpoint this often, in epochs; also where the batch size changes, and at the end."
    flags.DEFINE_float("checkpoint_every_epochs", _DEFAULT.checkpoint_every_epochs, often)
    least = "Least seconds from one checkpoint to the next of a single process; the last one is not kept waiting."
    flags.DEFINE_float("checkpoint_min_s", _DEFAULT.checkpoint_min_s, least)
    flags.DEFINE_integer("keep_checkpoints", _DEFAULT.keep_checkpoints, "How many of the newest checkpoints stay.")
    flags.DEFINE_bool("show_noise", _DEFAULT.show_noise, "Show the gradient noise scale in the progress.")
    flags.DEFINE_float("stop_after_s", None, "Stop cleanly after this many seconds; the same command goes on.")


def control_from_flags() -> Control:
    """The Control that the command line gives."""
    values = flags.FLAGS
    for name in ("checkpoint_every_epochs", "stop_after_s"):
        if (value := getattr(values, name)) is not None and not value > 0:
            raise InvalidArgument(name, value, "positive")
    if not values.checkpoint_min_s >= 0:
        raise InvalidArgument("checkpoint_min_s", values.checkpoint_min_s, "a number >= 0", 0)
    if values.keep_checkpoints < 1:
        raise InvalidArgument("keep_checkpoints", values.keep_checkpoints, "a whole number >= 1", 1)
    check_devices(values.devices)
    images_on = check_choice("images_on", values.images_on, IMAGES_ON)
    stop_at = math.inf if values.stop_after_s is None else time.time() + values.stop_after_s
    return Control(
        values.data_dir,
        images_on,
        values.devices,
        values.checkpoint_every_epochs,
        values.checkpoint_min_s,
        values.keep_checkpoints,
        values.show_noise,
        stop_at,
    )


def check_devices(choice: str) -> None:
    """Refuses what --devices cannot be."""
    if choice not in ("all", "auto"):
        available, per_process = jax.device_count(), jax.process_count()
        if not choice.isdigit() or not 0 < int(choice) <= available or int(choice) % per_process:
            allowed = f"all, auto, or a number up to {available}"
            if per_process > 1:
                allowed += f", a multiple of the {per_process} processes"
            raise InvalidArgument("devices", choice, allowed, "all")


def train(
    run: Config,
    workdir: pathlib.Path,
    control: Control = _DEFAULT,
    show: str = "auto",
    fork_from: pathlib.Path | None = None,
) -> dict[str, Any]:
    """Trains a run from its last checkpoint, unless it is complete already.

    Args:
      run: what to train.
      workdir: a folder of this run, an empty one, or one to be made.
      control: see there.
      show: "auto" or "none".
      fork_from: folder of the run whose last checkpoint this one begins with, in place of new parameters.

    Returns:
      Its summary.

    Raises:
      InvalidArgument: a flag is wrong, or the folder is another run's. Nothing is written then.
      RunError: it cannot go on, or diverged.
      StoppedEarly: `control.stop_at` has come.
      Interrupted: by a signal.
    """
    there = _check_same_run(run, workdir, fork_from)
    if has_ended(workdir):
        ended = read_summary(workdir)
        if not ended["completed"]:
            raise DivergedError(ended["error"])
        return ended
    dataset = load_dataset(run.dataset, control.data_dir)
    fork, start = None, there.get("start", 0)
    if fork_from is not None and not list(workdir.glob("checkpoints/[0-9]*")):
        fork = _read_fork(run, dataset, fork_from)
        start = fork.progress["log"]["examples_seen"]
    recipe = run.recipe(len(dataset.train.labels))
    if start >= recipe.num_examples:
        epochs = start / recipe.dataset_size
        raise InvalidArgument("num_epochs", run.num_epochs, f"above the {epochs:g} epochs that {fork_from} has seen")
    if fork_from is not None and run.controller != "planned":
        raise InvalidArgument("controller", run.controller, "planned with --fork_from", "planned")
    controller = run.create_controller(len(dataset.train.labels), start)
    engine = run.create_engine(dataset, controller, control.images_on, control.devices)
    workdirs.make(workdir)
    forked = {} if fork_from is None else {"forked_from": str(fork_from), "start": start}
    with workdirs.catch_signals() as caught:
        summary = loop.train(
            engine,
            controller,
            workdir,
            run.eval_every_epochs,
            run.log_every_epochs,
            control.checkpoint_every_epochs,
            control.checkpoint_min_s,
            control.keep_checkpoints,
            noise_half_life_epochs=run.noise_half_life_epochs,
            should_stop=lambda: caught() is not None or time.time() > control.stop_at or is_worker_to_stop(),
            about={"config": dataclasses.asdict(run), **forked, **surroundings()},
            fork=fork,
            show="noise" if show == "auto" and control.show_noise else show,
        )
        if summary is None and (signum := largest_of_all_processes(caught() or 0)):
            raise workdirs.Interrupted(signum)
    if summary is None:
        raise StoppedEarly(f"{workdir} stopped; the same command goes on.")
    return summary


def has_ended(workdir: pathlib.Path) -> bool:
    """Whether a run has come to its end there, or diverged."""
    return (workdir / "summary.json").exists()


def read_summary(workdir: pathlib.Path) -> dict[str, Any]:
    """The summary of a run that has ended."""
    return read_json(workdir / "summary.json")


def read_surroundings(workdir: pathlib.Path) -> dict[str, Any]:
    """What a run was trained with, see `surroundings`."""
    return read_json(workdir / "config.json")


def _check_same_run(run: Config, workdir: pathlib.Path, fork_from: pathlib.Path | None = None) -> dict[str, Any]:
    """The folder's config.json, {} if it has none; raises if it is not this run's."""
    if not (workdir / "config.json").exists():
        return {}
    about = read_surroundings(workdir)
    defaults = json.loads(json.dumps(dataclasses.asdict(Config())))  # of fields that did not exist yet
    there = defaults | about["config"] | {"fork_from": about.get("forked_from")}
    here = dataclasses.asdict(run) | {"fork_from": fork_from and str(fork_from)}
    here = json.loads(json.dumps(here))
    differing = [
        f"{name} {there.get(name)!r} there, {value!r} here" for name, value in here.items() if there.get(name) != value
    ]
    if differing:
        raise InvalidArgument("workdir", str(workdir), f"empty or of this run; it has {'; '.join(differing)}")
    return about


def _read_fork(run: Config, dataset: Dataset, folder: pathlib.Path) -> Checkpoint:
    """The last checkpoint of another run."""
    if not (folder / "checkpoints").is_dir():
        raise InvalidArgument("fork_from", str(folder), "the folder of a run with checkpoints")
    engine = run.create_engine(dataset, run.recipe(len(dataset.train.labels)).plan())
    with contextlib.closing(Checkpoints(folder / "checkpoints", read_only=True)) as checkpoints:
        found = checkpoints.restore(first_replica(engine.init()))
    if found is None:
        raise InvalidArgument("fork_from", str(folder), "the folder of a run with checkpoints")
    return found


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
      Interrupted: by a signal; those that were running have left a checkpoint.
    """
    folders = [workdir / run_name(config, reference) for config in configs]
    for config, folder in zip(configs, folders, strict=True):
        _check_same_run(config, folder)
    todo = {folder: config for folder, config in zip(folders, configs, strict=True) if not has_ended(folder)}
    jobs = min(default_jobs() if jobs is None else jobs, len(todo))
    num_ended = len(set(folders)) - len(todo)

    def finished(folder: pathlib.Path) -> None:
        nonlocal num_ended
        if not has_ended(folder) or not is_first_process():
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
    return ",".join(
        f"{name}={'+'.join(map(str, value)) if isinstance(value, tuple) else value}"
        for name, value in ours.items()
        if value != theirs[name] or name == "seed"
    )


def _train_one(config: Config, folder: pathlib.Path, control: Control, show: str = "none") -> None:
    if time.time() < control.stop_at and not is_worker_to_stop():
        with _training, contextlib.suppress(DivergedError, StoppedEarly):  # its files say so
            train(config, folder, control, show)


def _train_in_processes(
    todo: dict[pathlib.Path, Config], jobs: int, control: Control, finished: Callable[[pathlib.Path], None]
) -> None:
    with worker_pool(jobs) as pool:
        futures = {pool.submit(_train_one, config, folder, control): folder for folder, config in todo.items()}
        for future in concurrent.futures.as_completed(futures):
            future.result()
            finished(futures[future])


@contextlib.contextmanager
def worker_pool(jobs: int) -> Iterator[concurrent.futures.Executor]:
    """Processes with cores of their own. At a signal, and at an error inside, `is_worker_to_stop` is true in them.

    Raises:
      Interrupted: by a signal.
    """
    context = multiprocessing.get_context("spawn")
    cores, stop = context.Queue(), context.Event()
    available = available_cores()
    for job in range(jobs):
        cores.put(available[job::jobs] or available)

    def kill_workers() -> None:
        for process in multiprocessing.active_children():
            process.kill()

    with (
        workdirs.catch_signals(at_first=stop.set, at_second=kill_workers) as caught,
        concurrent.futures.ProcessPoolExecutor(jobs, context, _begin_worker, (cores, stop)) as pool,
    ):
        try:
            yield pool
        except BaseException as error:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            if isinstance(error, StoppedEarly) and (signum := caught()) is not None:
                raise workdirs.Interrupted(signum) from None
            raise
        if (signum := caught()) is not None:
            raise workdirs.Interrupted(signum)


_training = threading.Lock()  # is held while a process trains
_stop_workers: Any = None  # in a worker, the event that ends its run


def is_worker_to_stop() -> bool:
    """Whether this is a process of `worker_pool` that is to stop."""
    return _stop_workers is not None and _stop_workers.is_set()


def _begin_worker(cores: Any, stop: Any) -> None:
    """Gives a process cores of its own: runs that share all of them take longer."""
    global _stop_workers
    _stop_workers = stop
    # A signal to the whole group is the parent's to answer; should it die, its workers stop as well.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    if parent := multiprocessing.parent_process():

        def stop_with_parent() -> None:
            parent.join()
            stop.set()
            with _training:
                os._exit(1)

        threading.Thread(target=stop_with_parent, daemon=True).start()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores.get())


def default_jobs() -> int:
    """One process per core, or one alone where there is an accelerator, or many processes already."""
    return len(available_cores()) if jax.default_backend() == "cpu" and jax.process_count() == 1 else 1


def available_cores() -> list[int]:
    """The numbers of the cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
