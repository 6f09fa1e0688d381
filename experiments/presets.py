"""What the figures train on each data set: the recipe, and the values of the paper's schedules."""

import dataclasses

from bsjax.errors import check_choice
from experiments.config import Config


@dataclasses.dataclass(frozen=True)
class Preset:
    """A data set's recipe (the paper's "decaying learning rate"), and what the figures vary.

    Attributes:
      config: the recipe.
      dataset_size: N, so that plans need no data.
      hybrid_max_batch_size: cap of the *hybrid* schedule of Section 5.1.
      growing_max_batch_size: cap of its *increasing batch size*; None in the paper.
      max_batch_size: cap of Section 5.2's schedules.
      scale_learning_rate: Section 5.2's increased initial learning rate, as a factor.
      scale_momentum: its increased momentum.
      sgd_learning_rate: Figure 4's, for SGD without momentum.
      adam_learning_rate: Figure 4's, for Adam.
      learning_rate_factors: Figure 8's initial learning rates, over the recipe's.
      published: Figure 5's updates and final test accuracy in the paper, if the data set is in it.
    """

    config: Config
    dataset_size: int
    hybrid_max_batch_size: int
    growing_max_batch_size: int | None
    max_batch_size: int
    sgd_learning_rate: float
    scale_learning_rate: float = 5.0
    scale_momentum: float = 0.98
    adam_learning_rate: float = 1e-3
    learning_rate_factors: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
    published: dict[str, tuple[str, float]] = dataclasses.field(default_factory=dict)


_CIFAR10 = Config(
    dataset="cifar10",
    augmentation="crop_flip",
    model="wide_resnet",
    model_depth=16,
    model_width=4,
    ghost_batch_size=128,
    learning_rate=0.1,
    weight_decay=5e-4,
    batch_size=128,
    num_epochs=200,
    lr_decay_epochs=(60.0, 120.0, 160.0),
    lr_decay_factor=5.0,
)

# For a CPU: the paper's schedule at a tenth of its length, with an eighth of its batch sizes and learning rates, and so
# with its noise scale. So few updates bear a doubled learning rate and momentum 0.95; the paper's factor 5 and 0.98
# cost 5 and 17 points of accuracy on CIFAR-10.
_CIFAR10_SMALL = Preset(
    dataclasses.replace(
        _CIFAR10,
        model="cnn",
        model_depth=3,
        model_width=16,
        ghost_batch_size=16,
        learning_rate=0.0125,
        batch_size=16,
        num_epochs=20,
        lr_decay_epochs=(6.0, 12.0, 16.0),
    ),
    dataset_size=50_000,
    hybrid_max_batch_size=80,
    growing_max_batch_size=None,
    max_batch_size=640,
    sgd_learning_rate=0.0125,
    scale_learning_rate=2.0,
    scale_momentum=0.95,
)

PRESETS = {
    # The whole paper in minutes on a laptop. A batch of N/10 is where the paper stops growing.
    "digits": Preset(
        Config(),
        dataset_size=1437,
        hybrid_max_batch_size=40,
        growing_max_batch_size=144,
        max_batch_size=144,
        sgd_learning_rate=0.1,
    ),
    "fashion_mnist": dataclasses.replace(
        _CIFAR10_SMALL,
        config=dataclasses.replace(
            _CIFAR10_SMALL.config,
            dataset="fashion_mnist",
            augmentation="none",
            model_depth=2,
            num_epochs=15,
            lr_decay_epochs=(4.5, 9.0, 12.0),
        ),
        dataset_size=60_000,
    ),
    "cifar10_small": _CIFAR10_SMALL,
    # The paper's. Its text leaves open: ghost size, weight decay, augmentation and Figure 4's learning rates.
    "cifar10": Preset(
        _CIFAR10,
        dataset_size=50_000,
        hybrid_max_batch_size=640,
        growing_max_batch_size=None,
        max_batch_size=5120,
        sgd_learning_rate=0.1,
        published={
            "Original training schedule": ("~80,000", 0.943),
            "Increasing batch size": ("~29,000", 0.944),
            "Increased initial learning rate": ("< 6,500", 0.945),
            "Increased momentum coefficient": ("< 2,500", 0.933),
        },
    ),
}


def get(name: str) -> Preset:
    """The preset of that name.

    Raises:
      InvalidArgument: there is none.
    """
    return PRESETS[check_choice("preset", name, PRESETS)]


def section_5_1(preset: Preset, config: Config) -> dict[str, Config]:
    """The three schedules of Figures 1 to 4."""
    growing = dataclasses.replace(config, schedule="increase_batch_size")
    return {
        "Decaying learning rate": config,
        "Hybrid": dataclasses.replace(growing, max_batch_size=preset.hybrid_max_batch_size),
        "Increasing batch size": dataclasses.replace(growing, max_batch_size=preset.growing_max_batch_size),
    }


def section_5_2(preset: Preset, config: Config) -> dict[str, Config]:
    """The four schedules of Figure 5."""
    growing = dataclasses.replace(config, schedule="increase_batch_size", max_batch_size=preset.max_batch_size)
    faster = dataclasses.replace(growing, scale_learning_rate=preset.scale_learning_rate)
    return {
        "Original training schedule": config,
        "Increasing batch size": growing,
        "Increased initial learning rate": faster,
        "Increased momentum coefficient": dataclasses.replace(faster, scale_momentum=preset.scale_momentum),
    }


def figure3_optimizers(preset: Preset, config: Config) -> dict[str, Config]:
    """The two optimizers of Figure 3."""
    del preset
    return {"SGD with momentum": config, "Nesterov momentum": dataclasses.replace(config, optimizer="nesterov")}


def figure4_optimizers(preset: Preset, config: Config) -> dict[str, Config]:
    """The two optimizers of Figure 4."""
    return {
        "SGD": dataclasses.replace(config, optimizer="sgd", learning_rate=preset.sgd_learning_rate),
        "Adam": dataclasses.replace(config, optimizer="adam", learning_rate=preset.adam_learning_rate),
    }


def appendix_b(preset: Preset, config: Config) -> dict[float, Config]:
    """Figure 8: the growing batch of Section 5.2 at each initial learning rate."""
    growing = section_5_2(preset, config)["Increasing batch size"]
    return {
        factor * config.learning_rate: dataclasses.replace(growing, scale_learning_rate=factor)
        for factor in preset.learning_rate_factors
    }


def figures(preset: Preset, config: Config) -> dict[str, list[Config]]:
    """What each figure of the paper trains, in order of importance; figures share runs."""
    return {
        "figure5": list(section_5_2(preset, config).values()),
        "figure2": list(section_5_1(preset, config).values()),
        **{
            name: [run for base in optimizers(preset, config).values() for run in section_5_1(preset, base).values()]
            for name, optimizers in (("figure3", figure3_optimizers), ("figure4", figure4_optimizers))
        },
        "figure8": list(appendix_b(preset, config).values()),
    }
