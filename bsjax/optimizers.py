"""Optimizers from optax whose hyperparameters follow a plan, with an average of the parameters where wanted."""

from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from bsjax.errors import InvalidArgument, check_choice

OPTIMIZERS = ("sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop", "lars", "lamb", "muon")
# Their step has the parameters' norm, not the gradient's: no rule is known that keeps its noise when the batch changes.
WITHOUT_SCALING_RULE = ("lars", "lamb")
NO_SCALING_RULE = "one whose learning rate has a known rule for other batch sizes; for lars and lamb there is none"
WITH_B2 = ("adam", "adamw", "rmsprop", "lamb", "muon")


def create_optimizer(
    name: str,
    weight_decay: float = 0.0,
    decay_biases_and_norms: bool = False,
    max_grad_norm: float | None = None,
    b2: float = 0.999,
    eps: float = 1e-8,
    ema_decay: float | None = None,
    scheduled: Collection[str] = (),
) -> optax.GradientTransformation:
    """An optax optimizer with `hyperparams` "learning_rate" and, except for sgd, "momentum" in its state.

    The engine writes these before every update, so one compiled program serves any schedule and any controller.

    Args:
      name: one of `OPTIMIZERS`. The momentum is the trace's decay for momentum, nesterov, rmsprop and lars,
        b1 for adam, adamw and lamb, and `beta` for muon; sgd has none. lars and lamb are optax's: each array's step has
        the norm of its parameters. muon, `optax.contrib.muon`, orthogonalises arrays of two and more axes, over the
        last axis and all others; what remains follows Adam with b1 0.9.
      weight_decay: λ. Added to the gradient as λθ (L2), or for adamw, lamb and muon to the step (decoupled).
      decay_biases_and_norms: whether to decay parameters with fewer than two axes too.
      max_grad_norm: clips the gradient to this global norm, before weight decay; None does not clip.
      b2: decay of the squared gradients for adam, adamw, rmsprop, lamb and muon's Adam.
      eps: added to their root.
      ema_decay: keeps an average of the parameters with this decay per update, see `average_parameters`, which the
        engine evaluates; None keeps none.
      scheduled: further hyperparameters that the plan sets: "weight_decay"; "b2" and "eps" of those that have a b2;
        "ema_decay" of an average.

    Raises:
      InvalidArgument: no such optimizer, or a value out of range.

    >>> tx = create_optimizer("adamw", weight_decay=0.1, scheduled=["b2"])
    >>> sorted(tx.init({"w": jnp.ones(2)}).hyperparams)
    ['b2', 'learning_rate', 'momentum']
    """
    _check(name, weight_decay, max_grad_norm, b2, ema_decay, scheduled)

    # Checkpoints are recognised by the names of these functions and of what they close over, see `describe_constants`.
    def step(learning_rate: Any, momentum: Any, weight_decay: Any, b2: Any, eps: Any) -> optax.GradientTransformation:
        mask = None if decay_biases_and_norms else _matrices_and_kernels
        clip = [] if max_grad_norm is None else [optax.clip_by_global_norm(max_grad_norm)]
        decays = "weight_decay" in scheduled or weight_decay
        if name in _FROM_OPTAX:
            return optax.chain(*clip, _FROM_OPTAX[name](learning_rate, momentum, b2, eps, weight_decay, mask))
        decay = [optax.add_decayed_weights(weight_decay, mask)] if decays else []
        rescale = _rescale(name, momentum, b2, eps)
        gradient = rescale + decay if name == "adamw" else decay + rescale
        return optax.chain(*clip, *gradient, optax.scale_by_learning_rate(learning_rate))

    def optimizer(
        learning_rate: Any, momentum: Any, weight_decay: Any, b2: Any, eps: Any, ema_decay: Any
    ) -> optax.GradientTransformation:
        steps = step(learning_rate, momentum, weight_decay, b2, eps)
        return steps if ema_decay is None else optax.chain(steps, average_parameters(ema_decay))

    others = {"weight_decay": weight_decay, "b2": b2, "eps": eps, "ema_decay": ema_decay}
    momentum = None if name == "sgd" else 0.0
    injected = optax.inject_hyperparams(optimizer, static_args=set(others).difference(scheduled))
    return injected(learning_rate=0.0, momentum=momentum, **others)


def _check(
    name: str,
    weight_decay: float,
    max_grad_norm: float | None,
    b2: float,
    ema_decay: float | None,
    scheduled: Collection[str],
) -> None:
    """Refuses arguments of `create_optimizer`."""
    check_choice("optimizer", name, OPTIMIZERS)
    schedulable = ["weight_decay", *(("b2", "eps") if name in WITH_B2 else ())]
    schedulable += [] if ema_decay is None else ["ema_decay"]
    for other in scheduled:
        check_choice("scheduled", other, schedulable)
    if not weight_decay >= 0:
        raise InvalidArgument("weight_decay", weight_decay, "a number >= 0", 0)
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise InvalidArgument("max_grad_norm", max_grad_norm, "positive, or None")
    if not 0 <= b2 < 1:
        raise InvalidArgument("b2", b2, "in [0, 1)")
    if ema_decay is not None and not 0 <= ema_decay < 1:
        raise InvalidArgument("ema_decay", ema_decay, "in [0, 1), or None", 0.999)


