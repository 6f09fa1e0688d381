"""Image classification with a linen model."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from bsjax.data.augmentation import AUGMENTATIONS, augment
from bsjax.errors import InvalidArgument, TaskError, check_choice, check_whole
from bsjax.tasks.linen import LinenTask, set_mean_and_std, standardise
from bsjax.tasks.protocol import Losses

_MANY_CLASSES = 100  # five of fewer are too easy to find


@dataclasses.dataclass(frozen=True)
class Classification(LinenTask):
    r"""Images with labels: the cross-entropy, and whether the most likely class is the right one.

    With a model of 100 classes or more, its field `num_classes`, there is a second metric: whether the right class is
    one of the five most likely, "top5_accuracy".

    .. math:: \ell = -\sum_c q_c \log p_c, \quad q = (1 - \alpha)\,\mathrm{onehot}(y) + \alpha / C

    Examples are {"image": [n, height, width, channels] of any dtype, "label": int [n]}. The evaluation has neither
    label smoothing nor augmentation. The group is the model's ghost of batch normalisation.

    Args:
      model: maps images [n, height, width, channels] to logits [n, classes]. It is called with `train` (bool) and
        `keys` [n] as well, if it takes them; see `bsjax.models`.
      label_smoothing: α in [0, 1).
      augmentation: one of `bsjax.data.AUGMENTATIONS`.
      crop_padding: pixels of zeros on each side of an image that is cropped.
      mean: of the pixels, subtracted: a number, or one per channel.
      std: of the pixels, which divides.
      batch_stats_decay: of the running averages, per ghost, in [0, 1).

    Raises:
      InvalidArgument: a value is out of range.

    >>> from bsjax.data import load_dataset
    >>> from bsjax.models import CNN
    >>> digits = load_dataset("digits")
    >>> task = Classification(CNN(num_classes=10, ghost_batch_size=8), mean=digits.mean, std=digits.std)
    >>> task.group_size, task.metrics
    (8, ('accuracy',))
    """

    model: nn.Module
    label_smoothing: float = 0.0
    augmentation: str = "none"
    mean: Any = 0.0
    std: Any = 1.0
    batch_stats_decay: float = 0.99
    crop_padding: int = 4

    needs = ("image", "label")
    unit = "images"

    def __post_init__(self):
        check_choice("augmentation", self.augmentation, AUGMENTATIONS)
        check_whole("crop_padding", self.crop_padding)
        for name, nearest in (("label_smoothing", 0), ("batch_stats_decay", 0.99)):
            if not 0 <= getattr(self, name) < 1:
                raise InvalidArgument(name, getattr(self, name), "in [0, 1)", nearest)
        set_mean_and_std(self)

    @property
    def metrics(self) -> tuple[str, ...]:  # type: ignore[override]
        """The accuracy, and with many classes the top-5 accuracy."""
        many = (getattr(self.model, "num_classes", None) or 0) >= _MANY_CLASSES
        return ("accuracy", "top5_accuracy") if many else ("accuracy",)

    def check_source(self, name: str, source: Any) -> None:
        """Refuses labels that are no class of the model, where the source holds them in memory, as ArraySource does.

        Any other source answers for its labels itself: outside of [0, classes), losses are wrong or NaN.
        """
        examples = getattr(source, "examples", None)
        labels = examples.get("label") if isinstance(examples, dict) and set(self.needs) <= set(examples) else None
        if labels is None or labels.dtype.kind not in "iu" or (classes := self._num_classes(examples)) is None:
            return  # `losses` says what is wrong with them
        if (wrong := (labels < 0) | (labels >= classes)).any():
            first = int(np.flatnonzero(wrong)[0])
            allowed = f"in [0, {classes}), a class of the model"
            raise InvalidArgument(f"the label of {name} example {first}", labels.flat[first].item(), allowed)

    def _num_classes(self, examples: Any) -> int | None:
        if classes := getattr(self.model, "num_classes", None):
            return classes
        one, keys = {name: array[:1] for name, array in examples.items()}, jax.random.split(jax.random.key(0), 1)

        def logits() -> jax.Array:
            params, batch_stats = self.init(keys[0], one)
            return self.apply(params, batch_stats, self.read(one, keys, train=False)[0], keys, train=False)[0]

        try:
            return jax.eval_shape(logits).shape[-1]
        except Exception:  # the first update reports what is wrong with the model
            return None

    def read(self, examples: Any, keys: jax.Array, train: bool) -> Any:
        """Standardises the images, and augments them in training."""
        images = standardise(examples["image"], self.mean, self.std)
        return augment(self.augmentation, images, keys, self.crop_padding) if train else images, examples["label"]

    def losses(self, params: Any, batch_stats: Any, inputs: Any, keys: jax.Array, train: bool) -> Losses:
        """The cross-entropy and the accuracies (1 or 0) of each image."""
        images, labels = inputs
        logits, ghost_stats = self.apply(params, batch_stats, images, keys, train)
        if logits.ndim != 2 or labels.ndim != 1 or not jnp.issubdtype(labels.dtype, jnp.integer):
            found = f"logits {list(logits.shape)} and labels {labels.dtype}{list(labels.shape)}"
            raise TaskError(f"Classification needs logits [n, classes] and labels int[n], not {found}")
        if train:
            targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), self.label_smoothing)
            losses = optax.softmax_cross_entropy(logits, targets)
        else:
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        accuracies = {"accuracy": logits.argmax(axis=-1).astype(labels.dtype) == labels}
        if "top5_accuracy" in self.metrics:
            best = jax.lax.top_k(jax.lax.stop_gradient(logits), 5)[1].astype(labels.dtype)
            accuracies["top5_accuracy"] = (best == labels[:, None]).any(axis=-1)
        return losses, {name: values.astype(losses.dtype) for name, values in accuracies.items()}, ghost_stats
