"""Claim: the learning rate goes with B for SGD, and with √B for Adam."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.effects import accuracies, pictures
from experiments.effects.accuracies import BASE, Compared
from experiments.effects.claim import Claim, Findings
from experiments.effects.rates import RULES, largest, scaled, searches
from experiments.effects.study import Study
from experiments.effects.training import Training
from experiments.harness import figures

_MARGIN = 0.01
# What people use, and where a search begins, relative to the rate of SGD.
_OPTIMIZERS = {"sgd": ("linear", 1.0), "momentum": ("linear", 0.1), "adam": ("sqrt", 0.02)}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Batch sizes, of which the first has the learning rate from a search, and the length of all trainings."""

    batch_sizes: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512)
    num_epochs: float = 20.0
    search_seeds: int = 3


def measure(study: Study, settings: Settings) -> Findings:
    """Searches the rate of each optimizer at the first batch size, and scales it by each rule."""
    first = settings.batch_sizes[0]
    updates = {size: study.updates(settings.num_epochs, size) for size in settings.batch_sizes}
    begin = [
        Training(_config(study, optimizer, factor, first), (updates[first],))
        for optimizer, (_, factor) in _OPTIMIZERS.items()
    ]
    best, tried = searches(study, begin, settings.search_seeds)
    trainings: dict[accuracies.Key, Training] = {}
    for one, rate in zip(begin, best, strict=True):
        for rule in RULES:
            for size in settings.batch_sizes:
                config = one.config.replace(batch_size=size, learning_rate=scaled(rate, size / first, rule))
                trainings[one.config.optimizer.optimizer, rule, size] = Training(config, (updates[size],))
    cases = accuracies.train_all(study, trainings, lambda key: (key[0], "constant", first), _MARGIN)
    holds = {key: _reach(cases, *key, settings.batch_sizes) for key in _keys()}
    lines, table = (
        accuracies.lines(("optimizer", "rule"), cases, study),
        accuracies.rows(("optimizer", "rule"), cases, study),
    )
    summary = [
        f"{optimizer}, {rule}: {_breaks(cases, optimizer, rule, settings.batch_sizes)}." for optimizer, rule in _keys()
    ]
    notes = [*accuracies.notes(cases), *summary]
    return Findings(_verdicts(holds), lines, table, tried, _draw(cases, len(study.seeds)), notes)


def _config(study: Study, optimizer: str, factor: float, size: int) -> Any:
    rate = float(f"{study.config.optimizer.learning_rate * factor:.6g}")
    return study.config.replace(optimizer=optimizer, learning_rate=rate, batch_size=size)


def _keys() -> list[tuple[str, str]]:
    return [(optimizer, rule) for optimizer in _OPTIMIZERS for rule in RULES]


def _reach(cases: Mapping[accuracies.Key, Compared], optimizer: str, rule: str, sizes: Sequence[int]) -> int:
    """The largest batch size up to which none is shown to be worse, or diverges."""

    def is_fit(size: int) -> bool:
        one = cases[optimizer, rule, size]
        return not one.num_diverged and not (one.comparison.verdict == "different" and one.comparison[0].high < 0)

    return largest(sizes, is_fit) or 0


def _equal_up_to(cases: Mapping[accuracies.Key, Compared], optimizer: str, rule: str, sizes: Sequence[int]) -> int:
    """The largest batch size up to which all are shown to be equal."""

    def is_fit(size: int) -> bool:
        one = cases[optimizer, rule, size]
        return not one.num_diverged and one.comparison.verdict in (BASE, "equal")

    return largest(sizes, is_fit) or 0


def _breaks(cases: Mapping[accuracies.Key, Compared], optimizer: str, rule: str, sizes: Sequence[int]) -> str:
    equal, reach = (function(cases, optimizer, rule, sizes) for function in (_equal_up_to, _reach))
    later = [size for size in sizes if size > reach]
    return f"equal up to {equal:,}, " + (f"breaks at {later[0]:,}" if later else f"not broken up to {sizes[-1]:,}")


def _verdicts(reach: Mapping[tuple[str, str], int]) -> dict[str, bool | None]:
    """Whether people's rule reaches further than the two others; None if it does no better than one of them."""
    found: dict[str, bool | None] = {}
    for optimizer, (rule, _) in _OPTIMIZERS.items():
        others = [reach[optimizer, other] for other in RULES if other != rule]
        own = reach[optimizer, rule]
        found[f"{rule} for {optimizer}"] = True if own > max(others) else (False if own < max(others) else None)
    return found


def _draw(cases: Mapping[accuracies.Key, Compared], num_seeds: int) -> Any:
    figure, [axes] = pictures.panels(len(_OPTIMIZERS), height=3.4)
    label, factor = figures.metric_axis("accuracy")
    for panel, optimizer in zip(axes, _OPTIMIZERS, strict=True):
        series: dict[str, list] = {}
        for (its, rule, _), one in cases.items():
            if its == optimizer:
                series.setdefault(f"rate {rule}", []).append((one.batch_size, one.accuracy))
        pictures.against_batch(panel, series, label if panel is axes[0] else "", factor)
        panel.set_title(optimizer)
    return pictures.finish(figure, axes[0], 3, pictures.bars_note(num_seeds))


CLAIM = Claim(
    name="rules",
    question="How does the learning rate go with the batch size?",
    claim="The learning rate goes with B for SGD and momentum, and with √B for Adam.",
    prediction="While noise dominates, ε ∝ B keeps SGD's noise scale, and ε ∝ √B Adam's; both end where curvature "
    "limits the learning rate, and the kept rate makes too few updates from the start.",
    measurement="Test accuracy after the same epochs with a constant learning rate, from a search at the smallest "
    "batch (on other seeds than are reported), then kept, ∝ √B or ∝ B. A rule breaks at the first batch that is worse "
    "than the smallest, paired by seed, or with which a seed diverges. Adam's β are kept.",
    margin=f"{100 * _MARGIN:g} point of test accuracy; true where people's rule breaks later than both others",
    settings={
        "digits": Settings(),
        "fashion_mnist": Settings((16, 64, 256, 1024), num_epochs=2.0),
        "cifar10": Settings((32, 64, 128, 256, 512, 1024, 2048), num_epochs=20.0),
        "quick": Settings((32, 256), num_epochs=0.5, search_seeds=1),
    },
    measure=measure,
)
