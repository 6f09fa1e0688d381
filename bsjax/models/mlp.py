"""A multi-layer perceptron without batch normalisation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bsjax.models.dropout import Dropout


class MLP(nn.Module):
    """`depth` hidden layers of `width` ReLU units, each followed by dropout."""

    num_classes: int
    depth: int = 2
    width: int = 128
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool, keys: jax.Array | None = None) -> jax.Array:
        x = images.reshape(images.shape[0], -1).astype(self.dtype)
        for _ in range(self.depth):
            x = nn.relu(nn.Dense(self.width, dtype=self.dtype, kernel_init=nn.initializers.he_normal())(x))
            x = Dropout(self.dropout)(x, train, keys)
        return nn.Dense(self.num_classes, dtype=np.promote_types(self.dtype, np.float32))(x)
