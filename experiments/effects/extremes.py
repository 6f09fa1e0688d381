"""Claim: batch 1 is too noisy, and the full batch does not generalise."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.effects import accuracies
from experiments.effects.accuracies import Compared
from experiments.effects.claim import Claim, Findings, is_worse
from experiments.effects.rates import scaled, searches
from experiments.effects.study import Study
from experiments.effects.training import Training
from experiments.harness import figures

_MARGIN = 0.01
_BETWEEN = "in between"


@dataclasses.dataclass(frozen=True)
class Settings:
    """The batch size in between, and the length of training at it."""

    batch_size: int = 16
    num_epochs: float = 20.0
    search_seeds: int = 3


def measure(study: Study, settings: Settings) -> Findings:
    """Searches the rate of each, and compares."""
    whole, size = study.base.dataset_size, settings.batch_size
    updates = {b: study.updates(settings.num_epochs, b) for b in (1, size, whole)}
    plan = {
        ("batch 1",): (1, updates[1]),
        (_BETWEEN,): (size, updates[size]),
        ("full batch at equal epochs",): (whole, updates[whole]),
        ("full batch at equal updates",): (whole, updates[size]),
    }
    begin = {
        key: Training(study.config.replace(batch_size=b, learning_rate=_first_rate(study, b)), (count,))
        for key, (b, count) in plan.items()
    }
    best, tried = searches(study, list(begin.values()), settings.search_seeds)
    trainings: dict[accuracies.Key, Training] = {
        key: one.replace(learning_rate=rate) for (key, one), rate in zip(begin.items(), best, strict=True)
    }
    cases = accuracies.train_all(study, trainings, lambda key: (_BETWEEN,), _MARGIN)
    verdicts = {str(key[0]): is_worse(one.comparison) for key, one in cases.items() if key != (_BETWEEN,)}
    lines, table = accuracies.lines(("training",), cases, study), accuracies.rows(("training",), cases, study)
    return Findings(verdicts, lines, table, tried, _draw(cases, len(study.seeds)), accuracies.notes(cases))


def _first_rate(study: Study, batch_size: int) -> float:
    return scaled(study.config.optimizer.learning_rate, batch_size / study.config.recipe.batch_size, "sqrt")


def _draw(cases: Mapping[accuracies.Key, Compared], num_seeds: int) -> Any:
    figure, axes = plt.subplots(figsize=(7, 2.6), layout="constrained")
    label, factor = figures.metric_axis("accuracy")
    for y, (key, one) in enumerate(cases.items()):
        middle, low, high = factor * np.array(one.accuracy)
        bars = [[middle - low], [high - middle]] if np.isfinite([low, high]).all() else None
        axes.errorbar(middle, y, xerr=bars, color=figures.COLORS[y], marker=figures.MARKERS[y], capsize=2, label=key[0])
    axes.set(yticks=range(len(cases)), yticklabels=[key[0] for key in cases], xlabel=label)
    axes.invert_yaxis()
    figure.supxlabel(f"Bars: 95 % intervals over {num_seeds} seeds", fontsize=7)
    return figure


CLAIM = Claim(
    name="extremes",
    question="What about batch 1, and the full batch?",
    claim="Batch 1 is too noisy to train well, and the full batch does not generalise.",
    prediction="With a learning rate of its own, batch 1 loses nothing after the same examples but time. The full "
    "batch makes one update an epoch, which is too few; after as many updates as a small batch it has seen far more "
    "data.",
    measurement="Test accuracy with a constant learning rate from a search for each (on other seeds than are "
    "reported): batch 1, a batch in between, and the full batch for as many epochs and for as many updates. "
    "Differences to the batch in between are paired by seed, with 95 % intervals.",
    margin=f"{100 * _MARGIN:g} point of test accuracy; true where it is worse than the batch in between",
    settings={
        "digits": Settings(),
        "fashion_mnist": Settings(batch_size=256, num_epochs=1.0, search_seeds=1),
        "cifar10": Settings(batch_size=64, num_epochs=5.0),
        "quick": Settings(64, num_epochs=0.2, search_seeds=1),
    },
    measure=measure,
)
