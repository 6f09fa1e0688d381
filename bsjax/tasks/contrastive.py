"""Contrastive learning: two views of an example are alike, and those of other examples are not."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bsjax.data.augmentation import AUGMENTATIONS, augment, distort
from bsjax.errors import InvalidArgument, TaskError, check_choice, check_number, check_positive, check_whole
from bsjax.tasks.linen import LinenTask, set_mean_and_std, standardise
from bsjax.tasks.protocol import Losses


def nt_xent(projections: jax.Array, temperature: float) -> tuple[jax.Array, jax.Array]:
    r"""The normalised, temperature-scaled cross-entropy (NT-Xent) of the views in each group.

    With the cosine s of the angle between two projections, the loss of view v of example i is that of picking its
    partner, the other view of i, among the 2g - 1 other views of its group of g examples; 2g - 2 of them are negatives:

    .. math:: \ell_{iv} = -\frac{s(z_{iv}, z_{iv'})}{\tau}
       + \log \sum_{(j, w) \neq (i, v)} \exp \frac{s(z_{iv}, z_{jw})}{\tau}

    Args:
      projections: z, float [groups, g, 2, d]; of each example two views.
      temperature: τ, positive.

    Returns:
      Of each example the mean loss of its two views, [groups, g], in float32 at least; and the share of its two views
      whose most similar view is the partner, [groups, g].

    >>> pairs = jnp.array([[[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]]])
    >>> losses, accuracy = nt_xent(pairs, temperature=1.0)
    >>> print(losses, accuracy)  # log(e + 2) - 1
    [[0.5514 0.5514]] [[1. 1.]]

    Reference: Chen et al., 2020 (https://arxiv.org/abs/2002.05709), Section 2.1.
    """
    groups, size = projections.shape[:2]
    z = projections.astype(np.promote_types(projections.dtype, np.float32)).reshape(groups, 2 * size, -1)
    z = z * jax.lax.rsqrt(jnp.maximum(jnp.square(z).sum(axis=-1, keepdims=True), 1e-12))
    # Accelerators would round the factors of a product to fewer digits.
    cosines = jnp.einsum("gid,gjd->gij", z, z, precision=jax.lax.Precision.HIGHEST)
    views = jnp.arange(2 * size)
    logits = jnp.where((views[:, None] == views[None])[None], -jnp.inf, cosines / temperature)
    is_right = logits.argmax(axis=-1) == (views ^ 1)[None]  # the views of an example are neighbours
    normalizers = jax.nn.logsumexp(logits, axis=-1)
    first, second = z[:, ::2], z[:, 1::2]
    losses = normalizers.reshape(groups, size, 2).mean(axis=-1) - (first * second).sum(axis=-1) / temperature
    return losses, is_right.astype(losses.dtype).reshape(groups, size, 2).mean(axis=-1)


@dataclasses.dataclass(frozen=True)
class Contrastive(LinenTask):
    """Examples without labels: a model learns to tell two views of one example from the views of others.

    The loss is `nt_xent` within groups of g consecutive examples of the stream, and the accuracy is the share of views
    whose partner is the most similar one. As g is fixed, the batch may grow and the objective stays the same: more
    groups, each with 2g - 2 negatives for a view. With g the batch size itself, a batch is one group, as in SimCLR.

    A view is a standardised image that `bsjax.data.augmentation` crops, flips, scales and disturbs, as a function of
    the example's key. The views are the task, so the evaluation makes them too, in groups of consecutive test examples.
    A group that crosses the end of an epoch may hold an example twice, as its own negative.

    Examples are a dict with "image" [n, height, width, channels]; a signal is an image of height 1.

    Args:
      model: maps images [n, height, width, channels] to projections [n, d], such as `bsjax.models.Projector`. It is
        called with `train` and `keys` as well, if it takes them. It has no batch normalisation.
      group_size: g, at least 2.
      temperature: τ, positive; small ones weigh the hardest negatives most.
      augmentation: one of `bsjax.data.AUGMENTATIONS`.
      crop_padding: pixels of zeros on each side of an image that is cropped, but for sides of one pixel.
      view_amplitude: a; a view is scaled by a factor between exp(-a) and exp(a).
      view_noise: the standard deviation of what is added to each pixel.
      mean: of the pixels, subtracted: a number, or one per channel.
      std: of the pixels, which divides.
      eval_group_size: the group of the evaluation, whose loss is comparable only among equal ones; divides g and the
        number of test examples. Default, g.

    Raises:
      InvalidArgument: a value is out of range, or both views would always be the same.

    >>> from bsjax.models import MLP, Projector
    >>> task = Contrastive(Projector(MLP(num_classes=64)), group_size=16, augmentation="crop")
    >>> task.group_size, task.groups_may_span_devices, task.metrics
    (16, False, ('accuracy',))

    Reference: Chen et al., 2020 (https://arxiv.org/abs/2002.05709).
    """

    model: nn.Module
    group_size: int = 16
    temperature: float = 0.2
    augmentation: str = "none"
    crop_padding: int = 4
    view_amplitude: float = 0.2
    view_noise: float = 0.2
    mean: Any = 0.0
    std: Any = 1.0
    eval_group_size: Any = None  # an int

    groups_may_span_devices = False
    metrics = ("accuracy",)
    unit = "images"

    def __post_init__(self):
        check_whole("group_size", self.group_size, 2)
        check_positive("temperature", self.temperature)
        check_choice("augmentation", self.augmentation, AUGMENTATIONS)
        check_whole("crop_padding", self.crop_padding)
        for name in ("view_amplitude", "view_noise"):
            check_number(name, getattr(self, name), lambda x: x >= 0, "0 or positive", 0)
        if self.augmentation == "none" and not self.view_amplitude and not self.view_noise:
            allowed = "another one, or view_noise above 0: both views of an example would be the same"
            raise InvalidArgument("augmentation", "none", allowed, "crop")
        set_mean_and_std(self)
        if self.eval_group_size is None:
            object.__setattr__(self, "eval_group_size", self.group_size)
        divisors = [size for size in range(2, self.group_size + 1) if self.group_size % size == 0]
        if self.eval_group_size not in divisors:
            check_whole("eval_group_size", self.eval_group_size, 2)
            nearest = min(divisors, key=lambda size: abs(size - self.eval_group_size))
            allowed = f"a divisor of group_size {self.group_size}, and at least 2"
            raise InvalidArgument("eval_group_size", self.eval_group_size, allowed, nearest)

    def check_source(self, name: str, source: Any) -> None:
        """Refuses training examples that are fewer than a group, and test examples that are not whole groups.

        The engine fills the last microbatch of an evaluation with copies, which must not become negatives.
        """
        if name == "train" and len(source) < self.group_size:
            allowed = f"at most the {len(source)} training examples"
            raise InvalidArgument("group_size", self.group_size, allowed)
        if name == "test" and len(source) % self.eval_group_size:
            common = math.gcd(len(source), self.group_size)
            allowed = f"a divisor of the {len(source)} test examples, and of group_size {self.group_size}"
            raise InvalidArgument("eval_group_size", self.eval_group_size, allowed, common if common > 1 else None)

    def init_model(self, key: jax.Array, inputs: jax.Array) -> tuple[Any, Any]:
        """The model's initial parameters.

        Raises:
          InvalidArgument: the model has batch normalisation.
        """
        variables = self.model.init(key, inputs, **self._options(train=False, keys=None))
        if "batch_stats" in variables:
            allowed = "a model without batch normalisation, whose statistics would tell which views are of one group"
            raise InvalidArgument("model", type(self.model).__name__, allowed)
        return variables["params"], {}

    def read(self, examples: Any, keys: jax.Array, train: bool) -> Any:
        """Two views of each image, [n, 2, height, width, channels]."""
        del train
        images = jnp.repeat(standardise(examples["image"], self.mean, self.std), 2, axis=0)
        crop_keys, distort_keys = jax.vmap(jax.random.split, out_axes=1)(_two_of_each(keys))
        views = augment(self.augmentation, images, crop_keys, self.crop_padding)
        views = distort(views, distort_keys, self.view_amplitude, self.view_noise)
        return views.reshape(-1, 2, *views.shape[1:])

    def losses(self, params: Any, batch_stats: Any, inputs: Any, keys: jax.Array, train: bool) -> Losses:
        """The loss of each example, a mean over its two views, and the share of these that find their partner."""
        size = self.group_size if train else self.eval_group_size
        views = inputs.reshape(-1, *inputs.shape[2:])
        projections, _ = self.apply(params, batch_stats, views, _two_of_each(keys), train)
        if projections.ndim != 2:
            raise TaskError(f"Contrastive needs projections [n, d] of the model, not {list(projections.shape)}")
        losses, accuracy = nt_xent(projections.reshape(-1, size, 2, projections.shape[-1]), self.temperature)
        return losses.reshape(-1), {"accuracy": accuracy.reshape(-1)}, {}

    def features(self, params: Any, examples: Any) -> jax.Array:
        """The features [n, d] of whole images, which a linear probe classifies; the model has a method for them."""
        images = standardise(examples["image"], self.mean, self.std)
        features: Any = self.model.apply({"params": params}, images, method="features")
        return features


def _two_of_each(keys: jax.Array) -> jax.Array:
    """From keys [n] those of the views [2n], neighbours of one example."""
    pairs = jax.vmap(jax.random.split)(keys)
    return pairs.reshape(-1, *pairs.shape[2:])
