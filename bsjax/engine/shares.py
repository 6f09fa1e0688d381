"""The optimizer in shares (ZeRO-1): each device keeps, and updates, its part of the numbers.

Of an array of n numbers, a device of D keeps ⌈n / D⌉ consecutive ones; zeros fill the last share. A share has as many
axes as its array, so that an optimizer may still tell kernels from biases. Single numbers are not shared.

Reference: Rajbhandari et al., 2020 (https://arxiv.org/abs/1910.02054), Section 5.1.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bsjax.errors import InvalidArgument
from bsjax.models.ghost_batch_norm import AXIS_NAME

_ELEMENTWISE = frozenset(
    (  # noqa: SIM905
        "abs add add_any and broadcast_in_dim cbrt ceil clamp convert_element_type copy cos div eq erf exp exp2 expm1 "
        "floor ge gt integer_pow is_finite le log log1p logistic lt max min mul ne neg not or pow rem round rsqrt "
        "select_n sign sin sqrt square stop_gradient sub tanh xor"
    ).split()
)
_CALLS = frozenset("closed_call cond core_call custom_jvp_call custom_vjp_call jit pjit remat2".split())  # noqa: SIM905


@functools.partial(jax.tree_util.register_dataclass, data_fields=["array"], meta_fields=["shape"])
@dataclasses.dataclass(frozen=True)
class Share:
    """A device's part of an array of the optimizer's state; or those of all devices, stacked."""

    array: Any
    shape: tuple[int, ...]  # of the whole array


def map_shares(function: Callable, tree: Any, otherwise: Callable = lambda x: x) -> Any:
    """Maps a function over the Shares of a tree, and another over the other leaves."""
    return jax.tree.map(lambda x: function(x) if _is_share(x) else otherwise(x), tree, is_leaf=_is_share)


def share_shape(shape: tuple[int, ...], num_devices: int) -> tuple[int, ...]:
    """Of a device's share of an array.

    >>> share_shape((3, 3, 8, 16), num_devices=8)
    (1, 1, 1, 144)
    """
    size = math.prod(shape)
    return (*[1] * (len(shape) - 1), -(-size // num_devices)) if size > 1 and num_devices > 1 else shape


def split(x: Any, num_devices: int) -> Any:
    """The shares of an array, of numpy or JAX, stacked.

    >>> split(np.arange(3), num_devices=2).tolist()
    [[0, 1], [2, 0]]
    """
    shape = share_shape(x.shape, num_devices)
    flat = (np if isinstance(x, np.ndarray) else jnp).pad(x.reshape(-1), (0, math.prod(shape) * num_devices - x.size))
    return flat.reshape(num_devices, *shape)


def join(shares: Any, shape: tuple[int, ...]) -> Any:
    """The array of these stacked shares."""
    return shares.reshape(-1)[: math.prod(shape)].reshape(shape)


def without_shares(opt_state: Any) -> Any:
    """The optimizer's own state, of arrays."""
    return map_shares(lambda share: share.array, opt_state)


def with_shares(opt_state: Any, like: Any) -> Any:
    """The optimizer's own state with the Shares of another one."""
    arrays = iter(jax.tree.leaves(opt_state))
    return map_shares(lambda share: Share(next(arrays), share.shape), like, lambda x: next(arrays))


# What follows runs on one of the devices of the mapped axis "batch"; with one share, an array is its own.


def num_shares(opt_state: Any) -> int:
    """Devices that share the optimizer's state; 1 where each has all of it."""
    has_shares = any(map(_is_share, jax.tree.leaves(opt_state, is_leaf=_is_share)))
    return jax.lax.axis_size(AXIS_NAME) if has_shares else 1


def sum_over_devices(tree: Any, num_shares: int) -> Any:
    """This device's share of the sum."""

    def total(x: jax.Array) -> jax.Array:
        if is_shared(x, num_shares):
            return jax.lax.psum_scatter(split(x, num_shares), AXIS_NAME)
        return jax.lax.psum(x, AXIS_NAME)

    return jax.tree.map(total, tree)


