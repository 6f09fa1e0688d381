"""Everything that knows how many devices there are: pmapped programs, and state with a leading device axis.

`jax.pmap` maps the pure functions of `bsjax.step` over the devices, with the axis named "batch". State
stays stacked: each array has a leading axis of one entry per device, which is what lets the
gradient accumulator differ between devices without a collective.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import jax_utils

from bsjax.normalization import AXIS_NAME


class Program:
    """A function pmapped over devices, compiled explicitly: once per shape, ahead of time if asked to.

    Attributes:
      num_compilations: how many executables were made.
      compile_time_s: seconds spent on them, in any thread.
      stall_time_s: the part of these that a call had to wait for.
    """

    def __init__(self, function: Callable, devices: Sequence[jax.Device], donate_argnums: tuple[int, ...] = ()):
        self._pmapped = jax.pmap(function, axis_name=AXIS_NAME, devices=devices, donate_argnums=donate_argnums)
        self._executables: dict[Any, Callable] = {}
        self._locks: dict[Any, threading.Lock] = {}
        self._counting = threading.Lock()
        # CPU devices of a process share its threads. Too many collectives in flight starve each other
        # until the runtime aborts, so let the pipeline run dry now and then.
        self._drain_every = 8 if devices[0].platform == "cpu" and len(devices) > 1 else 0
        self._num_calls = 0
        self.num_compilations = 0
        self.compile_time_s = 0.0
        self.stall_time_s = 0.0

    def compile(self, shape: Any, *args: Any) -> None:
        """Makes the executable for `shape`, unless it is there. `args` need shapes and dtypes only."""
        with self._locks.setdefault(shape, threading.Lock()):
            if shape not in self._executables:
                start = time.perf_counter()
                self._executables[shape] = self._pmapped.lower(*args).compile()
                with self._counting:  # two shapes may be compiled at the same time
                    self.num_compilations += 1
                    self.compile_time_s += time.perf_counter() - start

    def output_shapes(self, *args: Any) -> Any:
        return jax.eval_shape(self._pmapped, *args)

    def __call__(self, shape: Any, *args: Any) -> Any:
        """Runs the executable for `shape`, a hashable that stands for the shapes of args."""
        if shape not in self._executables:
            start = time.perf_counter()
            self.compile(shape, *args)
            self.stall_time_s += time.perf_counter() - start
        result = self._executables[shape](*args)
        if self._drain_every:
            self._num_calls += 1
            if self._num_calls % self._drain_every == 0:
                jax.block_until_ready(result)
        return result


def place(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Sends each device its entry of stacked numpy arrays."""
    mesh = jax.sharding.Mesh(np.array(devices), (AXIS_NAME,))
    return jax.device_put(tree, jax.NamedSharding(mesh, jax.P(AXIS_NAME)))


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Stacks a copy per device along a new leading axis."""
    return jax_utils.replicate(tree, devices)


def first_replica(tree: Any) -> Any:
    """The first device's entry of stacked arrays, as numpy arrays."""
    return jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0], tree)


def shapes_of(tree: Any) -> Any:
    """Shapes, dtypes and shardings, for compiling ahead of time."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)), tree)
