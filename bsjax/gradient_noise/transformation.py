"""The estimator as an optax transformation, for other training loops."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bsjax.errors import InvalidArgument
from bsjax.gradient_noise.averages import Averages, update_averages
from bsjax.gradient_noise.estimates import Estimate, estimate, shard_term, squared_norm


class GradientNoiseState(NamedTuple):
    """State of `measure_gradient_noise`."""

    averages: Averages  # scalars; the same on all devices
    latest: Estimate  # the last update's


class _Sums(NamedTuple):
    grads: Any
    weighted_sq: Any
    num_examples: Any
    num_shards: Any


def measure_gradient_noise(
    half_life_examples: float,
    num_examples: int | None = None,
    axis_name: str | tuple[str, ...] | None = None,
    stacked: bool = False,
    dataset_size: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Averages the gradients of shards, in place of the loop's own `pmean` or mean, and measures their noise.

    Put it first in an `optax.chain`. It takes each shard's *mean* gradient, along a mapped axis (pmap, shard_map,
    vmap), along a leading axis of the gradients, or both, and returns the mean over all examples.

    The gradients must not be averaged yet: equal gradients have no noise. To measure parameter groups separately, use
    one transformation for each label of `optax.partition`.

    Under `jax.shard_map`, `jax.grad` sums over the devices by itself, after which nothing can be measured:
    take the gradient at `jax.lax.pcast(params, axis_name, to="varying")`.

    Args:
      half_life_examples: see `update_averages`.
      num_examples: behind each shard's gradient; None: `update` is given `num_examples=`, a scalar or,
        stacked, [k], where 0 is a shard to leave out.
      axis_name: of the mapped axis or axes, if any.
      stacked: the gradients have a leading axis [k].
      dataset_size: see `estimate`.

    Returns:
      A transformation with state `GradientNoiseState`.

    Raises:
      InvalidArgument: a half-life of zero or less, or neither an axis nor a stack; in `update`, no number of examples.
      ValueError: in `update`, the gradients were summed over the axis already.

    Gradients of eight microbatches, stacked by vmap:

    >>> tx = optax.chain(measure_gradient_noise(1e4, num_examples=4, stacked=True), optax.sgd(0.1))
    >>> grad_fn = jax.vmap(jax.grad(lambda w, x: ((w - x) ** 2).mean() / 2), in_axes=(None, 0))
    >>> @jax.jit
    ... def train_step(w, opt_state, examples):
    ...     updates, opt_state = tx.update(grad_fn(w, examples), opt_state)
    ...     return optax.apply_updates(w, updates), opt_state
    >>> w, opt_state = jnp.zeros(()), tx.init(jnp.zeros(()))
    >>> for key in jax.random.split(jax.random.key(0), 10):
    ...     w, opt_state = train_step(w, opt_state, 3 + jax.random.normal(key, (8, 4)))
    >>> from bsjax import gradient_noise
    >>> print(gradient_noise.gradient_noise_scale(opt_state[0].averages))  # σ² / G² = 1/9 at first, more on approach
    0.25

    Gradients of the devices:

    >>> tx = optax.chain(measure_gradient_noise(1e4, axis_name="batch"), optax.sgd(0.1))
    >>> def train_step(w, opt_state, examples):
    ...     grads = jax.grad(lambda w: ((w - examples) ** 2).mean() / 2)(w)
    ...     updates, opt_state = tx.update(grads, opt_state, num_examples=len(examples))
    ...     return optax.apply_updates(w, updates), opt_state
    >>> train_step = jax.pmap(train_step, axis_name="batch", in_axes=(None, None, 0), out_axes=None)
    >>> examples = 3 + jax.random.normal(jax.random.key(0), (jax.device_count(), 16))
    >>> w, opt_state = train_step(jnp.zeros(()), tx.init(jnp.zeros(())), examples)
    >>> print(opt_state[0].latest.num_shards == jax.device_count())
    True
    """
    if not half_life_examples > 0:
        raise InvalidArgument("half_life_examples", half_life_examples, "a positive number")
    if axis_name is None and not stacked:
        raise InvalidArgument("axis_name", axis_name, "the name of a mapped axis, unless gradients are stacked")

    def init(params: Any) -> GradientNoiseState:
        del params
        zero = jnp.zeros(())
        return GradientNoiseState(Averages(*(zero for _ in Averages._fields)), Estimate(zero, zero, zero, zero))

    def update(
        grads: Any,
        state: GradientNoiseState,
        params: Any = None,
        *,
        num_examples: Any = num_examples,
        **extra_args: Any,
    ) -> tuple[Any, GradientNoiseState]:
        del params, extra_args
        if num_examples is None:
            raise InvalidArgument("num_examples", None, "the number of examples behind each gradient")
        n = jnp.asarray(num_examples, state.averages.weight.dtype)
        if stacked:
            n = jnp.broadcast_to(n, jax.tree.leaves(grads)[0].shape[:1])
            sums = jax.tree.map(lambda part: part.sum(axis=0), jax.vmap(_sums)(grads, n))
        else:
            sums = _sums(grads, n)
        if axis_name is not None:
            _check_not_summed(grads, axis_name)
            sums = jax.lax.psum(sums, axis_name)
        mean = jax.tree.map(lambda total: total / sums.num_examples, sums.grads)
        latest = estimate(sums.weighted_sq, squared_norm(mean), sums.num_examples, sums.num_shards, dataset_size)
        latest = jax.tree.map(lambda x, old: x.astype(old.dtype), latest, state.latest)
        averages = update_averages(state.averages, latest, half_life_examples)
        return jax.tree.map(lambda x, g: x.astype(g.dtype), mean, grads), GradientNoiseState(averages, latest)

    return optax.GradientTransformationExtraArgs(init, update)


def _sums(mean_grads: Any, n: Any) -> _Sums:
    # A shard of no examples has a mean of 0/0.
    grads = jax.tree.map(lambda g: jnp.where(n > 0, n * g.astype(np.promote_types(g.dtype, n.dtype)), 0), mean_grads)
    return _Sums(grads, shard_term(grads, n), n, (n > 0).astype(n.dtype))


def _check_not_summed(grads: Any, axis_name: str | tuple[str, ...]) -> None:
    names = (axis_name,) if isinstance(axis_name, str) else axis_name
    for name in names:
        # Only a shard_map that checks types knows what varies; there its axis index does.
        checked = name in jax.typeof(jax.lax.axis_index(name)).manual_axis_type.varying
        if checked and any(name not in jax.typeof(g).manual_axis_type.varying for g in jax.tree.leaves(grads)):
            raise ValueError(
                f"the gradients are summed over {name!r} already, as shard_map does where the parameters are the same "
                f"on all devices: take them at jax.lax.pcast(params, {name!r}, to='varying')"
            )
