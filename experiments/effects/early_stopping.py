"""Claim: a large batch only needs to train longer, and to stop in time."""

import dataclasses
import functools
import math
import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from bsjax.analysis.microbatches import evaluation_losses, microbatches
from bsjax.analysis.statistics import Comparison, Interval, compare, mean_interval
from experiments.effects import pictures, regimes
from experiments.effects.accuracies import BASE
from experiments.effects.claim import Claim, Findings, columns, exp, is_more, text
from experiments.effects.rates import searches
from experiments.effects.study import Study
from experiments.effects.training import Lab, Outcome, Training, evaluations

_MARGIN = 1.1
_FIRST = 100  # the first evaluation is after this part of a training

Key = tuple[str, str, int]  # regime, stop and batch size


@dataclasses.dataclass(frozen=True)
class Settings:
    """Batch sizes, the one that the others are compared with, and the length of training at that one."""

    batch_sizes: tuple[int, ...] = (4, 16, 64, 256, 1024)
    base_batch_size: int = 16
    num_epochs: float = 60.0
    num_evaluations: int = 40
    search_seeds: int = 3
    num_examples: int = 0  # the first training examples; 0, all of them


@dataclasses.dataclass(frozen=True)
class Halves:
    """The probe: the test loss on every other test image, and on the images between them."""

    name: str = "halves"

    def __call__(self, lab: Lab, params: Any, batch_stats: Any) -> dict[str, float]:
        """Means over the test images with even and with odd indices."""
        parts = microbatches(lab.test, 512)
        losses = np.concatenate(
            [np.asarray(_losses(lab)(params, batch_stats, *part), np.float64)[part[1] >= 0] for part in parts]
        )
        return {"even": float(losses[::2].mean()), "odd": float(losses[1::2].mean())}


@functools.lru_cache(maxsize=8)
def _losses(lab: Lab) -> Any:
    return jax.jit(functools.partial(evaluation_losses, lab.task))


class Stop(NamedTuple):
    """Where a training stops, and its test loss there; NaN if it diverged."""

    test_loss: float
    updates: float
    examples_seen: float


def stop_last(outcome: Outcome) -> Stop:
    """The end."""
    return Stop(*(outcome.final(name) for name in ("test_loss", "update", "examples_seen")))


def stop_early(outcome: Outcome) -> Stop:
    """The best evaluation: chosen on each half of the test images, reported on the other; the mean of both ways.

    >>> curve = [(1, 3.0, 3.0), (2, 1.0, 2.0), (4, 1.5, 1.0)]
    >>> points = [{"update": u, "examples_seen": 8 * u, "even": even, "odd": odd} for u, even, odd in curve]
    >>> stop_early(Outcome(None, points, diverged=False))
    Stop(test_loss=1.75, updates=3.0, examples_seen=24.0)
    """
    if outcome.diverged:
        return Stop(*[math.nan] * 3)
    found = []
    for chosen_on, reported_on in (("even", "odd"), ("odd", "even")):
        best = min(outcome.points, key=operator.itemgetter(chosen_on))
        found.append((best[reported_on], best["update"], best["examples_seen"]))
    return Stop(*np.mean(found, axis=0).tolist())


_STOPS = {"last": stop_last, "early": stop_early}


class Case(NamedTuple):
    """A regime, a stop and a batch size."""

    training: Training
    stops: list[Stop]  # of each seed
    log_loss: Interval
    comparison: Comparison  # of the logarithm, with the base batch size that stops alike

    @property
    def num_diverged(self) -> int:
        """Seeds that are left out."""
        return sum(math.isnan(stop.test_loss) for stop in self.stops)


