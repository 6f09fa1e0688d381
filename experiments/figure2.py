"""Figure 2: training cross-entropy of the three schedules of Section 5.1, against epochs and against updates.

python -m experiments.figure2 --preset=digits --seeds=5 --workdir=runs/digits

Against epochs the curves coincide; against updates the growing batch needs far fewer. The controls, which do not keep
the noise, show how far other curves would be (`--nocontrols` leaves them out).
"""

import numpy as np

from experiments.harness import cli, figures, presets, studies


def main() -> None:
    """Trains the missing runs, then draws the figure and prints the table."""
    study = studies.study_from_flags()
    schedules = presets.section_5_1(study.preset, study.config)
    results = figures.train(study, schedules, lambda: presets.controls(study.preset, study.config))
    curves = {label: figures.curve(group, "train_loss") for label, group in results.items()}

    scale = figures.Scale("Training cross-entropy", log=True)
    figure, panels = figures.draw_schedules(curves, scale)
    means = np.concatenate([one.spread(log=True)[0] for one in curves.values()])
    panels[0, 0].set(ylim=(means.min() / 2, means.max() * 2) if len(means) else None)
    figures.caption(figure, study, scale)
    table = figures.print_results(results, study)
    figures.print_notes(study, table)
    rows = figures.curve_rows(curves, "train_loss", log=True)
    figures.save(figure, study.workdir, "figure2", rows, table, jobs=figures.jobs_of(study))


if __name__ == "__main__":
    figures.define_flags()
    cli.run(main, multihost=True)
