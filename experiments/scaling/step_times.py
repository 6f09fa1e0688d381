"""Measures the engine's steps and the sum over devices, the inputs of `bsjax.analysis.time_model`. No flags.

The shortest of several measurements counts, because other work on the machine only adds to it.
"""

import functools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bsjax import Plan, Update
from bsjax.analysis.time_model import AllReduce
from bsjax.data import Dataset
from bsjax.engine import Engine, StepTimes
from bsjax.engine.devices import mapped, replicate
from bsjax.models import ghost_batch_size_of
from bsjax.models.ghost_batch_norm import AXIS_NAME
from bsjax.tasks import Classification
from experiments.harness import build
from experiments.harness.config import Config

# Microbatches of the updates that are measured. The difference between few and many is the time of the microbatches
# alone; a single one needs no accumulator.
_ONE, _FEW, _MANY = 1, 2, 6


class UpdateSeconds(NamedTuple):
    """Measured seconds of an update, by microbatch size."""

    one: dict[int, float]  # of a single microbatch
    few: dict[int, float]  # of _FEW
    many: dict[int, float]  # of _MANY


class _Stopwatch:
    """Times some pieces of work, each of which does something a given number of times, for about `seconds` each."""

    def __init__(self, works: dict[Any, Callable[[int], None]], seconds: float):
        self._works, self._seconds, self._counts = works, seconds, dict.fromkeys(works, 1)
        self.measure()  # compiles
        self.measure()

    def measure(self) -> dict[Any, float]:
        """Seconds of doing each once."""
        found = {}
        for name, work in self._works.items():
            start = time.perf_counter()
            work(self._counts[name])
            found[name] = (time.perf_counter() - start) / self._counts[name]
            self._counts[name] = max(1, round(self._seconds / found[name]))
        return found


def update_timer(
    config: Config, dataset: Dataset, microbatch_sizes: Iterable[int], num_devices: int, seconds: float
) -> Callable[[], UpdateSeconds]:
    """Compiles updates of few microbatches, and returns a function that times them.

    Args:
      config: the model, its optimizer, its augmentation.
      dataset: the examples.
      microbatch_sizes: per device. A larger ghost is reduced to the microbatch, so that devices share none.
      num_devices: of the updates, which include the all-reduce between several devices.
      seconds: of each measurement, about.
    """
    engines: dict[int, Engine] = {}
    for size in microbatch_sizes:
        smaller = config.replace(microbatch_size=size, ghost_batch_size=min(config.task.ghost_batch_size, size))
        batch_sizes = np.array([_ONE, _FEW, _MANY]) * size * num_devices
        plan = Plan(len(dataset.train), batch_sizes, np.zeros(3), np.zeros(3))
        engines[size] = build.engine(smaller, dataset, plan, devices=str(num_devices))
    states = {size: engine.init() for size, engine in engines.items()}

    def train(num_microbatches: int, size: int, num_updates: int) -> None:
        batch_size, state = num_microbatches * size * engines[size].num_devices, states[size]
        for k in range(num_updates):
            update = Update(k, k * batch_size, batch_size, learning_rate=0.0, momentum=0.0)
            state, metrics = engines[size].update(state, update)
        metrics.read()
        states[size] = jax.block_until_ready(state)

    kinds = [(count, size) for count in (_ONE, _FEW, _MANY) for size in engines]
    stopwatch = _Stopwatch({kind: functools.partial(train, *kind) for kind in kinds}, seconds)

    def measure() -> UpdateSeconds:
        found = stopwatch.measure()
        return UpdateSeconds(*({size: found[count, size] for size in engines} for count in (_ONE, _FEW, _MANY)))

    return measure


def step_times(measurements: Sequence[UpdateSeconds]) -> StepTimes:
    """The times of the steps of measured updates.

    >>> step_times([UpdateSeconds(one={8: 0.25}, few={8: 0.5}, many={8: 1.3})])
    StepTimes(accumulate_s={8: 0.2}, apply_update_s=0.1, single_saving_s=0.05)
    """
    accumulate_s, rests, savings = {}, [], []
    for size in measurements[0].few:
        one, few, many = (min(one[size] for one in column) for column in zip(*measurements, strict=True))
        # Noise can make it negative where an update is short.
        accumulate_s[size] = max((many - few) / (_MANY - _FEW), 1e-9)
        rests.append(max(few - _FEW * accumulate_s[size], 0.0))
        savings.append(max(accumulate_s[size] + rests[-1] - one, 0.0))
    rounded = {size: _rounded(seconds) for size, seconds in accumulate_s.items()}
    return StepTimes(rounded, *(_rounded(statistics.median(values)) for values in (rests, savings)))


