"""Predicted against measured times of short trainings on this machine's cores, one CPU device per core. No flags."""

import concurrent.futures
import contextlib
import dataclasses
import math
import multiprocessing
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from bsjax import Plan, layout, loop
from bsjax.data import load_dataset
from bsjax.models import ghost_batch_size_of
from bsjax.scaling import AllReduce, Costs, StepTimes, predict
from experiments import runs
from experiments.config import Config
from experiments.step_times import (
    AllReduceSeconds,
    AllReduceTimer,
    UpdateSeconds,
    UpdateTimer,
    all_reduce,
    model_shapes,
    step_times,
)

# Microbatches per update of the trainings; and all of them in one training, whose batch grows.
_COUNTS = (1, 2, 4, 8, 16)
_GROWING = f"{_COUNTS[0]} to {_COUNTS[-1]}"
_NEVER = 1e9  # epochs between evaluations and log lines


class Task(NamedTuple):
    """What is trained."""

    config: Config  # with a microbatch size
    data_dir: str | None
    num_microbatches: int  # of a training, on each device, about
    measure_s: float  # length of each measurement of a step time, about

    def plans(self, dataset_size: int, num_devices: int) -> dict[str, Plan]:
        """The trainings, by their microbatches per update."""
        assert self.config.microbatch_size is not None
        unit = self.config.microbatch_size * num_devices

        def plan(num_microbatches: int, counts: tuple[int, ...]) -> Plan:
            sizes = np.repeat(counts, [max(1, num_microbatches // count) for count in counts]) * unit
            return Plan(dataset_size, sizes, np.full(len(sizes), 1e-3), np.full(len(sizes), 0.9))

        fixed = {str(count): plan(self.num_microbatches, (count,)) for count in _COUNTS}
        return {**fixed, _GROWING: plan(self.num_microbatches // len(_COUNTS), _COUNTS)}


class Round(NamedTuple):
    """What a process has measured, once."""

    updates: UpdateSeconds  # on all its devices
    all_reduce: AllReduceSeconds | None  # between them
    trainings: dict[str, float]  # seconds, by label
    cores: float  # that it had during the trainings, on average


class _Trainings:
    """All that a process measures, compiled."""

    def __init__(self, task: Task):
        config, devices = task.config, jax.devices()
        assert config.microbatch_size is not None
        dataset = load_dataset(config.dataset, task.data_dir)
        self._plans = task.plans(len(dataset.train.labels), len(devices))
        self._engine = config.create_engine(dataset, self._plans[_GROWING])
        self._updates = UpdateTimer(config, dataset, [config.microbatch_size], len(devices), task.measure_s)
        shapes = model_shapes(config, dataset.train.images.shape[1:], dataset.num_classes)
        self._all_reduce = AllReduceTimer(shapes, devices, task.measure_s) if len(devices) > 1 else None
        self._train(self._plans[_GROWING])  # compiles

    def measure(self) -> Round:
        """Everything once."""
        updates = self._updates.measure()
        between = self._all_reduce.measure() if self._all_reduce else None
        start = time.perf_counter(), time.process_time()
        trainings = {label: self._train(plan) for label, plan in self._plans.items()}
        seconds, cpu_seconds = time.perf_counter() - start[0], time.process_time() - start[1]
        return Round(updates, between, trainings, cpu_seconds / seconds)

    def _train(self, plan: Plan) -> float:
        """Seconds of training as the training loop counts them, without compilation and evaluation."""
        with tempfile.TemporaryDirectory() as folder:
            summary = loop.train(self._engine, plan, pathlib.Path(folder), _NEVER, _NEVER, show="none")
        assert summary is not None
        return summary["examples_seen"] / summary["examples_per_second"]


class Validation(NamedTuple):
    """Predicted and measured times."""

    rows: list[dict[str, Any]]  # one for each training
    step_times: dict[int, StepTimes]  # by number of devices, with the sum over them in apply_update
    all_reduce: AllReduce  # between two


def validate(task: Task, repeats: int) -> Validation:
    """Measures on 1 and on 2 devices in turn, and predicts.

    Each time is predicted twice: from step times on one device and, for two, the sum over devices measured alone; and
    from step times of updates on as many devices. The trainings are in neither. Of each measurement the shortest of the
    repeats counts: other work on the machine only adds to it.

    Args:
      task: what is trained.
      repeats: how often everything is measured.

    Returns:
      Seconds; `cores` is how many a process of that many devices had at best, on average over its trainings.

    Raises:
      InvalidArgument: no such data set.
    """
    rounds: dict[int, list[Round]] = {1: [], 2: []}
    with contextlib.ExitStack() as exits:
        processes = {count: exits.enter_context(_process(task, count)) for count in rounds}
        for _ in range(repeats):
            for count, process in processes.items():
                rounds[count].append(process.submit(_measure).result())
    times = {count: step_times([one.updates for one in group]) for count, group in rounds.items()}
    sums = [one.all_reduce for one in rounds[2] if one.all_reduce]
    between = all_reduce(sums)
    rows = []
    for count, group in rounds.items():
        from_one = _costs(task, times[1], between, sums[0].num_bytes)
        from_as_many = _costs(task, times[count], AllReduce(0.0, math.inf), 0)  # their updates have it in them
        for label, plan in task.plans(1, count).items():
            seconds = [one.trainings[label] for one in group]
            measured = min(seconds)
            predicted = [predict(plan, count, costs).wall_time_s for costs in (from_one, from_as_many)]
            rows.append(
                {
                    "devices": count,
                    "cores": f"{max(one.cores for one in group):.2f}",
                    "microbatches": label,
                    "updates": plan.num_updates,
                    "measured_s": f"{measured:.4g}",
                    "measured_median_s": f"{statistics.median(seconds):.4g}",
                    "from_one_device_s": f"{predicted[0]:.4g}",
                    "from_one_device_error": f"{predicted[0] / measured - 1:+.3f}",
                    "from_as_many_s": f"{predicted[1]:.4g}",
                    "from_as_many_error": f"{predicted[1] / measured - 1:+.3f}",
                }
            )
    return Validation(rows, times, between)


def _costs(task: Task, times: StepTimes, between: AllReduce, size: int) -> Costs:
    return Costs(times, between, size, microbatch_size=task.config.microbatch_size)


@contextlib.contextmanager
def _process(task: Task, num_devices: int) -> Iterator[concurrent.futures.Executor]:
    """A process with as many cores as devices, if there are so many."""
    cores = runs.available_cores()[:num_devices]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context, _begin, (num_devices, cores)) as process:
        process.submit(_compile, task).result()
        yield process


_trainings: _Trainings  # of a process that measures


def _begin(num_devices: int, cores: list[int]) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", num_devices)


def _compile(task: Task) -> None:
    global _trainings
    _trainings = _Trainings(task)


def _measure() -> Round:
    return _trainings.measure()


def make_task(config: Config, data_dir: str | None, num_microbatches: int, measure_s: float) -> Task:
    """A task with microbatches of a ghost, unless the run says otherwise, and no ghosts that devices share.

    Raises:
      InvalidArgument: a microbatch that does not hold whole ghosts.
    """
    size = config.microbatch_size or config.ghost_batch_size
    layout.check_microbatch_size(size, min(size, ghost_batch_size_of(config.create_model(num_classes=1))), 1)
    config = dataclasses.replace(config, microbatch_size=size, ghost_batch_size=min(config.ghost_batch_size, size))
    return Task(config, data_dir, num_microbatches, measure_s)
