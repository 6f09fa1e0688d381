"""Trainings with a constant batch size and learning rate, which end when the test loss reaches a target.

There are thousands of short ones, so they share the engine and its compiled programs, and each writes one JSON file.
"""

import dataclasses
import functools
import json
import math
import pathlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bsjax import Plan, Update
from bsjax.analysis.critical_batch import steps_to_target
from bsjax.data import ArraySource, TextDataset
from bsjax.engine import Engine
from bsjax.run import identity
from bsjax.run.metrics import read_json, write_json
from experiments.harness import build, runs
from experiments.harness.config import Config
from experiments.harness.control import Control
from experiments.harness.pool import SideBySide, StoppedEarly, is_worker_to_stop

# Evaluations come at steps that grow by this factor, which resolves 50 steps as well as 50,000.
_SPACING = 1.05
# A learning rate is given up if a seed takes this many times the steps of the slowest seed of the best learning rate.
_PATIENCE = 2.0
# If no seed reaches the target, learning rates are tried up to this many grid points away.
_REACH = 4


class Setup(NamedTuple):
    """The settings that all trainings of a study share."""

    config: Config  # except for batch_size, learning_rate and seed
    batch_sizes: tuple[int, ...]  # of all trainings, for the choice of microbatches
    num_eval_examples: int  # the first examples of the test split
    control: Control

    def check_time(self) -> None:
        """Raises StoppedEarly if it is time to stop; complete trainings are kept."""
        if time.time() > self.control.stop_at or is_worker_to_stop():
            raise StoppedEarly("Stopped; the same command continues.")


class Trial(NamedTuple):
    """A training that has ended."""

    config: Config
    steps: list[int]  # of its evaluations
    losses: list[float]
    diverged: bool

    def steps_to(self, target_loss: float) -> float | None:
        return steps_to_target(self.steps, self.losses, target_loss) if self.steps else None


class Search(NamedTuple):
    """The learning rates that were tried at one batch size."""

    batch_size: int
    target_loss: float
    trials: dict[float, list[Trial]]  # by learning rate, one for each seed
    best: float | None  # the learning rate of the fewest steps; None if no rate reached the target with all seeds

    @property
    def steps(self) -> np.ndarray:
        """Steps to the target with the best learning rate: float64[seeds]."""
        assert self.best is not None
        return np.array([trial.steps_to(self.target_loss) or math.inf for trial in self.trials[self.best]])


@functools.lru_cache(maxsize=8)
def create_engine(setup: Setup, seed: int) -> tuple[Engine, float]:
    """An engine for all batch sizes and learning rates, and the momentum."""
    config = setup.config.replace(batch_size=setup.batch_sizes[0], seed=seed)
    dataset = _with_first_tests(build.dataset(config, setup.control.data_dir), setup.num_eval_examples)
    size, batch_sizes = len(dataset.train), np.array(setup.batch_sizes)
    first = build.recipe(config, size).plan()[0]
    plan = Plan(size, batch_sizes, np.full(len(batch_sizes), first.learning_rate), np.zeros(len(batch_sizes)))
    control = setup.control
    engine = build.engine(config, dataset, plan, control.images_on, control.devices, control.shard_optimizer)
    return engine, first.momentum


def _with_first_tests(dataset: Any, count: int) -> Any:
    """The data set with only the first of its test examples."""
    count = min(count, len(dataset.test))
    if isinstance(dataset, TextDataset):
        tokens = dataset.test_tokens[: count * dataset.context_length + 1]
        return dataclasses.replace(dataset, test_tokens=tokens, fingerprints=(dataset.fingerprints[0], None))
    return dataclasses.replace(dataset, test=ArraySource(dataset.test.gather(np.arange(count))))


