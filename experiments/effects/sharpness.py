"""Claim: large batches end in sharper minima."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from bsjax.analysis.sharpness import hessian_vector_product, largest_eigenvalues, stability_threshold, trace
from bsjax.analysis.statistics import Comparison, Interval, compare, mean_interval
from bsjax.data import ArraySource
from experiments.effects import pictures
from experiments.effects.claim import Claim, Findings, columns, exp, is_more, text
from experiments.effects.rates import RULES, scaled
from experiments.effects.study import Study
from experiments.effects.training import Lab, Outcome, Training, evaluations, finals

_MARGIN = 1.25
_QUANTITIES = ("largest_eigenvalue", "trace")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Batch sizes from smallest to largest, and the training loss at which their minima are compared."""

    batch_sizes: tuple[int, ...] = (4, 16, 64, 256, 1437)
    target_train_loss: float = 0.05
    max_updates: int = 20_000
    num_evaluations: int = 200
    num_probes: int = 30  # of the trace
    max_products: int = 60  # of the eigenvalue
    max_examples: int = 1437


@dataclasses.dataclass(frozen=True)
class Curvature:
    """The probe: the Hessian of the first training examples."""

    num_probes: int
    max_products: int
    max_examples: int
    name: str = "curvature"

    def __call__(self, lab: Lab, params: Any, batch_stats: Any) -> dict[str, float]:
        """The largest eigenvalue and its error; the trace and its standard error."""
        product = functools.partial(_product(lab, self.max_examples), params, batch_stats)
        largest = largest_eigenvalues(product, params, max_products=self.max_products, seed=lab.seed)
        estimate = trace(product, params, self.num_probes, seed=lab.seed)
        error = float(largest.errors[0])
        half = (estimate.high - estimate.low) / 2
        return {
            "largest_eigenvalue": float(largest.values[0]),
            "error": error,
            "trace": estimate[0],
            "trace_half": half,
        }


@functools.lru_cache(maxsize=8)
def _product(lab: Lab, max_examples: int) -> Any:
    examples = {name: array[:max_examples] for name, array in lab.train.examples.items()}
    return hessian_vector_product(lab.task, ArraySource(examples), microbatch_size=512)


class Case(NamedTuple):
    """A rule and a batch size: the outcomes, and the intervals and comparisons of the logarithms of each quantity."""

    learning_rate: float
    outcomes: list[Outcome]
    reached: int  # seeds that have reached the target
    logs: dict[str, Interval]
    comparisons: dict[str, Comparison]  # with the smallest batch


def measure(study: Study, settings: Settings) -> Findings:
    """Trains each rule and batch size to the target, and measures the curvature there."""
    cases = _cases(study, settings)
    verdicts = {}
    for rule in RULES:
        sizes = [size for size in settings.batch_sizes if cases[rule, size].reached == len(study.seeds)]
        for name in _QUANTITIES:
            last = cases[rule, max(sizes, default=settings.batch_sizes[0])].comparisons[name]
            is_open = len(sizes) < 2 or sizes[0] != settings.batch_sizes[0]
            verdicts[f"{name.replace('_', ' ')} with {rule} rate"] = None if is_open else is_more(last)
    table = [_row(rule, size, one) for (rule, size), one in cases.items()]
    points = [
        {"rule": rule, "batch_size": size, "seed": outcome.training.config.run.seed, **outcome.points[-1]}
        for (rule, size), one in cases.items()
        for outcome in one.outcomes
        if not outcome.diverged
    ]
    notes = [
        f"{rule} rate, batch {size:,}: {len(one.outcomes) - one.reached} of {len(one.outcomes)} seeds have not reached "
        f"training loss {settings.target_train_loss:g}, and are left out."
        for (rule, size), one in cases.items()
        if one.reached < len(one.outcomes)
    ]
    return Findings(verdicts, _lines(table), table, points, _draw(cases, len(study.seeds)), notes)


def _cases(study: Study, settings: Settings) -> dict[tuple[str, int], Case]:
    smallest, base = settings.batch_sizes[0], study.config
    rate = scaled(base.optimizer.learning_rate, smallest / base.recipe.batch_size, "sqrt")
    probe = Curvature(settings.num_probes, settings.max_products, settings.max_examples)
    keys = [(rule, size) for rule in RULES for size in settings.batch_sizes]
    rates = {(rule, size): scaled(rate, size / smallest, rule) for rule, size in keys}
    stops = evaluations(settings.max_updates, settings.num_evaluations)
    trainings = {
        (rule, size): Training(
            base.replace(batch_size=size, learning_rate=rates[rule, size]), stops, settings.target_train_loss, probe
        )
        for rule, size in keys
    }
    groups = study.train_seeds(trainings)
    values = {key: _logs(outcomes, settings.target_train_loss) for key, outcomes in groups.items()}
    return {
        (rule, size): Case(
            rates[rule, size],
            outcomes,
            int(np.isfinite(values[rule, size]["trace"]).sum()),
            {name: mean_interval(logs) for name, logs in values[rule, size].items()},
            {
                name: compare(logs, values[rule, smallest][name], math.log(_MARGIN))
                for name, logs in values[rule, size].items()
            },
        )
        for (rule, size), outcomes in groups.items()
    }


