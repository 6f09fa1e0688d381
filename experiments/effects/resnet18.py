"""Claim: ResNet-18 on CIFAR-100 learns better with batches of 320 than of 640."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.effects import accuracies
from experiments.effects.accuracies import Compared
from experiments.effects.claim import Claim, Findings, is_worse
from experiments.effects.study import Study
from experiments.effects.training import Data, Training
from experiments.harness import figures

_MARGIN = 0.01


@dataclasses.dataclass(frozen=True)
class Settings:
    """The smaller of the two batch sizes, its learning rate, and the length of all trainings.

    Attributes:
      batch_size: the other is twice as large.
      learning_rate: of the smaller batch, at the beginning.
      num_epochs: of the training examples.
      num_examples: the first training examples, which are all that there are; 0, all of them.
      width: of the network; 64 is ResNet-18's own.
      drops: shares of the training after which the learning rate falls by 5.
      num_evaluations: at even distances.
    """

    batch_size: int = 320
    learning_rate: float = 0.1
    num_epochs: float = 200.0
    num_examples: int = 0
    width: int = 64
    drops: tuple[float, ...] = (0.4, 0.7, 0.9)
    num_evaluations: int = 20


def measure(study: Study, settings: Settings) -> Findings:
    """Trains with both batch sizes, and the larger one at one and two times the learning rate."""
    size, rate = settings.batch_size, settings.learning_rate
    updates = max(2, study.updates(settings.num_epochs, size, settings.num_examples))
    half = updates // 2
    trainings: dict[accuracies.Key, Training] = {
        ("small batch",): _training(study, settings, size, rate, updates),
        ("twice the batch",): _training(study, settings, 2 * size, rate, half),
        ("twice the batch and rate",): _training(study, settings, 2 * size, 2 * rate, half),
        ("twice the batch, as many updates",): _training(study, settings, 2 * size, rate, updates),
        ("as few updates, small batch",): _training(study, settings, size, rate, half),
    }
    cases = accuracies.train_all(study, trainings, lambda key: ("small batch",), _MARGIN)
    twice = [str(key) for (key,) in cases if str(key).startswith("twice")]
    verdicts = {f"against {key}": is_worse(cases[key,].comparison) for key in twice}
    lines, table = accuracies.lines(("training",), cases, study), accuracies.rows(("training",), cases, study)
    points = [
        {"training": key, "seed": outcome.training.config.run.seed}
        | {name: point[name] for name in ("update", "examples_seen", "train_loss", "test_loss", "test_accuracy")}
        for (key,), one in cases.items()
        for outcome in one.outcomes
        for point in outcome.points
    ]
    return Findings(verdicts, lines, table, points, _draw(cases, len(study.seeds)), accuracies.notes(cases))


def _training(study: Study, settings: Settings, size: int, rate: float, updates: int) -> Training:
    stops = tuple(round(updates * share) for share in np.linspace(0, 1, settings.num_evaluations + 1)[1:])
    drops = tuple(round(updates * share) for share in settings.drops)
    config = study.config.replace(batch_size=size, learning_rate=rate, model_width=settings.width)
    return Training(config, stops, drops=drops, data=Data(num_examples=settings.num_examples))


def _draw(cases: Mapping[accuracies.Key, Compared], num_seeds: int) -> Any:
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained", sharey=True)
    for i, ((key,), one) in enumerate(cases.items()):
        there = [outcome.points for outcome in one.outcomes if not outcome.diverged]
        if not there:
            continue
        mean = 100 * np.mean([[point["test_accuracy"] for point in points] for points in there], axis=0)
        for panel, clock in zip(axes, ("examples_seen", "update"), strict=True):
            panel.plot([point[clock] for point in there[0]], mean, **figures.line_style(i), label=key)
    axes[0].set(xlabel="Examples seen", ylabel="Test accuracy (%)")
    axes[1].set(xlabel="Updates")
    figures.legend_above(figure, axes[0], 3)
    figure.supxlabel(f"Means over {num_seeds} seeds", fontsize=7)
    return figure


CLAIM = Claim(
    name="resnet18",
    question="ResNet-18 on CIFAR-100: batches of 320 or of 640?",
    claim="The batch of 320 ends with the better accuracy.",
    prediction="Both are below the critical batch size, so twice the batch at twice the learning rate has the same "
    "noise and ends as well. At the same rate it has half the noise in half the updates: it loses where the updates "
    "are too few, which the small batch with as few updates shows too.",
    measurement="Final test accuracy with momentum 0.9, crops, flips and a learning rate that falls by 5 at three "
    "steps: the small batch; twice the batch after the same epochs, with its rate and with twice its rate; twice the "
    "batch for as many updates; and the control, the small batch for half the updates. Differences to the small batch "
    "are paired by seed, with 95 % intervals.",
    margin=f"{100 * _MARGIN:g} point of test accuracy; true where twice the batch is worse",
    settings={
        "cifar100_small": Settings(num_epochs=3.0, num_examples=20_000, width=16, num_evaluations=3),
        "cifar100": Settings(),
        "quick": Settings(32, 0.05, num_epochs=0.2, width=8, num_evaluations=2),  # the network of the other claims
    },
    measure=measure,
)
