"""Unbiased estimates of |G|² and tr(Σ) from one update."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Estimate(NamedTuple):
    """An update's estimates: unbiased, noisy, and NaN where it has fewer than two shards."""

    grad_sq: Any  # |G|²; may be negative
    trace: Any  # tr(Σ), of one example
    num_examples: Any  # n
    num_shards: Any  # k


def squared_norm(tree: Any, group: Callable[[str], str] | None = None) -> Any:
    """|x|² over all arrays of a tree, or over each group of them.

    Args:
      tree: arrays; sums are float32 or better.
      group: from an array's path, such as "Dense_0/kernel", to the name of its group.

    Returns:
      A scalar; with `group`, a dict of one per group, each of which the other functions take.

    >>> grads = {"Dense_0": {"kernel": jnp.array([3.0, 4.0]), "bias": jnp.array([2.0])}}
    >>> print(squared_norm(grads))
    29.0
    >>> {name: float(square) for name, square in squared_norm(grads, lambda path: path.split("/")[-1]).items()}
    {'bias': 4.0, 'kernel': 25.0}
    """
    squares: dict[str, Any] = {}
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        name = "" if group is None else group(jax.tree_util.keystr(path, simple=True, separator="/"))
        x = jnp.abs(x).astype(np.promote_types(jnp.abs(x).dtype, np.float32))
        squares[name] = squares.get(name, 0.0) + jnp.square(x).sum()
    return squares.get("", jnp.zeros(())) if group is None else squares


def shard_term(grads_sum: Any, num_examples: Any, group: Callable[[str], str] | None = None) -> Any:
    """A shard's |s|²/n, the scalar to sum over microbatches and devices.

    Args:
      grads_sum: s, the gradient of the shard's summed loss.
      num_examples: n; 0 for a shard of padding, which adds nothing.
      group: see `squared_norm`.

    Returns:
      A scalar, or one per group.

    >>> print(shard_term({"kernel": jnp.array([6.0, 8.0])}, 4), shard_term(jnp.zeros(2), 0))
    25.0 0.0
    """
    some = jnp.asarray(num_examples) > 0
    divisor = jnp.where(some, num_examples, 1)
    return jax.tree.map(lambda square: jnp.where(some, square / divisor, 0), squared_norm(grads_sum, group))


def estimate(
    weighted_sq: Any, mean_grad_sq: Any, num_examples: Any, num_shards: Any, dataset_size: int | None = None
) -> Estimate:
    """The unbiased estimates of one update, by the module's formulas.

    Numbers and numpy arrays give float64, JAX arrays (inside jit too) their own precision. Arrays of one
    entry per group are taken entry by entry.

    Args:
      weighted_sq: Σ |s_i|²/n_i, the sum of `shard_term` over all shards.
      mean_grad_sq: |ḡ|², the `squared_norm` of the update's mean gradient.
      num_examples: n, of all shards.
      num_shards: k, those of at least one example.
      dataset_size: N, where examples are drawn without replacement; None: as if N were infinite.

    Returns:
      The estimates; NaN where k < 2, and `reason` says so.

    >>> noise = estimate(weighted_sq=4 * 13.0, mean_grad_sq=10.0, num_examples=4, num_shards=4)  # four of |g|² = 13
    >>> print(noise.trace, noise.grad_sq)
    4.0 9.0
    """
    xp, (weighted_sq, mean_grad_sq, n, k) = as_arrays(weighted_sq, mean_grad_sq, num_examples, num_shards)
    scatter = weighted_sq - n * mean_grad_sq  # Σ n_i |g_i - ḡ|²
    trace = xp.where(k >= 2, scatter / xp.maximum(k - 1, 1), xp.nan)
    variance = 1 / xp.maximum(n, 1)  # of the mean gradient, per tr(Σ)
    if dataset_size is not None:
        variance = xp.maximum(variance - 1 / dataset_size, 0)
    return Estimate(*map(unwrapped, (mean_grad_sq - trace * variance, trace, n, k)))


_NUMBERS = {int, float}


class _Numbers:
    """The functions of numpy that are used here, for Python's numbers: an update takes microseconds."""

    nan, inf = math.nan, math.inf
    isfinite = staticmethod(math.isfinite)
    maximum = staticmethod(max)

    @staticmethod
    def where(condition: bool, x: float, y: float) -> float:
        return x if condition else y


def as_arrays(*values: Any) -> tuple[Any, list]:
    """The functions for these values, and the values: jax.numpy, or for Python's numbers `_Numbers`, or else numpy.

    JAX arrays keep their precision; numpy's become float64.
    """
    if _NUMBERS.issuperset(map(type, values)):
        return _Numbers, list(values)
    if any(isinstance(value, jax.Array) for value in values):
        return jnp, [jnp.asarray(value) for value in values]
    return np, [np.asarray(value, np.float64) for value in values]


def unwrapped(x: Any) -> Any:
    """A scalar for an array without axes."""
    return x if type(x) in _NUMBERS else x[()]
