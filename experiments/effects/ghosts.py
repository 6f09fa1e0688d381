"""Claim: ghost batch norm closes the gap of large batches."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from bsjax.analysis.statistics import compare
from experiments.effects import accuracies, pictures
from experiments.effects.accuracies import Compared
from experiments.effects.claim import Claim, Findings, is_more
from experiments.effects.rates import scaled, searches
from experiments.effects.study import Study
from experiments.effects.training import Training, finals
from experiments.harness import figures

_MARGIN = 0.01


@dataclasses.dataclass(frozen=True)
class Settings:
    """The grid, whose first batch size with the first ghost is the baseline, and the length of all trainings."""

    batch_sizes: tuple[int, ...] = (32, 128, 512)
    ghost_batch_sizes: tuple[int, ...] = (8, 32, 128, 512)
    num_epochs: float = 20.0
    search_seeds: int = 3
    model: tuple[tuple[str, Any], ...] = (("model", "cnn"), ("model_depth", 2), ("model_width", 8))


def measure(study: Study, settings: Settings) -> Findings:
    """Searches the rate at the smallest batch, scales it by the square root, and trains the grid of ghosts."""
    size, ghost = settings.batch_sizes[0], settings.ghost_batch_sizes[0]
    # Running averages forget within some tens of ghosts, so that large ghosts, which are few, have forgotten the start.
    base = study.config.replace(**dict(settings.model), batch_norm_decay=0.8, microbatch_size="auto")
    first = base.replace(batch_size=size, ghost_batch_size=ghost)
    begin = Training(first, (study.updates(settings.num_epochs, size),))
    [rate], tried = searches(study, [begin], settings.search_seeds)
    trainings: dict[accuracies.Key, Training] = {
        (g, b): Training(
            base.replace(batch_size=b, ghost_batch_size=g, learning_rate=scaled(rate, b / size, "sqrt")),
            (study.updates(settings.num_epochs, b),),
        )
        for b in settings.batch_sizes
        for g in settings.ghost_batch_sizes
        if b % g == 0
    }
    cases = accuracies.train_all(study, trainings, lambda key: (ghost, size), _MARGIN)
    verdicts = {
        f"batch {b}": _gains(cases, ghost, b, study) for b in settings.batch_sizes if (b, b) in cases and b != ghost
    }
    lines, table = accuracies.lines(("ghost",), cases, study), accuracies.rows(("ghost",), cases, study)
    return Findings(verdicts, lines, table, tried, _draw(cases, len(study.seeds)), accuracies.notes(cases))


def _gains(cases: Mapping[accuracies.Key, Compared], ghost: int, size: int, study: Study) -> bool | None:
    """Whether the smallest ghost is better than the whole batch as one ghost."""
    ghosts, whole = (finals(cases[g, size].outcomes, "test_accuracy") for g in (ghost, size))
    return is_more(compare(ghosts, whole, _MARGIN, resolution=study.resolution))


def _draw(cases: Mapping[accuracies.Key, Compared], num_seeds: int) -> Any:
    figure, [[axes]] = pictures.panels(1)
    series: dict[str, list] = {}
    for (ghost, _), one in cases.items():
        series.setdefault(f"ghosts of {ghost}", []).append((one.batch_size, one.accuracy))
    pictures.against_batch(axes, dict(sorted(series.items())), *figures.metric_axis("accuracy"))
    return pictures.finish(figure, axes, 4, pictures.bars_note(num_seeds))


CLAIM = Claim(
    name="ghosts",
    question="Does ghost batch norm close the gap of large batches?",
    claim="Large batches generalise as small ones do if batch normalisation takes its statistics over small ghosts.",
    prediction="Small ghosts keep the noise of the statistics, which regularises; they do nothing about too few "
    "updates.",
    measurement="Test accuracy after the same epochs on a grid of ghosts and batch sizes, with a constant learning "
    "rate from a search at the smallest batch, ∝ √B. Differences to the smallest batch with the smallest ghost are "
    "paired by seed, with 95 % intervals; the verdict compares the smallest ghost with the whole batch as one.",
    margin=f"{100 * _MARGIN:g} point of test accuracy; true where the smallest ghost is better than one of the whole "
    f"batch",
    settings={
        "digits": Settings(),
        "fashion_mnist": Settings((32, 128, 512), (8, 32, 128, 512), num_epochs=1.0, search_seeds=1),
        "cifar10": Settings(
            (64, 256, 1024, 4096),
            (16, 64, 256, 1024, 4096),
            num_epochs=30.0,
            model=(("model", "wide_resnet"), ("model_depth", 16), ("model_width", 2)),
        ),
        "quick": Settings(
            (32, 64),
            (16, 64),
            num_epochs=0.2,
            search_seeds=1,
            model=(("model", "cnn"), ("model_depth", 1), ("model_width", 2)),
        ),
    },
    measure=measure,
)
