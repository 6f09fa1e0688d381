"""Residual networks for images of 32×32 pixels: ResNet-18, and wide ones such as the paper's WRN-16-4.

References: He et al., 2016 (https://arxiv.org/abs/1512.03385), Table 1, with a 3×3 convolution of stride 1 and no
pooling at the start; Zagoruyko and Komodakis, 2016 (https://arxiv.org/abs/1605.07146).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bsjax.errors import InvalidArgument
from bsjax.models.dropout import Dropout
from bsjax.models.ghost_batch_norm import GhostBatchNorm


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
        conv, norm, logits_dtype = _layers(self)
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
        x = Dropout(self.dropout)(x.astype(logits_dtype).mean(axis=(1, 2)), train, keys)
        return nn.Dense(self.num_classes, dtype=logits_dtype)(x)


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
        conv, norm, logits_dtype = _layers(self)
        x = conv(16, (3, 3))(images.astype(self.dtype))
        for group in range(3):
            channels = 16 * self.width * 2**group
            for block in range((self.depth - 4) // 6):
                strides = (2, 2) if group > 0 and block == 0 else (1, 1)
                y = nn.relu(norm()(x, train))
                if block == 0:
                    x = conv(channels, (1, 1), strides=strides)(y)
                y = conv(channels, (3, 3), strides=strides)(y)
                y = Dropout(self.dropout)(nn.relu(norm()(y, train)), train, keys)
                x = x + conv(channels, (3, 3))(y)
        x = nn.relu(norm()(x, train)).astype(logits_dtype).mean(axis=(1, 2))
        return nn.Dense(self.num_classes, dtype=logits_dtype)(x)


def _layers(model: ResNet18 | WideResNet) -> tuple[Callable[..., nn.Conv], Callable[..., GhostBatchNorm], Any]:
    """The convolution and the batch norm of a model, and the dtype of its logits."""
    conv = functools.partial(nn.Conv, use_bias=False, dtype=model.dtype, kernel_init=nn.initializers.he_normal())
    norm = functools.partial(GhostBatchNorm, model.ghost_batch_size, dtype=model.dtype)
    return conv, norm, np.promote_types(model.dtype, np.float32)