def measure(study: Study, settings: Settings) -> Findings:
    """Searches the rates for each stop, trains in both regimes, and compares with the base batch size."""
    trainings, tried = _trainings(study, settings)
    cases = _cases(study, trainings, settings.base_batch_size)
    verdicts: dict[str, bool | None] = {}
    for regime, stop, label in (
        ("updates", "last", "last parameters at equal updates"),
        ("epochs", "early", "stopped early at equal epochs"),
        ("updates", "early", "stopped early at equal updates"),
    ):
        largest = _largest(cases, regime, stop, settings)
        worse = None if largest is None else is_more(cases[regime, stop, largest].comparison)
        verdicts[label] = None if worse is None else not worse
    num_examples = settings.num_examples or study.base.dataset_size
    table = [_row(key, one, num_examples) for key, one in cases.items()]
    figure = _draw(cases, len(study.seeds))
    return Findings(verdicts, _lines(table, cases), table, tried, figure, _notes(cases, settings))


def _trainings(study: Study, settings: Settings) -> tuple[dict[Key, Training], list[dict[str, Any]]]:
    """With the rate that is best for each stop; and what the searches have tried, which share trainings."""
    sizes, base = settings.batch_sizes, settings.base_batch_size
    plain = regimes.trainings(study, study.config, sizes, base, settings.num_epochs, settings.num_examples)
    begin = {key: _evaluated(one, settings.num_evaluations) for key, one in plain.items()}
    rates: dict[str, dict[tuple[str, int], float]] = {}
    tried: list[dict[str, Any]] = []
    for stop in _STOPS:
        score = functools.partial(_test_loss, stop)
        best, its_tried = searches(study, list(begin.values()), settings.search_seeds, score=score)
        rates[stop] = dict(zip(begin, best, strict=True))
        tried += [{"stop": stop, **row} for row in its_tried]
    return {
        (regime, stop, size): one.replace(learning_rate=rates[stop][regime, size])
        for (regime, size), one in begin.items()
        for stop in _STOPS
    }, tried


