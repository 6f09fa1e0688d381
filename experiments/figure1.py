"""Figure 1: the three schedules of Section 5.1: learning rate and batch size against epochs. Nothing is trained.

python -m experiments.figure1 --preset=cifar10 --workdir=runs/cifar10
"""

import matplotlib.pyplot as plt
import numpy as np

from experiments.harness import build, cli, figures, presets, studies


def main() -> None:
    """Makes the plans and draws them."""
    study = studies.study_from_flags()
    schedules = presets.section_5_1(study.preset, study.config)
    plans = {label: build.recipe(config, study.preset.dataset_size).plan() for label, config in schedules.items()}

    studies.make_workdir(study.workdir)
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    rows = []
    names = ("schedule", "epoch", "update", "learning_rate", "batch_size")
    for label, plan in plans.items():
        changes = np.diff(plan.learning_rates, prepend=np.nan) != 0
        changes |= np.diff(plan.batch_sizes, prepend=0) != 0
        starts = np.flatnonzero(changes)
        epochs = plan.examples_seen[starts] / plan.dataset_size
        rates, sizes = plan.learning_rates[starts], plan.batch_sizes[starts]
        end = plan.num_examples / plan.dataset_size
        for panel, values in zip(axes, (rates, sizes), strict=True):
            panel.stairs(values, [*epochs, end], baseline=None, **figures.style_of(label), label=label)
        columns = zip(epochs, starts, rates, sizes, strict=True)
        rows += [dict(zip(names, (label, *values), strict=True)) for values in columns]
        print(f"{label}\n{plan}\n")
    for panel, name in zip(axes, ("Learning rate", "Batch size"), strict=True):
        panel.set(xlabel="Epochs", ylabel=name, yscale="log")
    figures.legend_above(figure, axes[0], columns=3)
    figures.save(figure, study.workdir, "figure1", rows)


if __name__ == "__main__":
    studies.define_flags()
    cli.run(main)
