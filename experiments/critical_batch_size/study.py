"""The presets and the flags of the study of critical batch sizes."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence
from dataclasses import MISSING
from typing import Any, NamedTuple

from absl import flags

from bsjax.errors import InvalidArgument, check_choice, check_whole
from experiments.critical_batch_size import target_loss
from experiments.critical_batch_size.target_loss import Setup
from experiments.harness import build, config_flags, control, language_models, presets, studies
from experiments.harness.concerns import field
from experiments.harness.config import CONCERNS, Config
from experiments.harness.pool import default_jobs

# A constant batch size and learning rate do not use these.
_VARIED = (
    *("batch_size", "seed", "schedule", "lr_schedule", "lr_decay_epochs", "lr_decay_factor", "warmup_epochs"),
    *("scale_learning_rate", "scale_momentum", "max_batch_size", "batch_growth", "batch_share"),
    *("eval_every_epochs", "log_every_epochs", "noise_half_life_epochs", "measure_noise", "layer_norm_noise"),
    *(one.name for one in dataclasses.fields(CONCERNS["controller"])),
)


_DEFAULT = "default, the preset's"


@dataclasses.dataclass(frozen=True)
class Preset:
    """The recipe of a data set, whose learning rate begins the search at its batch size, and the study's settings."""

    config: Config
    target_loss: float = field(MISSING, f"Target of the test loss; {_DEFAULT}.")
    batch_sizes: tuple[int, ...] = field(MISSING, f"Batch sizes, comma-separated; {_DEFAULT}.")
    num_eval_examples: int = field(MISSING, f"Number of test examples for the test loss; {_DEFAULT}.")
    # Far below the critical batch size.
    branch_batch_size: int = field(MISSING, f"Batch size of the run that branches leave; {_DEFAULT}.")
    branch_factors: tuple[int, ...] = field(
        (1, 2, 4, 8, 16, 32, 64), f"Factors of the branches' batch sizes, powers of two from 1; {_DEFAULT}."
    )
    branch_points: tuple[float, ...] = field(
        (0.25, 0.5, 1.0, 2.0), f"Points where they leave the run, as shares of its steps to the target; {_DEFAULT}."
    )
    branch_tolerance: float = field(0.1, f"Share by which a branch's loss may be larger; {_DEFAULT}.")


def _plain(config: Config, **values: Any) -> Config:
    """A network without batch norm, so that any batch size is possible and each example has its own gradient; SGD
    without momentum, which has its own time scale, and without weight decay, so that the gradient is the loss's."""
    plain: dict[str, Any] = {"model": "mlp", "model_depth": 2, "model_width": 64}
    plain |= {"optimizer": "sgd", "weight_decay": 0.0, "lr_schedule": "constant"}
    return config.replace(**plain, **values)


def _adam(config: Config, **values: Any) -> Config:
    """A small transformer, which plain SGD hardly trains, with Adam: without weight decay and clipping; learning rates
    scale with the root of the batch."""
    small: dict[str, Any] = {"model_depth": 2, "model_width": 64, "num_heads": 2, "optimizer": "adam"}
    small |= {"weight_decay": 0.0, "max_grad_norm": None, "lr_schedule": "constant", "warmup_epochs": 0.0}
    return config.replace(**small, batch_scaling="sqrt", **values)


