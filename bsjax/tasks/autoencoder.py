"""Reconstruction of images: a task without labels."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from bsjax.errors import InvalidArgument, check_choice
from bsjax.tasks.linen import LinenTask
from bsjax.tasks.protocol import Losses

RECONSTRUCTIONS = ("squared_error", "bernoulli")


@dataclasses.dataclass(frozen=True)
class Autoencoder(LinenTask):
    r"""Images without labels: how well a model gives back what it was shown.

    With pixels x in [0, 1] (the stored values over `max_value`) and the model's outputs z, a mean over P pixels and
    channels:

    .. math:: \ell = \frac{1}{P} \sum_p (z_p - x_p)^2 \quad\text{or}\quad
       \ell = \frac{1}{P} \sum_p -x_p \log \sigma(z_p) - (1 - x_p) \log (1 - \sigma(z_p)).

    Examples are a dict with "image" [n, height, width, channels]; whatever else it holds is not used.

    Args:
      model: maps images to outputs of the same shape, such as `bsjax.models.ConvAutoencoder`. It is called with `train`
        and `keys` [n] as well, if it takes them.
      reconstruction: "squared_error", or "bernoulli", whose loss is in nats and whose metric is the squared error of
        σ(z).
      max_value: the stored value of a white pixel.
      batch_stats_decay: of the running averages, per ghost, if the model has batch normalisation.

    Raises:
      InvalidArgument: a value is out of range.

    >>> from bsjax.models import ConvAutoencoder
    >>> Autoencoder(ConvAutoencoder(), "bernoulli", max_value=16).metrics
    ('squared_error',)
    """

    model: nn.Module
    reconstruction: str = "squared_error"
    max_value: float = 255.0
    batch_stats_decay: float = 0.99

    unit = "images"

    def __post_init__(self):
        check_choice("reconstruction", self.reconstruction, RECONSTRUCTIONS)
        if not self.max_value > 0:
            raise InvalidArgument("max_value", self.max_value, "positive", 255)

    @property
    def metrics(self) -> tuple[str, ...]:  # type: ignore[override]
        """The squared error, where it is not the loss."""
        return () if self.reconstruction == "squared_error" else ("squared_error",)

    def read(self, examples: Any, keys: jax.Array, train: bool) -> Any:
        """Pixels in [0, 1]."""
        del keys, train
        return examples["image"].astype(jnp.result_type(float)) / self.max_value

    def losses(self, params: Any, batch_stats: Any, inputs: Any, keys: jax.Array, train: bool) -> Losses:
        """The reconstruction's loss of each image."""
        outputs, ghost_stats = self.apply(params, batch_stats, inputs, keys, train)
        if outputs.shape != inputs.shape:
            raise ValueError(f"the model maps images of shape {inputs.shape} to {outputs.shape}, not to the same shape")

        def per_image(errors: jax.Array) -> jax.Array:
            return errors.mean(axis=tuple(range(1, errors.ndim)))

        if self.reconstruction == "squared_error":
            return per_image(jnp.square(outputs - inputs)), {}, ghost_stats
        squared_error = per_image(jnp.square(jax.nn.sigmoid(outputs) - inputs))
        return (
            per_image(optax.sigmoid_binary_cross_entropy(outputs, inputs)),
            {"squared_error": squared_error},
            ghost_stats,
        )
