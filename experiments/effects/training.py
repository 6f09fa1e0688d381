"""Short trainings with a constant batch size, which all claims share; the learning rate may drop.

There are hundreds of them, so they share the engine and its compiled programs, and each writes one JSON file.
"""

import bisect
import dataclasses
import functools
import json
import math
import pathlib
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

from bsjax import Update
from bsjax.analysis.microbatches import evaluation_losses, microbatches
from bsjax.data import ArraySource, load_dataset
from bsjax.engine import Engine
from bsjax.engine.devices import all_devices, first_of_each_process, first_replica
from bsjax.run import identity
from bsjax.run.metrics import read_json, write_json
from bsjax.tasks import Task
from experiments.harness import build, runs
from experiments.harness.config import Config
from experiments.harness.control import Control
from experiments.harness.pool import StoppedEarly, is_worker_to_stop

_MICROBATCH = 512  # of evaluations
# A training has diverged if its loss is not finite, or if its parameters have moved further than this many times their
# first norm: units that have died leave a finite loss.
_FAR = 100.0


class Setup(NamedTuple):
    """The settings that all trainings of a study share."""

    reference: Config  # a training's file is named after its differences from this
    num_eval_examples: int  # the first examples of each split, on which losses are measured
    control: Control

    def check_time(self) -> None:
        """Raises StoppedEarly if it is time to stop; complete trainings are kept."""
        if time.time() > self.control.stop_at or is_worker_to_stop():
            raise StoppedEarly("Stopped; the same command continues.")


class Probe(Protocol):
    """What a claim measures beside the losses: a frozen dataclass of its settings."""

    @property
    def name(self) -> str:
        """Of the files."""

    def __call__(self, lab: "Lab", params: Any, batch_stats: Any) -> Mapping[str, Any]:
        """Further columns of a point, as JSON."""


@dataclasses.dataclass(frozen=True)
class Data:
    """What becomes of the training examples.

    Args:
      imbalance: how many times as many examples the first class has as the last one; those between, in geometric steps.
      even: whether the order spreads each class evenly over an epoch, see `bsjax.data.ExampleStream`.
      num_examples: the first training examples, which are all that there are; 0, all of them.
    """

    imbalance: float = 1.0
    even: bool = False
    num_examples: int = 0


@dataclasses.dataclass(frozen=True)
class Training:
    """A training and its measurements.

    Args:
      config: what to train; its schedule is not used, because the batch size is constant, and the learning rate up to
        `drops`.
      evaluate_at: numbers of updates, increasing; the training ends with the last one.
      target_train_loss: ends it earlier, at the first evaluation with a training loss at or below this.
      probe: measured at the updates `probe_at`, or at the last evaluation if that is empty.
      probe_at: some of `evaluate_at`.
      drops: numbers of updates after which the learning rate falls by the config's `lr_decay_factor`.
      data: what becomes of the training examples.
    """

    config: Config
    evaluate_at: tuple[int, ...]
    target_train_loss: float = 0.0
    probe: Probe | None = None
    probe_at: tuple[int, ...] = ()
    drops: tuple[int, ...] = ()
    data: Data = Data()

    def replace(self, **fields: Any) -> "Training":
        """A copy whose config has other values of some fields."""
        return dataclasses.replace(self, config=self.config.replace(**fields))

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that its numbers depend on, as JSON."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


class Outcome(NamedTuple):
    """A training that has ended."""

    training: Training
    points: list[dict[str, Any]]  # update, examples_seen, train_loss, test_loss, test_NAME, distance, of the probe
    diverged: bool

    def final(self, name: str) -> float:
        """A column's last value; NaN if the training diverged."""
        return math.nan if self.diverged else float(self.points[-1][name])


@dataclasses.dataclass(frozen=True, eq=False)
class Lab:
    """What a training needs, shared by all batch sizes, learning rates and momentums of one seed."""

    engine: Engine
    task: Task
    train: ArraySource  # the first training examples
    test: ArraySource  # the first test examples
    seed: int
    initial: np.ndarray  # float64 [P], the parameters before the first update
    mean_train_loss: Callable[[Any, Any], float]


def read(setup: Setup, training: Training, folder: pathlib.Path) -> Outcome | None:
    """Reads the file that an earlier `train` has left; None if there is none.

    Args:
      setup: of all trainings.
      training: this one.
      folder: for its file.

    Raises:
      InvalidArgument: the file is of other settings.
      RunError: the file is damaged.
    """
    path = folder / _name(setup, training)
    if not path.exists():
        return None
    there = read_json(path, ("recipe", "points", "diverged"), "remove it, and the training is repeated")
    identity.check_same(folder, there["recipe"], _recipe(setup, training))
    return Outcome(training, there["points"], there["diverged"])


def train(setup: Setup, training: Training, folder: pathlib.Path) -> Outcome:
    """Trains, measures and writes a file; the arguments are those of `read`.

    Raises:
      StoppedEarly: it is time to stop; nothing is written then.
    """
    setup.check_time()
    outcome = _train(setup, training)
    folder.mkdir(parents=True, exist_ok=True)
    values = {"recipe": _recipe(setup, training), "points": outcome.points, "diverged": outcome.diverged}
    write_json(folder / _name(setup, training), values)
    return outcome


def _recipe(setup: Setup, training: Training) -> dict[str, Any]:
    return training.identity | {"num_eval_examples": setup.num_eval_examples}


