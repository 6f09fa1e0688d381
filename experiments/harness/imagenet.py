"""The recipes of Section 5.3 and 5.4, on ImageNet, and of a small copy that two CPU cores can train.

Images are cropped to 299 pixels for Inception-ResNet-V2, 224 for ResNet-50, 32 for the copy. The crops are made when
they are decoded, so `augmentation` is "none".
"""

import dataclasses
from typing import Any, NamedTuple

from experiments.harness import build, presets
from experiments.harness.config import Config
from experiments.harness.presets import Workload

DECAYING, GROWING = "Decaying learning rate", "Increasing batch size"
_NUM_IMAGES, _NUM_TINY = 1_281_167, 5_000


class Published(NamedTuple):
    """What the paper says about a schedule."""

    updates: str
    accuracy: str  # top-1 on the validation images, in percent; of several runs, each


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageNetPreset(Workload):
    """A recipe, and the values that its figure varies.

    Attributes:
      config: the recipe.
      dataset_size: N, so that plans need no data.
      margins: see `Workload`.
      test_size: of the validation set.
      num_classes: of the images.
      max_batch_size: cap of the growing batch; from there on the learning rate decays.
      momentums: Figure 7's, beginning with the recipe's.
      published: what the paper says, by schedule.
    """

    test_size: int
    num_classes: int
    max_batch_size: int
    momentums: tuple[float, ...] = ()
    published: dict[str, Published] = dataclasses.field(default_factory=dict)


# The paper's: model, batch size, learning rate, momentum, ghosts, no warm-up, 90 epochs, and decays by 10, whose epochs
# follow from its numbers of updates, as does Figure 6's cap. Its "below 3,500" for momentum 0.95 leaves out the partial
# batch at the end of each epoch; here there is none. Ours, because the paper leaves them open: weight decay (of
# Inception-ResNet-V2's authors), label smoothing (Inception-v3's), dropout (Inception-v4's), bfloat16, the crops, and
# the span of batch norm's running averages. No average of the parameters is evaluated, as in the paper.
_INCEPTION = Config().replace(
    dataset="imagenet2012",
    image_size=299,
    model="inception_resnet_v2",
    ghost_batch_size=32,
    dtype="bfloat16",
    dropout=0.2,
    label_smoothing=0.1,
    weight_decay=4e-5,
    learning_rate=3.0,
    momentum=0.9,
    batch_size=8192,
    num_epochs=90,
    lr_decay_epochs=(30.0, 60.0, 80.0),
    lr_decay_factor=10.0,
)
# The paper's: model, batch size and growth. It trains as Goyal et al. (https://arxiv.org/abs/1706.02677) otherwise,
# from whom are learning rate, warm-up, decays, weight decay, and γ = 0 at first. Ours: ghosts of 32, which are the
# batches of their workers, bfloat16, and no weight decay of biases and batch norm.
_RESNET50 = _INCEPTION.replace(
    image_size=224,
    model="resnet50",
    dropout=0.0,
    label_smoothing=0.0,
    weight_decay=1e-4,
    learning_rate=3.2,
    warmup_epochs=5.0,
)
# All ours: the same shares of training, growth and momentums, on ten classes of Tiny ImageNet's JPEGs, for two CPU
# cores.
_TINY = Config().replace(
    dataset="tiny_imagenet_10",
    image_size=32,
    model="resnet9",
    model_width=16,
    ghost_batch_size=16,
    learning_rate=0.05,
    momentum=0.9,
    batch_size=32,
    num_epochs=30,
    lr_decay_epochs=(10.0, 20.0, 26.0),
    lr_decay_factor=10.0,
)
_TINY_SIZES: dict[str, Any] = {"dataset_size": _NUM_TINY, "test_size": 500, "num_classes": 10}
_IMAGENET_SIZES: dict[str, Any] = {"dataset_size": _NUM_IMAGES, "test_size": 50_000, "num_classes": 1000}
_SMALL_MARGIN, _MARGIN = {"accuracy": 0.02}, {"accuracy": 0.005}

