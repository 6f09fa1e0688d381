"""All controllers and the paper's schedules, on one task with the same recipe.

    python -m experiments.adaptive --preset=digits --seeds=5 --workdir=runs/adaptive

Each controller gets the preset's recipe; `Plateau` and `Cabs`, which replace its decay, get a constant learning rate.
All train for the recipe's epochs, except AdaScale, whose clock counts updates of the recipe. The table has final
accuracy, updates, examples (with those of branches) and time; the picture shows accuracy against updates.
"""

from typing import Any

import matplotlib.pyplot as plt

from bsjax.controllers import AdaBatchOptions, CriticalBatchOptions, GradientNoiseOptions, PlateauOptions
from experiments.harness import cli, figures, presets, studies
from experiments.harness.config import Config


def contestants(preset: presets.Preset, config: Config) -> dict[str, Config]:
    """The paper's schedules, and every controller."""
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
        "GradientNoise, within the decay": controlled("gradient_noise", GradientNoiseOptions(bound_by_decay=True)),
        "GradientNoise": controlled("gradient_noise"),
        "CriticalBatch, within the decay": controlled("critical_batch", CriticalBatchOptions(bound_by_decay=True)),
        "AdaBatch, within the decay": controlled("adabatch", steps),
        "Plateau": controlled("plateau", patient, constant),
        "AdaScale": controlled("adascale"),
        "CABS, plain SGD": controlled("cabs", recipe=plain),
    }


def main() -> None:
    """Trains the missing runs, then draws the picture and prints the table."""
    study = studies.study_from_flags()
    results = studies.train(study, contestants(study.preset, study.config))
    table = figures.print_results(results)
    metric = figures.metric_of(results)
    label, scale = figures.metric_axis(metric, "Final test")
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for i, row in enumerate(table):
        marker, color = figures.MARKERS[i % len(figures.MARKERS)], figures.COLORS[i % len(figures.COLORS)]
        mean, std = (scale * float(row[f"test_{metric}_{name}"]) for name in ("mean", "std"))
        points = axes.errorbar(row["updates"], mean, std, color=color, fmt=marker, capsize=3, label=row["schedule"])
        if i >= len(figures.COLORS):
            points[0].set_markerfacecolor("white")
    axes.set(xlabel="Parameter updates", ylabel=label, xscale="log")
    figure.legend(fontsize=7, loc="outside right upper")
    figures.save(figure, study.workdir, "adaptive", table, table)


if __name__ == "__main__":
    studies.define_flags(controllers=True)
    cli.run(main, multihost=True)
