"""Everything that knows how many devices and processes there are: mapped programs, state with a device axis.

`jax.pmap` maps the pure functions of `bsjax.engine.step` over the devices, with the axis named "batch". State
stays stacked: each array has a leading axis of one entry per device, which is what lets the
gradient accumulator differ between devices without a collective. With many processes, such an array spans
them all, and a process hands over the entries of its own devices.

With BSJAX_MAPPING=shard_map in the environment, `jax.shard_map` does what `jax.pmap` does: for a JAX without pmap.
"""

import functools
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from bsjax.engine.cost import Cost, program_cost
from bsjax.engine.shares import Share, join, map_shares, share_shape, split
from bsjax.errors import InvalidArgument, check_choice
from bsjax.models.ghost_batch_norm import AXIS_NAME

MAPPINGS = ("pmap", "shard_map")
# What XLA leaves to YNNPACK, a library of kernels for CPUs: its default without convolutions, which are Eigen's then.
_KERNELS = ",".join(f"LIBRARY_FUSION_TYPE_{name}" for name in ("DOT", "REDUCE", "INDIVIDUAL_DOT"))
_EIGENS_CONVOLUTIONS = {"xla_cpu_experimental_ynn_fusion_type": _KERNELS}


def mapped(function: Callable, devices: Sequence[jax.Device], donate_argnums: tuple[int, ...] = ()) -> Any:
    """Maps a function over devices, along the first axis of all its arguments and results, with the axis "batch".

    Raises:
      InvalidArgument: BSJAX_MAPPING, from the environment, is not one of `MAPPINGS`.
    """
    mapping = os.environ.get("BSJAX_MAPPING", "pmap")
    check_choice("BSJAX_MAPPING", mapping, MAPPINGS)
    if mapping == "pmap":
        return jax.pmap(function, axis_name=AXIS_NAME, devices=devices, donate_argnums=donate_argnums)
    sharding = _stacked(devices)

    def on_one_device(*args: Any) -> Any:
        result = function(*jax.tree.map(lambda x: jax.lax.squeeze(x, [0]), args))
        return jax.tree.map(lambda x: jax.lax.expand_dims(x, [0]), result)

    # Without the check of varying axes, whose gradients are already summed over the devices.
    on_all = jax.shard_map(
        on_one_device, mesh=sharding.mesh, in_specs=sharding.spec, out_specs=sharding.spec, check_vma=False
    )
    return jax.jit(on_all, donate_argnums=donate_argnums, in_shardings=sharding, out_shardings=sharding)


class Program:
    """A function mapped over devices, compiled explicitly: once per shape, ahead of time if asked to.

    Attributes:
      num_compilations: how many executables were made.
      compile_time_s: seconds spent on them, in any thread.
      stall_time_s: the part of these that a call had to wait for.
    """

    def __init__(self, function: Callable, devices: Sequence[jax.Device], donate_argnums: tuple[int, ...] = ()):
        self._mapped = mapped(function, devices, donate_argnums)
        self._sharding = _stacked(devices)
        self._compiler_options = compiler_options(devices[0])
        self._executables: dict[Any, jax.stages.Compiled] = {}
        self._function, self._num_devices = function, len(devices)
        self._lowered: dict[Any, Any] = {}  # until their cost is known
        self._costs: dict[Any, Cost] = {}
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
                self._lowered[shape] = self._lower(*args)
                self._executables[shape] = self._lowered[shape].compile(compiler_options=self._compiler_options)
                with self._counting:  # two shapes may be compiled at the same time
                    self.num_compilations += 1
                    self.compile_time_s += time.perf_counter() - start

    def temporary_bytes(self, shape: Any) -> int:
        """Bytes that a compiled executable takes on each device beyond its arguments; 0 where XLA does not say."""
        analysis = self._executables[shape].memory_analysis()
        if analysis is None:
            return 0
        return analysis.temp_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes

    def total_bytes(self, shape: Any) -> int:
        """Bytes that a compiled executable takes on each device, with its arguments; 0 where XLA does not say."""
        analysis = self._executables[shape].memory_analysis()
        return 0 if analysis is None else analysis.argument_size_in_bytes + self.temporary_bytes(shape)

    def __call__(self, shape: Any, *args: Any) -> Any:
        """Runs the executable for `shape`, a hashable that stands for the shapes of args.

        Numpy arrays among these hold the entries of this process's devices, and are sent to them.
        """
        if not self._sharding.is_fully_addressable:
            args = jax.tree.map(lambda x: _place(x, self._sharding) if isinstance(x, np.ndarray) else x, args)
        if shape not in self._executables:
            start = time.perf_counter()
            self.compile(shape, *args)
            self.stall_time_s += time.perf_counter() - start
        with jax.transfer_guard_host_to_device("allow"):  # for numpy arrays: three times as fast as jax.device_put
            result = self._executables[shape](*args)
        if self._drain_every:
            self._num_calls += 1
            if self._num_calls % self._drain_every == 0:
                jax.block_until_ready(result)
        return result

    def cost_of(self, shape: Any) -> Cost:
        """What the executable for `shape` costs on each device; it must have been made."""
        if shape not in self._costs:  # the analysis takes a while
            stages = self._lowered.pop(shape), self._executables[shape]
            self._costs[shape] = program_cost(self._function, self._num_devices, *stages)
        return self._costs[shape]

    def _lower(self, *args: Any) -> Any:
        """With many processes, pmap takes no shapes to lower from; zeros are in memory for a moment instead."""
        if not self._sharding.is_fully_addressable:
            args = jax.tree.map(lambda x: _zeros(x.shape, x.dtype, self._sharding), args)
        return self._mapped.lower(*args)


