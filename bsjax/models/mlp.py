"""A multi-layer perceptron without batch normalisation."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


class MLP(nn.Module):
    """`depth` hidden layers of `width` ReLU units."""

    num_classes: int
    depth: int = 2
    width: int = 128
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        x = images.reshape(images.shape[0], -1).astype(self.dtype)
        for _ in range(self.depth):
            x = nn.relu(nn.Dense(self.width, dtype=self.dtype, kernel_init=nn.initializers.he_normal())(x))
        return nn.Dense(self.num_classes, dtype=jnp.promote_types(self.dtype, jnp.float32))(x)
