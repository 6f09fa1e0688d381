"""Claims: contrastive learning needs large batches; and only batch × updates counts."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bsjax.analysis.statistics import Comparison, Interval, compare, mean_interval
from experiments.effects import pictures
from experiments.effects.claim import Claim, Findings, columns, is_equal, is_more, is_worse, text
from experiments.effects.linear_probe import LinearProbe
from experiments.effects.rates import largest, scaled, searches
from experiments.effects.study import Study
from experiments.effects.training import Outcome, Training, finals

_MARGIN = 0.02
# Groups of the smallest batch size, or of the batch size itself; and, instead of a training, an encoder that is not
# trained, or none.
_FIXED, _WHOLE, _UNTRAINED, _PIXELS = "fixed", "whole", "untrained", "pixels"
_EVAL_GROUP = 8  # for all, so that test losses have the same number of negatives
# Found with the seed 100, to the probe's accuracy at batch 64.
_TASKS: dict[str, dict[str, Any]] = {
    "digits": {"augmentation": "crop", "crop_padding": 1, "temperature": 0.5, "view_noise": 0.5},
    "signals": {"augmentation": "crop", "crop_padding": 16},
    "fashion_mnist": {"augmentation": "crop_flip", "crop_padding": 4},
    "cifar10": {"augmentation": "crop_flip", "crop_padding": 4},
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """For each data set a grid of batch sizes and of examples seen, all of them multiples of all batch sizes.

    The smallest batch size is the fixed group, and what others are compared with.
    """

    datasets: tuple[str, ...] = ("digits", "signals")
    batch_sizes: tuple[int, ...] = (16, 64, 256, 1024)
    examples_seen: tuple[int, ...] = (8192, 32_768, 131_072)
    num_labels: int = 500  # of the linear probe
    learning_rate: float = 4e-3  # where the search for the smallest batch size begins
    search_seeds: int = 2


class Cell(NamedTuple):
    """A place in the grid. At the smallest batch size both kinds of groups are the same, and are called fixed."""

    dataset: str
    groups: str
    batch_size: int
    examples_seen: int


class Case(NamedTuple):
    """A training with all seeds, and the test accuracy of the linear probe."""

    training: Training
    outcomes: list[Outcome]
    accuracy: Interval
    to_smallest: Comparison  # with the smallest batch size after as many examples; of a control, after the most
    to_fixed: Comparison  # with fixed groups at the same batch size, after as many examples


_Better = Callable[[Cell, Cell], bool | None]


def measure(study: Study, settings: Settings) -> Findings:
    """Searches the rate of each cell of the grid, trains all seeds with it, and probes the features."""
    trainings, tried = _trainings(study, settings)
    outcomes = study.train_seeds(trainings)
    values = {cell: finals(its, "probe_accuracy") for cell, its in outcomes.items()}

    def compared(cell: Cell, other: Cell) -> Comparison:
        if cell == other:
            return Comparison(Interval(0.0, 0.0, 0.0), "base")
        return compare(values[cell], values[other], _MARGIN, resolution=study.resolution)

    def case(cell: Cell) -> Case:
        examples = cell.examples_seen or settings.examples_seen[-1]
        smallest = Cell(cell.dataset, _FIXED, settings.batch_sizes[0], examples)
        fixed = cell._replace(groups=_FIXED) if cell.groups == _WHOLE else cell
        accuracy = mean_interval(values[cell], resolution=study.resolution)
        return Case(trainings[cell], outcomes[cell], accuracy, compared(cell, smallest), compared(cell, fixed))

    cases = {cell: case(cell) for cell in trainings}
    verdicts: dict[str, bool | None] = {}
    for dataset in settings.datasets:
        conditions = _gains(dataset, settings, lambda cell, other: is_more(compared(cell, other)))
        conditions |= _collapses(dataset, cases, settings)
        verdicts |= {f"{dataset}: {name}": value for name, value in conditions.items()}
    table = [_row(cell, one) for cell, one in cases.items()]
    figure = _draw(cases, settings.datasets, len(study.seeds))
    notes = [*_ranges(cases, settings), f"The searches tried {tried} learning rates."]
    return Findings(verdicts, _lines(cases), table, _points(outcomes), figure, notes)


def _trainings(study: Study, settings: Settings) -> tuple[dict[Cell, Training], int]:
    """Each with the rate of the least test loss of its probe, and the controls; and how many rates were tried."""
    smallest, *larger = settings.batch_sizes
    pairs = [*((_FIXED, size) for size in settings.batch_sizes), *((_WHOLE, size) for size in larger)]
    grid = {
        cell: _training(study, settings, cell)
        for dataset in settings.datasets
        for pair in pairs
        for cell in (Cell(dataset, *pair, examples) for examples in settings.examples_seen)
    }
    best, tried = searches(study, list(grid.values()), settings.search_seeds, score=_probe_loss)
    found = {cell: one.replace(learning_rate=rate) for (cell, one), rate in zip(grid.items(), best, strict=True)}
    for dataset in settings.datasets:
        for control in (_UNTRAINED, _PIXELS):
            cell = Cell(dataset, control, smallest, 0)
            found[cell] = _training(study, settings, cell)
    return found, len(tried)


def _training(study: Study, settings: Settings, cell: Cell) -> Training:
    smallest, size = settings.batch_sizes[0], cell.batch_size
    config = study.config.replace(
        dataset=cell.dataset,
        task="contrastive",
        group_size=size if cell.groups == _WHOLE else smallest,
        eval_group_size=_EVAL_GROUP,
        optimizer="adam",
        learning_rate=scaled(settings.learning_rate, size / smallest, "sqrt"),
        batch_size=size,
        microbatch_size="auto",
        **_TASKS[cell.dataset],
    )
    probe = LinearProbe(settings.num_labels, "pixels" if cell.groups == _PIXELS else "features")
    return Training(config, (cell.examples_seen // size,), probe=probe)


def _probe_loss(outcome: Outcome) -> float:
    return outcome.final("probe_loss")


def _gains(dataset: str, settings: Settings, is_better: _Better) -> dict[str, bool | None]:
    """Do larger batches and more negatives help on a data set? By what is compared."""
    (first, *larger), seen = settings.batch_sizes, settings.examples_seen
    small, fixed, whole = (
        Cell(dataset, *pair, seen[-1]) for pair in ((_FIXED, first), (_FIXED, larger[-1]), (_WHOLE, larger[-1]))
    )
    found = {
        "more negatives help at the largest batch": is_better(whole, fixed),
        "the largest batch helps, with fixed groups": is_better(fixed, small),
        "the largest batch helps, as one group": is_better(whole, small),
    }
    # As many updates as the smallest batch makes in its shortest training.
    updates = seen[0] // first
    for size in [size for size in larger if size * updates in seen][-1:]:
        few, many = small._replace(examples_seen=seen[0]), Cell(dataset, _WHOLE, size, size * updates)
        found[f"batch {size} as one group helps at equal updates"] = is_better(many, few)
    return found


def _collapses(dataset: str, cases: Mapping[Cell, Case], settings: Settings) -> dict[str, bool | None]:
    """Are the smallest and the largest batch equal after all numbers of examples? By the kind of groups."""
    found: dict[str, bool | None] = {}
    for groups in (_FIXED, _WHOLE):
        cells = [Cell(dataset, groups, settings.batch_sizes[-1], examples) for examples in settings.examples_seen]
        equal = [is_equal(cases[cell].to_smallest) for cell in cells]
        is_all: bool | None = False if False in equal else None if None in equal else True
        found[f"only batch × updates counts, {groups} groups"] = is_all
    return found


def _ranges(cases: Mapping[Cell, Case], settings: Settings) -> list[str]:
    """How far batch × updates may be all that counts: up to the first batch size that is worse than the smallest."""

    def reach(dataset: str, groups: str, examples: int) -> str:
        smallest, *larger = settings.batch_sizes
        cells = {size: cases[Cell(dataset, groups, size, examples)] for size in larger}
        size = largest(larger, lambda size: is_worse(cells[size].to_smallest) is not True) or smallest
        return f"{size:,} ({examples:,} examples)"

    return [
        f"{dataset}, {groups} groups: no batch is worse than the smallest up to "
        f"{', '.join(reach(dataset, groups, examples) for examples in settings.examples_seen)}."
        for dataset in settings.datasets
        for groups in (_FIXED, _WHOLE)
    ]


def _place(cell: Cell, training: Training) -> dict[str, Any]:
    row = cell._asdict() | {"updates": training.evaluate_at[-1]}
    return row | {"learning_rate": training.config.optimizer.learning_rate}


def _points(outcomes: Mapping[Cell, list[Outcome]]) -> list[dict[str, Any]]:
    names = ("probe_accuracy", "probe_loss", "test_loss", "test_accuracy")
    return [
        _place(cell, one.training) | {"seed": one.training.config.run.seed} | {name: one.final(name) for name in names}
        for cell, its in outcomes.items()
        for one in its
    ]


def _row(cell: Cell, one: Case) -> dict[str, Any]:
    row = _place(cell, one.training) | columns("probe_accuracy", one.accuracy)
    for name, comparison in (("to_smallest", one.to_smallest), ("to_fixed", one.to_fixed)):
        row |= columns(name, comparison.difference) | {f"{name}_verdict": comparison.verdict}
    return row | {"diverged": sum(outcome.diverged for outcome in one.outcomes)}


def _lines(cases: Mapping[Cell, Case]) -> list[list[str]]:
    lines = [["data", "groups", "batch", "examples", "rate", "probe, %", "to the smallest", "", "to fixed groups", ""]]
    for cell, one in cases.items():
        cells = [cell.dataset, cell.groups, f"{cell.batch_size:,}", f"{cell.examples_seen:,}"]
        cells += [f"{one.training.config.optimizer.learning_rate:g}", text(one.accuracy, 1, 100)]
        for comparison in (one.to_smallest, one.to_fixed):
            is_base = comparison.verdict == "base"
            cells += ["", ""] if is_base else [text(comparison.difference, 1, 100), comparison.verdict]
        lines.append(cells)
    return lines


def _draw(cases: Mapping[Cell, Case], datasets: tuple[str, ...], num_seeds: int) -> Any:
    rows = [(dataset, groups) for dataset in datasets for groups in (_FIXED, _WHOLE)]
    figure, axes = pictures.panels(2, len(rows), height=2.6)
    for (dataset, groups), panels in zip(rows, axes, strict=True):
        own = {cell: one for cell, one in cases.items() if cell.dataset == dataset}
        smallest = min(cell.batch_size for cell in own)  # of which both kinds of groups are the same
        for panel, label in zip(panels, ("Updates", "Examples seen"), strict=True):
            series: dict[str, list] = {}
            for cell, one in own.items():
                if cell.groups == groups or (cell.groups == _FIXED and cell.batch_size == smallest):
                    x = cell.examples_seen / (cell.batch_size if label == "Updates" else 1)
                    series.setdefault(f"batch {cell.batch_size:,}", []).append((x, one.accuracy))
            pictures.against_batch(panel, series, "Linear probe (%)", 100.0)
            for style, control in (("--", _UNTRAINED), (":", _PIXELS)):
                level = next(one.accuracy.estimate for cell, one in own.items() if cell.groups == control)
                panel.axhline(100 * level, color="#555555", linestyle=style, linewidth=1, label=control)
            panel.set_xlabel(label)
            panel.set_title(f"{dataset.replace('_', ' ')}, {groups} groups")
    return pictures.finish(figure, axes[0, 0], 3, pictures.bars_note(num_seeds))


CLAIM = Claim(
    name="contrastive",
    question="Does contrastive learning need large batches?",
    claim="Contrastive learning needs large batches, because they hold more negatives (SimCLR, arXiv 2002.05709); what "
    "counts in the end is the amount of data seen, batch × updates (Vaessen & van Leeuwen 2024, arXiv 2402.13723, on "
    "speech).",
    prediction="The batch is also a number of negatives. With groups of a fixed size it is not, and it should do what "
    "it does elsewhere: nothing after as many examples, up to a critical batch size that grows with training. More "
    "negatives make the task harder, which helps until they tell nothing new.",
    measurement="The test accuracy of a linear probe of an encoder's features, by batch size and by examples seen: "
    "groups of the smallest batch size as sets of negatives, against the whole batch as one group. An MLP on images, "
    "and on one-dimensional signals whose classes differ in their spectra. Adam with a constant learning rate from a "
    "search for each batch size and length (by the probe's test loss, on other seeds). The probe is a logistic "
    "regression on a few labels; controls are an encoder before training and the pixels. Differences are paired by "
    "seed, with 95 % intervals.",
    margin=f"{100 * _MARGIN:g} points of the probe's test accuracy; more is true where an interval excludes zero, and "
    "only batch × updates counts where the smallest and the largest batch are equal at all numbers of examples",
    settings={
        "digits": Settings(),
        "fashion_mnist": Settings(("fashion_mnist",), (32, 128, 512), (32_768, 131_072), search_seeds=1),
        "cifar10": Settings(
            ("cifar10",), (64, 256, 1024, 4096), (131_072, 524_288, 2_097_152), num_labels=1000, search_seeds=2
        ),
        "quick": Settings(("signals",), (8, 32), (64,), num_labels=50, search_seeds=1),
    },
    measure=measure,
)
