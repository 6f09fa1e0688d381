"""Figure 1: the three schedules of Section 5.1: learning rate and batch size against epochs. Nothing is trained.

python -m experiments.figure1 --preset=cifar10 --workdir=runs/cifar10
"""

import matplotlib.pyplot as plt
import numpy as np

from experiments import cli, figures, presets


def main() -> None:
    """Plans the schedules and draws them."""
    study = figures.study_from_flags()
    schedules = presets.section_5_1(study.preset, study.config)
    plans = {label: config.recipe(study.preset.dataset_size).plan() for label, config in schedules.items()}

    figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    rows = []
    for i, (label, plan) in enumerate(plans.items()):
        epochs = np.append(plan.examples_seen, plan.num_examples) / plan.dataset_size
        for panel, values in zip(axes, (plan.learning_rates, plan.batch_sizes), strict=True):
            # Where schedules coincide, the thicker one below stays visible.
            panel.stairs(values, epochs, baseline=None, color=figures.COLORS[i], linestyle=figures.DASHES[i],
                         linewidth=3.4 - 0.9 * i, label=label)  # fmt: skip
        for phase_start in np.flatnonzero(np.diff(plan.learning_rates / plan.batch_sizes, prepend=np.nan)):
            rows.append(
                {
                    "schedule": label,
                    "epoch": f"{epochs[phase_start]:.6g}",
                    "update": int(phase_start),
                    "learning_rate": f"{plan.learning_rates[phase_start]:.6g}",
                    "batch_size": int(plan.batch_sizes[phase_start]),
                }
            )
        print(f"{label}\n{plan}\n")
    for panel, name in zip(axes, ("Learning rate", "Batch size"), strict=True):
        panel.set(xlabel="Epochs", ylabel=name, yscale="log")
    figures.legend_above(figure, axes[0], columns=3)
    figures.save(figure, study, "figure1", rows)


if __name__ == "__main__":
    figures.define_flags()
    cli.run(main)
