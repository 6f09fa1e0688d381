"""Measures what `bsjax.scaling` predicts from: the engine's steps, and the sum over devices. No flags.

Of several measurements of one thing the shortest counts: other work on the machine only adds to it.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bsjax import Plan
from bsjax.data import Dataset
from bsjax.engine import Engine
from bsjax.models import ghost_batch_size_of
from bsjax.normalization import AXIS_NAME
from bsjax.parallel import replicate
from bsjax.scaling import AllReduce, StepTimes
from experiments.config import Config

# An update of so many microbatches, and of so many: their difference is that of the microbatches alone.
_FEW, _MANY = 2, 6


class UpdateSeconds(NamedTuple):
    """What updates were measured to take, by microbatch size."""

    few: dict[int, float]  # of _FEW microbatches
    many: dict[int, float]  # of _MANY


class UpdateTimer:
    """Times updates of few microbatches, of several sizes, on real or synthetic examples."""

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        microbatch_sizes: Iterable[int],
        num_devices: int,
        seconds: float,
    ):
        """Compiles.

        Args:
          config: the model, its optimizer, its augmentation.
          dataset: the examples.
          microbatch_sizes: per device. Ghosts are as large at most, so that devices share none.
          num_devices: on which the updates run, all-reduce included where there are several.
          seconds: of each measurement, about.
        """
        self._seconds = seconds
        self._engines = {}
        for size in microbatch_sizes:
            ghost_batch_size = min(config.ghost_batch_size, size)
            smaller = dataclasses.replace(config, microbatch_size=size, ghost_batch_size=ghost_batch_size)
            batch_sizes = np.array([_FEW, _MANY]) * size * num_devices
            plan = Plan(len(dataset.train.labels), batch_sizes, np.zeros(2), np.zeros(2))
            self._engines[size] = smaller.create_engine(dataset, plan, devices=str(num_devices))
        self._states = {size: engine.init() for size, engine in self._engines.items()}
        self._num_updates: dict[tuple[int, int], int] = {}
        self.measure()  # compiles
        self.measure()

    def measure(self) -> UpdateSeconds:
        """Each of them once."""
        few, many = ({size: self._update_s(size, count) for size in self._engines} for count in (_FEW, _MANY))
        return UpdateSeconds(few, many)

    def _update_s(self, microbatch_size: int, num_microbatches: int) -> float:
        engine: Engine = self._engines[microbatch_size]
        state = self._states[microbatch_size]
        batch_size = num_microbatches * microbatch_size * engine.num_devices
        num_updates = self._num_updates.get((microbatch_size, num_microbatches), 1)
        start = time.perf_counter()
        for update in range(num_updates):
            state, metrics = engine.update(state, update * batch_size, batch_size, learning_rate=0.0, momentum=0.9)
        jax.block_until_ready((state, metrics))
        seconds = (time.perf_counter() - start) / num_updates
        self._num_updates[microbatch_size, num_microbatches] = max(1, round(self._seconds / seconds))
        self._states[microbatch_size] = state
        return seconds


def step_times(measurements: Sequence[UpdateSeconds]) -> StepTimes:
    """The steps of which measured updates are made.

    >>> step_times([UpdateSeconds(few={8: 0.5}, many={8: 1.3})])
    StepTimes(accumulate_s={8: 0.2}, apply_update_s=0.1)
    """
    accumulate_s, rests = {}, []
    for size in measurements[0].few:
        few, many = (min(one[size] for one in column) for column in zip(*measurements, strict=True))
        # Noise can make it negative where an update is short.
        accumulate_s[size] = max((many - few) / (_MANY - _FEW), 1e-9)
        rests.append(max(few - _FEW * accumulate_s[size], 0.0))
    return StepTimes(
        {size: _rounded(seconds) for size, seconds in accumulate_s.items()}, _rounded(statistics.median(rests))
    )


class AllReduceSeconds(NamedTuple):
    """What sums over devices were measured to take."""

    num_devices: int
    num_bytes: int
    single: float  # of as many single numbers as there are arrays
    full: float  # of the arrays


class AllReduceTimer:
    """Times the sum over devices of arrays shaped like what an update sums, and of as many single numbers."""

    def __init__(self, shapes: Any, devices: Sequence[jax.Device], seconds: float):
        """Compiles.

        Args:
          shapes: anything with a shape at each leaf, float32.
          devices: at least two.
          seconds: of each measurement, about.
        """
        self._seconds = seconds
        self._num_devices = len(devices)
        self._num_bytes = num_bytes(shapes)
        single = jax.tree.map(lambda _: jnp.zeros(()), shapes)
        full = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
        self._arrays = [replicate(arrays, devices) for arrays in (single, full)]
        self._sum = jax.pmap(lambda arrays: jax.lax.psum(arrays, AXIS_NAME), AXIS_NAME, devices=devices)
        self._counts = [1, 1]
        self.measure()  # compiles
        self.measure()

    def measure(self) -> AllReduceSeconds:
        """Both once."""
        seconds = []
        for i, arrays in enumerate(self._arrays):
            start = time.perf_counter()
            for _ in range(self._counts[i]):
                jax.block_until_ready(self._sum(arrays))
            seconds.append((time.perf_counter() - start) / self._counts[i])
            self._counts[i] = max(1, round(self._seconds / seconds[i]))
        return AllReduceSeconds(self._num_devices, self._num_bytes, *seconds)


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
    """Of float32 arrays of these shapes."""
    return 4 * sum(leaf.size for leaf in jax.tree.leaves(shapes))


def model_shapes(config: Config, image_shape: Sequence[int], num_classes: int) -> Any:
    """What an update sums over the devices, one of each: gradients and batch-norm statistics."""
    model = config.create_model(num_classes)
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return jax.eval_shape(lambda key, images: model.init(key, images, train=False), jax.random.key(0), images)


def flops_per_example(config: Config, image_shape: Sequence[int], num_classes: int) -> float:
    """Floating-point operations of an example's forward and backward pass, as XLA counts them before it optimizes."""
    model = config.create_model(num_classes)
    size = ghost_batch_size_of(model)
    variables = model_shapes(config, image_shape, num_classes)
    images = jax.ShapeDtypeStruct((size, *image_shape), jnp.float32)
    keys = jax.ShapeDtypeStruct((size, 2), jnp.uint32)

    def total(params: Any, others: Any, images: jax.Array, keys: jax.Array) -> jax.Array:
        logits, _ = model.apply({"params": params, **others}, images, train=True, keys=keys, mutable=["ghost_stats"])
        return logits.sum()

    others = {name: tree for name, tree in variables.items() if name != "params"}
    costs: Any = jax.jit(jax.grad(total)).lower(variables["params"], others, images, keys).cost_analysis()
    return costs["flops"] / size


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")  # to be printed
