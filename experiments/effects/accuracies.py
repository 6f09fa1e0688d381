"""Test accuracies of many trainings, each compared with one of them: what several claims report."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from bsjax.analysis.statistics import Comparison, Interval, compare, mean_interval
from experiments.effects.claim import columns, text
from experiments.effects.study import Study
from experiments.effects.training import Outcome, Training, finals

Key = tuple[Hashable, ...]
BASE = "base"  # instead of the verdict of a training that is the baseline itself


class Compared(NamedTuple):
    """A training with all seeds, and its test accuracy compared with that of a baseline."""

    training: Training
    outcomes: list[Outcome]
    accuracy: Interval
    comparison: Comparison

    @property
    def batch_size(self) -> int:
        """Of the training."""
        return self.training.config.recipe.batch_size

    @property
    def num_diverged(self) -> int:
        """Seeds that are left out."""
        return sum(outcome.diverged for outcome in self.outcomes)


def train_all(
    study: Study, trainings: Mapping[Key, Training], baseline: Callable[[Key], Key], margin: float
) -> dict[Key, Compared]:
    """Trains everything with each of the study's seeds.

    Args:
      study: trains.
      trainings: by their keys.
      baseline: the key of what a key is compared with.
      margin: the largest difference of accuracies that does not matter.
    """
    outcomes = study.train_seeds(trainings)
    values = {key: finals(its, "test_accuracy") for key, its in outcomes.items()}

    def compared(key: Key) -> Comparison:
        if trainings[key] == trainings[baseline(key)]:
            return Comparison(Interval(0.0, 0.0, 0.0), BASE)
        return compare(values[key], values[baseline(key)], margin, resolution=study.resolution)

    return {
        key: Compared(trainings[key], its, mean_interval(values[key], resolution=study.resolution), compared(key))
        for key, its in outcomes.items()
    }


def rows(names: Sequence[str], cases: Mapping[Key, Compared], study: Study) -> list[dict[str, Any]]:
    """A row for each key, whose first parts have these names, for a CSV file."""
    return [dict(zip(names, key, strict=False)) | _row(one, study) for key, one in cases.items()]


def _row(one: Compared, study: Study) -> dict[str, Any]:
    updates = one.training.evaluate_at[-1]
    losses = {name: mean_interval(finals(one.outcomes, name)).estimate for name in ("train_loss", "test_loss")}
    return {
        "batch_size": one.batch_size,
        "learning_rate": one.training.config.optimizer.learning_rate,
        "updates": updates,
        "epochs": updates * one.batch_size / study.base.dataset_size,
        **losses,
        **columns("test_accuracy", one.accuracy),
        **columns("difference", one.comparison.difference),
        "verdict": one.comparison.verdict,
        "diverged": one.num_diverged,
    }


def lines(names: Sequence[str], cases: Mapping[Key, Compared], study: Study) -> list[list[str]]:
    """The same as a table to print."""
    head = [*names, "batch", "rate", "updates", "train loss", "test loss", "test acc. %", "difference", ""]
    body = []
    for key, one in cases.items():
        row = _row(one, study)
        losses = [f"{row[name]:.4f}" for name in ("train_loss", "test_loss")]
        numbers = [f"{one.batch_size:,}", f"{row['learning_rate']:g}", f"{row['updates']:,}", *losses]
        difference = "" if one.comparison.verdict == BASE else text(one.comparison.difference, 2, 100)
        accuracy = text(one.accuracy, 2, 100)
        body.append([*map(str, key[: len(names)]), *numbers, accuracy, difference, one.comparison.verdict])
    return [head, *body]


def notes(cases: Mapping[Key, Compared]) -> list[str]:
    """Which seeds are missing."""
    return [
        f"{', '.join(map(str, key))}: {one.num_diverged} of {len(one.outcomes)} seeds diverged and are left out."
        for key, one in cases.items()
        if one.num_diverged
    ]
