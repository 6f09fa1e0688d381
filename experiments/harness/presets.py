"""The recipe of each data set, and the values of the paper's schedules."""

import dataclasses

from bsjax.errors import check_choice
from experiments.harness import build
from experiments.harness.config import Config

ORIGINAL = "Original training schedule"
CONSTANT = "Control: constant learning rate"
FEW_UPDATES = "Control: as few updates, small batch"


@dataclasses.dataclass(frozen=True)
class Workload:
    """A data set's recipe.

    Attributes:
      config: the recipe.
      dataset_size: N, so that plans need no data.
      margins: of each metric, the largest difference that does not matter; named before the runs.
      test_size: of the test set; an accuracy takes steps of its inverse. None: it has no accuracy.
    """

    config: Config
    dataset_size: int
    margins: dict[str, float] = dataclasses.field(default_factory=dict)
    test_size: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset(Workload):
    """A data set's recipe (the paper's "decaying learning rate"), and the values that the figures vary.

    Attributes:
      config: the recipe.
      dataset_size: N, so that plans need no data.
      margins: see `Workload`.
      test_size: of the test set; an accuracy takes steps of its inverse.
      hybrid_max_batch_size: cap of the *hybrid* schedule of Section 5.1.
      max_batch_size: cap of Section 5.2's schedules.
      growing_max_batch_size: cap of Section 5.1's *increasing batch size*; None in the paper.
      sgd_learning_rate: Figure 4's, for SGD without momentum.
      scale_learning_rate: Section 5.2's increased initial learning rate, as a factor.
      scale_momentum: Section 5.2's increased momentum.
      adam_learning_rate: Figure 4's, for Adam.
      learning_rate_factors: Figure 8's initial learning rates, over the recipe's.
      published: Figure 5's updates and final test accuracy in the paper, if the data set is in it.
    """

    hybrid_max_batch_size: int
    max_batch_size: int
    test_size: int = 10_000
    growing_max_batch_size: int | None = None
    sgd_learning_rate: float = 0.1
    scale_learning_rate: float = 5.0
    scale_momentum: float = 0.98
    adam_learning_rate: float = 1e-3
    learning_rate_factors: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
    published: dict[str, tuple[str, float]] = dataclasses.field(default_factory=dict)


_CIFAR10 = Config().replace(
    dataset="cifar10",
    augmentation="crop_flip",
    model="wide_resnet",
    model_depth=16,
    model_width=4,
    ghost_batch_size=128,
    learning_rate=0.1,
    batch_size=128,
    num_epochs=200,
    lr_decay_epochs=(60.0, 120.0, 160.0),
)


