"""Predicted against measured times of short trainings on this machine's cores, one CPU device per core. No flags."""

import concurrent.futures
import contextlib
import functools
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from bsjax import Plan, run
from bsjax.analysis.time_model import AllReduce, Costs, predict
from bsjax.data import load_dataset
from bsjax.engine import StepTimes, layout
from experiments.harness import build
from experiments.harness.config import Config
from experiments.harness.pool import available_cores
from experiments.scaling import step_times
from experiments.scaling.step_times import AllReduceSeconds, UpdateSeconds

# Microbatches per update of the trainings; and all of them in one training, whose batch grows.
_COUNTS = (1, 2, 4, 8, 16)
_GROWING = f"{_COUNTS[0]} to {_COUNTS[-1]}"
_NEVER = 1e9  # epochs between evaluations and log lines


class Task(NamedTuple):
    """The trainings that validate, and how they are measured."""

    config: Config  # with a microbatch size
    data_dir: str | None
    num_microbatches: int  # of a training, on each device, about
    measure_s: float  # length of each measurement of a step time, about

    def plans(self, dataset_size: int, num_devices: int) -> dict[str, Plan]:
        """The trainings, by their microbatches per update."""
        size = build.fixed_microbatch_size(self.config)
        assert size is not None
        unit = size * num_devices

        def plan(num_microbatches: int, counts: tuple[int, ...]) -> Plan:
            sizes = np.repeat(counts, [max(1, num_microbatches // count) for count in counts]) * unit
            return Plan(dataset_size, sizes, np.full(len(sizes), 1e-3), np.full(len(sizes), 0.9))

        fixed = {str(count): plan(self.num_microbatches, (count,)) for count in _COUNTS}
        return {**fixed, _GROWING: plan(self.num_microbatches // len(_COUNTS), _COUNTS)}


class Round(NamedTuple):
    """One measurement of everything in a process."""

    updates: UpdateSeconds  # on all its devices
    all_reduce: AllReduceSeconds | None  # between them
    trainings: dict[str, float]  # seconds, by label
    cores: float  # that it had during the trainings, on average


class Validation(NamedTuple):
    """Predicted and measured times."""

    rows: list[dict[str, Any]]  # one for each training
    step_times: dict[int, StepTimes]  # by number of devices, with the sum over them in apply_update
    all_reduce: AllReduce  # between two


def validate(task: Task, repeats: int) -> Validation:
    """Measures on 1 and on 2 devices in turn, and predicts the times.

    Each time is predicted twice: from step times on one device (for two devices, with the sum over devices measured
    alone), and from step times on as many devices. Neither uses the trainings. The shortest of the repeats of each
    measurement counts, because other work on the machine only adds to it.

    Args:
      task: the trainings.
      repeats: how often everything is measured.

    Returns:
      Seconds; `cores` is the number of cores that a process used at best, on average over its trainings.

    Raises:
      InvalidArgument: there is no such data set.
    """
    rounds: dict[int, list[Round]] = {1: [], 2: []}
    with contextlib.ExitStack() as exits:
        processes = {count: exits.enter_context(_process(task, count)) for count in rounds}
        for _ in range(repeats):
            for count, process in processes.items():
                rounds[count].append(process.submit(_measure, task).result())
    times = {count: step_times.step_times([one.updates for one in group]) for count, group in rounds.items()}
    sums = [one.all_reduce for one in rounds[2] if one.all_reduce]
    between = step_times.all_reduce(sums)
    rows = []
    for count, group in rounds.items():
        origins = {
            "from_one_device": _costs(task, times[1], between, sums[0].num_bytes),
            "from_as_many": _costs(task, times[count], AllReduce(0.0, math.inf), 0),  # the updates include the sum
        }
        for label, plan in task.plans(1, count).items():
            seconds = [one.trainings[label] for one in group]
            measured = min(seconds)
            row: dict[str, Any] = {"devices": count, "cores": f"{max(one.cores for one in group):.2f}"}
            row |= {"microbatches": label, "updates": plan.num_updates}
            row |= {"measured_s": f"{measured:.4g}", "measured_median_s": f"{statistics.median(seconds):.4g}"}
            for name, costs in origins.items():
                predicted = predict(plan, count, costs).wall_time_s
                row |= {f"{name}_s": f"{predicted:.4g}", f"{name}_error": f"{predicted / measured - 1:+.3f}"}
            rows.append(row)
    return Validation(rows, times, between)


def _costs(task: Task, times: StepTimes, between: AllReduce, size: int) -> Costs:
    return Costs(times, between, size, microbatch_size=build.fixed_microbatch_size(task.config))


@contextlib.contextmanager
def _process(task: Task, num_devices: int) -> Iterator[concurrent.futures.Executor]:
    """A process with as many cores as devices, if the machine has them."""
    cores = available_cores()[:num_devices]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context, _begin, (num_devices, cores)) as process:
        process.submit(_compile, task).result()
        yield process


def _begin(num_devices: int, cores: list[int]) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", num_devices)


def _compile(task: Task) -> None:
    _measurements(task)


def _measure(task: Task) -> Round:
    return _measurements(task)()


@functools.cache
def _measurements(task: Task) -> Callable[[], Round]:
    """Compiles what this process measures, and returns a function that measures it once."""
    config, devices = task.config, jax.devices()
    size = build.fixed_microbatch_size(config)
    assert size is not None
    dataset = load_dataset(config.data.dataset, task.data_dir)
    plans = task.plans(len(dataset.train), len(devices))
    engine = build.engine(config, dataset, plans[_GROWING])
    time_updates = step_times.update_timer(config, dataset, [size], len(devices), task.measure_s)
    shapes = step_times.model_shapes(build.model(config, dataset.num_classes), step_times.image_shape_of(dataset))
    several = len(devices) > 1
    time_sums = step_times.all_reduce_timer(shapes, devices, task.measure_s) if several else lambda: None

    def train(plan: Plan) -> float:
        """Seconds of training as the training loop counts them, without compilation and evaluation."""
        with tempfile.TemporaryDirectory() as folder:
            summary = run.train(
                engine, plan, folder, run.Intervals(_NEVER, _NEVER, checkpoint_min_s=_NEVER), show="none"
            )
        assert summary is not None
        return summary["examples_seen"] / summary["examples_per_second"]

    def measure() -> Round:
        updates, sums = time_updates(), time_sums()
        start, cpu_start = time.perf_counter(), time.process_time()
        trainings = {label: train(plan) for label, plan in plans.items()}
        cores = (time.process_time() - cpu_start) / (time.perf_counter() - start)
        return Round(updates, sums, trainings, cores)

    train(plans[_GROWING])  # compiles
    return measure


def make_task(config: Config, data_dir: str | None, num_microbatches: int, measure_s: float) -> Task:
    """A task whose microbatches are a ghost, unless --microbatch_size is set; devices share no ghost.

    Raises:
      InvalidArgument: a microbatch does not hold whole ghosts.
    """
    ghost = config.task.ghost_batch_size
    size = build.fixed_microbatch_size(config) or ghost
    unit = min(size, build.unit_of(config))
    with build.argument_is_flag(unit):
        layout.check_microbatch_size(size, unit, 1)
    smaller = config.replace(microbatch_size=size, ghost_batch_size=min(ghost, size))
    return Task(smaller, data_dir, num_microbatches, measure_s)
