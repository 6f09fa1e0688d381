"""Figure 5: raise the learning rate and the momentum as well, and train in ever fewer updates.

    python -m experiments.figure5 --preset=digits --seeds=3 --workdir=runs/demo

It shows the test accuracy (or the task's metric) of the paper's four schedules against epochs and against updates.
"""

import matplotlib.pyplot as plt

from experiments.harness import cli, figures, presets, studies


def main() -> None:
    """Trains the missing runs, then draws the figure and prints the table."""
    study = studies.study_from_flags()
    results = studies.train(study, presets.section_5_2(study.preset, study.config))
    metric = figures.metric_of(results)
    curves = {label: figures.curve(group, f"test_{metric}") for label, group in results.items()}
    name, scale = figures.metric_axis(metric)

    figure, panels = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained", sharey=True)
    figures.plot_clocks(panels, curves, name, scale, log_x=True)
    figures.zoom_to_ends(panels[0], curves, scale)
    figures.legend_above(figure, panels[0], columns=2)
    table = figures.print_results(results, study.preset.published)
    figures.save(figure, study.workdir, "figure5", figures.curve_rows(curves, f"test_{metric}"), table)


if __name__ == "__main__":
    studies.define_flags()
    cli.run(main, multihost=True)