def _evaluated(one: Training, count: int) -> Training:
    """With evaluations of both halves on the way, at the same parts of every training."""
    last = one.evaluate_at[-1]
    stops = evaluations(last, count, first=max(1, last // _FIRST))
    return dataclasses.replace(one, evaluate_at=stops, probe=Halves(), probe_at=stops)


def _test_loss(stop: str, outcome: Outcome) -> float:
    return _STOPS[stop](outcome).test_loss


def _cases(study: Study, trainings: Mapping[Key, Training], base: int) -> dict[Key, Case]:
    outcomes = study.train_seeds(trainings)
    stops = {key: [_STOPS[key[1]](one) for one in its] for key, its in outcomes.items()}
    logs = {key: np.log([stop.test_loss for stop in its]) for key, its in stops.items()}

    def compared(key: Key) -> Comparison:
        baseline = ("epochs", key[1], base)
        if trainings[key] == trainings[baseline]:
            return Comparison(Interval(0.0, 0.0, 0.0), BASE)
        return compare(logs[key], logs[baseline], math.log(_MARGIN))

    return {key: Case(trainings[key], stops[key], mean_interval(logs[key]), compared(key)) for key in trainings}


def _largest(cases: Mapping[Key, Case], regime: str, stop: str, settings: Settings) -> int | None:
    num_diverged = {size: cases[regime, stop, size].num_diverged for size in settings.batch_sizes}
    return regimes.largest_stable(num_diverged, settings.base_batch_size)


def _notes(cases: Mapping[Key, Case], settings: Settings) -> list[str]:
    """The control: is there a gap to close? And which seeds are missing."""
    notes = []
    if largest := _largest(cases, "epochs", "last", settings):
        difference, verdict = cases["epochs", "last", largest].comparison
        notes.append(
            f"Control, the last parameters at equal epochs: batch {largest:,} has {text(exp(difference))} times the "
            f"test loss of batch {settings.base_batch_size:,} ({verdict})."
        )
    return notes + [
        f"Equal {regime}, {stop}, batch {size:,}: {one.num_diverged} of {len(one.stops)} seeds diverged and are left "
        "out."
        for (regime, stop, size), one in cases.items()
        if one.num_diverged
    ]


def _row(key: Key, one: Case, num_examples: int) -> dict[str, Any]:
    regime, stop, size = key
    updates = one.training.evaluate_at[-1]
    row: dict[str, Any] = {"equal": regime, "stop": stop, "batch_size": size}
    row |= {"learning_rate": one.training.config.optimizer.learning_rate}
    row |= {"updates": updates, "epochs": updates * size / num_examples}
    row["stop_updates"] = mean_interval([its.updates for its in one.stops]).estimate
    row["stop_epochs"] = mean_interval([its.examples_seen for its in one.stops]).estimate / num_examples
    row |= columns("test_loss", exp(one.log_loss)) | columns("ratio", exp(one.comparison.difference))
    return row | {"verdict": one.comparison.verdict, "diverged": one.num_diverged}


def _lines(table: list[dict[str, Any]], cases: Mapping[Key, Case]) -> list[list[str]]:
    head = ["equal", "stop", "batch", "rate", "updates", "epochs", "stops at update", "at epoch", "test loss"]
    lines = [[*head, "÷ base batch's", ""]]
    for row, one in zip(table, cases.values(), strict=True):
        cells = [row["equal"], row["stop"], f"{row['batch_size']:,}", f"{row['learning_rate']:g}"]
        cells += [f"{row['updates']:,}", f"{row['epochs']:,.1f}"]
        cells += [f"{row['stop_updates']:,.0f}", f"{row['stop_epochs']:,.1f}", text(exp(one.log_loss), 4)]
        ratio = "" if one.comparison.verdict == BASE else text(exp(one.comparison.difference))
        lines.append([*cells, ratio, one.comparison.verdict])
    return lines


def _draw(cases: Mapping[Key, Case], num_seeds: int) -> Any:
    figure, axes = pictures.panels(len(regimes.REGIMES), rows=2, height=3.0)
    for column, regime in zip(axes.T, regimes.REGIMES, strict=True):
        losses: dict[str, list] = {}
        updates: dict[str, list] = {}
        for (its_regime, stop, size), one in cases.items():
            if its_regime == regime:
                label = {"last": "last parameters", "early": "stopped early"}[stop]
                losses.setdefault(label, []).append((size, exp(one.log_loss)))
                when = mean_interval(np.log([its.updates for its in one.stops]))
                updates.setdefault(label, []).append((size, exp(when)))
        pictures.against_batch(column[0], losses, "Test loss", log=True)
        pictures.against_batch(column[1], updates, "Updates before the stop", log=True)
        column[0].set_title(f"Equal {regime}")
    return pictures.finish(figure, axes[0, 0], 2, pictures.bars_note(num_seeds))


CLAIM = Claim(
    name="early_stopping",
    question="Does a large batch only need to train longer, and to stop in time?",
    claim="The gap of large batches comes from too few updates, and closes if they train for as many as small ones "
    "(Hoffer, Hubara and Soudry, 2017, https://arxiv.org/abs/1705.08741); early stopping makes batches equal.",
    prediction="Early stopping removes overfitting. It cannot add the updates that a large batch lacks at equal "
    "epochs. At equal updates a large batch has seen more data with less noise: it fits the training set sooner, "
    "overfits sooner, and stopped in time it should lose only as far as noise itself helps.",
    measurement="Test loss with a constant learning rate, of the last parameters and of the best evaluation, at equal "
    "epochs and at equal updates. The best evaluation is chosen on every other test image and reported on the others, "
    "and the other way round; the mean of both ways counts. Each stop has a learning rate of its own at each batch "
    "size, from a search by the same loss on other seeds than are reported. Ratios to the base batch size that stops "
    "alike are paired by seed; means are geometric, with 95 % intervals.",
    margin=f"a factor {_MARGIN:g} of test losses; true where the largest batch is not worse than the base",
    settings={
        "digits": Settings(),
        "fashion_mnist": Settings(
            (8, 32, 128, 512), base_batch_size=32, num_epochs=60.0, search_seeds=2, num_examples=2000
        ),
        "cifar10": Settings((16, 64, 256, 1024, 4096), base_batch_size=64, num_epochs=40.0),
        "quick": Settings((16, 128), num_epochs=1.0, num_evaluations=5, search_seeds=1),
    },
    measure=measure,
)
