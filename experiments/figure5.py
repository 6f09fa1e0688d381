"""Figure 5: raise the learning rate and the momentum as well, and train in ever fewer updates.

    python -m experiments.figure5 --preset=digits --seeds=3 --workdir=runs/demo

Test accuracy of the paper's four schedules against epochs and against updates.
"""

import matplotlib.pyplot as plt

from experiments import cli, figures, presets, studies


def main() -> None:
    """Trains what is missing, then draws the figure and prints the table."""
    study = studies.study_from_flags()
    results = studies.train(study, presets.section_5_2(study.preset, study.config))
    curves = {label: figures.curve(group, "test_accuracy") for label, group in results.items()}

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained", sharey=True)
    figures.plot_curves(left, curves, "epoch", "Test accuracy (%)", scale=100)
    figures.plot_curves(right, curves, "update", scale=100, log_x=True)
    figures.zoom_to_ends(left, curves, scale=100)
    figures.legend_above(figure, left, columns=2)
    table = figures.print_results(results, study.preset.published)
    figures.save(figure, study.workdir, "figure5", figures.curve_rows(curves, "test_accuracy"), table)


if __name__ == "__main__":
    studies.define_flags()
    cli.run(main)
