"""Wide residual networks, such as the paper's WRN-16-4.

Reference: Zagoruyko and Komodakis, 2016 (https://arxiv.org/abs/1605.07146).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from bsjax.errors import InvalidArgument
from bsjax.models.dropout import Dropout
from bsjax.normalization import GhostBatchNorm


class WideResNet(nn.Module):
    """WRN-depth-width: three groups of (depth - 4) / 6 pre-activation blocks of 16, 32, 64 × width channels.

    Dropout comes between the two convolutions of a block (Section 2.4). WRN-16-4 has 2,748,890 parameters for
    10 classes of 3-channel images.
    """

    num_classes: int
    depth: int = 16
    width: int = 4
    dropout: float = 0.0
    ghost_batch_size: int = 128
    dtype: Any = jnp.float32

    def __post_init__(self):
        if self.depth < 10 or (self.depth - 4) % 6:
            nearest = max(10, 4 + 6 * round((self.depth - 4) / 6))
            raise InvalidArgument("depth", self.depth, "10, 16, 22, 28, ... (4 + 6k) for wide_resnet", nearest)
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool, keys: jax.Array | None = None) -> jax.Array:
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype, kernel_init=nn.initializers.he_normal())
        norm = functools.partial(GhostBatchNorm, self.ghost_batch_size, dtype=self.dtype)

        x = conv(16, (3, 3))(images.astype(self.dtype))
        for group in range(3):
            channels = 16 * self.width * 2**group
            for block in range((self.depth - 4) // 6):
                strides = (2, 2) if group > 0 and block == 0 else (1, 1)
                y = nn.relu(norm()(x, train))
                if block == 0:
                    x = conv(channels, (1, 1), strides=strides)(y)
                y = conv(channels, (3, 3), strides=strides)(y)
                y = nn.relu(norm()(y, train))
                y = Dropout(self.dropout)(y, train, keys)
                x = x + conv(channels, (3, 3))(y)
        logits_dtype = jnp.promote_types(self.dtype, jnp.float32)
        x = nn.relu(norm()(x, train)).astype(logits_dtype).mean(axis=(1, 2))
        return nn.Dense(self.num_classes, dtype=logits_dtype)(x)
