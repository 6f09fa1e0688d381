"""The flags and the presets of the claims, and what a claim gets to work with."""

import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

from absl import flags

from bsjax.data import load_dataset
from bsjax.errors import InvalidArgument, check_choice
from bsjax.run import identity
from bsjax.run.metrics import read_json, write_json
from experiments.effects import training
from experiments.effects.training import Outcome, Setup, Training
from experiments.harness import control, presets, studies
from experiments.harness.config import Config
from experiments.harness.pool import SideBySide, default_jobs

Key = TypeVar("Key")

# Seeds of searches, which no report uses.
SEARCH_SEED = 100


class Base(NamedTuple):
    """What the claims train on a data set, unless they say otherwise.

    Attributes:
      config: a small network without batch normalisation, so that any batch size is possible; SGD without momentum and
        weight decay; and a learning rate that suits its batch size.
      num_eval_examples: of each split, for losses.
    """

    config: Config
    dataset_size: int
    num_eval_examples: int
    test_size: int


def _plain(config: Config, learning_rate: float, batch_size: int = 8, width: int = 64) -> Config:
    plain = {"model": "mlp", "model_depth": 2, "model_width": width, "optimizer": "sgd", "weight_decay": 0.0}
    plain |= {"lr_schedule": "constant", "augmentation": "none", "microbatch_size": "auto"}
    return config.replace(learning_rate=learning_rate, batch_size=batch_size, **plain)


_CIFAR100 = Config().replace(
    dataset="cifar100",
    augmentation="crop_flip",
    model="resnet18",
    ghost_batch_size=64,
    lr_schedule="constant",
    batch_size=320,
    learning_rate=0.1,
)

# digits, fashion_mnist and cifar100_small are for two cores; cifar10 and cifar100 are the versions for an accelerator.
BASES = {
    "digits": Base(_plain(Config(), 0.1), 1437, 1437, 360),
    "fashion_mnist": Base(_plain(presets.PRESETS["fashion_mnist"].config, 0.02), 60_000, 4096, 4096),
    "cifar10": Base(_plain(presets.PRESETS["cifar10"].config, 0.02, width=512), 50_000, 8192, 8192),
    "cifar100_small": Base(_CIFAR100, 50_000, 5000, 5000),
    "cifar100": Base(_CIFAR100, 50_000, 10_000, 10_000),
}
# One shape of microbatch for all, because compiling is most of the time.
_QUICK = Base(_plain(Config(), 0.1, width=8).replace(microbatch_size=16), 1437, 256, 256)


class Study(NamedTuple):
    """What a claim gets to work with."""

    preset: str  # one of BASES
    quick: bool
    base: Base
    workdir: pathlib.Path
    seeds: range
    jobs: int
    setup: Setup
    side_by_side: SideBySide

    @property
    def config(self) -> Config:
        """The base's config, which a claim varies."""
        return self.base.config

    @property
    def resolution(self) -> float:
        """The step between neighbouring test accuracies."""
        return 1 / self.base.test_size

    def updates(self, num_epochs: float, batch_size: int, num_examples: int = 0) -> int:
        """How many updates of a batch size come nearest to some epochs, one at least.

        Epochs are those of the first `num_examples` training examples, or of all if that is 0.
        """
        return max(1, round(num_epochs * (num_examples or self.base.dataset_size) / batch_size))

    def train(self, trainings: Iterable[Training]) -> list[Outcome]:
        """Trains what is not complete yet, and returns all outcomes in order."""
        trainings, folder = list(trainings), self.workdir / "trainings"
        outcomes = {one: training.read(self.setup, one, folder) for one in trainings}
        todo = [one for one, outcome in outcomes.items() if outcome is None]
        found = self.side_by_side(training.train, [(self.setup, one, folder) for one in todo])
        done = {one: outcome for one, outcome in outcomes.items() if outcome} | dict(zip(todo, found, strict=True))
        return [done[one] for one in trainings]

    def train_seeds(self, trainings: Mapping[Key, Training]) -> dict[Key, list[Outcome]]:
        """The outcomes of each training with each of the study's seeds, by its key."""
        found = self.train([one.replace(seed=seed) for one in trainings.values() for seed in self.seeds])
        count = len(self.seeds)
        return {key: found[i * count : (i + 1) * count] for i, key in enumerate(trainings)}

    def kept(self, name: str, about: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
        """A measurement that is not repeated once it is in its file.

        Args:
          name: of the file.
          about: everything that the measurement depends on, as JSON.
          measure: returns it, as JSON.

        Raises:
          InvalidArgument: the file is of other settings.
        """
        path, about = self.workdir / "measurements" / f"{name}.json", json.loads(json.dumps(about))
        if path.exists():
            there = read_json(path, ("recipe", "measured"), "remove it, and the measurement is repeated")
            identity.check_same(path.parent, {"recipe": there["recipe"]}, {"recipe": about})
            return there["measured"]
        measured = measure()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"recipe": about, "measured": measured})
        return measured

    def check_time(self) -> None:
        """Raises StoppedEarly if it is time to stop."""
        self.setup.check_time()


def define_flags(claims: Iterable[str]) -> None:
    """Defines --claim, --quick, --preset, --workdir, --seeds, --jobs, and the flags of files and devices."""
    group = __name__
    names = ", ".join(claims)
    flags.DEFINE_string("claim", None, f"One of {names}; or all.", required=True, module_name=group)
    flags.DEFINE_bool("quick", False, "A little of everything, to see that it works.", module_name=group)
    studies.define_study_flags("digits", BASES)
    control.define_flags()


def study_from_flags(side_by_side: SideBySide, jobs: int) -> Study:
    """The study that the command line describes. Nothing is written if a flag is wrong."""
    values = flags.FLAGS
    preset, quick = check_choice("preset", values.preset, BASES), values.quick
    if quick and preset != "digits":
        raise InvalidArgument("preset", preset, "digits with --quick", "digits")
    seeds, _ = studies.seeds_and_jobs_from_flags()
    base, settings = _QUICK if quick else BASES[preset], control.control_from_flags()
    load_dataset(base.config.data.dataset, settings.data_dir)  # refuses one that is not prepared
    setup = Setup(BASES[preset].config, base.num_eval_examples, settings)
    workdir = studies.make_workdir(values.workdir)
    return Study(preset, quick, base, workdir, seeds, jobs, setup, side_by_side)


def jobs_from_flags() -> int:
    """How many trainings run at the same time."""
    return studies.seeds_and_jobs_from_flags()[1] or default_jobs()
