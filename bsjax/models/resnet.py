"""ResNet-18 in the form that is usual for images of 32×32 pixels.

Reference: He et al., 2016 (https://arxiv.org/abs/1512.03385), Table 1, with a 3×3 convolution of stride 1 and no
pooling at the start.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from bsjax.models.dropout import Dropout
from bsjax.normalization import GhostBatchNorm


class ResNet18(nn.Module):
    """Four stages of two blocks of two 3×3 convolutions with `width`, 2, 4 and 8 × `width` channels.

    Where a block changes the shape, its shortcut is a 1×1 convolution with batch norm. Dropout comes before the
    last layer. With width 64 it has 11,173,962 parameters for 10 classes of 3-channel images.
    """

    num_classes: int
    width: int = 64
    dropout: float = 0.0
    ghost_batch_size: int = 128
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool, keys: jax.Array | None = None) -> jax.Array:
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype, kernel_init=nn.initializers.he_normal())
        norm = functools.partial(GhostBatchNorm, self.ghost_batch_size, dtype=self.dtype)

        x = nn.relu(norm()(conv(self.width, (3, 3))(images.astype(self.dtype)), train))
        for stage in range(4):
            channels = self.width * 2**stage
            for block in range(2):
                strides = (2, 2) if stage > 0 and block == 0 else (1, 1)
                y = nn.relu(norm()(conv(channels, (3, 3), strides=strides)(x), train))
                y = norm()(conv(channels, (3, 3))(y), train)
                if x.shape != y.shape:
                    x = norm()(conv(channels, (1, 1), strides=strides)(x), train)
                x = nn.relu(x + y)
        logits_dtype = jnp.promote_types(self.dtype, jnp.float32)
        x = Dropout(self.dropout)(x.astype(logits_dtype).mean(axis=(1, 2)), train, keys)
        return nn.Dense(self.num_classes, dtype=logits_dtype)(x)
