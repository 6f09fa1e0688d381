"""A small convolutional network with ghost batch normalisation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bsjax.models.dropout import Dropout
from bsjax.models.ghost_batch_norm import GhostBatchNorm
from bsjax.models.max_pool import max_pool


class CNN(nn.Module):
    """`depth` times (3×3 convolution, ghost batch norm, ReLU, 2×2 max pooling), dropout, then a linear layer.

    The first layer has `width` channels; every further one twice as many as the one before.
    """

    num_classes: int
    depth: int = 2
    width: int = 16
    dropout: float = 0.0
    ghost_batch_size: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool, keys: jax.Array | None = None) -> jax.Array:
        x = images.astype(self.dtype)
        for layer in range(self.depth):
            channels = self.width * 2**layer
            x = nn.Conv(channels, (3, 3), use_bias=False, dtype=self.dtype, kernel_init=nn.initializers.he_normal())(x)
            x = nn.relu(GhostBatchNorm(self.ghost_batch_size, dtype=self.dtype)(x, train))
            x = max_pool(x)
        x = Dropout(self.dropout)(x.reshape(x.shape[0], -1), train, keys)
        return nn.Dense(self.num_classes, dtype=np.promote_types(self.dtype, np.float32))(x)