def _logs(outcomes: list[Outcome], target: float) -> dict[str, np.ndarray]:
    """The logarithm of each quantity [seeds]; NaN where the target was not reached, or the quantity is negative."""
    reached = finals(outcomes, "train_loss") <= target
    found = {}
    for name in _QUANTITIES:
        values = np.where(reached, finals(outcomes, name), np.nan)
        found[name] = np.log(np.where(values > 0, values, np.nan))
    return found


def _row(rule: str, size: int, one: Case) -> dict[str, Any]:
    row: dict[str, Any] = {"rule": rule, "batch_size": size, "learning_rate": one.learning_rate}
    row["stability_threshold"] = stability_threshold(one.learning_rate)
    row["reached"] = one.reached
    updates = finals(one.outcomes, "update")
    row["updates"] = float(np.nanmean(updates)) if one.reached else math.nan
    for name in _QUANTITIES:
        row |= columns(name, exp(one.logs[name]))
        row |= columns(f"{name}_ratio", exp(one.comparisons[name].difference))
        row[f"{name}_verdict"] = one.comparisons[name].verdict
    return row


def _lines(table: list[dict[str, Any]]) -> list[list[str]]:
    head = ["rule", "batch", "rate", "updates", "2/rate", "largest eigenvalue", "÷ smallest batch's", ""]
    lines = [[*head, "trace", "÷ smallest batch's", ""]]
    for row in table:
        cells = [row["rule"], f"{row['batch_size']:,}", f"{row['learning_rate']:g}", f"{row['updates']:,.0f}"]
        cells.append(f"{row['stability_threshold']:.3g}")
        for name in _QUANTITIES:
            value, ratio = (
                Interval(*(row[f"{n}{end}"] for end in ("", "_low", "_high"))) for n in (name, f"{name}_ratio")
            )
            cells += [text(value, 1), text(ratio, 2), row[f"{name}_verdict"]]
        lines.append(cells)
    return lines


def _interval(row: dict[str, Any], name: str) -> Interval:
    return Interval(*(row[f"{name}{end}"] for end in ("", "_low", "_high")))


def _draw(cases: Mapping[tuple[str, int], Case], num_seeds: int) -> Any:
    figure, [axes] = pictures.panels(2)
    for panel, name in zip(axes, _QUANTITIES, strict=True):
        series: dict[str, list] = {}
        for (rule, size), one in cases.items():
            series.setdefault(f"rate {rule}", []).append((size, exp(one.logs[name])))
        pictures.against_batch(panel, series, name.replace("_", " ").capitalize(), log=True)
    for i, rule in enumerate(RULES):
        thresholds = {size: stability_threshold(one.learning_rate) for (its, size), one in cases.items() if its == rule}
        look = {"color": pictures.color(i), "linestyle": ":", "linewidth": 1}
        axes[0].plot(list(thresholds), list(thresholds.values()), **look, label=f"2 / rate {rule}")
    return pictures.finish(figure, axes[0], 3, pictures.bars_note(num_seeds))


CLAIM = Claim(
    name="sharpness",
    question="Do large batches end in sharper minima?",
    claim="Large batches converge to sharp minima, small batches to flat ones.",
    prediction="Gradient noise drives small batches out of sharp places, and a learning rate ε lets no training stay "
    "where the largest eigenvalue is above 2/ε: at the same rate the large batch should be sharper, and a rate that "
    "grows with the batch should make up for it.",
    measurement="At the first evaluation with the same training loss: the largest eigenvalue of the Hessian (Lanczos) "
    "and its trace (Hutchinson), with the stability threshold 2/ε beside. Ratios to the smallest batch are paired by "
    "seed; means are geometric, with 95 % intervals over seeds.",
    margin=f"a factor {_MARGIN:g}; true where the largest batch is sharper than the smallest",
    settings={
        "digits": Settings(),
        "fashion_mnist": Settings((8, 32, 128, 512), 0.4, max_updates=10_000, max_examples=4096),
        "cifar10": Settings((16, 64, 256, 1024, 4096), 1.0, max_updates=50_000, max_examples=8192),
        "quick": Settings((16, 256), 1.9, 60, 10, num_probes=3, max_products=5, max_examples=64),
    },
    measure=measure,
)
