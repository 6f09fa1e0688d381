"""The pure functions of training: one update is k × `accumulate` + `apply_update`.

Each runs on one device inside `jax.pmap(..., axis_name="batch")`; `apply_update` and `eval_step` hold the
all-reduces. Sums and counts travel; the one division comes after the all-reduce, so that every
example weighs the same whatever the layout.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from bsjax.gradient_noise import shard_term, squared_norm
from bsjax.normalization import AXIS_NAME

_SMALL = 2**16  # elements; larger arrays are not worth a copy


class TrainState(NamedTuple):
    """What an update changes."""

    params: Any
    batch_stats: Any  # running means and variances; {} without batch norm
    opt_state: optax.OptState


class Microbatch(NamedTuple):
    """The examples that a device takes at once."""

    images: jax.Array  # float [n, height, width, channels]
    labels: jax.Array  # int32 [n]
    weights: jax.Array  # float32 [n]: 1, or 0 for padding
    keys: jax.Array  # [n]: of the examples' randomness in the model


class Accumulator(NamedTuple):
    """Sums over the microbatches of an update on one device."""

    grads: Any  # of the summed loss
    ghost_stats: Any  # sums of the ghosts' means and variances
    num_ghosts: jax.Array
    loss: jax.Array
    num_correct: jax.Array
    num_examples: jax.Array
    weighted_grad_sq: jax.Array  # of the gradient noise scale, see `bsjax.gradient_noise.shard_term`


class Steps(NamedTuple):
    """The functions of `make_steps`."""

    init: Callable[[jax.Array, jax.Array], TrainState]  # key, images
    zero_accumulator: Callable[[TrainState], Accumulator]
    accumulate: Callable[[Accumulator, TrainState, Microbatch], Accumulator]
    apply_update: Callable[[TrainState, Accumulator, dict], tuple[TrainState, dict]]
    train_step: Callable[[TrainState, Microbatch, dict], tuple[TrainState, dict]]
    eval_step: Callable[[TrainState, Microbatch], dict]


def make_steps(
    model: nn.Module,
    tx: optax.GradientTransformation,
    label_smoothing: float = 0.0,
    ghost_batch_size: int = 1,
    batch_norm_decay: float = 0.99,
) -> Steps:
    r"""The training functions of a model and an optimizer.

    Metrics are of the update's whole batch: `loss` is the mean cross-entropy (with label smoothing,
    without weight decay), `accuracy` a fraction, `grad_norm` the global norm of the mean gradient, and
    `weighted_grad_sq` :math:`\sum_i |s_i|^2 / n_i` over the summed gradients of all microbatches of n_i examples:
    with `grad_norm`, what `bsjax.gradient_noise.estimate` needs (0 where there is only one microbatch).
    Running averages take up the mean of the update's G ghosts with weight :math:`1 - decay^G`.

    Args:
      model: called as `model(images, train, keys)`, see `bsjax.models`.
      tx: made by `optax.inject_hyperparams`, such as `bsjax.optimizers.create_optimizer`; the
        `hyperparams` dict given to the steps sets those of its hyperparameters that have its names.
      label_smoothing: α: targets are (1 - α)·one-hot + α / classes.
      ghost_batch_size: the model's.
      batch_norm_decay: of the running averages, per ghost.

    Returns:
      Pure functions, to be mapped over an axis named "batch".
    """

    def summed_loss(params: Any, batch_stats: Any, microbatch: Microbatch) -> tuple[jax.Array, tuple]:
        logits, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            microbatch.images,
            train=True,
            keys=microbatch.keys,
            mutable=["ghost_stats"],
        )
        targets = optax.smooth_labels(jax.nn.one_hot(microbatch.labels, logits.shape[-1]), label_smoothing)
        losses = optax.softmax_cross_entropy(logits, targets)
        return (losses * microbatch.weights).sum(), (logits, updated.get("ghost_stats", {}))

    def sums(state: TrainState, microbatch: Microbatch, is_shard: bool = True) -> Accumulator:
        grad_fn = jax.value_and_grad(summed_loss, has_aux=True)
        (loss, (logits, ghost_stats)), grads = grad_fn(state.params, state.batch_stats, microbatch)
        # A ghost counts by its real examples on this device: 1, 0 for padding, a fraction where devices share it.
        local_size = min(ghost_batch_size, len(microbatch.weights))
        ghost_weights = microbatch.weights.reshape(-1, local_size).sum(axis=1) / ghost_batch_size
        return Accumulator(
            grads=grads,
            # Not a matrix product, which accelerators round to fewer digits.
            ghost_stats=jax.tree.map(lambda stat: (ghost_weights[:, None] * stat).sum(axis=0), ghost_stats),
            num_ghosts=ghost_weights.sum(),
            loss=loss,
            num_correct=_num_correct(logits, microbatch),
            num_examples=microbatch.weights.sum(),
            weighted_grad_sq=shard_term(_joined(grads), microbatch.weights.sum()) if is_shard else jnp.zeros(()),
        )

    def init(key: jax.Array, images: jax.Array) -> TrainState:
        variables = model.init(key, images, train=False)
        params = variables["params"]
        opt_state = tx.init(params)
        _check_injected(opt_state)
        return TrainState(params, variables.get("batch_stats", {}), opt_state)

    def zero_accumulator(state: TrainState) -> Accumulator:
        zero = jnp.zeros(())
        grads, ghost_stats = jax.tree.map(jnp.zeros_like, (state.params, state.batch_stats))
        return Accumulator(grads, ghost_stats, zero, zero, zero, zero, zero)

    def accumulate(accumulator: Accumulator, state: TrainState, microbatch: Microbatch) -> Accumulator:
        return jax.tree.map(jnp.add, accumulator, sums(state, microbatch))

    def apply_update(state: TrainState, accumulator: Accumulator, hyperparams: dict) -> tuple[TrainState, dict]:
        total = jax.lax.psum(accumulator, AXIS_NAME)
        grads = jax.tree.map(lambda g: g / total.num_examples, total.grads)
        opt_state = _set_hyperparams(state.opt_state, hyperparams)
        updates, opt_state = tx.update(grads, opt_state, state.params)
        kept = batch_norm_decay**total.num_ghosts
        batch_stats = jax.tree.map(
            lambda running, stat: kept * running + (1 - kept) * stat / total.num_ghosts,
            state.batch_stats,
            total.ghost_stats,
        )
        metrics = {
            "loss": total.loss / total.num_examples,
            "accuracy": total.num_correct / total.num_examples,
            "grad_norm": jnp.sqrt(squared_norm(_joined(grads))),
            "weighted_grad_sq": total.weighted_grad_sq,
        }
        return TrainState(optax.apply_updates(state.params, updates), batch_stats, opt_state), metrics

    def train_step(state: TrainState, microbatch: Microbatch, hyperparams: dict) -> tuple[TrainState, dict]:
        return apply_update(state, sums(state, microbatch, is_shard=jax.lax.axis_size(AXIS_NAME) > 1), hyperparams)

    def eval_step(state: TrainState, microbatch: Microbatch) -> dict:
        """Sums over the devices' examples."""
        logits = model.apply({"params": state.params, "batch_stats": state.batch_stats}, microbatch.images, train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, microbatch.labels)
        local = {
            "loss": (losses * microbatch.weights).sum(),
            "num_correct": _num_correct(logits, microbatch),
            "num_examples": microbatch.weights.sum(),
        }
        return jax.lax.psum(local, AXIS_NAME)

    return Steps(init, zero_accumulator, accumulate, apply_update, train_step, eval_step)