def all_devices() -> list[jax.Device]:
    """The devices of all processes, those of a process side by side."""
    return sorted(jax.devices(), key=lambda device: (device.process_index, device.id))


def compiler_options(device: jax.Device) -> dict[str, Any]:
    """What XLA is to do otherwise than by default, if this version of it can.

    On several cores of a CPU: Eigen's convolutions, because those of YNNPACK keep one core busy. On one, YNNPACK's are
    as fast.
    """
    is_for_cores = device.platform == "cpu" and num_cores() > 1
    return _EIGENS_CONVOLUTIONS if is_for_cores and _are_known(*_EIGENS_CONVOLUTIONS.items()) else {}


def num_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_part(devices: Sequence[jax.Device]) -> slice:
    """Which of these devices are this process's."""
    mine = [i for i, device in enumerate(devices) if device.process_index == jax.process_index()]
    return slice(mine[0], mine[-1] + 1)


def first_of_each_process(devices: Sequence[jax.Device], num_devices: int) -> list[jax.Device]:
    """So many of these devices, as many of each process as of the others."""
    processes = [list(group) for _, group in itertools.groupby(devices, lambda device: device.process_index)]
    return [device for group in processes for device in group[: num_devices // len(processes)]]


def place(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Sends each device its entry of stacked numpy arrays, which hold those of this process's devices."""
    return jax.tree.map(lambda x: _place(x, _stacked(devices)), tree)


def replicate(tree: Any, devices: Sequence[jax.Device], shared: Any = None) -> Any:
    """Stacks a copy per device along a new leading axis; where the tree `shared` is true, a share per device."""
    sharding = _stacked(devices)

    def stack(x: Any, is_shared: bool = False) -> jax.Array | Share:
        x = np.asarray(x)
        if is_shared:
            shares = split(x, len(devices))
            return Share(jax.make_array_from_callback(shares.shape, sharding, lambda index: shares[index]), x.shape)
        return jax.make_array_from_callback((len(devices), *x.shape), sharding, lambda _: x[None])

    with jax.transfer_guard("allow"):  # JAX takes this transfer for an implicit one
        return jax.tree.map(stack, tree, *([] if shared is None else [shared]))


def first_replica(tree: Any) -> Any:
    """An entry of stacked arrays that are the same on all devices, and what they share, as numpy arrays.

    With many processes, all call it if there are shares.
    """

    def whole(share: Share) -> np.ndarray:
        if share.array.is_fully_addressable:
            return join(np.asarray(share.array), share.shape)
        return join(np.asarray(multihost_utils.process_allgather(share.array, tiled=True)), share.shape)

    return map_shares(whole, tree, lambda x: np.asarray(x.addressable_data(0))[0])


def shapes_of(tree: Any, devices: Sequence[jax.Device] | None = None) -> Any:
    """Shapes, dtypes and shardings, for compiling ahead of time; with devices, of a copy for each, stacked."""

    def shape_of(x: Any) -> jax.ShapeDtypeStruct:
        if devices is None:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None))
        return jax.ShapeDtypeStruct((len(devices), *x.shape), x.dtype, sharding=_stacked(devices))

    return jax.tree.map(shape_of, tree)


def shapes_on_each(state: Any, num_devices: int) -> Any:
    """Shapes and dtypes of a stacked state, without the device axis, if it were on so many devices."""

    def on_each(share: Share) -> Any:
        shape = share_shape(share.shape, num_devices)
        return Share(jax.ShapeDtypeStruct(shape, share.array.dtype), share.shape)

    return map_shares(on_each, state, lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype))


def is_first_process() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def largest_of_all_processes(value: int) -> int:
    """The largest of the values that the processes call this with."""
    return int(multihost_utils.process_allgather(np.int32(value)).max()) if jax.process_count() > 1 else value


def from_first_process(value: Any) -> Any:
    """What process 0 calls this with, that JSON can hold; the others' values are ignored."""
    if jax.process_count() == 1:
        return value
    text = json.dumps(value).encode() if is_first_process() else b""
    longest = largest_of_all_processes(len(text))
    padded = np.frombuffer(text.ljust(longest), np.uint8)
    return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).astype(np.uint8).tobytes())


def check_same_everywhere(values: Mapping[str, Any]) -> None:
    """Refuses processes of one run that were started differently.

    Args:
      values: that JSON can hold.

    Raises:
      InvalidArgument: in all processes, about the first value that is another one than in process 0.
    """
    if jax.process_count() == 1:
        return
    mine = json.dumps(values).encode()
    longest = largest_of_all_processes(len(mine))
    texts = multihost_utils.process_allgather(np.frombuffer(mine.ljust(longest), np.uint8))
    first, *others = (json.loads(text.tobytes()) for text in texts)
    for process, other in enumerate(others, start=1):
        for name in {**first, **other}:
            if first.get(name) != other.get(name):
                allowed = f"{first.get(name)!r} as in process 0; this is process {process}"
                raise InvalidArgument(name, other.get(name), allowed)


@functools.cache
def _are_known(*options: tuple[str, str]) -> bool:
    try:
        jax.jit(lambda: 0).lower().compile(compiler_options=dict(options))
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _stacked(devices: Sequence[jax.Device]) -> jax.NamedSharding:
    return jax.NamedSharding(jax.sharding.Mesh(np.array(devices), (AXIS_NAME,)), jax.P(AXIS_NAME))


def _place(x: np.ndarray, sharding: jax.NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    return jax.make_array_from_process_local_data(sharding, x)


def _zeros(shape: tuple[int, ...], dtype: Any, sharding: jax.NamedSharding) -> jax.Array:
    entry = np.broadcast_to(np.zeros((), dtype), (1, *shape[1:]))
    return jax.make_array_from_callback(shape, sharding, lambda _: entry)
