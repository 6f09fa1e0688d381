"""Models in flax linen.

A classifier, `model(images, train, keys)`, maps images [n, height, width, channels] to logits [n, classes], float32 at
least; `keys` [n], one per example, are for dropout in training. An autoencoder maps images to outputs of their shape. A
language model maps whole numbers [n, tokens] to logits [n, tokens, vocabulary].
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from bsjax.errors import InvalidArgument, check_choice
from bsjax.models.autoencoder import ConvAutoencoder
from bsjax.models.cnn import CNN
from bsjax.models.dropout import Dropout
from bsjax.models.ghost_batch_norm import GhostBatchNorm
from bsjax.models.inception_resnet_v2 import InceptionResNetV2
from bsjax.models.mlp import MLP
from bsjax.models.projector import Projector
from bsjax.models.resnet import ResNet18, WideResNet
from bsjax.models.resnet9 import ResNet9
from bsjax.models.resnet50 import ResNet50
from bsjax.models.transformer import POSITIONS, Transformer

__all__ = ["AUTOENCODERS", "CLASSIFIERS", "CNN", "LANGUAGE_MODELS", "MLP", "MODELS", "POSITIONS", "ConvAutoencoder"]
__all__ += ["GhostBatchNorm", "InceptionResNetV2", "Projector", "ResNet9", "ResNet18", "ResNet50", "Transformer"]
__all__ += ["WideResNet", "create_model", "ghost_batch_size_of"]

_CLASSIFIERS: dict[str, Any] = {
    "mlp": MLP,
    "cnn": CNN,
    "resnet9": ResNet9,
    "resnet18": ResNet18,
    "wide_resnet": WideResNet,
    "resnet50": ResNet50,
    "inception_resnet_v2": InceptionResNetV2,
}
_AUTOENCODERS: dict[str, Any] = {"conv_autoencoder": ConvAutoencoder}
_LANGUAGE_MODELS: dict[str, Any] = {"transformer": Transformer}
_MODELS = _CLASSIFIERS | _AUTOENCODERS | _LANGUAGE_MODELS
CLASSIFIERS, AUTOENCODERS, LANGUAGE_MODELS = tuple(_CLASSIFIERS), tuple(_AUTOENCODERS), tuple(_LANGUAGE_MODELS)
MODELS = tuple(_MODELS)


def create_model(
    name: str,
    num_classes: int | None = None,
    ghost_batch_size: int = 32,
    dropout: float = 0.0,
    dtype: Any = jnp.float32,
    remat: bool | int = False,  # int, so that a dict of sizes may follow
    **sizes: Any,
) -> nn.Module:
    """A model by name.

    Args:
      name: one of `MODELS`.
      num_classes: the number of logits; of a language model, of its tokens; an autoencoder has none.
      ghost_batch_size: examples that share batch-norm statistics; models without batch norm ignore it.
      dropout: probability that a unit is zeroed in training; 0 for an autoencoder.
      dtype: of the computation; parameters, statistics and outputs are float32.
      remat: compute activations again in the backward pass, which saves memory and costs time; of the large models.
      **sizes: `depth`, `width` and the transformer's `context_length`, `num_heads` and `positions`; default, the
        model's own.

    Raises:
      InvalidArgument: no such model, or a size or `remat` that the model does not have.

    >>> create_model("wide_resnet", num_classes=10, depth=16, width=4).depth
    16
    >>> create_model("conv_autoencoder", width=8).latent
    16
    >>> create_model("inception_resnet_v2", num_classes=1000, ghost_batch_size=64, remat=True).num_blocks
    (10, 20, 10)
    """
    model = _MODELS[check_choice("model", name, MODELS)]
    if hasattr(model, "ghost_batch_size"):
        sizes["ghost_batch_size"] = ghost_batch_size
    for size, value in sizes.items():
        if not hasattr(model, size):
            raise InvalidArgument(size, value, f"left out for {name}, which has one {size} only")
        if isinstance(value, int) and value < 1:
            raise InvalidArgument(size, value, "a whole number >= 1", 1)
    if remat and not hasattr(model, "remat"):
        raise InvalidArgument("remat", remat, f"False for {name}, which lacks it", False)
    options = sizes | ({"remat": True} if remat else {})
    if name in _AUTOENCODERS:
        if dropout:
            raise InvalidArgument("dropout", dropout, f"0 for {name}, which has none", 0)
        return model(dtype=dtype, **options)
    if num_classes is None:
        raise InvalidArgument("num_classes", None, f"a whole number for {name}", 10)
    Dropout(dropout)  # refuses a wrong rate before anything runs
    if name in _LANGUAGE_MODELS:
        return model(vocab_size=num_classes, dropout=dropout, dtype=dtype, **options)
    return model(num_classes=num_classes, dropout=dropout, dtype=dtype, **options)


def ghost_batch_size_of(model: nn.Module) -> int:
    """The unit that each batch size must be a multiple of: the model's ghost batch size, or 1 without batch norm."""
    return getattr(model, "ghost_batch_size", 1)
