"""Figure 5: raise the learning rate and the momentum as well, and train in ever fewer updates.

    python -m experiments.figure5 --preset=digits --seeds=3 --workdir=runs/demo

It shows the test accuracy (or the task's metric) of the paper's four schedules against epochs and against updates, and
their differences to the first one. The controls show what the data set does not forgive: no decay, fewer epochs, or
other noise (`--nocontrols` leaves them out).
"""

from experiments.harness import cli, figures, presets, studies


def main() -> None:
    """Trains the missing runs, then draws the figure and prints the table."""
    study = studies.study_from_flags()
    schedules = presets.section_5_2(study.preset, study.config)
    results = figures.train(study, schedules, lambda: presets.controls(study.preset, study.config))
    metric = figures.metric_of(results)
    curves = {label: figures.curve(group, f"test_{metric}") for label, group in results.items()}

    scale = figures.scale_of(study, metric)
    figure, panels = figures.draw_schedules(curves, scale)
    panels[0, 1].set_xscale("log")
    figures.plain_ticks(panels[0, 1].xaxis)
    figures.zoom(panels[0], curves, scale.factor)
    figures.caption(figure, study, scale)
    table = figures.print_results(results, study)
    figures.print_notes(study, table)
    figures.print_published(study.preset.published)
    rows = figures.curve_rows(curves, f"test_{metric}", resolution=scale.resolution)
    figures.save(figure, study.workdir, "figure5", rows, table, jobs=figures.jobs_of(study))


if __name__ == "__main__":
    figures.define_flags()
    cli.run(main, multihost=True)
