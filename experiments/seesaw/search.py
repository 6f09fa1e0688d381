"""The learning rates at which the text needs the decay, so that a study of decays can show something."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bsjax.analysis.statistics import mean_interval
from experiments.harness import figures, presets, studies
from experiments.harness.config import Config
from experiments.harness.language_studies import FAR, separation, try_rates
from experiments.seesaw.schedules import COSINE, HALF, Start

_TRIED = (COSINE, presets.CONSTANT)


def search(study: studies.Study, starts: Sequence[Start], factors: Iterable[float]) -> list[dict[str, Any]]:
    """Trains each start with the half cosine and without decay, at several learning rates.

    Args:
      study: trains, with as many seeds as it has; no report uses them.
      starts: batch sizes, and the learning rates to multiply.
      factors: of the learning rates.

    Returns:
      A row for each start and rate: mean and standard deviation of the final test losses, and their `separation`.
    """
    configs: dict[tuple[int, str], Config] = {}
    for start in starts:
        base = study.config.replace(**start._asdict(), lr_schedule=HALF)
        configs |= {(start.batch_size, COSINE): base}
        configs |= {(start.batch_size, presets.CONSTANT): base.replace(lr_schedule="constant")}
    losses = try_rates(study, configs, factors)
    pairs = [(size, rate) for (size, name), rate in losses if name == COSINE]
    return [row_of(*pair, *(losses[(pair[0], name), pair[1]] for name in _TRIED)) for pair in pairs]


def row_of(batch_size: int, learning_rate: float, cosine: np.ndarray, constant: np.ndarray) -> dict[str, Any]:
    """A row of `search`, from the losses [num_seeds] with the decay and without it."""
    row: dict[str, Any] = {"batch_size": batch_size, "learning_rate": learning_rate}
    for name, values in (("cosine", cosine), ("constant", constant)):
        known = values[np.isfinite(values)]
        row[f"{name}_mean"] = mean_interval(values).estimate
        row[f"{name}_std"] = float(known.std(ddof=1)) if len(known) > 1 else math.nan
    return {**row, "separation": separation(constant, cosine), "diverged": int((~np.isfinite(cosine)).sum())}


def best(rows: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Of one start's rows that are far apart, with every seed of the decay, that of least loss; None without any.

    >>> rows = [
    ...     {"cosine_mean": 1.9, "separation": 3.0, "diverged": 0},
    ...     {"cosine_mean": 2.0, "separation": 6.0, "diverged": 0},
    ...     {"cosine_mean": 2.1, "separation": 9.0, "diverged": 0},
    ... ]
    >>> best(rows)["cosine_mean"], best(rows[:1])
    (2.0, None)
    """
    far = [row for row in rows if row["separation"] >= FAR and not row["diverged"]]
    return min(far, key=lambda row: row["cosine_mean"], default=None)


def report(rows: Sequence[Mapping[str, Any]], starts: Sequence[Start], margin: float | None) -> None:
    """Prints the table, the learning rates to take, and which starts lie above the critical batch size."""
    lines = [["windows", "learning rate", "cosine", "no decay", "apart by, standard deviations"]]
    for row in rows:
        losses = [f"{row[f'{name}_mean']:.4f} ± {row[f'{name}_std']:.4f}" for name in ("cosine", "constant")]
        lines.append([f"{row['batch_size']:,}", f"{row['learning_rate']:g}", *losses, f"{row['separation']:.1f}"])
    print()
    figures.print_table(lines)
    chosen = {start.batch_size: best(row for row in rows if row["batch_size"] == start.batch_size) for start in starts}
    for size, one in chosen.items():
        if one is None:
            known = any(np.isfinite(row["separation"]) for row in rows if row["batch_size"] == size)
            why = f"at no rate are they {FAR:g} standard deviations apart; try larger --factors"
            print(f"{size:,} windows: {why if known else 'a standard deviation needs two seeds or more'}")
    found = {size: row for size, row in chosen.items() if row is not None}
    for size, row in list(found.items())[1:]:
        print(_against_first(size, row, next(iter(found.values())), margin))
    if len(found) == len(starts):
        sizes, rates = (",".join(f"{value:g}" for value in column) for column in zip(*_pairs(found), strict=True))
        print(f"Least loss with a decay that matters: --batch_sizes={sizes} --learning_rates={rates}")


def _pairs(found: Mapping[int, Mapping[str, Any]]) -> list[tuple[int, float]]:
    return [(size, row["learning_rate"]) for size, row in found.items()]


def _against_first(size: int, row: Mapping[str, Any], first: Mapping[str, Any], margin: float | None) -> str:
    """A line on the loss that a larger start costs on the same tokens."""
    lost = row["cosine_mean"] - first["cosine_mean"]
    text = f"{size:,} windows: the decay ends {lost:+.4f} nats from {first['batch_size']:,} windows, on the same tokens"
    if margin is None:
        return text
    return f"{text}: {'above' if lost > margin else 'not above'} the critical batch size, with a margin of {margin:g}"
