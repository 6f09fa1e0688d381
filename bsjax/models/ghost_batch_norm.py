"""Ghost batch normalisation: the same statistics at every batch size, microbatch and device count."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

AXIS_NAME = "batch"  # the mapped axis over devices, everywhere in bsjax


class GhostBatchNorm(nn.Module):
    r"""Batch normalisation over ghosts of `ghost_batch_size` consecutive examples.

    .. math:: y = \gamma \frac{x - \mu_g}{\sqrt{\sigma_g^2 + \epsilon}} + \beta,
       \quad \mu_g, \sigma_g^2 \text{ over the examples (and pixels) of x's ghost g}

    In training, an input of n examples holds n / ghost_batch_size whole ghosts. Where n is smaller
    than a ghost, ghost_batch_size / n neighbouring devices of the mapped axis "batch" share one.
    The collection "ghost_stats" receives the ghosts' means and variances (float32 [ghosts, channels]).
    `bsjax.engine.step.Steps.apply_update` averages them into "batch_stats", which evaluation uses.

    Attributes:
      ghost_batch_size: examples per ghost.
      epsilon: added to the variance.
      dtype: of the output; the statistics are float32 (float64 for float64 input).
      scale_init: initialiser of γ.
      use_scale: whether there is a γ; without it, γ is 1.

    Reference: Hoffer et al., 2017 (https://arxiv.org/abs/1705.08741), Algorithm 1.
    """

    ghost_batch_size: int
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    use_scale: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        channels = x.shape[-1:]
        gamma = self.param("scale", self.scale_init, channels, jnp.float32) if self.use_scale else None
        beta = self.param("bias", nn.initializers.zeros, channels, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        wide = np.promote_types(x.dtype, np.float32)

        def normalise(ghosts: jax.Array, mean: jax.Array, var: jax.Array) -> jax.Array:
            # One product and one sum: the gradient needs no other array of this size than x.
            scale = jax.lax.rsqrt(var.astype(wide) + self.epsilon)
            scale = scale if gamma is None else gamma.astype(wide)[None] * scale
            shift = beta.astype(wide)[None] - mean.astype(wide) * scale
            scale, shift = (value.reshape(-1, *(1,) * (x.ndim - 1), *channels) for value in (scale, shift))
            return (ghosts.astype(wide) * scale + shift).astype(self.dtype).reshape(x.shape)

        if not train:
            return normalise(x[None], running_mean.value[None], running_var.value[None])

        local_size = min(self.ghost_batch_size, x.shape[0])
        ghosts = x.reshape(-1, local_size, *x.shape[1:]).astype(wide)
        moments = jnp.stack([_mean_per_ghost(ghosts), _mean_per_ghost(jnp.square(ghosts))])
        if local_size < self.ghost_batch_size:
            moments = _mean_over_neighbours(moments, self.ghost_batch_size // local_size)
        mean = moments[0]
        var = jnp.maximum(moments[1] - jnp.square(mean), 0.0)
        self.variable("ghost_stats", "mean", lambda: mean).value = mean
        self.variable("ghost_stats", "var", lambda: var).value = var

        return normalise(ghosts, mean, var)


def _mean_per_ghost(ghosts: jax.Array) -> jax.Array:
    return ghosts.mean(axis=tuple(range(1, ghosts.ndim - 1)))


def _mean_over_neighbours(moments: jax.Array, num_neighbours: int) -> jax.Array:
    num_devices = jax.lax.axis_size(AXIS_NAME)
    groups = [list(range(i, i + num_neighbours)) for i in range(0, num_devices, num_neighbours)]
    return jax.lax.pmean(moments, AXIS_NAME, axis_index_groups=groups)
