"""All controllers and the paper's schedules, on one task with the same recipe.

    python -m experiments.adaptive --preset=digits --seeds=5 --workdir=runs/adaptive

Each controller gets the preset's recipe; `Plateau` and `Cabs`, which replace its decay, get a constant learning rate.
All train for the recipe's epochs, except AdaScale, whose clock counts updates of the recipe. The table has final
accuracy, updates, examples (with those of branches) and time. The picture has a row for each: left, its updates;
right, its final accuracy minus that of the original schedule with the same seed, and the 95 % interval of the mean over
seeds. The dashed line is the recipe without any decay: what is no better than it says nothing about schedules. Within
the grey band, the preset's margin, two schedules count as equal.
"""

import math
from typing import Any

import matplotlib.pyplot as plt
from matplotlib import ticker

from bsjax.analysis.statistics import Interval, paired_difference
from bsjax.controllers import AdaBatchOptions, CriticalBatchOptions, GradientNoiseOptions, PlateauOptions
from experiments.harness import cli, figures, presets, runs, studies
from experiments.harness.config import Config

CONTROL = "Control: constant learning rate"


def contestants(preset: presets.Preset, config: Config) -> dict[str, Config]:
    """The paper's schedules, the recipe without its decay, and every controller."""
    batch_size = config.recipe.batch_size
    ghost = max(
        1, min(config.task.ghost_batch_size, batch_size // 2)
    )  # two ghosts in the smallest batch, to measure its noise
    config = config.replace(ghost_batch_size=ghost)
    base = config.replace(max_batch_size=preset.max_batch_size, min_batch_size=batch_size)
    constant = base.replace(lr_schedule="constant")
    plain = constant.replace(optimizer="sgd", learning_rate=preset.sgd_learning_rate)

    def controlled(name: str, options: Any = None, recipe: Config = base) -> Config:
        return recipe.replace(controller=name, controller_options=options)

    steps = AdaBatchOptions(every_epochs=config.recipe.num_epochs / 6, bound_by_decay=True)
    patient = PlateauOptions(factor=0.2, patience=20, accumulation_size=50)
    return {
        **presets.section_5_2(preset, config),
        CONTROL: presets.controls(preset, config)[CONTROL],
        "GradientNoise, within the decay": controlled("gradient_noise", GradientNoiseOptions(bound_by_decay=True)),
        "GradientNoise": controlled("gradient_noise"),
        "CriticalBatch, within the decay": controlled("critical_batch", CriticalBatchOptions(bound_by_decay=True)),
        "AdaBatch, within the decay": controlled("adabatch", steps),
        "Plateau": controlled("plateau", patient, constant),
        "AdaScale": controlled("adascale"),
        "CABS, plain SGD": controlled("cabs", recipe=plain),
    }


def differences(results: dict[str, list[runs.Result]], metric: str) -> dict[str, Interval]:
    """The final test metric minus that of the first schedule with the same seed; NaN where no seed completed both."""
    baseline, name = next(iter(results.values())), f"final_test_{metric}"
    found = {}
    for label, group in results.items():
        both = [(one.summary, other.summary) for one, other in zip(group, baseline, strict=True)]
        pairs = [(one[name], other[name]) for one, other in both if one["completed"] and other["completed"]]
        if len(pairs) > 1:
            found[label] = paired_difference(*zip(*pairs, strict=True))
        else:
            found[label] = Interval(pairs[0][0] - pairs[0][1] if pairs else math.nan, math.nan, math.nan)
    return found


def draw(table: list[dict[str, Any]], metric: str, margin: float) -> Any:
    """The picture: a row for each schedule of the table, whose first one is the recipe."""
    label, scale = figures.metric_axis(metric, "Final test")
    size = 8, 0.8 + 0.28 * len(table)
    figure, (left, right) = plt.subplots(1, 2, figsize=size, width_ratios=(2, 3), layout="constrained", sharey=True)
    for i, row in enumerate(table):
        known = i < 4 or row["schedule"] == CONTROL
        look = {"color": figures.style_of(row["schedule"])["color"] if known else "black", "markersize": 5}
        left.plot(row["updates"], i, "o", **look)
        if (more := row["examples"] / table[0]["examples"]) > 1.05:
            left.annotate(
                f"{more:.1f} × the examples", (row["updates"], i - 0.45), ha="center", va="center", fontsize=7
            )
        middle, low, high = (scale * row[name] for name in ("difference", "low", "high"))
        right.errorbar(middle, i, xerr=[[middle - low], [high - middle]], fmt="o", capsize=3, **look)
        if row["schedule"] == CONTROL:
            right.axvline(middle, **figures.style_of(CONTROL), zorder=1)
    if margin:
        right.axvspan(-scale * margin, scale * margin, color="black", alpha=0.07, linewidth=0)
    left.set(xlabel="Parameter updates", xscale="log")
    left.set_yticks(range(len(table)), [row["schedule"] for row in table])
    left.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    left.xaxis.set_major_formatter("{x:,.0f}")
    left.xaxis.set_minor_formatter("")
    left.invert_yaxis()
    right.set_xlabel(f"{label}, minus the original's:\n95 % interval, {max(row['seeds'] for row in table)} seeds")
    return figure


def main() -> None:
    """Trains the missing runs, then draws the picture and prints the table."""
    study = studies.study_from_flags()
    results = studies.train(study, contestants(study.preset, study.config))
    metric = figures.metric_of(results)
    found = differences(results, metric)
    table = figures.print_results(results)
    points = [row | dict(zip(("difference", "low", "high"), found[row["schedule"]], strict=True)) for row in table]
    figure = draw(points, metric, study.preset.margins.get(metric, 0.0))
    figures.save(figure, study.workdir, "adaptive", points, table)


if __name__ == "__main__":
    studies.define_flags(controllers=True)
    cli.run(main, multihost=True)