PRESETS = {
    "digits": Preset(
        _plain(Config(), batch_size=8, learning_rate=0.1, num_epochs=60.0),
        target_loss=0.1,
        batch_sizes=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
        num_eval_examples=360,
        branch_batch_size=2,
        branch_factors=(1, 2, 4, 8, 16, 32),
    ),
    "fashion_mnist": Preset(
        _plain(presets.PRESETS["fashion_mnist"].config, batch_size=8, learning_rate=0.02, num_epochs=10.0),
        target_loss=0.45,
        batch_sizes=(2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
        num_eval_examples=2000,
        branch_batch_size=4,
    ),
    # Batch sizes are in windows of 64 tokens, results in tokens. The tolerance is 0.02 nats. The learning rate was the
    # better of two with seed 100.
    "shakespeare_cpu": Preset(
        _adam(
            language_models.LANGUAGE_MODELS["shakespeare_cpu"].config,
            batch_size=16,
            learning_rate=4e-3,
            num_epochs=3.0,
        ),
        target_loss=2.2,
        batch_sizes=(4, 8, 16, 32, 64, 128, 256),
        num_eval_examples=200,
        branch_batch_size=8,
        branch_factors=(1, 2, 4, 8, 16, 32),
        branch_tolerance=0.01,
    ),
}


class Study(NamedTuple):
    """The settings of a study."""

    preset: Preset
    setup: Setup
    workdir: pathlib.Path
    seeds: range
    jobs: int
    learning_rate_factor: float


def define_flags() -> None:
    """Defines --preset, --workdir, --seeds, --jobs, a flag for each field of Preset, and the trainings' flags."""
    studies.define_study_flags("digits", PRESETS)
    config_flags.define_flags_of(Preset, __name__, defaults=False)
    flags.DEFINE_float("learning_rate_factor", 2**0.5, "Ratio of neighbours on the grid of learning rates.")
    config_flags.define_flags(except_for=_VARIED)
    control.define_flags()


def study_from_flags() -> Study:
    """The study that the command line describes. Nothing is written if a flag is wrong."""
    values = flags.FLAGS
    preset = PRESETS[check_choice("preset", values.preset, PRESETS)]
    given: dict[str, Any] = {"config": config_flags.config_from_flags(preset.config)}
    for one in dataclasses.fields(Preset)[1:]:
        value = values[one.name].value
        if value is not None:
            given[one.name] = _increasing(one.name, value, one.type) if isinstance(value, list) else value
    preset = dataclasses.replace(preset, **given)
    seeds, jobs = studies.seeds_and_jobs_from_flags()
    check_whole("num_eval_examples", preset.num_eval_examples)
    for name in ("target_loss", "branch_tolerance"):
        if not 0 < getattr(preset, name) < math.inf:
            raise InvalidArgument(name, getattr(preset, name), "positive")
    if not values.learning_rate_factor > 1:
        raise InvalidArgument("learning_rate_factor", values.learning_rate_factor, "greater than 1", 2)
    if len(preset.batch_sizes) < 3:
        raise InvalidArgument("batch_sizes", list(preset.batch_sizes), "at least three", "1,8,64")
    if preset.branch_batch_size not in preset.batch_sizes:
        nearest = min(preset.batch_sizes, key=lambda size: abs(size - preset.branch_batch_size))
        raise InvalidArgument("branch_batch_size", preset.branch_batch_size, "one of --batch_sizes", nearest)
    if preset.branch_factors[0] != 1 or any(preset.branch_factors[-1] % factor for factor in preset.branch_factors):
        raise InvalidArgument("branch_factors", list(preset.branch_factors), "divisors of the last, from 1", "1,2,4,8")
    setup = Setup(preset.config, preset.batch_sizes, preset.num_eval_examples, control.control_from_flags())
    with build.argument_is_flag(batch_size="batch_sizes"):
        target_loss.create_engine(setup, 0)  # refuses settings that no training can use
    workdir = studies.make_workdir(values.workdir)
    return Study(preset, setup, workdir, seeds, jobs or default_jobs(), values.learning_rate_factor)


def _increasing(name: str, texts: Sequence[str], kind: Any) -> tuple[Any, ...]:
    example = {"batch_sizes": "1,4,16,64", "branch_factors": "1,2,4,8", "branch_points": "0.25,0.5,1"}[name]
    values = config_flags.numbers_of(name, texts, kind.__args__[0], example)
    if not values or not values[0] > 0 or list(values) != sorted(set(values)):
        raise InvalidArgument(name, ",".join(texts), "positive numbers in increasing order", example)
    return values
