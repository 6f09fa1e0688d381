"""The noisy quadratic model: its expected losses, exactly, and those of simulated runs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bsjax import Plan, Update


class Quadratic(NamedTuple):
    """A noisy quadratic model with a diagonal Hessian; arrays of one shape [D]."""

    curvature: np.ndarray  # h, the Hessian's eigenvalues
    noise: np.ndarray  # c, the variance of one example's gradient
    start: np.ndarray  # θ before the first update


# Noise in proportion to the curvature, and a start at 1 in every direction.
POWER_LAW = Quadratic(np.geomspace(1e-3, 1e-1, 12), np.geomspace(1e-3, 1e-1, 12), np.ones(12))


def noise_variance(plan: Plan, replacement: bool = False) -> np.ndarray:
    """The variance of the mean over each update's batch, for examples of variance 1: float64[num_updates]."""
    if replacement:
        return 1 / plan.batch_sizes
    return (plan.dataset_size - plan.batch_sizes) / ((plan.dataset_size - 1) * plan.batch_sizes)


def expected_losses(plan: Plan, model: Quadratic, replacement: bool = False) -> np.ndarray:
    r"""The expected loss in each direction before the first and after every update, exactly.

    With v ← m v + g and θ ← θ - lr v, where g = h θ + ξ and E ξ² = q, each direction's z = (θ, v) follows

    .. math:: E zzᵀ ← A E zzᵀ Aᵀ + q bbᵀ, A = [[1 - lr h, -lr m], [h, m]], b = (-lr, 1)

    which needs three numbers: E θ², E θv and E v².

    Args:
      plan: the learning rate, batch size and momentum of every update.
      model: D directions.
      replacement: draw the examples of a batch with replacement, as from an infinite data set.

    Returns:
      float64[num_updates + 1, D].

    Reference: with m = 0, Zhang et al., 2019 (https://arxiv.org/abs/1907.04164), Section 3.
    """
    columns = np.stack([plan.learning_rates, plan.momentums, noise_variance(plan, replacement)], axis=1)
    # Padded to a power of two, so that few lengths are compiled.
    columns = np.pad(columns, ((0, (1 << plan.num_updates.bit_length()) - plan.num_updates), (0, 0)))
    with jax.enable_x64(True):
        losses = np.asarray(_scan_moments(model, columns))[: plan.num_updates]
    return np.insert(losses, 0, 0.5 * model.curvature * model.start**2, axis=0)


@jax.jit
def _scan_moments(model: Quadratic, columns: jax.Array) -> jax.Array:
    h, c, start = model

    def update(moments, values):
        lr, m, variance = values
        xx, xv, vv = moments
        q, keep = c * variance, 1 - lr * h
        moments = (
            keep**2 * xx - 2 * keep * lr * m * xv + (lr * m) ** 2 * vv + lr**2 * q,
            keep * h * xx + (keep - lr * h) * m * xv - lr * m**2 * vv - lr * q,
            h**2 * xx + 2 * h * m * xv + m**2 * vv + q,
        )
        return moments, 0.5 * h * moments[0]

    return jax.lax.scan(update, (start**2, jnp.zeros_like(h), jnp.zeros_like(h)), columns)[1]


def stationary_losses(update: Update, model: Quadratic) -> np.ndarray:
    """The limit of `expected_losses` if an update is repeated for ever, with replacement: float64[D]."""
    lr, m = update.learning_rate, update.momentum
    stability = 2 * (1 + m) - lr * model.curvature
    return 0.5 * lr * model.noise / update.batch_size * (1 + m) / ((1 - m) * stability)


def simulated_losses(plan: Plan, model: Quadratic, seed: int, num_runs: int) -> np.ndarray:
    """The loss of independent runs before the first and after every update: float32[num_runs, num_updates + 1]."""
    h, c, start = map(jnp.float32, model)
    columns = map(jnp.float32, (plan.learning_rates, plan.momentums, np.sqrt(noise_variance(plan))))

    def run(key):
        def update(state, values):
            k, lr, m, deviation = values
            theta, velocity = state
            noise = deviation * jnp.sqrt(c) * jax.random.normal(jax.random.fold_in(key, k), h.shape, h.dtype)
            velocity = m * velocity + h * theta + noise
            theta = theta - lr * velocity
            return (theta, velocity), 0.5 * jnp.sum(h * theta**2)

        return jax.lax.scan(update, (start, jnp.zeros_like(h)), (jnp.arange(plan.num_updates), *columns))[1]

    losses = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(seed), num_runs))
    return np.insert(np.asarray(losses), 0, 0.5 * np.sum(model.curvature * model.start**2), axis=1)


def at_epochs(plan: Plan, losses: np.ndarray, epochs: np.ndarray) -> np.ndarray:
    """Losses [num_updates + 1, D] at other instants [n, D]; interpolates their logarithm between updates."""
    ends = np.append(plan.examples_seen, plan.num_examples) / plan.dataset_size
    return np.exp(np.transpose([np.interp(epochs, ends, column) for column in np.log(losses).T]))
