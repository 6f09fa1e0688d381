"""The optimizers, all from optax, with learning rate and momentum set anew at every update."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from bsjax.errors import InvalidArgument, check_choice

OPTIMIZERS = ("sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop")


def create_optimizer(
    name: str,
    weight_decay: float = 0.0,
    decay_biases_and_norms: bool = False,
    max_grad_norm: float | None = None,
    b2: float = 0.999,
    epsilon: float = 1e-8,
) -> optax.GradientTransformation:
    """An optax optimizer whose state carries `hyperparams` {"learning_rate", "momentum"}.

    `bsjax.step.apply_update` writes these before every update, so one compiled program serves any
    schedule and any controller.

    Args:
      name: one of `OPTIMIZERS`. The momentum is the trace's decay for momentum, nesterov and rmsprop,
        b1 for adam and adamw; sgd has none.
      weight_decay: λ. Added to the gradient as λθ (L2), or for adamw to the step (decoupled).
      decay_biases_and_norms: decay these (all parameters with fewer than two axes) too.
      max_grad_norm: clip the gradient to this global norm, before weight decay; None: do not.
      b2: decay of the squared gradients for adam, adamw and rmsprop.
      epsilon: added to their root.

    Raises:
      InvalidArgument: no such optimizer, or a value out of range.

    >>> tx = create_optimizer("momentum", weight_decay=5e-4)
    >>> sorted(tx.init({"w": jnp.zeros(3)}).hyperparams)
    ['learning_rate', 'momentum']
    """
    check_choice("optimizer", name, OPTIMIZERS)
    if not weight_decay >= 0:
        raise InvalidArgument("weight_decay", weight_decay, "a number >= 0", 0)
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise InvalidArgument("max_grad_norm", max_grad_norm, "positive, or None")
    if not 0 <= b2 < 1:
        raise InvalidArgument("b2", b2, "in [0, 1)")

    def optimizer(learning_rate: Any, momentum: Any) -> optax.GradientTransformation:
        rescale = {
            "sgd": lambda: [],
            "momentum": lambda: [optax.trace(momentum)],
            "nesterov": lambda: [optax.trace(momentum, nesterov=True)],
            "adam": lambda: [optax.scale_by_adam(momentum, b2, epsilon)],
            "adamw": lambda: [optax.scale_by_adam(momentum, b2, epsilon)],
            "rmsprop": lambda: [optax.scale_by_rms(b2, epsilon, eps_in_sqrt=False), optax.trace(momentum)],
        }[name]()
        clip = [] if max_grad_norm is None else [optax.clip_by_global_norm(max_grad_norm)]
        mask = None if decay_biases_and_norms else _matrices_and_kernels
        decay = [optax.add_decayed_weights(weight_decay, mask)] if weight_decay else []
        gradient = rescale + decay if name == "adamw" else decay + rescale
        return optax.chain(*clip, *gradient, optax.scale_by_learning_rate(learning_rate))

    return optax.inject_hyperparams(optimizer)(learning_rate=0.0, momentum=0.0)


def _matrices_and_kernels(params: Any) -> Any:
    return jax.tree.map(lambda parameter: jnp.ndim(parameter) > 1, params)