class AllReduceSeconds(NamedTuple):
    """Measured seconds of a sum over devices."""

    num_devices: int
    num_bytes: int
    single: float  # of as many single numbers as there are arrays
    full: float  # of the arrays


def all_reduce_timer(shapes: Any, devices: Sequence[jax.Device], seconds: float) -> Callable[[], AllReduceSeconds]:
    """Compiles sums over devices, of arrays and of as many single numbers, and returns a function that times them.

    Args:
      shapes: a pytree with a shape at each leaf, float32, such as what an update sums.
      devices: at least two.
      seconds: of each measurement, about.
    """
    add = mapped(lambda arrays: jax.lax.psum(arrays, AXIS_NAME), devices)

    def work(shape_of: Callable[[Any], tuple[int, ...]]) -> Callable[[int], None]:
        arrays = replicate(jax.tree.map(lambda leaf: jnp.zeros(shape_of(leaf)), shapes), devices)

        def add_often(count: int) -> None:
            for _ in range(count):
                jax.block_until_ready(add(arrays))

        return add_often

    stopwatch = _Stopwatch({"single": work(lambda leaf: ()), "full": work(lambda leaf: leaf.shape)}, seconds)
    return lambda: AllReduceSeconds(len(devices), num_bytes(shapes), **stopwatch.measure())


def all_reduce(measurements: Sequence[AllReduceSeconds]) -> AllReduce:
    """The model of a measured sum over devices.

    >>> measured = AllReduceSeconds(num_devices=2, num_bytes=1000, single=0.5, full=0.75)
    >>> all_reduce([measured])
    AllReduce(latency_s=0.25, bytes_per_s=4000.0)
    """
    num_devices, size = measurements[0].num_devices, measurements[0].num_bytes
    single, full = (min(getattr(one, name) for one in measurements) for name in ("single", "full"))
    num_messages = AllReduce(latency_s=1.0, bytes_per_s=math.inf).seconds(0, num_devices)
    bytes_moved = AllReduce(latency_s=0.0, bytes_per_s=1.0).seconds(size, num_devices)
    bytes_per_s = bytes_moved / (full - single) if full > single else math.inf
    return AllReduce(_rounded(single / num_messages), _rounded(bytes_per_s))


def num_bytes(shapes: Any) -> int:
    """Bytes of float32 arrays of these shapes."""
    return 4 * sum(leaf.size for leaf in jax.tree.leaves(shapes))


def image_shape_of(dataset: Dataset) -> tuple[int, ...]:
    """Height, width and channels."""
    return dataset.train.gather(np.zeros(1, np.int64))["image"].shape[1:]


def model_shapes(model: nn.Module, image_shape: Sequence[int]) -> tuple[Any, Any]:
    """The shapes of what an update sums over the devices: gradients and batch-norm statistics."""
    example = {"image": np.zeros((1, *image_shape)), "label": np.zeros(1, np.int32)}
    return jax.eval_shape(functools.partial(Classification(model).init, examples=example), jax.random.key(0))


def flops_per_example(model: nn.Module, image_shape: Sequence[int]) -> float:
    """Floating-point operations of an example's forward and backward pass, as XLA counts them before it optimizes."""
    size = ghost_batch_size_of(model)
    images = jax.ShapeDtypeStruct((size, *image_shape), jnp.float32)
    keys = jax.ShapeDtypeStruct((size, 2), jnp.uint32)

    def total(params: Any, batch_stats: Any, images: jax.Array, keys: jax.Array) -> jax.Array:
        return Classification(model).apply(params, batch_stats, images, keys, train=True)[0].sum()

    costs: Any = jax.jit(jax.grad(total)).lower(*model_shapes(model, image_shape), images, keys).cost_analysis()
    return costs["flops"] / size


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")  # to be printed
