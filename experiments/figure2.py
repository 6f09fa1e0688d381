"""Figure 2: training cross-entropy of the three schedules of Section 5.1, against epochs and against updates.

python -m experiments.figure2 --preset=digits --seeds=5 --workdir=runs/digits

Against epochs the curves coincide; against updates the growing batch needs far fewer.
"""

import matplotlib.pyplot as plt
import numpy as np

from experiments.harness import cli, figures, presets, studies


def main() -> None:
    """Trains the missing runs, then draws the figure and prints the table."""
    study = studies.study_from_flags()
    results = studies.train(study, presets.section_5_1(study.preset, study.config))
    curves = {label: figures.curve(group, "train_loss") for label, group in results.items()}

    figure, panels = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained", sharey=True)
    figures.plot_clocks(panels, curves, "Training cross-entropy")
    means = np.concatenate([one.mean for one in curves.values()])
    panels[0].set(yscale="log", ylim=(means.min() / 2, means.max() * 2) if len(means) else None)
    figures.legend_above(figure, panels[0], columns=3)
    table = figures.print_results(results)
    figures.save(figure, study.workdir, "figure2", figures.curve_rows(curves, "train_loss"), table)


if __name__ == "__main__":
    studies.define_flags()
    cli.run(main, multihost=True)
