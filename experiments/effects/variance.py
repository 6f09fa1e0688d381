"""Claim: the variance of the gradient falls as 1/B."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from bsjax.analysis.gradient_variance import (
    GradientStatistics,
    gradient_statistics,
    sampling_weights,
    weighted_gradients,
)
from bsjax.analysis.statistics import Interval, mean_interval
from experiments.effects.claim import Claim, Findings, columns, is_inside, text
from experiments.effects.study import Study
from experiments.effects.training import Lab, Training
from experiments.harness import figures

_MARGIN = 0.05
_SMALL_SHARE = 8  # a batch below N / 8 is small
_KINDS = ("without", "with")  # replacement


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured: moments in epochs, and random batches of each size at each."""

    epochs: tuple[float, float] = (0.1, 20.0)  # early and late in training
    num_batches: int = 1000  # of each size
    max_examples: int = 1437  # N: the first training examples


@dataclasses.dataclass(frozen=True)
class Batches:
    """The probe: random batches of N examples, with and without replacement, and the exact moments beside."""

    num_batches: int
    max_examples: int
    name: str = "variance"

    def __call__(self, lab: Lab, params: Any, batch_stats: Any) -> dict[str, Any]:
        """The exact moments; and for each kind and batch size the means of |G_B - G|² and of |G_B|²."""
        source = type(lab.train)({name: array[: self.max_examples] for name, array in lab.train.examples.items()})
        size, random = len(source), np.random.default_rng(lab.seed)
        exact = gradient_statistics(lab.task, source)(params, batch_stats)
        gradients = weighted_gradients(lab.task, source)
        [mean] = gradients(params, batch_stats, np.full((1, size), 1 / size))
        found: dict[str, Any] = {"num_examples": size, "grad_sq": exact.grad_sq, "trace": exact.trace}
        for kind in _KINDS:
            for batch_size in sizes(size):
                weights = sampling_weights(batch_size, self.num_batches, size, random, replacement=kind == "with")
                apart = gradients(params, batch_stats, weights - 1 / size)  # nothing cancels
                variance, square = (float(np.square(x).sum(axis=1).mean()) for x in (apart, apart + mean))
                found[f"{kind}_{batch_size}"] = [variance, square]
        return found


