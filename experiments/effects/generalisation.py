"""Claim: small batches generalise better."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments.effects import accuracies, pictures, regimes
from experiments.effects.accuracies import Compared
from experiments.effects.claim import Claim, Findings, is_worse
from experiments.effects.rates import RULES, scaled, searches
from experiments.effects.study import Study
from experiments.effects.training import Training
from experiments.harness import figures

_MARGIN = 0.01
_SEARCHED = "searched"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Batch sizes, the one that the others are compared with, and the length of training at that one."""

    batch_sizes: tuple[int, ...] = (4, 16, 64, 256, 1024)
    base_batch_size: int = 16
    num_epochs: float = 20.0
    search_seeds: int = 3


def measure(study: Study, settings: Settings) -> Findings:
    """Searches the rates, trains every rule in both regimes, and compares with the base batch size."""
    trainings, tried = _trainings(study, settings)
    base = ("epochs", _SEARCHED, settings.base_batch_size)
    cases = accuracies.train_all(study, trainings, lambda key: base, _MARGIN)
    verdicts = {
        f"{rule} rate at equal {regime}": _loses(cases, regime, rule, settings)
        for regime in regimes.REGIMES
        for rule in (*RULES, _SEARCHED)
    }
    names = ("equal", "rule")
    lines, table = accuracies.lines(names, cases, study), accuracies.rows(names, cases, study)
    return Findings(verdicts, lines, table, tried, _draw(cases, len(study.seeds)), accuracies.notes(cases))


def _trainings(study: Study, settings: Settings) -> tuple[dict[accuracies.Key, Training], list[dict[str, Any]]]:
    """By regime, rule and batch size; and what the searches have tried."""
    base = settings.base_batch_size
    plain = regimes.trainings(study, study.config, settings.batch_sizes, base, settings.num_epochs)
    best, tried = searches(study, list(plain.values()), settings.search_seeds)
    rates = dict(zip(plain, best, strict=True))
    found: dict[accuracies.Key, Training] = {}
    for (regime, size), one in plain.items():
        for rule in RULES:
            found[regime, rule, size] = one.replace(learning_rate=scaled(rates["epochs", base], size / base, rule))
        found[regime, _SEARCHED, size] = one.replace(learning_rate=rates[regime, size])
    return found, tried


def _loses(cases: Mapping[accuracies.Key, Compared], regime: str, rule: str, settings: Settings) -> bool | None:
    """Whether the largest batch size with which no seed diverged is worse than the base."""
    num_diverged = {size: cases[regime, rule, size].num_diverged for size in settings.batch_sizes}
    largest = regimes.largest_stable(num_diverged, settings.base_batch_size)
    return is_worse(cases[regime, rule, largest].comparison) if largest else None


def _draw(cases: Mapping[accuracies.Key, Compared], num_seeds: int) -> Any:
    figure, [axes] = pictures.panels(2)
    label, factor = figures.metric_axis("accuracy")
    for panel, regime in zip(axes, regimes.REGIMES, strict=True):
        series: dict[str, list] = {}
        for (its_regime, rule, _), one in cases.items():
            if its_regime == regime:
                series.setdefault(f"rate {rule}", []).append((one.batch_size, one.accuracy))
        pictures.against_batch(panel, series, label, factor)
        panel.set_title(f"Equal {regime}")
    return pictures.finish(figure, axes[0], 4, pictures.bars_note(num_seeds))


CLAIM = Claim(
    name="generalisation",
    question="Do small batches generalise better?",
    claim="Small batches find solutions that are better on test data.",
    prediction="At equal epochs a large batch makes few updates, and no rule can make up for that beyond the critical "
    "batch size. At equal updates, with a learning rate of its own, it has more data and less noise: it should lose "
    "only as far as noise itself helps.",
    measurement="Test accuracy at the end of training with a constant learning rate: kept, ∝ √B, ∝ B, and from a "
    "search at each batch size (by test loss, on other seeds than are reported), at equal epochs and at equal "
    "updates. Differences to the base batch size are paired by seed, with 95 % intervals.",
    margin=f"{100 * _MARGIN:g} point of test accuracy; true where the largest batch is worse",
    settings={
        "digits": Settings(),
        "fashion_mnist": Settings((8, 32, 128, 512), base_batch_size=32, num_epochs=2.0),
        "cifar10": Settings((16, 64, 256, 1024, 4096), base_batch_size=64, num_epochs=20.0),
        "quick": Settings((16, 512), num_epochs=1.0, search_seeds=1),
    },
    measure=measure,
)
