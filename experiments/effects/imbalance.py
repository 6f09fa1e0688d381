"""Claim: small batches amplify class imbalance."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from bsjax.analysis.microbatches import microbatches
from bsjax.analysis.statistics import Comparison, Interval, compare, mean_interval
from bsjax.data import load_dataset
from experiments.effects import pictures
from experiments.effects.claim import Claim, Findings, columns, is_worse, text
from experiments.effects.rates import scaled, searches
from experiments.effects.study import Study
from experiments.effects.training import Data, Lab, Outcome, Training, finals, imbalanced

_MARGIN = 0.02
_ORDERS = {"shuffled": False, "even": True}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The imbalance, the batch sizes, of which the last is the one to compare with, and the length of all trainings."""

    imbalance: float = 50.0
    batch_sizes: tuple[int, ...] = (2, 8, 32, 128)
    num_epochs: float = 40.0
    num_rare: int = 3  # classes, the last ones
    search_seeds: int = 3


@dataclasses.dataclass(frozen=True)
class Recalls:
    """The probe: the accuracy on the test images of the rare classes, and of the others."""

    num_rare: int
    name: str = "recalls"

    def __call__(self, lab: Lab, params: Any, batch_stats: Any) -> dict[str, float]:
        """Means over classes of the accuracies on each."""
        labels, correct = lab.test.examples["label"], []
        for examples, index in microbatches(lab.test, 512):
            correct.append(np.asarray(_correct(lab)(params, batch_stats, examples))[index >= 0])
        hits, classes = np.concatenate(correct), int(labels.max()) + 1
        recalls = np.array([hits[labels == c].mean() for c in range(classes)], np.float64)
        return {"rare": float(recalls[-self.num_rare :].mean()), "others": float(recalls[: -self.num_rare].mean())}


@functools.lru_cache(maxsize=8)
def _correct(lab: Lab) -> Any:
    """Whether each image's most likely class is the right one."""

    def correct(params: Any, batch_stats: Any, examples: Any) -> jax.Array:
        keys = jax.random.split(jax.random.key(0), len(examples["label"]))
        inputs = lab.task.read(examples, keys, train=False)
        return lab.task.losses(params, batch_stats, inputs, keys, train=False)[1]["accuracy"]

    return jax.jit(correct)


class Case(NamedTuple):
    """An order and a batch size."""

    training: Training
    outcomes: list[Outcome]
    rare: Interval
    others: Interval
    to_largest: Comparison  # of the rare classes' accuracy, with the largest batch in the same order
    to_shuffled: Comparison  # and with the same batch in a shuffled order


def measure(study: Study, settings: Settings) -> Findings:
    """Searches the rate of each batch size with a shuffled order, and trains both orders with it."""
    trainings, tried = _trainings(study, settings)
    outcomes = study.train_seeds(trainings)
    values = {key: finals(its, "rare") for key, its in outcomes.items()}
    resolution = 10 / (settings.num_rare * study.base.test_size)
    largest = settings.batch_sizes[-1]

    def compared(key: tuple[str, int], other: tuple[str, int]) -> Comparison:
        if key == other:
            return Comparison(Interval(0.0, 0.0, 0.0), "base")
        return compare(values[key], values[other], _MARGIN, resolution=resolution)

    cases = {
        (order, size): Case(
            trainings[order, size],
            its,
            mean_interval(values[order, size], resolution=resolution),
            mean_interval(finals(its, "others")),
            compared((order, size), (order, largest)),
            compared((order, size), ("shuffled", size)),
        )
        for (order, size), its in outcomes.items()
    }
    verdicts = {
        f"batch {size} in {order} order": is_worse(cases[order, size].to_largest)
        for order in _ORDERS
        for size in settings.batch_sizes[:-1]
    }
    table = [_row(order, size, one) for (order, size), one in cases.items()]
    return Findings(verdicts, _lines(cases), table, tried, _draw(cases, len(study.seeds)))


