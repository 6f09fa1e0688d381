"""Shared by the studies of language models: losses against tokens, and learning rates tried on seeds of their own."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from experiments.harness import runs, studies
from experiments.harness.config import Config
from experiments.harness.curves import Curve, curve, curve_rows, lines_with
from experiments.harness.tables import finals

Key = TypeVar("Key", bound=Hashable)

# Seeds of searches, which no report uses.
SEARCH_SEED = 100
# Two schedules are far apart if so many standard deviations over seeds lie between them.
FAR = 5.0


def loss_curve(results: Sequence[runs.Result], context_length: int) -> Curve:
    """The training loss of each seed against tokens: the mean over the tokens since the point before.

    In the first epoch no update has seen these tokens before, so it is the loss of new text.

    Args:
      results: of one schedule, one run per seed.
      context_length: tokens of an example.

    Returns:
      A curve whose `epoch` is millions of tokens.
    """
    lines = next(iter(lines_with("train_loss", results)), [])
    tokens = np.array([line["examples_seen"] for line in lines], float) * context_length
    return curve(results, "train_loss")._replace(epoch=tokens / 1e6)


def loss_rows(curves: dict[str, Curve], **extra: Any) -> list[dict[str, Any]]:
    """The points of `loss_curve`s as rows of a CSV file, with the paired differences to the first one."""
    rows = curve_rows(curves, "train_loss", **extra)
    return [{("million_tokens" if name == "epoch" else name): value for name, value in row.items()} for row in rows]


def separation(values: np.ndarray, baseline: np.ndarray) -> float:
    r"""How far two schedules are apart, in standard deviations over seeds: :math:`(\bar x - \bar y) / \max(s_x, s_y)`.

    Args:
      values: x [num_seeds], such as final losses; seeds that diverged (NaN) are left out.
      baseline: y [num_seeds].

    Returns:
      It is positive where the values are larger, and NaN with less than two seeds of either.

    >>> separation(np.array([2.0, 2.1, 2.2]), np.array([1.0, 1.01, 1.02]))
    10.9
    """
    x, y = (np.asarray(each)[np.isfinite(each)] for each in (values, baseline))
    if min(len(x), len(y)) < 2:
        return float("nan")
    return float((x.mean() - y.mean()) / max(x.std(ddof=1), y.std(ddof=1), np.finfo(float).tiny))


def try_rates(
    study: studies.Study, configs: Mapping[Key, Config], factors: Iterable[float]
) -> dict[tuple[Key, float], np.ndarray]:
    """Trains configs at several learning rates, with as many seeds as the study has, from `SEARCH_SEED` on.

    Args:
      study: trains; its runs are kept as all others.
      configs: by any key.
      factors: of each one's learning rate.

    Returns:
      The final test losses [num_seeds], NaN of a run that diverged, by key and learning rate.
    """
    wanted = {}
    for key, config in configs.items():
        for factor in factors:
            rate = float(f"{factor * config.optimizer.learning_rate:.6g}")
            wanted[key, rate] = config.replace(learning_rate=rate)
    seeds = range(SEARCH_SEED, SEARCH_SEED + len(study.seeds))
    found = studies.train(study._replace(seeds=seeds), wanted)
    return {key: finals(group, "final_test_loss") for key, group in found.items()}