PRESETS = {
    # The whole paper in minutes on a laptop. A batch of N/10 is where the paper stops growing. Crops and a large weight
    # decay keep the task hard and the noise high, so that the learning rate must decay; as large a factor of learning
    # rate and momentum as on CIFAR-10 leaves too few updates. Found by search with the seeds 100 to 109.
    "digits": Preset(
        Config().replace(
            augmentation="crop",
            learning_rate=0.02,
            weight_decay=5e-3,
            num_epochs=40,
            lr_decay_epochs=(12.0, 24.0, 32.0),
        ),
        dataset_size=1437,
        hybrid_max_batch_size=40,
        growing_max_batch_size=144,
        max_batch_size=144,
        margins={"accuracy": 0.01},
        test_size=360,
        sgd_learning_rate=0.2,
        adam_learning_rate=0.01,
        scale_learning_rate=2.0,
        scale_momentum=0.95,
    ),
    # For two CPU cores: the paper's schedule at an eighth of its batch sizes and learning rates, and so with its noise
    # scale. A training this short works with a doubled learning rate and momentum 0.95 instead of 5 and 0.98.
    "fashion_mnist": Preset(
        Config().replace(
            dataset="fashion_mnist",
            model_depth=2,
            model_width=16,
            ghost_batch_size=16,
            learning_rate=0.0125,
            batch_size=16,
            num_epochs=15,
            lr_decay_epochs=(4.5, 9.0, 12.0),
        ),
        dataset_size=60_000,
        hybrid_max_batch_size=80,
        max_batch_size=640,
        margins={"accuracy": 0.005},
        sgd_learning_rate=0.0125,
        scale_learning_rate=2.0,
        scale_momentum=0.95,
    ),
    # For two CPU cores, too: a small network, small crops and late decays leave the fewest errors after so short a
    # training. Found by search with the seeds 100 and 101.
    "cifar10_small": Preset(
        _CIFAR10.replace(
            crop_padding=2,
            model="resnet9",
            model_depth=None,
            model_width=24,
            ghost_batch_size=32,
            learning_rate=0.05,
            batch_size=32,
            num_epochs=14,
            lr_decay_epochs=(5.6, 9.8, 12.6),
        ),
        dataset_size=50_000,
        hybrid_max_batch_size=160,
        max_batch_size=1280,
        margins={"accuracy": 0.01},
        sgd_learning_rate=0.05,
        scale_learning_rate=2.0,
        scale_momentum=0.95,
    ),
    # The paper's. Its text leaves open: ghost size, weight decay, augmentation and Figure 4's learning rates.
    "cifar10": Preset(
        _CIFAR10,
        dataset_size=50_000,
        hybrid_max_batch_size=640,
        max_batch_size=5120,
        margins={"accuracy": 0.005},
        published={
            ORIGINAL: ("~80,000", 0.943),
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
    growing = config.replace(schedule="increase_batch_size")
    return {
        "Decaying learning rate": config,
        "Hybrid": growing.replace(max_batch_size=preset.hybrid_max_batch_size),
        "Increasing batch size": growing.replace(max_batch_size=preset.growing_max_batch_size),
    }


def section_5_2(preset: Preset, config: Config) -> dict[str, Config]:
    """The four schedules of Figure 5."""
    growing = config.replace(schedule="increase_batch_size", max_batch_size=preset.max_batch_size)
    faster = growing.replace(scale_learning_rate=preset.scale_learning_rate)
    return {
        ORIGINAL: config,
        "Increasing batch size": growing,
        "Increased initial learning rate": faster,
        "Increased momentum coefficient": faster.replace(scale_momentum=preset.scale_momentum),
    }


def controls(preset: Preset, config: Config) -> dict[str, Config]:
    """What the figures' schedules are compared with, to see whether the data set needs what they do.

    * A constant learning rate: is the decay needed at all?
    * As few updates, small batch: the recipe, shortened to the updates of the growing batch: are all epochs needed?
    * Grown and decayed: at each step the batch grows by the factor of the recipe's decay, and the learning rate falls
      by it as well, so that the noise falls by its square: does the noise matter?
    * Grown twice too much: at each step the batch grows by twice the factor, up to twice the cap, at the held rate.

    The last two need a decay by a factor, so they are left out with a schedule that has none, such as cosine.

    Args:
      preset: has the cap of the growing batch.
      config: the recipe.

    Raises:
      InvalidArgument: the recipe's learning rate never falls, or its plan cannot be made.
    """
    return controls_of(preset, config, section_5_2(preset, config)["Increasing batch size"])


def controls_of(preset: Workload, config: Config, growing: Config) -> dict[str, Config]:
    """The controls of a recipe and its growing batch, which has a cap; see `controls`."""
    found = {
        CONSTANT: config.replace(lr_schedule="constant"),
        FEW_UPDATES: shortened(preset, config, growing),
    }
    if config.recipe.lr_schedule in ("step", "exponential"):
        factor, share = config.recipe.lr_decay_factor, config.conversion.batch_share
        twice = growing.replace(lr_decay_factor=2 * factor, max_batch_size=2 * (growing.conversion.max_batch_size or 0))
        found["Control: grown and decayed"] = growing.replace(lr_decay_factor=factor**2, batch_share=share / 2)
        found["Control: grown twice too much"] = twice
    return found


def shortened(preset: Workload, config: Config, growing: Config) -> Config:
    """The recipe with all its epochs shortened alike, to as many updates as another plan has."""
    # Of another data set, the size is not known yet; it hardly changes the ratio of updates.
    size = preset.dataset_size if config.data == preset.config.data else 100_000
    updates = [build.recipe(one, size).plan().num_updates for one in (growing, config)]
    recipe = config.recipe
    num_epochs, warmup, *decays = (
        float(f"{epochs * updates[0] / updates[1]:.6g}")  # short enough for the name of a folder
        for epochs in (recipe.num_epochs, recipe.warmup_epochs, *recipe.lr_decay_epochs)
    )
    return config.replace(num_epochs=num_epochs, warmup_epochs=warmup, lr_decay_epochs=tuple(decays))


def figure3_optimizers(preset: Preset, config: Config) -> dict[str, Config]:
    """The two optimizers of Figure 3."""
    del preset
    return {"SGD with momentum": config, "Nesterov momentum": config.replace(optimizer="nesterov")}


def figure4_optimizers(preset: Preset, config: Config) -> dict[str, Config]:
    """The two optimizers of Figure 4."""
    return {
        "SGD": config.replace(optimizer="sgd", learning_rate=preset.sgd_learning_rate),
        "Adam": config.replace(optimizer="adam", learning_rate=preset.adam_learning_rate),
    }


def appendix_b(preset: Preset, config: Config) -> dict[float, Config]:
    """Figure 8: the growing batch of Section 5.2 at each initial learning rate."""
    growing, rate = section_5_2(preset, config)["Increasing batch size"], config.optimizer.learning_rate
    return {factor * rate: growing.replace(scale_learning_rate=factor) for factor in preset.learning_rate_factors}


def figure8_controls(config: Config) -> dict[str, Config]:
    """What Figure 8's runs are compared with: the recipe, and its learning rate without decay."""
    return {ORIGINAL: config, CONSTANT: config.replace(lr_schedule="constant")}


def by_optimizer(preset: Preset, optimizers: dict[str, Config]) -> dict[tuple[str, str], Config]:
    """Section 5.1's schedules with each of some optimizers."""
    return {
        (optimizer, label): config
        for optimizer, base in optimizers.items()
        for label, config in section_5_1(preset, base).items()
    }


def constant_by_optimizer(optimizers: dict[str, Config]) -> dict[tuple[str, str], Config]:
    """The control of Figures 3 and 4: a constant learning rate with each of some optimizers."""
    return {(optimizer, CONSTANT): base.replace(lr_schedule="constant") for optimizer, base in optimizers.items()}


def figures(preset: Preset, config: Config) -> dict[str, list[Config]]:
    """The runs of each figure of the paper, in order of importance; figures share runs."""
    schedules: dict[str, dict] = {
        "figure5": section_5_2(preset, config),
        "figure2": section_5_1(preset, config),
        "figure3": by_optimizer(preset, figure3_optimizers(preset, config)),
        "figure4": by_optimizer(preset, figure4_optimizers(preset, config)),
        "figure8": appendix_b(preset, config),
    }
    return {figure: list(configs.values()) for figure, configs in schedules.items()}


def figure_controls(preset: Preset, config: Config) -> dict[str, list[Config]]:
    """The runs that each figure is compared with, in order of importance, to be trained after those of all figures."""
    four = controls(preset, config)
    schedules: dict[str, dict] = {
        "figure5": four,
        "figure2": four,
        "figure3": constant_by_optimizer(figure3_optimizers(preset, config)),
        "figure4": constant_by_optimizer(figure4_optimizers(preset, config)),
        "figure8": figure8_controls(config),
    }
    return {figure: list(configs.values()) for figure, configs in schedules.items()}
