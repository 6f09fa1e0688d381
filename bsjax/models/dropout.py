"""Dropout with a mask per example, so that masks are the same in every layout and after a resume."""

import zlib

import jax
import jax.numpy as jnp
from flax import linen as nn

from bsjax.errors import InvalidArgument


class Dropout(nn.Module):
    r"""Zeroes each unit with probability `rate` in training, and divides the others by 1 - rate.

    Attributes:
      rate: in [0, 1).

    Reference: Srivastava et al., 2014 (https://jmlr.org/papers/v15/srivastava14a.html).
    """

    rate: float

    def __post_init__(self):
        if not 0 <= self.rate < 1:
            raise InvalidArgument("dropout", self.rate, "in [0, 1)", 0)
        super().__post_init__()

    def __call__(self, x: jax.Array, train: bool, keys: jax.Array | None) -> jax.Array:
        """Applies dropout.

        Args:
          x: [n, ...].
          train: if false, x is returned.
          keys: [n], one per example.
        """
        if not train or self.rate == 0:
            return x
        if keys is None:
            raise ValueError("dropout needs keys [n] in training, one per example")

        layer = zlib.crc32("/".join(self.path).encode())  # each layer of a model has its own masks

        def kept(key: jax.Array) -> jax.Array:  # of an example; float32 makes the same draws in float64 too
            key = jax.random.fold_in(key, layer)
            return jax.random.bernoulli(key, jnp.float32(1 - self.rate), x.shape[1:])

        return jnp.where(jax.vmap(kept)(keys), x / (1 - self.rate), 0)
