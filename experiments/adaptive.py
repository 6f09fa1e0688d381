"""All controllers beside the paper's schedules, on one task and the same recipe.

    python -m experiments.adaptive --preset=digits --seeds=5 --workdir=runs/adaptive

Each controller gets the preset's recipe; `Plateau` and `Cabs`, which replace its decay, get a constant learning rate.
All train for the recipe's epochs but AdaScale, whose clock is in updates of the recipe. The table has final accuracy,
updates, examples (with those of branches) and time; the picture accuracy against updates.
"""

import dataclasses

import matplotlib.pyplot as plt

from experiments import cli, figures, presets, studies
from experiments.config import Config

_BOUND = "bound_by_decay=true"


def contestants(preset: presets.Preset, config: Config) -> dict[str, Config]:
    """The paper's schedules, and every controller."""
    ghost = max(1, min(config.ghost_batch_size, config.batch_size // 2))  # so that the smallest batch is measurable
    config = dataclasses.replace(config, ghost_batch_size=ghost)
    base = dataclasses.replace(config, max_batch_size=preset.max_batch_size, min_batch_size=config.batch_size)
    constant = dataclasses.replace(base, lr_schedule="constant")

    def controlled(name: str, *options: str, recipe: Config = base) -> Config:
        return dataclasses.replace(recipe, controller=name, controller_options=options)

    steps = f"every_epochs={config.num_epochs / 6:g}"
    plain = dataclasses.replace(constant, optimizer="sgd", learning_rate=preset.sgd_learning_rate)
    return {
        **presets.section_5_2(preset, config),
        "GradientNoise, within the decay": controlled("gradient_noise", _BOUND),
        "GradientNoise": controlled("gradient_noise"),
        "CriticalBatch, within the decay": controlled("critical_batch", _BOUND),
        "AdaBatch, within the decay": controlled("adabatch", steps, _BOUND),
        "Plateau": controlled("plateau", "factor=0.2", "patience=20", "accumulation_size=50", recipe=constant),
        "AdaScale": controlled("adascale"),
        "CABS, plain SGD": controlled("cabs", recipe=plain),
    }


def main() -> None:
    """Trains what is missing, then draws the picture and prints the table."""
    study = studies.study_from_flags()
    results = studies.train(study, contestants(study.preset, study.config))
    table = figures.print_results(results)
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for i, row in enumerate(table):
        marker, color = figures.MARKERS[i % len(figures.MARKERS)], figures.COLORS[i % len(figures.COLORS)]
        error = 100 * float(row["test_accuracy_std"])
        axes.errorbar(
            row["updates"],
            100 * float(row["test_accuracy_mean"]),
            error,
            color=color,
            marker=marker,
            capsize=3,
            linestyle="none",
            label=row["schedule"],
            markerfacecolor=color if i < len(figures.COLORS) else "white",
        )
    axes.set(xlabel="Parameter updates", ylabel="Final test accuracy (%)", xscale="log")
    figure.legend(fontsize=7, loc="outside right upper")
    figures.save(figure, study.workdir, "adaptive", table, table)


if __name__ == "__main__":
    studies.define_flags()
    cli.run(main)
