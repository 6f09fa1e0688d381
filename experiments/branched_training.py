"""Branches of a run with ever larger batches, and the gradient noise scale, at several points of it."""

import math
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bsjax.critical_batch import branched_batch_size, interval_over_seeds
from bsjax.engine import METRICS, Engine
from bsjax.gradient_noise import Estimate, estimate
from bsjax.parallel import first_replica
from bsjax.step import TrainState
from experiments import runs
from experiments.config import Config
from experiments.target_loss import Setup, create_engine, read_cached, write_cached

# A branch is as long as so many updates of the largest batch; its loss is a mean after each of the last ones.
BRANCH_UPDATES = 16
_EVALUATED_UPDATES = 8
# The gradient noise scale is of so many chunks, each an estimate from so many shards.
_NUM_CHUNKS = 8
_NUM_SHARDS = 32
_MIN_SHARD_SIZE = 8


class Point(NamedTuple):
    """What was measured at a point of a run, of one seed."""

    examples_seen: int
    losses: list[float]  # of the branches, by factor of the batch size; not finite where one diverged
    grad_sq: float  # |G|²
    trace: float  # tr(Σ)


def measure(
    setup: Setup, config: Config, points: Sequence[int], factors: Sequence[int], folder: pathlib.Path
) -> list[Point]:
    """Trains a run and, at several points of it, its branches; or reads what came out before.

    A branch has k times the batch size and k, or with `batch_scaling="sqrt"` √k, times the learning rate; it begins
    with the run's parameters and optimizer state, and all branches see the same examples.

    Args:
      setup: of all trainings.
      config: the run's; constant batch size and learning rate.
      points: examples that it has seen, multiples of the batch size, increasing.
      factors: k of each branch, powers of two or other divisors of the last.
      folder: where it leaves its file.

    Raises:
      StoppedEarly: it is time to stop; nothing is written then.
    """
    path = folder / f"{runs.run_name(config, setup.config)}.json"
    plan = {"points": list(points), "factors": list(factors)}
    there = read_cached(path, setup, config)
    if there is not None and {name: there[name] for name in plan} == plan:
        return [Point(**point) for point in there["measured"]]
    engine, dataset_size, momentum = create_engine(setup, config.seed)
    state, seen, measured = engine.init(), 0, []
    for point in points:
        while seen < point:
            state, _ = engine.update(state, seen, config.batch_size, config.learning_rate, momentum)
            seen += config.batch_size
        kept = first_replica(state)
        losses = []
        for factor in factors:
            setup.check_time()
            losses.append(_branch(engine, kept, seen, factor, factors[-1], config, momentum))
        noise = gradient_noise(engine, engine.place(kept), seen, config.batch_size, dataset_size)
        measured.append(Point(seen, losses, float(noise.grad_sq), float(noise.trace)))
        state = engine.place(kept)
    write_cached(path, setup, config, {**plan, "measured": [point._asdict() for point in measured]})
    return measured


def _branch(
    engine: Engine, kept: TrainState, seen: int, factor: int, largest: int, config: Config, momentum: float
) -> float:
    """The geometric mean of the test loss over the branch's end."""
    state = engine.place(kept)
    batch_size = factor * config.batch_size
    learning_rate = config.learning_rate * factor ** {"linear": 1.0, "sqrt": 0.5}[config.batch_scaling]
    logs = []
    for part in range(BRANCH_UPDATES):
        for _ in range(largest // factor):
            state, _ = engine.update(state, seen, batch_size, learning_rate, momentum)
            seen += batch_size
        if part >= BRANCH_UPDATES - _EVALUATED_UPDATES:
            loss = engine.evaluate(state)["test_loss"]
            logs.append(math.log(loss) if 0 < loss < math.inf else math.inf)
    return float(np.exp(np.mean(logs)))


def gradient_noise(engine: Engine, state: TrainState, seen: int, batch_size: int, dataset_size: int) -> Estimate:
    """|G|² and tr(Σ) of a state's gradient, without bias.

    The shards are whole batches: updates with learning rate 0, which leave the parameters as they are and tell the norm
    of their gradient. One more of all of a chunk's examples tells that of their mean.

    Args:
      engine: of the state.
      state: is consumed.
      seen: where the examples begin in the stream.
      batch_size: of which a shard holds a multiple.
      dataset_size: N.
    """

    def squared_norm(num_examples: int) -> float:
        nonlocal state
        state, metrics = engine.update(state, seen, num_examples, 0.0, 0.0)
        return float(first_replica(metrics)[METRICS.index("grad_norm")]) ** 2

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
    measured: Sequence[Sequence[Point]], batch_sizes: Sequence[int], tolerance: float
) -> list[dict[str, Any]]:
    """The local critical batch size and the gradient noise scale at each point, with intervals over seeds.

    Log losses are averaged over seeds before they are compared, tr(Σ) and |G|² before they are divided.

    Args:
      measured: points of each seed.
      batch_sizes: of the branches.
      tolerance: see `bsjax.critical_batch.branched_batch_size`.

    Returns:
      For each point: examples_seen, and two `Interval`s, branched and gradient_noise_scale.
    """
    rows = []
    for points in zip(*measured, strict=True):
        losses = np.array([point.losses for point in points], np.float64)
        noise = np.array([(point.grad_sq, point.trace) for point in points])

        def branched(seeds: np.ndarray) -> float:
            return branched_batch_size(batch_sizes, np.exp(np.log(seeds).mean(axis=0)), tolerance)

        def noise_scale(seeds: np.ndarray) -> float:
            grad_sq, trace = seeds.mean(axis=0)
            return trace / grad_sq if grad_sq > 0 else math.inf

        rows.append(
            {
                "examples_seen": points[0].examples_seen,
                "branched": interval_over_seeds(branched, losses),
                "gradient_noise_scale": interval_over_seeds(noise_scale, noise),
            }
        )
    return rows
