"""ResNet-50 for images of 224×224 pixels."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bsjax.models.dropout import Dropout
from bsjax.models.ghost_batch_norm import GhostBatchNorm

_ROOT_PADDING, _ONE_PIXEL = ((3, 3), (3, 3)), ((1, 1), (1, 1))


class ResNet50(nn.Module):
    """A 7×7 convolution, 3×3 max pooling, four stages of bottleneck blocks, the mean over pixels and a linear layer.

    A block has convolutions of 1×1, 3×3 and 1×1 pixels; its output has four times the channels of the first two. The
    first block of every stage but the first halves the image, by the stride of its 3×3 convolution (version 1.5), and
    the γ of each block's last batch norm begins at zero. Convolutions of 3×3 and 7×7 pixels pad all sides alike, as
    torchvision's do. Dropout comes before the last layer. With width 64 the model has 25,557,032 parameters for 1,000
    classes of 3-channel images.

    Attributes:
      num_classes: the number of logits.
      width: channels of the 7×7 convolution; the stages' outputs have 4, 8, 16 and 32 × `width`.
      num_blocks: in each stage.
      dropout: probability that a unit of the mean is zeroed in training.
      ghost_batch_size: examples that share batch-norm statistics.
      dtype: of the computation; parameters, statistics and logits are float32.
      remat: computes the inside of each block again in the backward pass, which saves memory and costs time.

    References: He et al., 2016 (https://arxiv.org/abs/1512.03385), Table 1; Goyal et al., 2017
    (https://arxiv.org/abs/1706.02677), Section 5.1, for the stride and for γ.
    """

    num_classes: int
    width: int = 64
    num_blocks: tuple[int, ...] = (3, 4, 6, 3)
    dropout: float = 0.0
    ghost_batch_size: int = 32
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, train: bool, keys: jax.Array | None = None) -> jax.Array:
        block_type = nn.remat(_Bottleneck, static_argnums=(2,)) if self.remat else _Bottleneck
        conv, norm = _layers(self)
        x = conv(self.width, (7, 7), strides=(2, 2), padding=_ROOT_PADDING)(images.astype(self.dtype))
        x = nn.max_pool(nn.relu(norm()(x, train)), (3, 3), strides=(2, 2), padding=_ONE_PIXEL)
        for stage, num_blocks in enumerate(self.num_blocks):
            for block in range(num_blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                sizes = (self.width * 2**stage, stride, self.ghost_batch_size, self.dtype)
                x = block_type(*sizes, name=f"stage{stage + 1}_block{block + 1}")(x, train)
        logits_dtype = np.promote_types(self.dtype, np.float32)
        x = Dropout(self.dropout)(x.astype(logits_dtype).mean(axis=(1, 2)), train, keys)
        return nn.Dense(self.num_classes, dtype=logits_dtype)(x)


class _Bottleneck(nn.Module):
    channels: int
    stride: int
    ghost_batch_size: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        conv, norm = _layers(self)
        strides = (self.stride, self.stride)
        y = nn.relu(norm()(conv(self.channels, (1, 1))(x), train))
        y = nn.relu(norm()(conv(self.channels, (3, 3), strides=strides, padding=_ONE_PIXEL)(y), train))
        y = norm(scale_init=nn.initializers.zeros)(conv(4 * self.channels, (1, 1))(y), train)
        if x.shape != y.shape:
            x = norm()(conv(4 * self.channels, (1, 1), strides=strides)(x), train)
        return nn.relu(x + y)


def _layers(module: ResNet50 | _Bottleneck) -> tuple[Any, Any]:
    """The convolution and the batch norm of a module."""
    conv = functools.partial(nn.Conv, use_bias=False, dtype=module.dtype, kernel_init=nn.initializers.he_normal())
    return conv, functools.partial(GhostBatchNorm, module.ghost_batch_size, dtype=module.dtype)