def _check_injected(opt_state: Any) -> None:
    scheduled = getattr(opt_state, "hyperparams_states", {})
    if "learning_rate" not in getattr(opt_state, "hyperparams", {}) or "learning_rate" in scheduled:
        raise TypeError(
            "tx must be made by optax.inject_hyperparams with a number, not a schedule, for learning_rate: "
            "each update sets its own"
        )


def _joined(tree: Any) -> list[jax.Array]:
    """The same numbers in fewer arrays: one sum over all the small ones takes less time than a sum over each."""
    leaves = jax.tree.leaves(tree)
    small = [x.ravel() for x in leaves if x.size < _SMALL]
    return [*([jnp.concatenate(small)] if small else []), *(x for x in leaves if x.size >= _SMALL)]


def _num_correct(logits: Any, microbatch: Microbatch) -> jax.Array:
    return ((logits.argmax(axis=-1) == microbatch.labels) * microbatch.weights).sum()


def _set_hyperparams(opt_state: Any, hyperparams: dict) -> Any:
    names = opt_state.hyperparams.keys() & hyperparams.keys()
    new = {name: jnp.asarray(hyperparams[name], opt_state.hyperparams[name].dtype) for name in names}
    return opt_state._replace(hyperparams={**opt_state.hyperparams, **new})
