"""The picture, the tables and the files of Figures 5 to 7: schedules against epochs and against updates."""

from collections.abc import Callable

from experiments.harness import figures, studies
from experiments.harness.runs import Result


def report(study: studies.Study, name: str, results: dict[str, list[Result]], print_more: Callable[[], None]) -> None:
    """Draws the figure, prints the table of the task's metric, and writes the files.

    Args:
      study: of the runs.
      name: of the files.
      results: of each schedule, the first of which the others are compared with.
      print_more: prints what else belongs below the table.
    """
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
    print_more()
    rows = figures.curve_rows(curves, f"test_{metric}", resolution=scale.resolution)
    figures.save(figure, study.workdir, name, rows, table, jobs=figures.jobs_of(study))
