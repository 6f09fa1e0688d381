"""Branches of a run with ever larger batches, and the gradient noise scale, at several points of it."""

import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bsjax import Update
from bsjax.analysis.critical_batch import branched_batch_size, interval_over_seeds
from bsjax.engine import Engine, TrainState
from bsjax.engine.devices import first_replica
from bsjax.gradient_noise import Estimate, estimate
from bsjax.noise import scaling_exponent
from experiments.critical_batch_size.target_loss import Setup, create_engine, geometric_mean, read_cached, write_cached
from experiments.harness import runs
from experiments.harness.config import Config

# A branch is as long as this many updates of the largest batch; its loss is a mean over evaluations at the last ones.
BRANCH_UPDATES = 16
_EVALUATED_UPDATES = 8
# The gradient noise scale is a mean over chunks, each an estimate from shards.
_NUM_CHUNKS = 8
_NUM_SHARDS = 32
_MIN_SHARD_SIZE = 8


class Point(NamedTuple):
    """The measurements at a point of a run, of one seed."""

    examples_seen: int
    losses: list[float]  # of the branches, by factor of the batch size; not finite if one diverged
    grad_sq: float  # |G|²
    trace: float  # tr(Σ)


def measure(
    setup: Setup, config: Config, points: Sequence[int], factors: Sequence[int], folder: pathlib.Path
) -> list[Point]:
    """Trains a run and its branches at several points, or reads the file of an earlier call.

    A branch has k times the batch size and k, or with `batch_scaling="sqrt"` √k, times the learning rate; it begins
    with the run's parameters and optimizer state, and all branches see the same examples.

    Args:
      setup: of all trainings.
      config: the run's; constant batch size and learning rate.
      points: examples seen, increasing multiples of the batch size.
      factors: k of each branch, powers of two or other divisors of the last.
      folder: for its file.

    Raises:
      StoppedEarly: it is time to stop; nothing is written then.
    """
    path = folder / f"{runs.run_name(config, setup.config)}.json"
    plan = {"points": list(points), "factors": list(factors)}
    there = read_cached(path, setup, config)
    if there is not None and {name: there[name] for name in plan} == plan:
        return [Point(**point) for point in there["measured"]]
    engine, momentum = create_engine(setup, config.run.seed)
    state, seen, measured, batch_size = engine.init(), 0, [], config.recipe.batch_size
    for point in points:
        while seen < point:
            state, _ = engine.update(state, Update(0, seen, batch_size, config.optimizer.learning_rate, momentum))
            seen += batch_size
        kept = first_replica(state)
        losses = []
        for factor in factors:
            setup.check_time()
            losses.append(_branch(engine, kept, seen, factor, factors[-1], config, momentum))
        noise = gradient_noise(engine, engine.place(kept), seen, batch_size)
        measured.append(Point(seen, losses, float(noise.grad_sq), float(noise.trace)))
        state = engine.place(kept)
    write_cached(path, setup, config, {**plan, "measured": [point._asdict() for point in measured]})
    return measured


def _branch(
    engine: Engine, kept: TrainState, seen: int, factor: int, largest: int, config: Config, momentum: float
) -> float:
    """The geometric mean of the test loss over the end of a branch."""
    state = engine.place(kept)
    batch_size = factor * config.recipe.batch_size
    learning_rate = config.optimizer.learning_rate * factor ** scaling_exponent(config.conversion.batch_scaling)
    logs = []
    for part in range(BRANCH_UPDATES):
        for _ in range(largest // factor):
            state, _ = engine.update(state, Update(0, seen, batch_size, learning_rate, momentum))
            seen += batch_size
        if part >= BRANCH_UPDATES - _EVALUATED_UPDATES:
            loss = engine.evaluate(state)["test_loss"]
            logs.append(math.log(loss) if 0 < loss < math.inf else math.inf)
    return float(np.exp(np.mean(logs)))


def gradient_noise(engine: Engine, state: TrainState, seen: int, batch_size: int) -> Estimate:
    """|G|² and tr(Σ) of a state's gradient, without bias.

    Each shard is an update with learning rate 0, which keeps the parameters and returns the norm of its gradient. One
    more update, of all examples of a chunk, returns the norm of their mean.

    Args:
      engine: of the state.
      state: is consumed.
      seen: the position of the first example in the stream.
      batch_size: a shard holds a multiple of it.
    """

    def squared_norm(num_examples: int) -> float:
        nonlocal state
        state, metrics = engine.update(state, Update(0, seen, num_examples, 0.0, momentum=0.0))
        return metrics.grad_norm**2

    dataset_size = engine.dataset_size
    shard_size = -(-_MIN_SHARD_SIZE // batch_size) * batch_size
    num_shards = min(_NUM_SHARDS, max(2, dataset_size // shard_size))
    estimates = []
    for _ in range(_NUM_CHUNKS):
        mean_sq, weighted_sq = squared_norm(num_shards * shard_size), 0.0
        for _ in range(num_shards):
            weighted_sq += shard_size * squared_norm(shard_size)
            seen += shard_size
        estimates.append(estimate(weighted_sq, mean_sq, num_shards * shard_size, num_shards, dataset_size))
    grad_sq, trace = (np.mean([getattr(one, name) for one in estimates]) for name in ("grad_sq", "trace"))
    return Estimate(grad_sq, trace, _NUM_CHUNKS * num_shards * shard_size, _NUM_CHUNKS * num_shards)


def along_training(
    measured: Sequence[Sequence[Point]], batch_sizes: Sequence[int], tolerance: float, units_per_example: int = 1
) -> list[dict[str, Any]]:
    """The local critical batch size and the gradient noise scale at each point, with intervals over seeds.

    Log losses are averaged over seeds before they are compared, tr(Σ) and |G|² before they are divided.

    Args:
      measured: points of each seed.
      batch_sizes: of the branches.
      tolerance: see `bsjax.analysis.critical_batch.branched_batch_size`.
      units_per_example: such as the tokens of a window, in which all results are counted.

    Returns:
      For each point: examples_seen, and two `Interval`s, branched and gradient_noise_scale.
    """
    rows = []
    for points in zip(*measured, strict=True):
        losses = np.array([point.losses for point in points], np.float64)
        noise = np.array([(point.grad_sq, point.trace) for point in points])

        def branched(seeds: np.ndarray) -> float:
            return units_per_example * branched_batch_size(batch_sizes, geometric_mean(seeds), tolerance)

        def noise_scale(seeds: np.ndarray) -> float:
            grad_sq, trace = seeds.mean(axis=0)
            return units_per_example * trace / grad_sq if grad_sq > 0 else math.inf

        rows.append(
            {
                "examples_seen": units_per_example * points[0].examples_seen,
                "branched": interval_over_seeds(branched, losses),
                "gradient_noise_scale": interval_over_seeds(noise_scale, noise),
            }
        )
    return rows
