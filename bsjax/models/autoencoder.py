"""A small convolutional autoencoder."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bsjax.models.upsampling import Upsample


class ConvAutoencoder(nn.Module):
    """Images to a code of `latent` numbers, and back to outputs of the images' shape.

    The encoder halves the image `depth` times by 3×3 convolutions of stride 2 with ReLU. The first has `width`
    channels, each further one twice as many; a dense layer computes the code. The decoder mirrors the encoder. There is
    no batch normalisation.
    """

    depth: int = 2
    width: int = 16
    latent: int = 16
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        init = nn.initializers.he_normal()
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=init)
        channels = [self.width * 2**layer for layer in range(self.depth)]
        x = images.astype(self.dtype)
        for width in channels:
            x = nn.relu(nn.Conv(width, (3, 3), strides=(2, 2), dtype=self.dtype, kernel_init=init)(x))
        small = x.shape[1:]
        code = dense(self.latent)(x.reshape(x.shape[0], -1))
        x = nn.relu(dense(small[0] * small[1] * small[2])(code)).reshape(-1, *small)
        for layer, width in enumerate([*reversed(channels[:-1]), images.shape[-1]]):
            x = Upsample(width, self.dtype, init, name=f"ConvTranspose_{layer}")(nn.relu(x))
        # The encoder rounds odd sizes up.
        return x[:, : images.shape[1], : images.shape[2]].astype(np.promote_types(self.dtype, np.float32))
