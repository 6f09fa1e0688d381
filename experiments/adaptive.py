"""All controllers and the paper's schedules, on one task with the same recipe.

    python -m experiments.adaptive --preset=digits --seeds=5 --workdir=runs/adaptive
    python -m experiments.adaptive --preset=shakespeare_cpu --seeds=3 --workdir=runs/language_models_adaptive

Each controller gets the preset's recipe; `Plateau` and `Cabs`, which replace its decay, get a constant learning rate.
All train for the recipe's epochs, except AdaScale, whose clock counts updates of the recipe. The table has final
accuracy, updates, examples (with those of branches) and time. The picture has a row for each: left, its updates;
right, its final accuracy minus that of the original schedule with the same seed, and the 95 % interval of the mean over
seeds. The dashed line is the recipe without any decay: what is no better than it says nothing about schedules. Within
the shaded stripe, the preset's margin, two schedules count as equal.

A language model has the recipe of `experiments.seesaw`: the smaller of its two starts, with the half cosine. Its
schedules are the decay and Seesaw, its controllers are those of Adam, and its table has the final test loss.
"""

import dataclasses
import math
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from bsjax.controllers import AdaBatchOptions, CriticalBatchOptions, GradientNoiseOptions, PlateauOptions
from experiments.harness import cli, figures, presets, studies
from experiments.harness.config import Config
from experiments.seesaw import schedules as seesaw

LANGUAGE_MODELS = {
    name: dataclasses.replace(preset, config=preset.config.replace(**preset.starts[0]._asdict()))
    for name, preset in seesaw.PRESETS.items()
}
PRESETS: dict[str, presets.Workload] = {**presets.PRESETS, **LANGUAGE_MODELS}


def contestants(preset: presets.Workload, config: Config) -> dict[str, Config]:
    """The schedules, the recipe without its decay, and the controllers, of an image or a language model preset."""
    return of_images(preset, config) if isinstance(preset, presets.Preset) else of_language_models(config)


def of_language_models(config: Config) -> dict[str, Config]:
    """The decay, Seesaw, a constant rate, and controllers whose learning rate goes with the root of the batch.

    A training is less than an epoch long, so that lengths are parts of it: the averages of the noise forget half in a
    twelfth of it, and the critical batch size is measured three times, after each quarter but the last.
    """
    num_epochs, fixed = config.recipe.num_epochs, seesaw.schedules(config)
    base = config.replace(batch_growth=2.0, noise_half_life_epochs=float(f"{num_epochs / 12:.6g}"))
    every, branch = float(f"{num_epochs / 4:.6g}"), 40 * config.recipe.batch_size
    branches = CriticalBatchOptions(measure_every_epochs=every, branch_examples=branch)
    bounded = dataclasses.replace(branches, bound_by_decay=True)
    patient = PlateauOptions(factor=0.5, patience=2, accumulation_size=20)
    warm = base.replace(controller_warmup_epochs=config.recipe.warmup_epochs)  # until the averages are of many updates
    within = GradientNoiseOptions(bound_by_decay=True)

    def controlled(name: str, options: Any = None, recipe: Config = base) -> Config:
        return recipe.replace(controller=name, controller_options=options)

    return {
        seesaw.COSINE: config,
        seesaw.SEESAW: fixed[seesaw.SEESAW],
        presets.CONSTANT: config.replace(lr_schedule="constant"),
        "GradientNoise, within the decay": controlled("gradient_noise", within, warm),
        "GradientNoise": controlled("gradient_noise", recipe=warm),
        "CriticalBatch, within the decay": controlled("critical_batch", bounded),
        "CriticalBatch": controlled("critical_batch", branches),
        "Plateau": controlled("plateau", patient, base.replace(lr_schedule="constant")),
    }


def of_images(preset: presets.Preset, config: Config) -> dict[str, Config]:
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
        presets.CONSTANT: presets.controls(preset, config)[presets.CONSTANT],
        "GradientNoise, within the decay": controlled("gradient_noise", GradientNoiseOptions(bound_by_decay=True)),
        "GradientNoise": controlled("gradient_noise"),
        "CriticalBatch, within the decay": controlled("critical_batch", CriticalBatchOptions(bound_by_decay=True)),
        "AdaBatch, within the decay": controlled("adabatch", steps),
        "Plateau": controlled("plateau", patient, constant),
        "AdaScale": controlled("adascale"),
        "CABS, plain SGD": controlled("cabs", recipe=plain),
    }


def draw(table: list[dict[str, Any]], scale: figures.Scale) -> Any:
    """The picture of a table of `figures.print_results`, whose first row is the recipe."""
    size = 8, 1.0 + 0.28 * len(table)
    figure, (left, right) = plt.subplots(1, 2, figsize=size, width_ratios=(2, 3), layout="constrained", sharey=True)
    updates = np.array([row["updates"] for row in table])
    middle = np.sqrt(updates.min() * updates.max())
    for i, row in enumerate(table):
        name = row["schedule"]
        look = {"color": figures.style_of(name)["color"], "marker": figures.marker_of(name), "markersize": 5}
        left.plot(row["updates"], i, **look)
        if (more := row["examples"] / table[0]["examples"]) > 1.05:
            side = "left" if row["updates"] < middle else "right"
            left.annotate(f" {more:.1f} × the examples ", (row["updates"], i - 0.4), va="center", ha=side, fontsize=7)
        columns = ("difference", "difference_low", "difference_high")
        estimate, low, high = (scale.factor * (row[column] or 0.0) for column in columns)  # "" of the recipe itself
        bar = [[estimate - low], [high - estimate]] if math.isfinite(high - low) else None
        right.errorbar(estimate, i, xerr=bar, capsize=3, linewidth=1.3, **look)
        if name == presets.CONSTANT:
            right.axvline(estimate, **figures.style_of(name), zorder=1)
    if scale.margin is not None:
        right.axvspan(
            -scale.factor * scale.margin, scale.factor * scale.margin, color="#F0E442", alpha=0.3, linewidth=0, zorder=0
        )
    left.set(xlabel="Parameter updates", xscale="log")
    figures.plain_ticks(left.xaxis, np.log(updates.max() / updates.min()))
    left.set_yticks(range(len(table)), [row["schedule"] for row in table])
    left.invert_yaxis()
    right.set_xlabel(f"{scale.label.removesuffix(' (%)')} at the end:\n{scale.to_original.lower()}")
    return figure


def main() -> None:
    """Trains the missing runs, then draws the picture and prints the table."""
    study = studies.study_from_flags(PRESETS)
    results = studies.train(study, contestants(study.preset, study.config))
    metric = figures.metric_of(results) if isinstance(study.preset, presets.Preset) else "loss"
    table = figures.print_results(results, study, metric)
    figures.print_notes(study, table)
    scale = figures.scale_of(study, metric)
    figure = draw(table, scale)
    figures.caption(
        figure, study, scale, note="Bar: 95 % interval, paired by seed. Dashed: without decay. Stripe: the margin."
    )
    figures.save(figure, study.workdir, "adaptive", table, table, jobs=figures.jobs_of(study))


if __name__ == "__main__":
    studies.define_flags(controllers=True, choices=PRESETS)
    cli.run(main, multihost=True, presets=PRESETS)
