"""Runs: train one unless it is complete, and many side by side."""

import concurrent.futures
import contextlib
import dataclasses
import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import platform
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import tqdm

from bsjax import InvalidArgument, loop
from bsjax.data import load_dataset
from bsjax.metrics import read_metrics, write_json
from experiments.config import Config


class Result(NamedTuple):
    """A run that has ended."""

    config: Config
    summary: dict[str, Any]
    metrics: list[dict[str, Any]]  # the lines of its metrics.jsonl


def train(run: Config, workdir: pathlib.Path, show: str = "auto") -> dict[str, Any]:
    """Trains a run, unless it is complete already.

    Args:
      run: what to train.
      workdir: a folder of this run, an empty one, or one to be made.
      show: "auto" or "none".

    Returns:
      Its summary.

    Raises:
      InvalidArgument: a flag is wrong, or the folder is another run's. Nothing is written then.
      DivergedError: the loss is not finite.
    """
    _check_same_run(run, workdir)
    if has_ended(workdir):
        summary = read_summary(workdir)
        if not summary["completed"]:
            raise loop.DivergedError(summary["error"])
        return summary
    dataset = load_dataset(run.dataset)
    plan = run.recipe(len(dataset.train.labels)).plan()
    engine = run.create_engine(dataset, plan)
    make_workdir(workdir)
    write_json(workdir / "config.json", {"config": dataclasses.asdict(run), **surroundings()})
    return loop.train(engine, plan, workdir, run.eval_every_epochs, run.log_every_epochs, show)


def has_ended(workdir: pathlib.Path) -> bool:
    """Whether a run has come to its end there, or diverged."""
    return (workdir / "summary.json").exists()


def read_summary(workdir: pathlib.Path) -> dict[str, Any]:
    """The summary of a run that has ended."""
    return json.loads((workdir / "summary.json").read_text())


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
        "cores": len(_available_cores()),
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
    configs: Sequence[Config], reference: Config, workdir: pathlib.Path, jobs: int | None = None
) -> list[Result]:
    """Trains runs side by side, each in a folder named after what differs from the reference.

    Runs that are complete are not run again. One that diverges is a result too.

    Args:
      configs: the runs, in order of importance.
      reference: see above.
      workdir: where their folders are made.
      jobs: processes; None takes one per core, or one process where there is an accelerator.

    Returns:
      Their results, in order.
    """
    folders = [workdir / run_name(config, reference) for config in configs]
    for config, folder in zip(configs, folders, strict=True):
        _check_same_run(config, folder)
    todo = {folder: config for folder, config in zip(folders, configs, strict=True) if not has_ended(folder)}
    if jobs is None:
        jobs = len(_available_cores()) if jax.default_backend() == "cpu" else 1
    jobs = min(jobs, len(todo))
    bar = tqdm.tqdm(total=len(todo), unit="run", disable=not todo or None)

    def finished(folder: pathlib.Path) -> None:
        summary = read_summary(folder)
        outcome = f"{100 * summary['final_test_accuracy']:.2f} %" if summary["completed"] else summary["error"]
        bar.write(f"{folder.name}: {outcome} after {summary['num_updates']:,} updates, {summary['wall_time_s']:.1f} s")
        bar.update()

    with bar:
        if jobs <= 1:
            for folder, config in todo.items():
                _train_one(config, folder)
                finished(folder)
        else:
            _train_in_processes(todo, jobs, finished)
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


def _train_one(config: Config, folder: pathlib.Path) -> None:
    with contextlib.suppress(loop.DivergedError):  # its summary says so
        train(config, folder, show="none")


def _train_in_processes(todo: dict[pathlib.Path, Config], jobs: int, finished: Callable[[pathlib.Path], None]) -> None:
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    available = _available_cores()
    for job in range(jobs):
        cores.put(available[job::jobs] or available)
    with concurrent.futures.ProcessPoolExecutor(jobs, context, _begin_worker, (cores,)) as pool:
        futures = {pool.submit(_train_one, config, folder): folder for folder, config in todo.items()}
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


def _available_cores() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
