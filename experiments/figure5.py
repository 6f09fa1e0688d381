"""Figure 5: raise the learning rate and the momentum as well, and train in ever fewer updates.

    python -m experiments.figure5 --preset=digits --seeds=3 --workdir=runs/demo

It shows the test accuracy (or the task's metric) of the paper's four schedules against epochs and against updates, and
their differences to the first one. The controls show what the data set does not forgive: no decay, fewer epochs, or
other noise (`--nocontrols` leaves them out).
"""

from experiments.harness import cli, figures, presets, schedule_figure, studies


def main() -> None:
    """Trains the missing runs, then draws the figure and prints the table."""
    study = studies.study_from_flags()
    schedules = presets.section_5_2(study.preset, study.config)
    results = figures.train(study, schedules, lambda: presets.controls(study.preset, study.config))
    schedule_figure.report(study, "figure5", results, lambda: figures.print_published(study.preset.published))


if __name__ == "__main__":
    figures.define_flags()
    cli.run(main, multihost=True)
