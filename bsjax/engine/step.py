"""The pure functions of training: one update is k × `accumulate` + one `apply_update`.

Each runs on one device inside `jax.pmap(..., axis_name="batch")`; `apply_update` and `eval_step` hold the
all-reduces. Sums and counts travel; the one division comes after the all-reduce, so that every
example weighs the same whatever the layout. What the losses are, the task says.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bsjax.engine import shares
from bsjax.engine.contract import check_losses, check_params, in_the_users_words
from bsjax.gradient_noise import layer_norm_params, of_each_example, shard_term, squared_norm, zero_offsets
from bsjax.models.ghost_batch_norm import AXIS_NAME
from bsjax.optimizers import average_of
from bsjax.tasks import Task

_SMALL = 2**16  # elements; larger arrays are not worth a copy


class TrainState(NamedTuple):
    """What an update changes."""

    params: Any
    batch_stats: Any  # running averages of the groups' statistics; {} without any
    opt_state: optax.OptState  # with a `bsjax.engine.shares.Share` for each array that the devices share


class Microbatch(NamedTuple):
    """The examples that a device takes at once."""

    examples: Any  # pytree of arrays [n, ...]
    weights: jax.Array  # float32 [n]: 1, or 0 for padding
    keys: jax.Array  # [n]: of each example's randomness


class Accumulator(NamedTuple):
    """Sums over the microbatches of an update on one device."""

    grads: Any  # of the summed loss
    group_stats: Any
    num_groups: jax.Array
    loss: jax.Array
    metrics: dict[str, jax.Array]  # the task's
    num_examples: jax.Array
    weighted_grad_sq: jax.Array  # of the gradient noise scale, see `bsjax.gradient_noise.shard_term`


def example_keys(key: jax.Array, position_hi: jax.Array, position_lo: jax.Array) -> jax.Array:
    """A key per example: a function of the run's seed and the position in the stream, whatever the layout.

    Args:
      key: of the run.
      position_hi: uint32 [n], the upper half of the stream positions.
      position_lo: uint32 [n], the lower half.

    Returns:
      Keys [n].
    """
    return jax.vmap(lambda hi, lo: jax.random.fold_in(jax.random.fold_in(key, hi), lo))(position_hi, position_lo)


def sum_over_devices(tree: Any) -> Any:
    """The all-reduce; of one device nothing, which XLA would copy."""
    return tree if jax.lax.axis_size(AXIS_NAME) == 1 else jax.lax.psum(tree, AXIS_NAME)


def split_keys(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """From keys [n], those of reading (augmentation) and those of the losses (dropout), [n] each."""
    read_keys, loss_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
    return read_keys, loss_keys


@dataclasses.dataclass(frozen=True, eq=False)
class Steps:
    r"""The training functions of a task and an optimizer: pure, and to be mapped over an axis named "batch".

    Metrics are of the update's whole batch: `loss` and the task's own are means over its examples, `grad_norm` is the
    global norm of the mean gradient (without weight decay), and `weighted_grad_sq` is
    :math:`\sum_i |s_i|^2 / n_i` over the summed gradients of all microbatches of n_i examples:
    with `grad_norm`, what `bsjax.gradient_noise.estimate` needs (0 where there is only one microbatch).
    With `layer_norm_noise` there are two more, of the parameters of normalisation layers alone: the mean of the squared
    norms of the examples' own gradients, `layer_norm_example_sq`, and the squared norm of their mean,
    `layer_norm_mean_sq`; see `bsjax.gradient_noise.of_each_example`.
    Running averages take up the mean of the update's G groups with weight :math:`1 - d^G`, d being the task's
    `batch_stats_decay`.

    Args:
      task: what is trained.
      tx: made by `optax.inject_hyperparams`, such as `bsjax.optimizers.create_optimizer`; the
        `hyperparams` dict given to the steps sets those of its hyperparameters.
      layer_norm_noise: whether to measure the gradient of each example; the task's groups have one example then.
    """

    task: Task
    tx: optax.GradientTransformation
    layer_norm_noise: bool = False

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of what an update measures."""
        more = ("layer_norm_mean_sq",) if self.layer_norm_noise else ()
        return ("loss", *self._means, "grad_norm", "weighted_grad_sq", *more)

    @property
    def _means(self) -> tuple[str, ...]:
        """Names of means over examples, beside the loss."""
        more = ("layer_norm_example_sq",) if self.layer_norm_noise else ()
        return (*self.task.metrics, *more)

    def init(self, key: jax.Array, example: Any) -> TrainState:
        """The state before the first update; `example` is a pytree of arrays [1, ...]."""
        with in_the_users_words(self.task):
            params, batch_stats = self.task.init(key, example)
            check_params(params)
        with jax.numpy_dtype_promotion("standard"):  # which optax relies on
            return TrainState(params, batch_stats, self.tx.init(params))

    def shared(self, state: TrainState) -> TrainState:
        """Which arrays of a state the devices may share; only shapes and dtypes are needed.

        Raises:
          InvalidArgument: the optimizer stands no shares, see `bsjax.engine.shares.check_elementwise`.
        """
        params, batch_stats = jax.tree.map(lambda _: False, (state.params, state.batch_stats))
        return TrainState(params, batch_stats, shares.check_elementwise(self.tx, state.params))

    def zero_accumulator(self, state: TrainState) -> Accumulator:
        """An accumulator of no microbatches."""
        zero = jnp.zeros(())
        grads, group_stats = jax.tree.map(jnp.zeros_like, (state.params, state.batch_stats))
        return Accumulator(grads, group_stats, zero, zero, dict.fromkeys(self._means, zero), zero, zero)

    def accumulate(self, accumulator: Accumulator, state: TrainState, microbatch: Microbatch) -> Accumulator:
        """Adds a microbatch; no communication."""
        return jax.tree.map(jnp.add, accumulator, self._sums(state, microbatch))

    def apply_update(self, state: TrainState, accumulator: Accumulator, hyperparams: dict) -> tuple[TrainState, dict]:
        """One all-reduce and one division, then optax; returns the new state and the metrics.

        Where the devices share the optimizer's state, each updates its share of the parameters, and gathers the others.
        """
        num_shares = shares.num_shares(state.opt_state)
        total = _total(accumulator, num_shares)
        inverse = 1 / total.num_examples  # XLA fuses a product into all that read it, and not a quotient
        grads = jax.tree.map(lambda g: g * inverse.astype(g.dtype), total.grads)
        params = shares.share_of(state.params, num_shares)
        opt_state = _set_hyperparams(shares.without_shares(state.opt_state), hyperparams)
        params, opt_state = self._optimize(params, opt_state, grads)
        params = shares.gather(params, state.params, num_shares)
        opt_state = shares.with_shares(opt_state, state.opt_state)

        def fold_in(running: jax.Array, stat: jax.Array) -> jax.Array:
            num_groups = total.num_groups.astype(running.dtype)
            kept = self.task.batch_stats_decay**num_groups
            return kept * running + (1 - kept) * stat.astype(running.dtype) / num_groups

        batch_stats = jax.tree.map(fold_in, state.batch_stats, total.group_stats)
        metrics = {
            "loss": total.loss / total.num_examples,
            **{name: metric / total.num_examples for name, metric in total.metrics.items()},
            "grad_norm": jnp.sqrt(_squared_norm(total.grads, state.params, num_shares)) / total.num_examples,
            "weighted_grad_sq": total.weighted_grad_sq,
        }
        if self.layer_norm_noise:
            its_grads, its_params = map(layer_norm_params, (total.grads, state.params))
            square = _squared_norm(its_grads, its_params, num_shares)
            metrics["layer_norm_mean_sq"] = square / total.num_examples**2
        return TrainState(params, batch_stats, opt_state), metrics

    def _optimize(self, params: Any, opt_state: optax.OptState, grads: Any) -> tuple[Any, optax.OptState]:
        """The optimizer's step, along a leading axis of one.

        It is the axis of the stacked state. Computed without it, XLA on a CPU computes each new momentum twice, for the
        parameters and for the result, and copies both.
        """

        def step(params: Any, opt_state: optax.OptState, grads: Any) -> tuple[Any, optax.OptState]:
            updates, opt_state = self.tx.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state

        stacked = jax.tree.map(lambda x: x[None], (params, opt_state, grads))
        with jax.numpy_dtype_promotion("standard"):  # which optax relies on
            return jax.tree.map(lambda x: x[0], jax.vmap(step)(*stacked))

    def train_step(self, state: TrainState, microbatch: Microbatch, hyperparams: dict) -> tuple[TrainState, dict]:
        """An update of one microbatch, without an accumulator in memory."""
        sums = self._sums(state, microbatch, is_shard=jax.lax.axis_size(AXIS_NAME) > 1)
        return self.apply_update(state, sums, hyperparams)

    def gradients(self, state: TrainState, microbatch: Microbatch) -> Any:
        """The gradient of the summed loss, and nothing else of an update."""
        return self._sums(state, microbatch, is_shard=False).grads

    def eval_step(self, state: TrainState, microbatch: Microbatch) -> dict:
        """Sums over the devices' examples, with the parameters' average where the optimizer keeps one."""
        average, params = average_of(state.opt_state), state.params
        if average is not None:
            params = shares.gather(shares.without_shares(average), params, shares.num_shares(average))
        losses, metrics, _ = self._losses(params, state.batch_stats, microbatch, train=False)
        sums = _weighted_sums({"loss": losses, **metrics}, microbatch)
        return sum_over_devices({**sums, "num_examples": microbatch.weights.sum()})

    def _losses(self, params: Any, batch_stats: Any, microbatch: Microbatch, train: bool) -> tuple:
        read_keys, loss_keys = split_keys(microbatch.keys)
        with in_the_users_words(self.task):
            inputs = self.task.read(microbatch.examples, read_keys, train)
            result = self.task.losses(params, batch_stats, inputs, loss_keys, train)
        losses, metrics, group_stats = check_losses(self.task, result, len(microbatch.weights), batch_stats, train)
        wide = jnp.result_type(float)
        return losses.astype(wide), jax.tree.map(lambda metric: metric.astype(wide), metrics), group_stats

    def _sums(self, state: TrainState, microbatch: Microbatch, is_shard: bool = True) -> Accumulator:
        offsets = zero_offsets(state.params, len(microbatch.weights)) if self.layer_norm_noise else {}

        def losses_of(params: Any, microbatch: Microbatch) -> tuple:
            return self._losses(params, state.batch_stats, microbatch, train=True)

        def summed_loss(params: Any, offsets: dict[str, jax.Array]) -> tuple[jax.Array, tuple]:
            each = of_each_example(losses_of, params, offsets, microbatch) if offsets else losses_of(params, microbatch)
            losses, metrics, group_stats = each
            return (losses * microbatch.weights).sum(), (_weighted_sums(metrics, microbatch), group_stats)

        grad_fn = jax.value_and_grad(summed_loss, argnums=(0, 1), has_aux=True)
        (loss, (metrics, group_stats)), (grads, example_grads) = grad_fn(state.params, offsets)
        if offsets:  # of examples whose weights are 0 or 1
            metrics["layer_norm_example_sq"] = squared_norm(example_grads).astype(loss.dtype)
        # A group counts by its real examples on this device: 1, 0 for padding, a fraction where devices share it.
        local_size = min(self.task.group_size, len(microbatch.weights))
        group_weights = microbatch.weights.reshape(-1, local_size).sum(axis=1) / self.task.group_size
        return Accumulator(
            grads=grads,
            # Not a matrix product, which accelerators round to fewer digits.
            group_stats=jax.tree.map(lambda stat: (_along(stat, group_weights) * stat).sum(axis=0), group_stats),
            num_groups=group_weights.sum(),
            loss=loss,
            metrics=metrics,
            num_examples=microbatch.weights.sum(),
            weighted_grad_sq=shard_term(_joined(grads), microbatch.weights.sum()) if is_shard else jnp.zeros(()),
        )


