"""An encoder with a projection head, for contrastive learning."""

import jax
from flax import linen as nn


class Projector(nn.Module):
    """An encoder, whose features are kept, and a head of one hidden layer, whose outputs a contrastive loss compares.

    The features of the encoder go through ReLU. After training the head is thrown away: it drops what the views of an
    example do not share, which a classifier of the features may need.

    Attributes:
      encoder: a classifier without batch normalisation, such as `bsjax.models.MLP`, whose `num_classes` outputs are the
        features.
      width: units of the head's hidden layer.
      num_outputs: of the head.

    Reference: Chen et al., 2020 (https://arxiv.org/abs/2002.05709), Section 4.2.
    """

    encoder: nn.Module
    width: int = 64
    num_outputs: int = 32

    def setup(self):
        """Makes the head."""
        self.hidden = nn.Dense(self.width, kernel_init=nn.initializers.he_normal())
        self.output = nn.Dense(self.num_outputs)

    def __call__(self, images: jax.Array, train: bool, keys: jax.Array | None = None) -> jax.Array:
        """The head's outputs [n, num_outputs]."""
        return self.output(nn.relu(self.hidden(self.features(images, train, keys))))

    def features(self, images: jax.Array, train: bool = False, keys: jax.Array | None = None) -> jax.Array:
        """The encoder's features [n, num_classes]."""
        return nn.relu(self.encoder(images, train, keys))