def _rescale(name: str, momentum: Any, b2: Any, eps: Any) -> list[optax.GradientTransformation]:
    """What makes a step of a gradient, but for the learning rate and the decay."""
    if name in ("adam", "adamw"):
        return [optax.scale_by_adam(momentum, b2, eps)]
    by_root = [optax.scale_by_rms(b2, eps, eps_in_sqrt=False)] if name == "rmsprop" else []
    return by_root + ([] if name == "sgd" else [optax.trace(momentum, nesterov=name == "nesterov")])


class ParameterAverage(NamedTuple):
    """The state of `average_parameters`."""

    average: Any  # like the parameters


def average_parameters(decay: Any) -> optax.GradientTransformation:
    r"""Keeps an exponential moving average of the parameters; the last of a chain, because it changes no update.

    .. math:: \bar\theta_{t+1} = d \, \bar\theta_t + (1 - d) \, \theta_{t+1}, \qquad \bar\theta_0 = \theta_0

    Args:
      decay: d in [0, 1) of each update, a number or a scalar array. `bsjax.ScaleEma` makes it follow the batch.

    >>> tx = optax.chain(optax.sgd(1.0), average_parameters(0.75))
    >>> params = jnp.zeros(())
    >>> state = tx.init(params)
    >>> for _ in range(2):
    ...     updates, state = tx.update(-jnp.ones(()), state, params)
    ...     params = optax.apply_updates(params, updates)
    >>> params.item(), average_of(state).item()
    (2.0, 0.6875)

    Reference: Polyak and Juditsky, 1992 (https://doi.org/10.1137/0330046), with exponential weights.
    """

    def init(params: Any) -> ParameterAverage:
        return ParameterAverage(jax.tree.map(jnp.asarray, params))

    def update(updates: Any, state: ParameterAverage, params: Any = None) -> tuple[Any, ParameterAverage]:
        if params is None:
            raise ValueError("average_parameters needs the parameters: tx.update(grads, state, params)")

        def mix(average: jax.Array, new: jax.Array) -> jax.Array:
            d = jnp.asarray(decay, average.dtype)
            return d * average + (1 - d) * new

        return updates, ParameterAverage(jax.tree.map(mix, state.average, optax.apply_updates(params, updates)))

    return optax.GradientTransformation(init, update)


def average_of(opt_state: Any) -> Any:
    """The average that `average_parameters` has left in an optimizer's state; None if it keeps none.

    >>> average_of(create_optimizer("sgd").init(jnp.zeros(2))) is None
    True
    """
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, ParameterAverage))
    return next((node.average for node in nodes if isinstance(node, ParameterAverage)), None)


def _lars(
    learning_rate: Any, momentum: Any, b2: Any, eps: Any, weight_decay: Any, mask: Any
) -> optax.GradientTransformation:
    del b2, eps
    return optax.lars(learning_rate, weight_decay, True if mask is None else mask, momentum=momentum)


def _lamb(
    learning_rate: Any, momentum: Any, b2: Any, eps: Any, weight_decay: Any, mask: Any
) -> optax.GradientTransformation:
    return optax.lamb(learning_rate, momentum, b2, eps, weight_decay=weight_decay, mask=mask)


def _muon(
    learning_rate: Any, momentum: Any, b2: Any, eps: Any, weight_decay: Any, mask: Any
) -> optax.GradientTransformation:
    """Muon for arrays of two and more axes, of which flax's last one is the output, and Adam for the others."""

    def axes(params: Any) -> Any:
        def of(parameter: Any) -> Any:
            last = jnp.ndim(parameter) - 1
            return optax.contrib.MuonDimensionNumbers(tuple(range(last)), last) if last > 0 else None

        return jax.tree.map(of, params)

    return optax.contrib.muon(
        learning_rate,
        beta=momentum,
        eps=eps,
        weight_decay=weight_decay,
        adam_b2=b2,
        adam_weight_decay=weight_decay if mask is None else 0.0,
        muon_weight_dimension_numbers=axes,
    )


def _matrices_and_kernels(params: Any) -> Any:
    return jax.tree.map(lambda parameter: jnp.ndim(parameter) > 1, params)


# Those that optax has whole, with a decay of their own.
_FROM_OPTAX = {"lars": _lars, "lamb": _lamb, "muon": _muon}