def share_of(tree: Any, num_shares: int) -> Any:
    """This device's share of what all devices have."""
    mine = jax.lax.axis_index(AXIS_NAME)
    return jax.tree.map(lambda x: split(x, num_shares)[mine] if is_shared(x, num_shares) else x, tree)


def gather(shares: Any, like: Any, num_shares: int) -> Any:
    """On each device the whole arrays, whose shapes are those of `like`."""

    def whole(share: jax.Array, x: jax.Array) -> jax.Array:
        return join(jax.lax.all_gather(share, AXIS_NAME), x.shape) if is_shared(x, num_shares) else share

    return jax.tree.map(whole, shares, like)


def is_shared(x: Any, num_shares: int) -> bool:
    """Whether the devices share an array of this shape."""
    return num_shares > 1 and math.prod(x.shape) > 1


def check_elementwise(tx: optax.GradientTransformation, params: Any) -> Any:
    """Refuses an optimizer that treats a share of the numbers otherwise than all of them.

    Args:
      tx: the optimizer.
      params: shapes and dtypes of the parameters.

    Returns:
      For each array of the optimizer's state, whether it has a number for each of a parameter's.

    Raises:
      InvalidArgument: the optimizer mixes the numbers of an array, or looks at its shape.
    """
    state, operations = _trace(tx, params)
    if mixing := [name for name, _, mixes in operations if mixes]:
        raise _refusal(f"found {mixing[0]}")
    # Shares of one number each, so that a look at any size shows.
    shares = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1,) * len(x.shape), x.dtype), params)
    try:
        share, operations_on_share = _trace(tx, shares)
        is_shared = jax.tree.map(lambda x, share: _is_shared(x.shape, share.shape), state, share)
    except Exception as error:
        raise _refusal("part of its state has no shares") from error
    is_same = [one[:2] for one in operations] == [one[:2] for one in operations_on_share]
    if not is_same or None in jax.tree.leaves(is_shared, is_leaf=lambda x: x is None):
        raise _refusal("it treats arrays of different shapes differently")
    return is_shared


def _is_share(x: Any) -> bool:
    return isinstance(x, Share)


def _refusal(why: str) -> InvalidArgument:
    allowed = "False with this optimizer, which does not compute each number of an update from that number's gradient"
    return InvalidArgument("shard_optimizer", True, f"{allowed} alone ({why})", False)


def _is_shared(shape: tuple[int, ...], share: tuple[int, ...]) -> bool | None:
    """None where the second shape is neither that of one number of the first nor the same."""
    return shape != share if share in (shape, (1,) * len(shape)) else None


def _trace(tx: optax.GradientTransformation, params: Any) -> tuple[Any, list[tuple[str, list[str], bool]]]:
    """The shapes of an optimizer's state, and its operations."""
    with jax.numpy_dtype_promotion("standard"):  # which optax relies on
        state = jax.eval_shape(tx.init, params)
        return state, list(_operations(jax.make_jaxpr(tx.update)(params, state, params)))


def _operations(trace: Any) -> Iterator[tuple[str, list[str], bool]]:
    """The operations of a traced function, their constants, and whether each mixes the numbers of an array."""
    for equation in trace.eqns:
        name, values = equation.primitive.name, jax.tree.leaves(equation.params)
        if name in _CALLS:
            for inner in values:
                if hasattr(inner, "eqns"):
                    yield from _operations(inner)
            continue
        constants = [str(variable.val) for variable in equation.invars if hasattr(variable, "val")]
        shapes = {variable.aval.shape for variable in (*equation.invars, *equation.outvars)}
        arrays = {shape for shape in shapes if math.prod(shape) != 1}
        yield name, constants, bool(arrays) and (name not in _ELEMENTWISE or len(arrays) > 1)
