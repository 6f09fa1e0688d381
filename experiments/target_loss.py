"""Trainings at a constant batch size and learning rate that end when the test loss reaches a target.

Thousands of them are short, so they share the engine and its compiled programs, and each leaves one JSON file.
"""

import dataclasses
import functools
import json
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from bsjax import InvalidArgument, Plan
from bsjax.critical_batch import steps_to_target
from bsjax.data import Split, load_dataset
from bsjax.engine import Engine
from bsjax.metrics import read_json, write_json
from experiments import runs
from experiments.config import Config

# Evaluations come at steps that grow by this factor: as good a resolution of 50 steps as of 50,000.
_SPACING = 1.05
# A learning rate with which a seed takes longer than this many times the slowest seed of the best one is given up.
_PATIENCE = 2.0
# Where no seed has reached the target, learning rates are tried up to so many grid points away.
_REACH = 4


class Setup(NamedTuple):
    """What all trainings of a study share."""

    config: Config  # but for batch_size, learning_rate and seed
    batch_sizes: tuple[int, ...]  # that are to come, for the choice of microbatches
    num_eval_examples: int  # the first so many of the test split
    control: runs.Control

    def check_time(self) -> None:
        """Raises StoppedEarly if it is time to stop; what is complete by then is kept."""
        if time.time() > self.control.stop_at or runs.is_worker_to_stop():
            raise runs.StoppedEarly("Stopped; the same command goes on.")


class Trial(NamedTuple):
    """A training that has ended."""

    config: Config
    steps: list[int]  # of its evaluations
    losses: list[float]
    diverged: bool

    def steps_to(self, target_loss: float) -> float | None:
        return steps_to_target(self.steps, self.losses, target_loss) if self.steps else None


# Does work(*arguments) for each of some arguments, side by side or not.
SideBySide = Callable[[Callable[..., Any], Sequence[tuple]], list[Any]]


class Search(NamedTuple):
    """The learning rates that were tried at one batch size."""

    batch_size: int
    trials: dict[float, list[Trial]]  # by learning rate, one for each seed
    best: float | None  # the learning rate; None if some seed reached the target with none


@functools.lru_cache(maxsize=8)
def create_engine(setup: Setup, seed: int) -> tuple[Engine, int, float]:
    """An engine for all batch sizes and learning rates; the number of training examples; the momentum."""
    config = dataclasses.replace(setup.config, batch_size=setup.batch_sizes[0], seed=seed)
    dataset = load_dataset(config.dataset, setup.control.data_dir)
    count = setup.num_eval_examples
    dataset = dataclasses.replace(dataset, test=Split(dataset.test.images[:count], dataset.test.labels[:count]))
    size = len(dataset.train.labels)
    momentum = config.recipe(size).plan()[0].momentum
    batch_sizes = np.array(setup.batch_sizes)
    plan = Plan(size, batch_sizes, np.full(len(batch_sizes), config.learning_rate), np.zeros(len(batch_sizes)))
    return config.create_engine(dataset, plan, setup.control.images_on, setup.control.devices), size, momentum


def train(setup: Setup, config: Config, target_loss: float, max_steps: int, folder: pathlib.Path) -> Trial:
    """Trains until the target is reached, or for so many steps, or reads what came out before.

    Args:
      setup: of all trainings.
      config: of this one.
      target_loss: of the test loss, smoothed as by `bsjax.critical_batch.steps_to_target`.
      max_steps: at most.
      folder: where it leaves its file.

    Raises:
      InvalidArgument: the folder has a training of the same name and another recipe.
      StoppedEarly: it is time to stop; nothing is written then.
    """
    path = folder / f"{runs.run_name(config, setup.config)}.json"
    there = read_cached(path, setup, config)
    if there is not None:
        trial = Trial(config, there["steps"], there["losses"], there["diverged"])
        if trial.diverged or there["num_steps"] >= max_steps or trial.steps_to(target_loss) is not None:
            return trial
    setup.check_time()
    engine, _, momentum = create_engine(setup, config.seed)
    trial = Trial(config, [], [], diverged=False)
    state, next_evaluation, step = engine.init(), 1, 0
    while step < max_steps and trial.steps_to(target_loss) is None:
        batch_size = config.batch_size
        while step < min(next_evaluation, max_steps):
            state, _ = engine.update(state, step * batch_size, batch_size, config.learning_rate, momentum)
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

    The fewest in the geometric mean over the seeds, all of which must reach the target. From the best learning rate so
    far its two neighbours on the grid are tried, until both take more.

    Args:
      setup: of all trainings.
      batch_size: of these.
      learning_rate: where to begin.
      factor: between neighbours on the grid.
      seeds: of each learning rate.
      target_loss: of the test loss.
      folder: where trainings leave their files.
      side_by_side: how they are run.
    """
    num_examples = setup.config.num_epochs * create_engine(setup, seeds[0])[1]
    max_steps = math.ceil(num_examples / batch_size)
    trials: dict[int, list[Trial]] = {}
    scores: dict[int, float] = {}

    def rate(i: int) -> float:
        return float(f"{learning_rate * factor**i:.6g}")

    def attempt(i: int, max_steps: int) -> None:
        config = dataclasses.replace(setup.config, batch_size=batch_size, learning_rate=rate(i))
        configs = [dataclasses.replace(config, seed=seed) for seed in seeds]
        trials[i] = side_by_side(train, [(setup, one, target_loss, max_steps, folder) for one in configs])
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
    return Search(batch_size, found, rate(best) if math.isfinite(scores[best]) else None)


def score(trials: Sequence[Trial], target_loss: float) -> float:
    """The mean of log steps over seeds; infinite if one has not reached the target."""
    steps = [trial.steps_to(target_loss) for trial in trials]
    return sum(math.log(one) if one else math.inf for one in steps) / len(steps)


def read_cached(path: pathlib.Path, setup: Setup, config: Config) -> dict[str, Any] | None:
    """What `write_cached` wrote, None if nothing.

    Raises:
      InvalidArgument: it is of another recipe.
    """
    if not path.exists():
        return None
    there = read_json(path)
    if there["recipe"] != (here := _recipe(setup, config)):
        differing = [
            f"{name} {there['recipe'].get(name)!r} there, {value!r} here"
            for name, value in here.items()
            if there["recipe"].get(name) != value
        ]
        raise InvalidArgument("workdir", str(path.parent), f"empty or of this study; it has {'; '.join(differing)}")
    return there


def write_cached(path: pathlib.Path, setup: Setup, config: Config, values: dict[str, Any]) -> None:
    """Writes what was measured, and the recipe that it is of."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"recipe": _recipe(setup, config), **values})


def _recipe(setup: Setup, config: Config) -> dict[str, Any]:
    # How long a training may last does not change its numbers.
    values = {name: value for name, value in dataclasses.asdict(config).items() if name != "num_epochs"}
    return json.loads(json.dumps({**values, "num_eval_examples": setup.num_eval_examples}))