FIGURE6 = {
    "imagenet": ImageNetPreset(
        _INCEPTION,
        margins=_MARGIN,
        max_batch_size=81_920,
        published={
            DECAYING: Published("just over 14,000", "78.7, 77.8"),
            GROWING: Published("below 6,000", "78.1, 76.8"),
        },
        **_IMAGENET_SIZES,
    ),
    "tiny_imagenet": ImageNetPreset(_TINY, margins=_SMALL_MARGIN, max_batch_size=320, **_TINY_SIZES),
}
FIGURE7 = {
    "imagenet": ImageNetPreset(
        _INCEPTION.replace(ghost_batch_size=64),
        margins=_MARGIN,
        max_batch_size=65_536,
        momentums=(0.9, 0.95, 0.975),
        published={
            "Momentum 0.9": Published("below 6,000", "78.8"),
            "Momentum 0.95": Published("below 3,500", "78.1, 77.8"),
            "Momentum 0.975": Published("below 2,500", "77.5, 76.8"),
        },
        **_IMAGENET_SIZES,
    ),
    "tiny_imagenet": ImageNetPreset(
        _TINY.replace(ghost_batch_size=32),
        margins=_SMALL_MARGIN,
        max_batch_size=256,
        momentums=(0.9, 0.95, 0.975),
        **_TINY_SIZES,
    ),
}
RESNET50 = {
    "imagenet": ImageNetPreset(
        _RESNET50,
        margins=_MARGIN,
        max_batch_size=16_384,
        published={GROWING: Published("", "76.1")},
        **_IMAGENET_SIZES,
    ),
    "tiny_imagenet": ImageNetPreset(
        _TINY.replace(warmup_epochs=1.5),
        margins=_SMALL_MARGIN,
        max_batch_size=64,
        **_TINY_SIZES,
    ),
}


def image_shape(config: Config) -> tuple[int, int, int]:
    """Height, width and channels of the images that a recipe trains on."""
    pixels = config.data.image_size
    assert pixels is not None  # a preset has one, and the flags cannot take it away
    return pixels, pixels, 3


def decayed_and_grown(preset: ImageNetPreset, config: Config) -> dict[str, Config]:
    """The schedules of Figure 6 and of Section 5.4: the recipe, and its decays as growth up to the preset's cap."""
    return {DECAYING: config, GROWING: _grown(preset, config)}


def raised_momentum(preset: ImageNetPreset, config: Config) -> dict[str, Config]:
    """The schedules of Figure 7: a growing batch with each momentum m, which begins with a batch ∝ 1 / (1 - m).

    >>> schedules = raised_momentum(FIGURE7["imagenet"], FIGURE7["imagenet"].config)
    >>> schedules["Momentum 0.975"].conversion.scale_momentum
    0.975
    """
    grown = _grown(preset, config)
    raised = (config.optimizer.momentum, *preset.momentums[1:])
    others = {f"Momentum {momentum:g}": grown.replace(scale_momentum=momentum) for momentum in raised[1:]}
    return {f"Momentum {raised[0]:g}": grown, **others}


def controls(preset: ImageNetPreset, config: Config) -> dict[str, Config]:
    """What the schedules are compared with, see `presets.controls`."""
    return presets.controls_of(preset, config, _grown(preset, config))


def plan_rows(preset: ImageNetPreset, schedules: dict[str, Config]) -> list[list[str]]:
    """A line for each schedule: its updates, its batch sizes, and what the paper says; the first line has the names."""
    rows = [["schedule", "updates", "in the paper", "top-1 there, %", "batch sizes"]]
    for label, config in schedules.items():
        plan = build.recipe(config, preset.dataset_size).plan()
        said = preset.published.get(label, Published("", ""))
        sizes = dict.fromkeys(f"{phase.batch_size:,}" for phase in plan.phases)
        rows.append([label, f"{plan.num_updates:,}", *said, " → ".join(sizes)])
    return rows


def _grown(preset: ImageNetPreset, config: Config) -> Config:
    return config.replace(schedule="increase_batch_size", max_batch_size=preset.max_batch_size)
