"""Models (flax linen): `model(images, train, keys)` maps [n, height, width, channels] to float32 logits [n, classes].

`keys` [n], one per example, are for dropout in training; models without it take them too.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from bsjax.errors import InvalidArgument, check_choice
from bsjax.models.cnn import CNN
from bsjax.models.dropout import Dropout
from bsjax.models.mlp import MLP
from bsjax.models.resnet import ResNet18
from bsjax.models.wide_resnet import WideResNet

_MODELS = {"mlp": MLP, "cnn": CNN, "resnet18": ResNet18, "wide_resnet": WideResNet}
MODELS = tuple(_MODELS)


def create_model(
    name: str,
    num_classes: int,
    ghost_batch_size: int = 32,
    dropout: float = 0.0,
    dtype: Any = jnp.float32,
    **sizes: int,
) -> nn.Module:
    """A model by name.

    Args:
      name: one of `MODELS`.
      num_classes: the number of logits.
      ghost_batch_size: examples that share batch-norm statistics; models without batch norm ignore it.
      dropout: probability that a unit is zeroed in training.
      dtype: of the computation; parameters, statistics and logits are float32.
      **sizes: `depth` and `width`; left out, the model's own.

    Raises:
      InvalidArgument: no such model, or a size that it does not come in.

    >>> create_model("wide_resnet", num_classes=10, depth=16, width=4).depth
    16
    """
    model = _MODELS[check_choice("model", name, MODELS)]
    if hasattr(model, "ghost_batch_size"):
        sizes["ghost_batch_size"] = ghost_batch_size
    for size, value in sizes.items():
        if not hasattr(model, size):
            raise InvalidArgument(size, value, f"left out for {name}, which has one {size} only")
        if value < 1:
            raise InvalidArgument(size, value, "a whole number >= 1", 1)
    Dropout(dropout)  # says what is wrong with it before anything runs
    return model(num_classes=num_classes, dropout=dropout, dtype=dtype, **sizes)


def ghost_batch_size_of(model: nn.Module) -> int:
    """The unit that a batch must be a multiple of: the model's ghost, or 1 without batch norm."""
    return getattr(model, "ghost_batch_size", 1)


__all__ = ["CNN", "MLP", "MODELS", "ResNet18", "WideResNet", "create_model", "ghost_batch_size_of"]