def _train(setup: Setup, training: Training) -> Outcome:
    config = training.config
    # What every update sets, and what is not used, must not make another engine.
    unused = {"learning_rate": 1.0, "batch_size": build.unit_of(config), "lr_schedule": "constant", "num_epochs": 1.0}
    momentum = config.optimizer.momentum
    if config.optimizer.optimizer == "sgd":
        momentum = 0.0
    else:
        unused["momentum"], momentum = None, 0.9 if momentum is None else momentum
    lab = create_lab(setup, config.replace(**unused), training.data)
    batch_size, learning_rate = config.recipe.batch_size, config.optimizer.learning_rate
    factor = config.recipe.lr_decay_factor
    points: list[dict[str, Any]] = []
    state, updates = lab.engine.init(), 0
    for stop in training.evaluate_at:
        while updates < stop:
            rate = learning_rate / factor ** bisect.bisect_right(training.drops, updates)
            update = Update(updates, updates * batch_size, batch_size, rate, momentum)
            state, _ = lab.engine.update(state, update)
            updates += 1
        point, params, batch_stats = _measure(lab, state)
        if not math.isfinite(point["train_loss"]) or point["distance"] > _FAR * np.linalg.norm(lab.initial):
            return Outcome(training, points, diverged=True)
        is_last = stop == training.evaluate_at[-1] or point["train_loss"] <= training.target_train_loss
        points.append({"update": updates, "examples_seen": updates * batch_size, **point})
        if training.probe and (updates in training.probe_at or (is_last and not training.probe_at)):
            points[-1] |= training.probe(lab, params, batch_stats)
        setup.check_time()
        if is_last:
            break
    return Outcome(training, points, diverged=False)


def _measure(lab: Lab, state: Any) -> tuple[dict[str, float], Any, Any]:
    """The losses and the distance from the initial parameters; and these parameters and running averages."""
    params, batch_stats, _ = first_replica(state)
    distance = float(np.linalg.norm(np.asarray(ravel_pytree(params)[0], np.float64) - lab.initial))
    losses = {"train_loss": lab.mean_train_loss(params, batch_stats), **lab.engine.evaluate(state)}
    return losses | {"distance": distance}, params, batch_stats


@functools.lru_cache(maxsize=8)
def create_lab(setup: Setup, config: Config, data: Data) -> Lab:
    """The engine of all trainings whose configs agree but for batch size, learning rate and momentum."""
    dataset, control = load_dataset(config.data.dataset, setup.control.data_dir), setup.control
    if data.num_examples or data.imbalance > 1:
        dataset = dataclasses.replace(dataset, train=_chosen(dataset.train, data))
    task = build.task(config, dataset)
    group = getattr(task, "eval_group_size", 1)  # of which there are whole ones
    train, test = (
        ArraySource(split.gather(np.arange(min(setup.num_eval_examples, len(split)) // group * group)))
        for split in (dataset.train, dataset.test)
    )
    devices = first_of_each_process(all_devices(), int(control.devices)) if control.devices.isdigit() else None
    engine = Engine(
        task,
        build.optimizer(config),
        dataset.train,
        test,
        batch_sizes=(),  # of any size: microbatches come in powers of two
        seed=config.run.seed,
        microbatch_size=config.run.microbatch_size,
        examples_on=control.images_on,
        devices=devices,
        classes=dataset.train.gather(np.arange(len(dataset.train)))["label"] if data.even else None,
    )
    initial = np.array(ravel_pytree(first_replica(engine.init()).params)[0], np.float64)

    @jax.jit
    def summed(params: Any, batch_stats: Any, examples: Any, index: jax.Array) -> jax.Array:
        return evaluation_losses(task, params, batch_stats, examples, index).sum()

    def mean_train_loss(params: Any, batch_stats: Any) -> float:
        parts = [summed(params, batch_stats, *part) for part in microbatches(train, _MICROBATCH)]
        return float(sum(map(float, parts)) / len(train))

    return Lab(engine, task, train, test, config.run.seed, initial, mean_train_loss)


def _chosen(train: Any, data: Data) -> ArraySource:
    """The examples to train on."""
    kept = np.arange(data.num_examples or len(train))
    if data.imbalance > 1:
        kept = imbalanced(train.gather(kept)["label"], data.imbalance)
    return ArraySource(train.gather(kept))


def _name(setup: Setup, training: Training) -> str:
    """Of its file: the differences from the reference, its length, and a checksum of everything that makes it."""
    name = f"{runs.run_name(training.config, setup.reference)},updates={training.evaluate_at[-1]}"
    recipe = json.dumps(_recipe(setup, training), sort_keys=True)
    return f"{name},{zlib.crc32(recipe.encode()):08x}.json"


def imbalanced(labels: np.ndarray, ratio: float) -> np.ndarray:
    """The indices of examples that are kept so that the first class has `ratio` times as many as the last one.

    Class c of C keeps its first n ratio^(-c/(C-1)) examples, where n are as many as the rarest class has.

    >>> labels = np.repeat([0, 1, 2], 100)
    >>> np.bincount(labels[imbalanced(labels, 100.0)]).tolist()
    [100, 10, 1]
    """
    counts = np.bincount(labels)
    kept = [
        np.flatnonzero(labels == c)[: max(1, round(counts.min() * ratio ** (-c / max(1, len(counts) - 1))))]
        for c in range(len(counts))
    ]
    return np.sort(np.concatenate(kept))


def evaluations(num_updates: int, count: int = 1, first: int = 1) -> tuple[int, ...]:
    """Numbers of updates with even spaces between their logarithms, from about `first` to `num_updates`.

    >>> evaluations(1000, count=4)
    (1, 10, 100, 1000)
    >>> evaluations(50)
    (50,)
    """
    spaced = np.geomspace(min(first, num_updates), num_updates, count) if count > 1 else np.array([num_updates])
    return tuple(sorted({max(1, round(x)) for x in spaced.tolist()}))


def finals(outcomes: Sequence[Outcome], name: str) -> np.ndarray:
    """A column's last value of each outcome [n]; NaN of those that diverged."""
    return np.array([outcome.final(name) for outcome in outcomes])