def _weighted_sums(metrics: dict[str, jax.Array], microbatch: Microbatch) -> dict[str, jax.Array]:
    return {name: (metric * microbatch.weights).sum() for name, metric in metrics.items()}


def _along(stat: jax.Array, weights: jax.Array) -> jax.Array:
    return weights.reshape(-1, *(1,) * (stat.ndim - 1)).astype(stat.dtype)


def _total(accumulator: Accumulator, num_shares: int) -> Accumulator:
    """The sums over all devices; of the gradients, this device's share."""
    if num_shares == 1:
        return sum_over_devices(accumulator)
    others = sum_over_devices(accumulator._replace(grads=()))
    return others._replace(grads=shares.sum_over_devices(accumulator.grads, num_shares))


def _squared_norm(grads: Any, params: Any, num_shares: int) -> jax.Array:
    """Of the whole gradient of these parameters, from this device's share of it."""
    if num_shares == 1:
        return squared_norm(_joined(grads))
    shared: list[jax.Array] = []
    single: list[jax.Array] = []
    for grad, param in zip(jax.tree.leaves(grads), jax.tree.leaves(params), strict=True):
        (shared if shares.is_shared(param, num_shares) else single).append(grad)
    return jax.lax.psum(squared_norm(_joined(shared)), AXIS_NAME) + squared_norm(_joined(single))


def _joined(tree: Any) -> list[jax.Array]:
    """The same numbers in fewer arrays: one sum over all the small ones takes less time than a sum over each."""
    leaves = jax.tree.leaves(tree)
    dtypes = sorted({x.dtype for x in leaves}, key=str)
    small = [[x.ravel() for x in leaves if x.size < _SMALL and x.dtype == dtype] for dtype in dtypes]
    return [*(jnp.concatenate(arrays) for arrays in small if arrays), *(x for x in leaves if x.size >= _SMALL)]


def _set_hyperparams(opt_state: Any, hyperparams: dict) -> Any:
    new = {name: jnp.asarray(value, opt_state.hyperparams[name].dtype) for name, value in hyperparams.items()}
    return opt_state._replace(hyperparams={**opt_state.hyperparams, **new})
