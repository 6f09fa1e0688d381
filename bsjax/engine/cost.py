"""What programs cost, as XLA counts it: floating-point operations, and bytes moved to and from memory."""

import collections
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bsjax.engine.step import Microbatch, Steps
from bsjax.models.ghost_batch_norm import AXIS_NAME

_PRODUCTS = re.compile(r"stablehlo\.(?:dot_general|convolution)\b.* : \(tensor<(?:\d+x)*(\w+)>")
_DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32", "f64": "float64"}


class Cost(NamedTuple):
    """What a program costs on one device, or an update on all; None where it cannot be known."""

    flops: float | None  # a multiplication and an addition are two
    bytes_accessed: float | None


class ModelFlops(NamedTuple):
    """What an example's loss and gradient take, whatever the layout; None where it cannot be known."""

    per_example: float | None
    dtype: str | None  # of most matrix products and convolutions


def program_cost(function: Callable, num_devices: int, lowered: Any, compiled: Any) -> Cost:
    """The cost of a program on each device.

    FLOPs are counted before XLA optimizes: afterwards, products may hide in custom calls (cuBLAS, cuDNN, oneDNN), of
    which nothing is known. Bytes are counted afterwards, because fusion is what saves them.

    Args:
      function: of one device's arrays.
      num_devices: that it is mapped over.
      lowered: the `jax.stages.Lowered`, whose arguments are stacked.
      compiled: the `jax.stages.Compiled`.
    """
    flops = _count(lowered, "flops")
    if flops is None:  # as on accelerators, where only compiled programs have an analysis
        args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), lowered.args_info[0])
        flops = _count(lowered_for_cpu(function, args, num_devices), "flops")
    return Cost(flops, _count(compiled, "bytes accessed"))


def total_cost(parts: Iterable[tuple[int, Cost]]) -> Cost:
    """The sum of costs, each so many times.

    >>> total_cost([(3, Cost(10.0, None)), (1, Cost(2.0, 8.0))])
    Cost(flops=32.0, bytes_accessed=None)
    """
    counts, costs = zip(*parts, strict=True)

    def total(values: Iterable[float | None]) -> float | None:
        known = [count * value for count, value in zip(counts, values, strict=True) if value is not None]
        return sum(known) if len(known) == len(counts) else None

    return Cost(total(cost.flops for cost in costs), total(cost.bytes_accessed for cost in costs))


def model_flops(steps: Steps, state: Any, example: Any, group_size: int) -> ModelFlops:
    """Counts the FLOPs of a group's losses and gradients, in the program before XLA optimizes it.

    Args:
      steps: of the task.
      state: a TrainState of arrays or shapes.
      example: a pytree of arrays [1, ...].
      group_size: the task's.
    """
    examples = jax.tree.map(lambda x: jax.ShapeDtypeStruct((group_size, *x.shape[1:]), x.dtype), example)
    keys = jax.eval_shape(lambda: jnp.stack([jax.random.PRNGKey(0)] * group_size))
    weights: Any = jax.ShapeDtypeStruct((group_size,), jnp.result_type(float))
    microbatch = Microbatch(examples, weights, keys)
    lowered = lowered_for_cpu(steps.gradients, (state, microbatch), num_devices=1)
    if lowered is None or (flops := _count(lowered, "flops")) is None:
        return ModelFlops(None, None)
    types = collections.Counter(_PRODUCTS.findall(lowered.as_text()))
    return ModelFlops(flops / group_size, _DTYPES.get(types.most_common(1)[0][0]) if types else None)


def lowered_for_cpu(function: Callable, args: tuple, num_devices: int) -> Any:
    """The program of each of so many devices, as a CPU would have to run it; None where JAX runs without CPUs.

    Args:
      function: of one device's arrays, with the mapped axis "batch".
      args: its arguments, or their shapes.
      num_devices: that it is mapped over; so many need not be there.
    """
    try:
        [cpu, *_] = jax.local_devices(backend="cpu")
    except RuntimeError:
        return None

    def of_a_device(*stacked: Any) -> Any:
        return jax.tree.map(lambda x: x[None], function(*jax.tree.map(lambda x: x[0], stacked)))

    axis, along = jax.sharding.AbstractMesh((num_devices,), (AXIS_NAME,)), jax.P(AXIS_NAME)
    mapped = jax.shard_map(of_a_device, mesh=axis, in_specs=along, out_specs=along, check_vma=False)
    stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((num_devices, *x.shape), x.dtype), args)
    with jax.default_device(cpu):
        return jax.jit(mapped).lower(*stacked)


def _count(stage: Any, name: str) -> float | None:
    """What XLA's analysis of a `jax.stages.Lowered` or `Compiled` says; it says nothing of what is 0."""
    try:
        counts = stage.cost_analysis()
    except jax.errors.JaxRuntimeError:  # as on some backends, in place of None
        return None
    # An annotation of shardings is a custom call, and counts as -1.
    return max(0.0, counts.get(name, 0.0)) if isinstance(counts, dict) else None
