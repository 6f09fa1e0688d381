"""Claim: momentum and batch size count only through lr / (B (1 - m))."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments.effects import accuracies, pictures
from experiments.effects.accuracies import BASE, Compared
from experiments.effects.claim import Claim, Findings, is_equal
from experiments.effects.rates import searches
from experiments.effects.study import Study
from experiments.effects.training import Training
from experiments.harness import figures

_MARGIN = 0.01


@dataclasses.dataclass(frozen=True)
class Settings:
    """The grid, whose first entries are the baseline, and the length of all trainings."""

    momentums: tuple[float, ...] = (0.0, 0.5, 0.9, 0.98)
    batch_sizes: tuple[int, ...] = (8, 32, 128)
    num_epochs: float = 20.0
    search_seeds: int = 3


def measure(study: Study, settings: Settings) -> Findings:
    """Searches the rate of the baseline, and trains the grid at its noise scale."""
    momentum, size = settings.momentums[0], settings.batch_sizes[0]
    base = study.config.replace(optimizer="momentum", momentum=momentum, batch_size=size)
    [rate], tried = searches(
        study, [Training(base, (study.updates(settings.num_epochs, size),))], settings.search_seeds
    )
    noise = rate / (size * (1 - momentum))
    trainings: dict[accuracies.Key, Training] = {
        (m, b): Training(
            base.replace(momentum=m, batch_size=b, learning_rate=float(f"{noise * b * (1 - m):.6g}")),
            (study.updates(settings.num_epochs, b),),
        )
        for m in settings.momentums
        for b in settings.batch_sizes
    }
    cases = accuracies.train_all(study, trainings, lambda key: (momentum, size), _MARGIN)
    verdicts = {
        f"m {m:g} B {b}": False if one.num_diverged else is_equal(one.comparison)
        for (m, b), one in cases.items()
        if one.comparison.verdict != BASE
    }
    lines, table = accuracies.lines(("momentum",), cases, study), accuracies.rows(("momentum",), cases, study)
    return Findings(verdicts, lines, table, tried, _draw(cases, len(study.seeds)), accuracies.notes(cases))


def _draw(cases: Mapping[accuracies.Key, Compared], num_seeds: int) -> Any:
    figure, [[axes]] = pictures.panels(1)
    series: dict[str, list] = {}
    for (momentum, _), one in cases.items():
        series.setdefault(f"momentum {momentum:g}", []).append((one.batch_size, one.accuracy))
    pictures.against_batch(axes, series, *figures.metric_axis("accuracy"))
    return pictures.finish(figure, axes, 4, pictures.bars_note(num_seeds))


CLAIM = Claim(
    name="momentum",
    question="Do momentum and batch size count only through ε/(B(1-m))?",
    claim="Trainings with the same ε/(B(1-m)) are the same after the same examples.",
    prediction="The noise scale εN/(B(1-m)) is the same, and so is the mean path, while the batch is below the "
    "critical size and the momentum's memory of 1/(1-m) updates is short beside the training.",
    measurement="Test accuracy after the same epochs on a grid of momentums and batch sizes, with the learning rate "
    "that keeps ε/(B(1-m)); that of the baseline, the first of both, is from a search on other seeds. Differences to "
    "the baseline are paired by seed, with 95 % intervals.",
    margin=f"{100 * _MARGIN:g} point of test accuracy; true where the difference is within it",
    settings={
        "digits": Settings(),
        "fashion_mnist": Settings(batch_sizes=(16, 64, 256), num_epochs=2.0),
        "cifar10": Settings(batch_sizes=(32, 128, 512), num_epochs=20.0),
        "quick": Settings((0.0, 0.9), (16, 64), num_epochs=0.5, search_seeds=1),
    },
    measure=measure,
)
