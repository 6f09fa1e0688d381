"""Claim: large batches move less far from the initial parameters."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from bsjax.analysis.statistics import Comparison, Interval, compare, mean_interval
from experiments.effects import pictures
from experiments.effects.claim import Claim, Findings, columns, exp, is_inside, is_worse, text
from experiments.effects.rates import RULES, scaled
from experiments.effects.study import Study
from experiments.effects.training import Outcome, Training, evaluations
from experiments.harness import figures

_MARGIN = 1.1
_RESIDUAL = 0.05


@dataclasses.dataclass(frozen=True)
class Settings:
    """Batch sizes from smallest to largest, and the length of all trainings."""

    batch_sizes: tuple[int, ...] = (4, 16, 64, 256)
    num_epochs: float = 20.0
    num_evaluations: int = 25


class Case(NamedTuple):
    """A rule and a batch size."""

    learning_rate: float
    outcomes: list[Outcome]  # of the seeds that did not diverge
    distance: Interval  # of the logarithm at the end
    comparison: Comparison  # with the smallest batch
    residual: Interval  # of a + b log(updates), over the last distance


def measure(study: Study, settings: Settings) -> Findings:
    """Trains each rule and batch size, and compares the last distances."""
    cases, smallest, largest = _cases(study, settings), settings.batch_sizes[0], settings.batch_sizes[-1]
    verdicts: dict[str, bool | None] = {}
    for rule in RULES:
        verdicts[f"less far with {rule} rate"] = is_worse(cases[rule, largest].comparison)
        residuals = [cases[rule, size].residual for size in (smallest, largest)]
        inside = [is_inside(residual, -1.0, _RESIDUAL) for residual in residuals]
        verdicts[f"linear in log(updates) with {rule} rate"] = None if None in inside else all(inside)
    table = [_row(rule, size, one) for (rule, size), one in cases.items()]
    points = [
        {"rule": rule, "batch_size": size, "seed": outcome.training.config.run.seed}
        | {name: point[name] for name in ("update", "examples_seen", "distance", "train_loss")}
        for (rule, size), one in cases.items()
        for outcome in one.outcomes
        for point in outcome.points
    ]
    notes = [
        f"{rule} rate, batch {size:,}: {len(study.seeds) - len(one.outcomes)} seeds diverged and are left out."
        for (rule, size), one in cases.items()
        if len(one.outcomes) < len(study.seeds)
    ]
    return Findings(verdicts, _lines(table), table, points, _draw(cases, len(study.seeds)), notes)


def _cases(study: Study, settings: Settings) -> dict[tuple[str, int], Case]:
    smallest, base = settings.batch_sizes[0], study.config
    rate = scaled(base.optimizer.learning_rate, smallest / base.recipe.batch_size, "sqrt")
    keys = [(rule, size) for rule in RULES for size in settings.batch_sizes]
    trainings = {}
    for rule, size in keys:
        stops = evaluations(study.updates(settings.num_epochs, size), settings.num_evaluations)
        config = base.replace(batch_size=size, learning_rate=scaled(rate, size / smallest, rule))
        trainings[rule, size] = Training(config, stops)
    groups, cases = study.train_seeds(trainings), {}
    for (rule, size), outcomes in groups.items():
        logs = _log_distances(outcomes)
        compared = compare(logs, _log_distances(groups[rule, smallest]), math.log(_MARGIN))
        there = [outcome for outcome in outcomes if not outcome.diverged]
        residual = mean_interval([log_residual(*_curve(one)) for one in there])
        rate_here = trainings[rule, size].config.optimizer.learning_rate
        cases[rule, size] = Case(rate_here, there, mean_interval(logs), compared, residual)
    return cases


def log_residual(updates: Any, distances: Any) -> float:
    """The root mean square of distances around their best a + b log(updates), over the last distance.

    >>> updates = np.array([1, 10, 100, 1000])
    >>> print(round(log_residual(updates, 2 + np.log(updates)), 6), round(log_residual(updates, updates**0.5), 3))
    0.0 0.158
    """
    logs = np.log(updates)
    rest = distances - np.polyval(np.polyfit(logs, distances, 1), logs)
    return float(np.sqrt(np.square(rest).mean()) / distances[-1])


def _log_distances(outcomes: list[Outcome]) -> np.ndarray:
    return np.log([outcome.final("distance") for outcome in outcomes])


def _curve(outcome: Outcome) -> tuple[np.ndarray, np.ndarray]:
    updates, distances = ([point[name] for point in outcome.points] for name in ("update", "distance"))
    return np.array(updates, float), np.array(distances)


def _row(rule: str, size: int, one: Case) -> dict[str, Any]:
    row = {"rule": rule, "batch_size": size, "learning_rate": one.learning_rate, "seeds": len(one.outcomes)}
    row["updates"] = one.outcomes[0].points[-1]["update"] if one.outcomes else 0
    row |= columns("distance", exp(one.distance)) | columns("ratio", exp(one.comparison.difference))
    return row | {"verdict": one.comparison.verdict} | columns("log_residual", one.residual)


def _lines(table: list[dict[str, Any]]) -> list[list[str]]:
    lines = [["rule", "batch", "rate", "updates", "distance", "÷ smallest batch's", "", "residual of log(updates), %"]]
    for row in table:
        distance, ratio, residual = (
            Interval(*(row[f"{name}{end}"] for end in ("", "_low", "_high")))
            for name in ("distance", "ratio", "log_residual")
        )
        cells = [row["rule"], f"{row['batch_size']:,}", f"{row['learning_rate']:g}", f"{row['updates']:,}"]
        lines.append([*cells, text(distance), text(ratio), row["verdict"], text(residual, 1, 100)])
    return lines


def _draw(cases: Mapping[tuple[str, int], Case], num_seeds: int) -> Any:
    figure, axes = pictures.panels(len(RULES), rows=2, height=3.0)
    for column, rule in zip(axes.T, RULES, strict=True):
        for i, ((_, size), one) in enumerate((key, one) for key, one in cases.items() if key[0] == rule):
            if not one.outcomes:
                continue
            mean = np.mean([_curve(outcome)[1] for outcome in one.outcomes], axis=0)
            for panel, clock in zip(column, ("examples_seen", "update"), strict=True):
                x = [point[clock] for point in one.outcomes[0].points]
                look = {"color": pictures.color(i), "linestyle": figures.DASHES[i % len(figures.DASHES)]}
                panel.plot(x, mean, **look, label=f"batch {size:,}")
        column[0].set(title=f"rate {rule}", xlabel="Examples seen", xscale="log")
        column[1].set(xlabel="Updates", xscale="log")
    for panel in axes[:, 0]:
        panel.set_ylabel("Distance from the start")
    return pictures.finish(figure, axes[0, 0], len(cases), f"Means over {num_seeds} seeds")


CLAIM = Claim(
    name="distance",
    question="How far do batches of different sizes move from the start?",
    claim="After the same examples, large batches have moved less far from the initial parameters; and the distance "
    "grows like the logarithm of the number of updates.",
    prediction="Fewer updates of the same length move less far. A rate ∝ √B keeps the length of a random walk after "
    "the same examples, a rate ∝ B that of a straight path.",
    measurement="The distance |θ - θ₀| along trainings with a constant learning rate: kept, ∝ √B and ∝ B. Ratios to "
    "the smallest batch at the end, paired by seed; and the root mean square of the distances around a + b "
    "log(updates), over the last distance. Means of distances are geometric; intervals are 95 % over seeds.",
    margin=f"a factor {_MARGIN:g} of distances; {100 * _RESIDUAL:g} % of the last distance for the logarithm",
    settings={
        "digits": Settings(),
        "fashion_mnist": Settings((8, 32, 128, 512), num_epochs=3.0),
        "cifar10": Settings((16, 64, 256, 1024, 4096), num_epochs=30.0),
        "quick": Settings((16, 128), num_epochs=0.5, num_evaluations=5),
    },
    measure=measure,
)