def sizes(num_examples: int) -> list[int]:
    """Batch sizes 1, 2, 4, ..., then N / 2 and N.

    >>> sizes(20)
    [1, 2, 4, 8, 10, 20]
    """
    small = [2**i for i in range(num_examples.bit_length()) if 2 ** (i + 1) < num_examples]
    return [*small, num_examples // 2, num_examples]


def measure(study: Study, settings: Settings) -> Findings:
    """Trains, draws batches at two moments, and fits a power of B at each."""
    batch_size = study.config.recipe.batch_size
    moments = tuple(study.updates(epochs, batch_size) for epochs in settings.epochs)
    probe = Batches(settings.num_batches, settings.max_examples)
    [outcomes] = study.train_seeds({"": Training(study.config, moments, probe=probe, probe_at=moments)}).values()
    cases: dict[str, bool | None] = {}
    table, points = [], []
    for moment, when in enumerate(("early", "late")):
        seeds = [outcome.points[moment] for outcome in outcomes]
        for kind in _KINDS:
            found = _intervals(seeds, kind)
            row = {"moment": when, "examples_seen": seeds[0]["examples_seen"], "replacement": kind == "with"}
            table.append({**row, **found})
            points += [{**row, **point} for point in _points(seeds, kind)]
            label = "with replacement" if kind == "with" else f"without replacement up to N/{_SMALL_SHARE}"
            cases[f"{when} {label}"] = is_inside(found["slope"], -1 - _MARGIN, -1 + _MARGIN)
            if kind == "without":
                cases[f"{when} without replacement at N/2"] = is_inside(found["half"], 1 - _MARGIN, 1 + _MARGIN)
            else:
                cases[f"{when} E|G_B|² on its line"] = is_inside(found["square"], 1 - _MARGIN, 1 + _MARGIN)
    csv = [{k: v for name, x in row.items() for k, v in _cells(name, x)} for row in table]
    return Findings(cases, _lines(table), csv, points, _draw(points, len(outcomes)))


def _intervals(seeds: Sequence[dict[str, Any]], kind: str) -> dict[str, Interval]:
    """Over seeds: the slope of the variance, it and E|G_B|² over their formulas, and B_simple."""
    values: dict[str, list[float]] = {name: [] for name in ("slope", "half", "square", "noise_scale")}
    for seed in seeds:
        size, exact = seed["num_examples"], _exact(seed)
        last = size - 1 if kind == "with" else size // _SMALL_SHARE
        fitted = [b for b in sizes(size) if b <= last]
        variances = [seed[f"{kind}_{b}"][0] for b in fitted]
        values["slope"].append(float(np.polyfit(np.log(fitted), np.log(variances), 1)[0]))
        half = size // 2
        values["half"].append(seed[f"{kind}_{half}"][0] * half / exact.trace)
        ratios = [seed[f"{kind}_{b}"][1] / exact.expected_square(b, kind == "with") for b in sizes(size)]
        values["square"].append(float(np.mean(ratios)))
        values["noise_scale"].append(exact.trace / exact.grad_sq)
    return {name: mean_interval(one) for name, one in values.items()}


def _points(seeds: Sequence[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Means over seeds of what was measured and of what is exact, for each batch size."""
    size, rows = seeds[0]["num_examples"], []
    for batch_size in sizes(size):
        variance, square = np.mean([seed[f"{kind}_{batch_size}"] for seed in seeds], axis=0).tolist()
        exact = [
            (one.variance(batch_size, kind == "with"), one.expected_square(batch_size, kind == "with"), one.trace)
            for one in map(_exact, seeds)
        ]
        names = ("exact_variance", "exact_square", "trace")
        means = dict(zip(names, np.mean(exact, axis=0).tolist(), strict=True))
        rows.append({"batch_size": batch_size, "variance": variance, "square": square, **means})
    return rows


def _exact(seed: dict[str, Any]) -> GradientStatistics:
    return GradientStatistics(seed["grad_sq"], seed["trace"], seed["num_examples"])


def _cells(name: str, value: Any) -> list[tuple[str, Any]]:
    return list(columns(name, value).items()) if isinstance(value, Interval) else [(name, value)]


def _lines(table: Sequence[dict[str, Any]]) -> list[list[str]]:
    head = ["moment", "replacement", "slope in B", "at N/2, over tr(Σ)/B", "E|G_B|² over its line", "tr(Σ)/|G|²"]
    digits = {"slope": 3, "half": 3, "square": 3, "noise_scale": 1}
    rows = [
        [row["moment"], "with" if row["replacement"] else "without", *(text(row[k], n) for k, n in digits.items())]
        for row in table
    ]
    return [head, *rows]


def _draw(points: Sequence[dict[str, Any]], num_seeds: int) -> Any:
    figure, panels = plt.subplots(2, 2, figsize=(8, 6.5), layout="constrained", sharex=True)
    for column, when in zip(panels.T, ("early", "late"), strict=True):
        for color, kind in zip(figures.COLORS, _KINDS, strict=False):
            rows = [one for one in points if one["moment"] == when and one["replacement"] == (kind == "with")]
            x = np.array([row["batch_size"] for row in rows])
            for axes, name in zip(column, ("variance", "square"), strict=True):
                exact, found = (np.array([row[key] for row in rows]) for key in (f"exact_{name}", name))
                shown = exact > 0
                axes.plot(x[shown], exact[shown], color=color, linewidth=1.2, label=f"exact, {kind} replacement")
                axes.plot(x[shown], found[shown], "o", color=color, markersize=4, label="random batches")
        trace = rows[0]["trace"]
        column[0].plot(x, trace / x, "--", color="grey", linewidth=1, label="tr(Σ) / B")
        column[0].set(title=f"{when}: {rows[0]['examples_seen']:,} examples seen")
        column[1].set(xlabel="Batch size B")
        for axes in column:
            axes.set(xscale="log", yscale="log")
            figures.plain_ticks(axes.xaxis)
    panels[0, 0].set(ylabel="$E|G_B - G|^2$")
    panels[1, 0].set(ylabel="$E|G_B|^2$")
    figures.legend_above(figure, panels[0, 0], columns=3)
    figure.supxlabel(f"Means over {num_seeds} seeds", fontsize=7)
    return figure


CLAIM = Claim(
    name="variance",
    question="Does the noise of the gradient fall as 1/B?",
    claim="The variance of the gradient falls as 1/B, and the mean of its squared norm is linear in 1/B.",
    prediction="Exact for independent draws: E|G_B|² = |G|² + tr(Σ)/B. An epoch draws without replacement, which "
    "multiplies the variance by 1 - B/N: half of it is left at B = N/2, and nothing at B = N.",
    measurement="At fixed parameters, early and late in training with a small batch, random batches of B = 1 to N: "
    "the mean of |G_B - G|² and of |G_B|², the slope of the first in B on logarithmic axes, and both over their exact "
    "values from the gradients of all examples. Intervals are 95 % over seeds.",
    margin=f"slopes within -1 ± {_MARGIN:g}, ratios within 1 ± {_MARGIN:g}",
    settings={
        "digits": Settings(),
        "fashion_mnist": Settings(epochs=(0.01, 1.0), num_batches=100, max_examples=2048),
        "cifar10": Settings(epochs=(0.1, 20.0), num_batches=500, max_examples=8192),
        "quick": Settings(epochs=(0.05, 0.5), num_batches=30, max_examples=64),
    },
    measure=measure,
)
