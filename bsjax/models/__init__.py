"""Models (flax linen): `model(images, train)` maps [n, height, width, channels] to float32 logits [n, classes]."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from bsjax.errors import InvalidArgument, check_choice
from bsjax.models.cnn import CNN
from bsjax.models.mlp import MLP
from bsjax.models.wide_resnet import WideResNet

_MODELS = {"mlp": MLP, "cnn": CNN, "wide_resnet": WideResNet}
MODELS = tuple(_MODELS)


def create_model(
    name: str, num_classes: int, ghost_batch_size: int = 32, dtype: Any = jnp.float32, **sizes: int
) -> nn.Module:
    """A model by name.

    Args:
      name: one of `MODELS`.
      num_classes: the number of logits.
      ghost_batch_size: examples that share batch-norm statistics; models without batch norm ignore it.
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
        if value < 1:
            raise InvalidArgument(size, value, "a whole number >= 1", 1)
    return model(num_classes=num_classes, dtype=dtype, **sizes)


def ghost_batch_size_of(model: nn.Module) -> int:
    """The unit that a batch must be a multiple of: the model's ghost, or 1 without batch norm."""
    return getattr(model, "ghost_batch_size", 1)


__all__ = ["CNN", "MLP", "MODELS", "WideResNet", "create_model", "ghost_batch_size_of"]
