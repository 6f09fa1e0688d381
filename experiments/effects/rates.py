"""Learning rates: how they scale with the batch, and a search for the best one."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.effects.study import SEARCH_SEED, Study
from experiments.effects.training import Outcome, Training

# The learning rate goes with this power of the batch size.
RULES = {"constant": 0.0, "sqrt": 0.5, "linear": 1.0}
_REACH = 4  # if all trainings diverge, rates are tried up to this many points of the grid away


def scaled(learning_rate: float, factor: float, rule: str) -> float:
    """The learning rate of a batch that is `factor` times as large, with six digits, as files are named after it.

    >>> [scaled(0.1, 16, rule) for rule in RULES]
    [0.1, 0.4, 1.6]
    """
    return float(f"{learning_rate * factor ** RULES[rule]:.6g}")


def last_test_loss(outcome: Outcome) -> float:
    """The test loss at the end of a training; NaN if it diverged."""
    return outcome.final("test_loss")


def searches(
    study: Study,
    trainings: Sequence[Training],
    num_seeds: int,
    factor: float = 2.0,
    score: Callable[[Outcome], float] = last_test_loss,
) -> tuple[list[float], list[dict[str, Any]]]:
    """The learning rate of least test loss for each of some trainings, and all that were tried.

    Each search begins at its training's own rate, and ends where both neighbours on a grid of ratio `factor` are worse.
    Its seeds are not those of any report. All searches go on side by side.

    Args:
      study: trains.
      trainings: whose learning rate is searched.
      num_seeds: of each learning rate; what counts is the mean of the test loss over these.
      factor: between neighbours.
      score: the test loss of a training that has ended, NaN if it diverged; default, the last one. Searches of the same
        trainings by different scores share what they train.
    """
    scores: list[dict[int, float]] = [{} for _ in trainings]

    def rate(one: Training, i: int) -> float:
        return float(f"{one.config.optimizer.learning_rate * factor**i:.6g}")

    while todo := [(k, i) for k, known in enumerate(scores) for i in _next(known)]:
        seeds = range(SEARCH_SEED, SEARCH_SEED + num_seeds)
        wanted = [
            trainings[k].replace(learning_rate=rate(trainings[k], i), seed=seed) for k, i in todo for seed in seeds
        ]
        losses = np.array([score(outcome) for outcome in study.train(wanted)]).reshape(len(todo), num_seeds)
        for (k, i), its_losses in zip(todo, losses, strict=True):
            scores[k][i] = float(np.where(np.isnan(its_losses), math.inf, its_losses).mean())
    best = [rate(one, min(known, key=known.__getitem__)) for one, known in zip(trainings, scores, strict=True)]
    tried = [
        {
            "optimizer": one.config.optimizer.optimizer,
            "batch_size": one.config.recipe.batch_size,
            "updates": one.evaluate_at[-1],
            "learning_rate": rate(one, i),
            "test_loss": known[i],
        }
        for one, known in zip(trainings, scores, strict=True)
        for i in sorted(known)
    ]
    return best, tried


def _next(scores: dict[int, float]) -> list[int]:
    """The points of the grid to try after these scores; none at the end of the search.

    >>> _next({}), _next({0: 1.0, 1: 0.5, -1: 2.0}), _next({0: 1.0, 1: 0.5, -1: 2.0, 2: 0.6}), _next({0: math.inf})
    ([-1, 0, 1], [2], [], [-1])
    """
    if not scores:
        return [-1, 0, 1]
    best = min(scores, key=scores.__getitem__)
    if math.isinf(scores[best]):  # too large a rate: go down
        lowest = min(scores) - 1
        return [lowest] if lowest >= -2 * _REACH else []
    return [i for i in (best - 1, best + 1) if i not in scores]


def largest(batch_sizes: Sequence[int], is_fit: Callable[[int], bool]) -> int | None:
    """The largest batch size up to which all are fit; None if the first is not.

    >>> largest([8, 16, 32, 64], lambda size: size in (8, 16, 64))
    16
    """
    unfit = [i for i, size in enumerate(batch_sizes) if not is_fit(size)]
    end = unfit[0] if unfit else len(batch_sizes)
    return batch_sizes[end - 1] if end else None
