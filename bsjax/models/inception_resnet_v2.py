"""Inception-ResNet-V2 for images of 299×299 pixels: the network of the paper's Figures 6 and 7."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bsjax.errors import InvalidArgument
from bsjax.models.dropout import Dropout
from bsjax.models.ghost_batch_norm import GhostBatchNorm

MIN_PIXELS = 75  # of the height and the width: the convolutions and poolings without padding leave one pixel of them
_WIDTH = 32  # of the published model

# The layers of each branch: channels at width 32, and the kernel's height and width. Those of a reduction end with a
# stride of 2.
_Branch = tuple[tuple[int, int, int], ...]
_MIXED_5B: tuple[_Branch, ...] = (
    ((96, 1, 1),),
    ((48, 1, 1), (64, 5, 5)),
    ((64, 1, 1), (96, 3, 3), (96, 3, 3)),
)
_BLOCK35: tuple[_Branch, ...] = (
    ((32, 1, 1),),
    ((32, 1, 1), (32, 3, 3)),
    ((32, 1, 1), (48, 3, 3), (64, 3, 3)),
)
_MIXED_6A: tuple[_Branch, ...] = (
    ((384, 3, 3),),
    ((256, 1, 1), (256, 3, 3), (384, 3, 3)),
)
_BLOCK17: tuple[_Branch, ...] = (
    ((192, 1, 1),),
    ((128, 1, 1), (160, 1, 7), (192, 7, 1)),
)
_MIXED_7A: tuple[_Branch, ...] = (
    ((256, 1, 1), (384, 3, 3)),
    ((256, 1, 1), (288, 3, 3)),
    ((256, 1, 1), (288, 3, 3), (320, 3, 3)),
)
_BLOCK8: tuple[_Branch, ...] = (
    ((192, 1, 1),),
    ((192, 1, 1), (224, 1, 3), (256, 3, 1)),
)


class InceptionResNetV2(nn.Module):
    r"""Residual blocks of parallel branches of convolutions, each with ghost batch norm and ReLU.

    .. math:: x \leftarrow \mathrm{relu}(x + s \cdot \mathrm{up}(\mathrm{concat}_b\, \mathrm{branch}_b(x)))

    The stem and the first concatenation give 35×35 pixels of 320 channels; blocks of scale s = 0.17 follow. A reduction
    gives 17×17 of 1,088; blocks of scale 0.1. A second one gives 8×8 of 2,080; blocks of scale 0.2, the last of which
    has scale 1 and no ReLU. A convolution to 1,536 channels, the mean over pixels, dropout and a linear layer follow.
    Batch norm has no γ; `up`, a 1×1 convolution, has a bias and no batch norm. With width 32 the model has 55,813,192
    parameters and 60,544 statistics for 1,000 classes of 3-channel images.

    Attributes:
      num_classes: the number of logits.
      width: channels of the first convolution; those of all others are in proportion, rounded down.
      num_blocks: at 35×35, 17×17 and 8×8 pixels, each at least 1.
      dropout: probability that a unit of the mean is zeroed in training.
      ghost_batch_size: examples that share batch-norm statistics; 32 in Figure 6, 64 in Figure 7.
      dtype: of the computation; parameters, statistics and logits are float32.
      remat: computes the inside of each block again in the backward pass, which saves memory and costs time.

    Raises:
      InvalidArgument: the images have fewer than 75 pixels in height or width.

    Reference: Szegedy et al., 2017 (https://arxiv.org/abs/1602.07261), with the layers and channels of its authors'
    code, which are those of `keras.applications.InceptionResNetV2` too.
    """

    num_classes: int
    width: int = _WIDTH
    num_blocks: tuple[int, int, int] = (10, 20, 10)
    dropout: float = 0.0
    ghost_batch_size: int = 32
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, train: bool, keys: jax.Array | None = None) -> jax.Array:
        if min(images.shape[1:3]) < MIN_PIXELS:
            size = "×".join(map(str, images.shape[1:3]))
            allowed = f"at least {MIN_PIXELS} pixels in height and width for inception_resnet_v2"
            raise InvalidArgument("image size", size, allowed, MIN_PIXELS)
        sizes = {"width": self.width, "ghost_batch_size": self.ghost_batch_size, "dtype": self.dtype}
        residual = nn.remat(_Residual, static_argnums=(2,)) if self.remat else _Residual
        x = _Stem(**sizes, name="stem")(images.astype(self.dtype), train)
        x = _Mixed(_MIXED_5B, **sizes, name="mixed_5b")(x, train)
        for i in range(1, self.num_blocks[0] + 1):
            x = residual(_BLOCK35, **sizes, scale=0.17, name=f"block35_{i}")(x, train)
        x = _Reduction(_MIXED_6A, **sizes, name="mixed_6a")(x, train)
        for i in range(1, self.num_blocks[1] + 1):
            x = residual(_BLOCK17, **sizes, scale=0.1, name=f"block17_{i}")(x, train)
        x = _Reduction(_MIXED_7A, **sizes, name="mixed_7a")(x, train)
        for i in range(1, self.num_blocks[2]):
            x = residual(_BLOCK8, **sizes, scale=0.2, name=f"block8_{i}")(x, train)
        x = residual(_BLOCK8, **sizes, activates=False, name=f"block8_{self.num_blocks[2]}")(x, train)
        x = _Head(**sizes, name="conv_7b")(x, train)
        logits_dtype = np.promote_types(self.dtype, np.float32)
        x = Dropout(self.dropout)(x.astype(logits_dtype).mean(axis=(1, 2)), train, keys)
        return nn.Dense(self.num_classes, dtype=logits_dtype)(x)


class _Part(nn.Module):
    """What all parts of the model share; the stem and the head have no branches."""

    branches: tuple[_Branch, ...] = ()
    width: int = _WIDTH
    ghost_batch_size: int = 32
    dtype: Any = jnp.float32


class _Stem(_Part):
    """299×299 pixels to 35×35 of 192 channels."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = _layer(self, x, train, (32, 3, 3), stride=2, padding="VALID")
        x = _layer(self, x, train, (32, 3, 3), padding="VALID")
        x = _pooled(_layer(self, x, train, (64, 3, 3)))
        x = _layer(self, x, train, (80, 1, 1))
        return _pooled(_layer(self, x, train, (192, 3, 3), padding="VALID"))


class _Mixed(_Part):
    """The branches, and one of average pooling, side by side: 320 channels."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        outputs = [_branch(self, x, train, branch) for branch in self.branches]
        return jnp.concatenate([*outputs, _layer(self, _averaged(x), train, (64, 1, 1))], axis=-1)


class _Residual(_Part):
    """The branches side by side, a 1×1 convolution to the channels of the input, and the sum with the input."""

    scale: float = 1.0
    activates: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        both = jnp.concatenate([_branch(self, x, train, branch) for branch in self.branches], axis=-1)
        up = nn.Conv(x.shape[-1], (1, 1), dtype=self.dtype, kernel_init=nn.initializers.he_normal(), name="up")
        x = x + self.scale * up(both)
        return nn.relu(x) if self.activates else x


class _Reduction(_Part):
    """The branches, the last layer of each with stride 2, and 3×3 max pooling, side by side."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        outputs = [_branch(self, x, train, branch, stride=2) for branch in self.branches]
        return jnp.concatenate([*outputs, _pooled(x)], axis=-1)


class _Head(_Part):
    """The last convolution."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return _layer(self, x, train, (1536, 1, 1))


def _branch(part: _Part, x: jax.Array, train: bool, layers: _Branch, stride: int = 1) -> jax.Array:
    """The layers one after another; a stride other than 1 is the last one's, which then has no padding."""
    for layer in layers[:-1]:
        x = _layer(part, x, train, layer)
    return _layer(part, x, train, layers[-1], stride, "SAME" if stride == 1 else "VALID")


def _layer(
    part: _Part, x: jax.Array, train: bool, layer: tuple[int, int, int], stride: int = 1, padding: str = "SAME"
) -> jax.Array:
    """A convolution without bias, ghost batch norm without γ, and ReLU."""
    channels, *kernel = layer
    conv = nn.Conv(
        channels * part.width // _WIDTH,
        kernel,
        strides=(stride, stride),
        padding=padding,
        use_bias=False,
        dtype=part.dtype,
        kernel_init=nn.initializers.he_normal(),
    )
    norm = GhostBatchNorm(part.ghost_batch_size, epsilon=1e-3, dtype=part.dtype, use_scale=False)
    return nn.relu(norm(conv(x), train))


def _pooled(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), strides=(2, 2))


def _averaged(x: jax.Array) -> jax.Array:
    """The mean over the 3×3 pixels around each pixel, without those outside of the image."""

    def total(x: jax.Array) -> jax.Array:
        return nn.pool(x, 0.0, jax.lax.add, (3, 3), (1, 1), "SAME")

    wide = np.promote_types(x.dtype, np.float32)
    return (total(x.astype(wide)) / total(jnp.ones((1, *x.shape[1:3], 1), wide))).astype(x.dtype)
