"""ResNet-9 for images of about 32×32 pixels, in a form that trains in minutes on a CPU core."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bsjax.models.dropout import Dropout
from bsjax.models.ghost_batch_norm import GhostBatchNorm
from bsjax.models.max_pool import max_pool


class ResNet9(nn.Module):
    """Eight convolutions, each with ghost batch norm and ReLU, and a linear layer.

    1. Each 2×2 block of pixels becomes one pixel with four times the channels; a 3×3 convolution to `width` channels.
    2. A 3×3 convolution to 2 × `width` channels, 2×2 max pooling, and a residual block: x + two 3×3 convolutions.
    3. A 3×3 convolution to 4 × `width` channels, 2×2 max pooling, a 3×3 convolution, and a residual block.
    4. The maximum over all pixels, dropout and the linear layer, whose outputs over 8 are the logits.

    Pooling comes before batch norm and ReLU. An image of 32×32 pixels has 16×16 after the first layer, 8×8 and 4×4 in
    the residual blocks; an odd last row or column is left out. With width 24 the model has 346,810 parameters for 10
    classes of 3-channel images.

    Reference: the ResNet-9 of Page, "How to train your ResNet" (https://github.com/davidcpage/cifar10-fast), which also
    divides by 8. Its first layer keeps all pixels, and its last has 8 × `width` channels. A CPU is slow where many
    pixels have few channels, and at a convolution of stride 2 of an image.
    """

    num_classes: int
    width: int = 24
    dropout: float = 0.0
    ghost_batch_size: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool, keys: jax.Array | None = None) -> jax.Array:
        conv = functools.partial(nn.Conv, use_bias=False, dtype=self.dtype, kernel_init=nn.initializers.he_normal())
        norm = functools.partial(GhostBatchNorm, self.ghost_batch_size, dtype=self.dtype)

        def layer(x: jax.Array, channels: int, pools: bool = False) -> jax.Array:
            x = conv(channels, (3, 3))(x)
            return nn.relu(norm()(max_pool(x) if pools else x, train))

        def residual(x: jax.Array, channels: int) -> jax.Array:
            return x + layer(layer(x, channels), channels)

        x = layer(_blocks_to_channels(images.astype(self.dtype)), self.width)
        x = residual(layer(x, 2 * self.width, pools=True), 2 * self.width)
        x = layer(layer(x, 4 * self.width, pools=True), 4 * self.width)
        x = residual(x, 4 * self.width).max(axis=(1, 2))
        x = Dropout(self.dropout)(x, train, keys)
        return nn.Dense(self.num_classes, dtype=np.promote_types(self.dtype, np.float32))(x) / 8


def _blocks_to_channels(images: jax.Array) -> jax.Array:
    """The pixels of each 2×2 block side by side for each channel, [n, height // 2, width // 2, 4 × channels]."""
    n, height, width, channels = images.shape
    blocks = images[:, : height // 2 * 2, : width // 2 * 2].reshape(n, height // 2, 2, width // 2, 2, channels)
    return blocks.transpose(0, 1, 3, 5, 2, 4).reshape(n, height // 2, width // 2, 4 * channels)
