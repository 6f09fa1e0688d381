"""Pictures of runs from their files, and of plans. Matplotlib is imported when something is drawn."""

import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from bsjax.errors import InvalidArgument, check_choice
from bsjax.plan_plots import look_of, new_figure, plain_numbers, plot_plans

__all__ = ["compare", "plot_plans"]

Path = str | pathlib.Path
_METRICS = "metrics.jsonl"


def compare(
    workdirs: Mapping[str, Path | Iterable[Path]] | Iterable[Path], metric: str | None = None, ax: Any = None
) -> np.ndarray:
    """Draws a metric of some runs against epochs and against updates; a run may still train.

    Args:
      workdirs: folders of runs, or for each label a folder or the folders of several seeds, whose mean is drawn with a
        band of one standard deviation. Without labels, a folder's name is its label.
      metric: a number in the lines of `metrics.jsonl`, such as "test_loss"; default, "test_accuracy" if all have it,
        else "test_loss", else "train_loss".
      ax: two axes as this returns them, to draw into; None makes a figure.

    Returns:
      Matplotlib axes [2]: against epochs and against updates.

    Raises:
      InvalidArgument: a folder has no run, there are no runs, or a run has no such metric.
      RunError: the metrics of a run cannot be read.
    """
    runs = {label: [_lines(folder) for folder in folders] for label, folders in _labelled(workdirs).items()}
    metric = _metric_of(metric, [lines for group in runs.values() for lines in group])
    axes = new_figure(1, 2, (8, 3.4))[0] if ax is None else np.asarray(ax)
    if axes.shape != (2,):
        raise InvalidArgument("ax", f"of shape {list(axes.shape)}", "two axes, as a plot without ax returns them")
    factor, unit = (100.0, " (%)") if metric.endswith("accuracy") else (1.0, "")
    for label, group in runs.items():
        look = look_of(len(axes[0].lines))
        points = [[line for line in lines if line.get(metric) is not None] for lines in group]
        count = min(map(len, points))  # a seed that still trains has fewer
        values = factor * np.array([[line[metric] for line in lines[:count]] for lines in points], float)
        mean, std = values.mean(axis=0), values.std(axis=0, ddof=1) if len(values) > 1 else 0.0
        for axis, clock in zip(axes, ("epoch", "update"), strict=True):
            x = [line[clock] for line in points[0][:count]]
            axis.plot(x, mean, **look, label=label)
            if len(values) > 1:
                axis.fill_between(x, mean - std, mean + std, color=look["color"], alpha=0.15, linewidth=0)
    name = metric.replace("_", " ").capitalize() + unit
    for axis, clock in zip(axes, ("Epochs", "Parameter updates"), strict=True):
        axis.set(xlabel=clock, ylabel=name)
        plain_numbers(axis.xaxis)
    axes[0].legend(frameon=False, handlelength=3.2)
    return axes


def _labelled(workdirs: Any) -> dict[str, list[pathlib.Path]]:
    """The folders of each label."""
    if isinstance(workdirs, Path):
        workdirs = [workdirs]
    if not isinstance(workdirs, Mapping):
        paths = [pathlib.Path(path) for path in workdirs]
        same = len({path.name for path in paths}) < len(paths)  # then their names do not tell them apart
        workdirs = {str(path) if same else path.name: path for path in paths}
    if not workdirs:
        raise InvalidArgument("workdirs", workdirs, "one folder of a run at least")
    return {
        label: [pathlib.Path(path) for path in ([paths] if isinstance(paths, Path) else paths)]
        for label, paths in workdirs.items()
    }


def _lines(workdir: pathlib.Path) -> list[dict[str, Any]]:
    from bsjax.run.metrics import read_metrics  # here because it imports the engine

    if not (workdir / _METRICS).exists():
        found = next(iter(sorted(workdir.glob(f"runs/*/{_METRICS}"))), None)
        allowed = f"the folder of a run, which has a {_METRICS}"
        raise InvalidArgument("workdirs", str(workdir), allowed, None if found is None else str(found.parent))
    return read_metrics(workdir / _METRICS)


def _metric_of(metric: str | None, runs: list[list[dict[str, Any]]]) -> str:
    """The metric to draw, which each run has."""
    names = [{name for line in lines for name, value in line.items() if isinstance(value, float)} for lines in runs]
    common = sorted(set.intersection(*names)) if names else []
    if metric is not None:
        return check_choice("metric", metric, common)
    found = next((name for name in ("test_accuracy", "test_loss", "train_loss") if name in common), None)
    if found is None:
        raise InvalidArgument("metric", metric, "a number that each run has logged; they have none in common")
    return found
