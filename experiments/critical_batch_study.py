"""What the study of critical batch sizes trains on each data set, and its flags."""

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
from absl import flags

from bsjax import InvalidArgument
from bsjax import workdir as workdirs
from bsjax.errors import check_choice
from experiments import config as config_lib
from experiments import presets, runs, target_loss
from experiments.config import Config
from experiments.target_loss import Setup

# What a constant batch size and learning rate leave nothing to.
_VARIED = (
    *("batch_size", "seed", "schedule", "lr_schedule", "lr_decay_epochs", "lr_decay_factor", "warmup_epochs"),
    *("scale_learning_rate", "scale_momentum", "max_batch_size", "batch_growth", "batch_share"),
    *("eval_every_epochs", "log_every_epochs"),
)


@dataclasses.dataclass(frozen=True)
class Preset:
    """What is trained on a data set, and how far.

    Attributes:
      config: the recipe; its learning rate is where the search begins at its batch size.
      target_loss: of the test loss.
      batch_sizes: to be searched.
      num_eval_examples: of the test split that the test loss is of.
      branch_batch_size: of the run that branches leave; far below the critical batch size.
      branch_factors: of the branches' batch sizes.
      branch_points: where they leave it, in the run's steps to the target.
      branch_tolerance: by which ratio their loss may be above that of factor 1.
    """

    config: Config
    target_loss: float
    batch_sizes: tuple[int, ...]
    num_eval_examples: int
    branch_batch_size: int
    branch_factors: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    branch_points: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    branch_tolerance: float = 0.1


def _plain(config: Config, **values: Any) -> Config:
    """A network without batch norm, so that any batch size can be and an example has a gradient of its own; SGD without
    momentum, which has a time scale of its own, and without weight decay, so that the gradient is the loss's."""
    plain: dict[str, Any] = {"model": "mlp", "model_depth": 2, "model_width": 64}
    plain |= {"optimizer": "sgd", "weight_decay": 0.0, "lr_schedule": "constant"}
    return dataclasses.replace(config, **plain, **values)


PRESETS = {
    "digits": Preset(
        _plain(presets.PRESETS["digits"].config, batch_size=8, learning_rate=0.1, num_epochs=60.0),
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
}


class Study(NamedTuple):
    """What the command line asks for."""

    preset: Preset
    setup: Setup
    workdir: pathlib.Path
    seeds: range
    jobs: int
    learning_rate_factor: float


def define_flags() -> None:
    """Defines --preset, --workdir, --seeds, --jobs, a flag for each field of Preset, and the trainings' flags."""
    flags.DEFINE_string("preset", "digits", f"Data set and recipe. One of {', '.join(PRESETS)}.")
    flags.DEFINE_string("workdir", None, "Folder for the figure and its trainings.", required=True)
    flags.DEFINE_integer("seeds", 5, "Number of seeds.")
    flags.DEFINE_integer("jobs", None, "Trainings at the same time; default, one per core, or one on an accelerator.")
    preset = "default, the preset's"
    flags.DEFINE_float("target_loss", None, f"Test loss to be reached; {preset}.")
    flags.DEFINE_list("batch_sizes", None, f"Batch sizes, comma-separated; {preset}.")
    flags.DEFINE_float("learning_rate_factor", 2**0.5, "Between neighbours on the grid of learning rates.")
    flags.DEFINE_integer("num_eval_examples", None, f"Test examples that the test loss is of; {preset}.")
    flags.DEFINE_integer("branch_batch_size", None, f"Batch size of the run that branches leave; {preset}.")
    flags.DEFINE_list("branch_factors", None, f"Of the branches' batch sizes, powers of two from 1; {preset}.")
    flags.DEFINE_list("branch_points", None, f"Where they leave the run, over its steps to the target; {preset}.")
    flags.DEFINE_float("branch_tolerance", None, f"By which ratio a branch's loss may be above; {preset}.")
    config_lib.define_flags(except_for=_VARIED)
    runs.define_flags()


def study_from_flags() -> Study:
    """What the command line asks for. Where a flag is wrong, nothing is written."""
    values = flags.FLAGS
    preset = PRESETS[check_choice("preset", values.preset, PRESETS)]
    given: dict[str, Any] = {
        name: values[name].value
        for name in ("target_loss", "num_eval_examples", "branch_batch_size", "branch_tolerance")
        if values[name].value is not None
    }
    for name, number in (("batch_sizes", int), ("branch_factors", int), ("branch_points", float)):
        if (texts := values[name].value) is not None:
            given[name] = _increasing(name, texts, number)
    preset = dataclasses.replace(
        preset, **given, config=config_lib.config_from_flags(preset.config, except_for=_VARIED)
    )
    for name, value, least in (
        ("seeds", values.seeds, 1),
        ("jobs", values.jobs, 1),
        ("num_eval_examples", preset.num_eval_examples, 1),
    ):
        if value is not None and value < least:
            raise InvalidArgument(name, value, f"a whole number >= {least}", least)
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
    if jax.process_count() > 1:
        raise InvalidArgument("multihost", True, "off here: the trainings are too short", "--nomultihost")
    control = runs.control_from_flags()
    setup = Setup(preset.config, preset.batch_sizes, preset.num_eval_examples, control)
    with _flag_of_batch_sizes():
        target_loss.create_engine(setup, 0)  # refuses what no training can have
    workdir = pathlib.Path(values.workdir).expanduser()
    workdirs.make(workdir)
    jobs = values.jobs or runs.default_jobs()
    return Study(preset, setup, workdir, range(values.seeds), jobs, values.learning_rate_factor)


@contextlib.contextmanager
def _flag_of_batch_sizes() -> Iterator[None]:
    try:
        yield
    except InvalidArgument as error:
        raise error.renamed("batch_sizes" if error.name == "batch_size" else error.name) from None


def _increasing(name: str, texts: Sequence[str], number: Any) -> tuple[Any, ...]:
    example = {"batch_sizes": "1,4,16,64", "branch_factors": "1,2,4,8", "branch_points": "0.25,0.5,1"}[name]
    try:
        values = tuple(map(number, texts))
    except ValueError:
        values = ()
    if not values or values[0] <= 0 or list(values) != sorted(set(values)):
        raise InvalidArgument(name, ",".join(texts), "positive numbers in increasing order", example)
    return values