def train(setup: Setup, config: Config, target_loss: float, max_steps: int, folder: pathlib.Path) -> Trial:
    """Trains until the target is reached, for max_steps at most, or reads the file of an earlier training.

    Args:
      setup: of all trainings.
      config: of this one.
      target_loss: of the test loss, smoothed as by `bsjax.analysis.critical_batch.steps_to_target`.
      max_steps: the largest number of steps.
      folder: for its file.

    Raises:
      InvalidArgument: the folder has a training of the same name and another recipe.
      StoppedEarly: it is time to stop; nothing is written then.
    """
    path = folder / f"{runs.run_name(config, setup.config)}.json"
    if there := read_cached(path, setup, config):
        trial = Trial(config, there["steps"], there["losses"], there["diverged"])
        if trial.diverged or there["num_steps"] >= max_steps or trial.steps_to(target_loss) is not None:
            return trial
    setup.check_time()
    engine, momentum = create_engine(setup, config.run.seed)
    trial = Trial(config, [], [], diverged=False)
    state, next_evaluation, step = engine.init(), 1, 0
    while step < max_steps and trial.steps_to(target_loss) is None:
        batch_size, learning_rate = config.recipe.batch_size, config.optimizer.learning_rate
        while step < min(next_evaluation, max_steps):
            state, _ = engine.update(state, Update(step, step * batch_size, batch_size, learning_rate, momentum))
            step += 1
        next_evaluation = max(step + 1, round(step * _SPACING))
        loss = engine.evaluate(state)["test_loss"]
        if not 0 < loss < math.inf:
            trial = trial._replace(diverged=True)
            break
        trial.steps.append(step)
        trial.losses.append(loss)
        setup.check_time()
    outcome = {"num_steps": step, "steps": trial.steps, "losses": trial.losses, "diverged": trial.diverged}
    write_cached(path, setup, config, outcome)
    return trial


def search(
    setup: Setup,
    batch_size: int,
    learning_rate: float,
    factor: float,
    seeds: Sequence[int],
    target_loss: float,
    folder: pathlib.Path,
    side_by_side: SideBySide,
) -> Search:
    """Finds the learning rate on a grid that takes the fewest steps, which is never at the grid's edge.

    Steps are the geometric mean over the seeds, all of which must reach the target. The search tries the two neighbours
    of the best learning rate until both take more steps.

    Args:
      setup: of all trainings.
      batch_size: of these.
      learning_rate: where to begin.
      factor: between neighbours on the grid.
      seeds: of each learning rate.
      target_loss: of the test loss.
      folder: for the files of the trainings.
      side_by_side: runs them.
    """
    engine, _ = create_engine(setup, seeds[0])
    max_steps = math.ceil(setup.config.recipe.num_epochs * engine.dataset_size / batch_size)
    trials: dict[int, list[Trial]] = {}
    scores: dict[int, float] = {}

    def rate(i: int) -> float:
        return float(f"{learning_rate * factor**i:.6g}")

    def attempt(i: int, max_steps: int) -> None:
        config = setup.config.replace(batch_size=batch_size, learning_rate=rate(i))
        tasks = [(setup, config.replace(seed=seed), target_loss, max_steps, folder) for seed in seeds]
        trials[i] = side_by_side(train, tasks)
        scores[i] = score(trials[i], target_loss)

    for i in sorted(range(-_REACH, _REACH + 1), key=abs):
        attempt(i, max_steps)
        if math.isfinite(scores[i]):
            break
    while math.isfinite(scores[best := min(scores, key=scores.__getitem__)]):
        if not (todo := [i for i in (best + 1, best - 1) if i not in trials]):
            break
        slowest = max(trial.steps_to(target_loss) or math.inf for trial in trials[best])
        attempt(todo[0], min(max_steps, math.ceil(_PATIENCE * slowest)))
    found = {rate(i): trials[i] for i in sorted(trials)}
    return Search(batch_size, target_loss, found, rate(best) if math.isfinite(scores[best]) else None)


def score(trials: Sequence[Trial], target_loss: float) -> float:
    """The mean of log steps over seeds; infinite if one has not reached the target."""
    steps = [trial.steps_to(target_loss) for trial in trials]
    return sum(math.log(one) if one else math.inf for one in steps) / len(steps)


def geometric_mean(seeds: np.ndarray) -> np.ndarray:
    """The geometric mean over the first axis."""
    return np.exp(np.log(seeds).mean(axis=0))


def read_cached(path: pathlib.Path, setup: Setup, config: Config) -> dict[str, Any] | None:
    """Reads what `write_cached` wrote, None if it wrote nothing.

    Raises:
      InvalidArgument: the file has another recipe.
    """
    if not path.exists():
        return None
    there = read_json(path, ("recipe",))
    identity.check_same(path.parent, there["recipe"], _recipe(setup, config))
    return there


def write_cached(path: pathlib.Path, setup: Setup, config: Config, values: dict[str, Any]) -> None:
    """Writes measurements and their recipe."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"recipe": _recipe(setup, config), **values})


def _recipe(setup: Setup, config: Config) -> dict[str, Any]:
    values = dataclasses.asdict(config) | {"num_eval_examples": setup.num_eval_examples}
    del values["recipe"]["num_epochs"]  # how long a training may last does not change its numbers
    return json.loads(json.dumps(values))