def _trainings(study: Study, settings: Settings) -> tuple[dict[tuple[str, int], Training], list[dict[str, Any]]]:
    dataset = load_dataset(study.config.data.dataset, study.setup.control.data_dir)
    labels = dataset.train.gather(np.arange(len(dataset.train)))["label"]
    num_examples = len(imbalanced(labels, settings.imbalance))
    begin = []
    for size in settings.batch_sizes:
        rate = scaled(study.config.optimizer.learning_rate, size / study.config.recipe.batch_size, "sqrt")
        updates = max(1, round(settings.num_epochs * num_examples / size))
        config = study.config.replace(batch_size=size, learning_rate=rate)
        begin.append(Training(config, (updates,), probe=Recalls(settings.num_rare), data=Data(settings.imbalance)))
    best, tried = searches(study, begin, settings.search_seeds)
    return {
        (order, size): dataclasses.replace(one.replace(learning_rate=rate), data=Data(settings.imbalance, even))
        for order, even in _ORDERS.items()
        for size, one, rate in zip(settings.batch_sizes, begin, best, strict=True)
    }, tried


def _row(order: str, size: int, one: Case) -> dict[str, Any]:
    row = {"order": order, "batch_size": size, "learning_rate": one.training.config.optimizer.learning_rate}
    row |= {"updates": one.training.evaluate_at[-1]}
    row |= columns("rare", one.rare) | columns("others", one.others)
    for name, comparison in (("to_largest", one.to_largest), ("to_shuffled", one.to_shuffled)):
        row |= columns(name, comparison.difference) | {f"{name}_verdict": comparison.verdict}
    return row | {"diverged": sum(outcome.diverged for outcome in one.outcomes)}


def _lines(cases: Mapping[tuple[str, int], Case]) -> list[list[str]]:
    lines = [
        ["order", "batch", "rate", "rare classes, %", "others, %", "rare: to the largest batch", "", "to shuffled", ""]
    ]
    for (order, size), one in cases.items():
        cells = [order, f"{size:,}", f"{one.training.config.optimizer.learning_rate:g}"]
        cells += [text(one.rare, 1, 100), text(one.others, 1, 100)]
        for comparison in (one.to_largest, one.to_shuffled):
            difference = "" if comparison.verdict == "base" else text(comparison.difference, 1, 100)
            cells += [difference, comparison.verdict]
        lines.append(cells)
    return lines


def _draw(cases: Mapping[tuple[str, int], Case], num_seeds: int) -> Any:
    figure, [axes] = pictures.panels(2)
    for panel, name, title in zip(axes, ("rare", "others"), ("Rare classes", "Other classes"), strict=True):
        series: dict[str, list] = {}
        for (order, size), one in cases.items():
            series.setdefault(f"{order} order", []).append((size, getattr(one, name)))
        pictures.against_batch(panel, series, "Test accuracy (%)", 100.0)
        panel.set_title(title)
    return pictures.finish(figure, axes[0], 2, pictures.bars_note(num_seeds))


CLAIM = Claim(
    name="imbalance",
    question="Do small batches amplify class imbalance?",
    claim="Small batches miss the rare classes, so that they learn these worse than large batches do.",
    prediction="The mean gradient is the same, so over an epoch a small batch that sees a rare class seldom takes as "
    "large a step when it does. What is left is noise, which an order that spreads classes evenly takes out.",
    measurement="Training classes from frequent to rare in geometric steps, a balanced test set: the mean accuracy on "
    "the rare classes by batch size, after the same epochs, with a learning rate from a search for each (on other "
    "seeds), in a shuffled order and in one that spreads each class evenly over an epoch. Differences are paired by "
    "seed, with 95 % intervals.",
    margin=f"{100 * _MARGIN:g} points of the rare classes' accuracy; true where a batch is worse than the largest",
    settings={
        "digits": Settings(),
        "fashion_mnist": Settings(100.0, (4, 16, 64, 256), num_epochs=4.0, search_seeds=2),
        "cifar10": Settings(100.0, (8, 32, 128, 512), num_epochs=30.0),
        "quick": Settings(4.0, (16, 64), num_epochs=0.3, search_seeds=1),
    },
    measure=measure,
)
