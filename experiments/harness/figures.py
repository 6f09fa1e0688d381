"""Shared by the figures: means over seeds, the tables, and the look of a picture."""

import datetime
import io
import math
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np

from bsjax.run.metrics import write_json, write_whole
from experiments.harness import presets, runs, studies
from experiments.harness.config import Config
from experiments.harness.studies import Study, write_csv

# Okabe and Ito's colours, in an order that also differs in grey, and a dash pattern each.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1)), (0, (1, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P")

plt.switch_backend("agg")  # files, on machines with and without a screen
plt.rcParams.update(
    {
        "figure.dpi": 150,
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e4e4e4",
        "axes.axisbelow": True,
        "lines.linewidth": 1.6,
        "legend.frameon": False,
        "svg.hashsalt": "bsjax",  # the same picture is the same file
    }
)


class Curve(NamedTuple):
    """A metric along training, over seeds."""

    epoch: np.ndarray
    update: np.ndarray
    mean: np.ndarray
    std: np.ndarray  # over seeds; of one seed, 0


def curve(results: Sequence[runs.Result], metric: str) -> Curve:
    """Mean and standard deviation over seeds of a metric's lines; diverged seeds are left out."""
    lines = lines_with(metric, results)
    if not lines:
        return Curve(*(np.zeros(0) for _ in range(4)))
    values = np.array([[line[metric] for line in run] for run in lines])
    epoch, update = (np.array([line[clock] for line in lines[0]]) for clock in ("epoch", "update"))
    return Curve(epoch, update, values.mean(axis=0), _std(values))


def lines_with(metric: str, results: Sequence[runs.Result]) -> list[list[dict[str, Any]]]:
    """The lines that have a metric, of each run that completed."""
    completed = [result.metrics for result in results if result.summary["completed"]]
    return [[line for line in lines if line.get(metric) is not None] for lines in completed]


def final(results: Sequence[runs.Result], name: str) -> tuple[float, float]:
    """Mean and standard deviation over seeds of a value in the summaries; NaN where none completed."""
    values = np.array([result.summary[name] for result in results if result.summary["completed"]])
    return (float(values.mean()), float(_std(values))) if len(values) else (math.nan, math.nan)


def metric_of(results: dict[Any, list[runs.Result]]) -> str:
    """The name of the task's first metric, or "loss" if it has none or if no run has completed."""
    summaries = [result.summary for group in results.values() for result in group if result.summary["completed"]]
    return runs.metric_of(summaries[0]) if summaries else "loss"


def metric_axis(metric: str, when: str = "Test") -> tuple[str, float]:
    """The label of a metric's axis, and the factor of its values.

    >>> metric_axis("accuracy"), metric_axis("loss", "Final test")
    (('Test accuracy (%)', 100.0), ('Final test loss', 1.0))
    """
    label = f"{when} {metric.replace('_', ' ')}"
    return (f"{label} (%)", 100.0) if metric == "accuracy" else (label, 1.0)


def mean_examples(results: Sequence[runs.Result]) -> float:
    """The mean number of examples of a run, with those of a controller's branches."""
    group = [result.summary for result in results if result.summary["completed"]] or [r.summary for r in results]
    return float(np.mean([summary["examples_seen"] + summary.get("branch_examples", 0) for summary in group]))


def line_style(i: int) -> dict[str, Any]:
    """The look of curve i. Lower curves are wider, so that they stay visible where curves coincide."""
    return {"color": COLORS[i], "linestyle": DASHES[i], "linewidth": max(1.2, 2.8 - 0.7 * i)}


def plot_curves(axes: Any, curves: dict[str, Curve], clock: str, ylabel: str | None = None, scale: float = 1.0) -> None:
    """Draws curves against "epoch" or "update", with a band of one standard deviation."""
    for i, (label, one) in enumerate(curves.items()):
        x = getattr(one, clock)
        axes.plot(x, scale * one.mean, **line_style(i), label=label)
        low, high = scale * (one.mean - one.std), scale * (one.mean + one.std)
        axes.fill_between(x, low, high, color=COLORS[i], alpha=0.18, linewidth=0)
    axes.set(xlabel={"epoch": "Epochs", "update": "Parameter updates"}[clock])
    if ylabel:
        axes.set(ylabel=ylabel)


def plot_clocks(panels: Any, curves: dict[str, Curve], ylabel: str, scale: float = 1.0, log_x: bool = False) -> None:
    """Draws curves against epochs on the left and against updates on the right, whose axis may be logarithmic."""
    plot_curves(panels[0], curves, "epoch", ylabel, scale)
    plot_curves(panels[1], curves, "update", scale=scale)
    if log_x:
        panels[1].set_xscale("log")


def compare_optimizers(
    study: Study, name: str, optimizers: Callable[[presets.Preset, Config], dict[str, Config]]
) -> None:
    """A figure with a column per optimizer: the test metric against epochs above, against updates below."""
    bases = optimizers(study.preset, study.config)
    results = studies.train(study, presets.by_optimizer(study.preset, bases))
    metric = metric_of(results)
    label, scale = metric_axis(metric)
    figure, panels = plt.subplots(2, 2, figsize=(8, 6), layout="constrained", sharey="col")
    rows, table = [], []
    for column, optimizer in zip(panels.T, bases, strict=True):
        group = {schedule: runs for (its_optimizer, schedule), runs in results.items() if its_optimizer == optimizer}
        curves = {schedule: curve(runs, f"test_{metric}") for schedule, runs in group.items()}
        column[0].set_title(optimizer)
        for axes, clock in zip(column, ("epoch", "update"), strict=True):
            plot_curves(axes, curves, clock, label, scale)
        zoom_to_ends(column[0], curves, scale)
        print(f"\n{optimizer}", end="")
        table += print_results(group, optimizer=optimizer)
        rows += curve_rows(curves, f"test_{metric}", optimizer=optimizer)
    legend_above(figure, panels[0, 0], columns=3)
    save(figure, study.workdir, name, rows, table)


def zoom_to_ends(axes: Any, curves: dict[str, Curve], scale: float = 1.0) -> None:
    """Limits the axis to the curves and their bands in the last two thirds."""
    late = [(one.mean[len(one.mean) // 3 :], one.std[len(one.std) // 3 :]) for one in curves.values() if len(one.mean)]
    if late:
        low = scale * min((mean - std).min() for mean, std in late)
        high = scale * max((mean + std).max() for mean, std in late)
        margin = max(0.15 * (high - low), 0.005 * scale)
        axes.set_ylim(low - margin, min(high + margin, scale) if scale == 100 else high + margin)


def legend_above(figure: Any, axes: Any, columns: int) -> None:
    """One legend for all panels, above them."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=columns, handlelength=3.2)


def save(
    figure: Any,
    workdir: pathlib.Path,
    name: str,
    points: Iterable[dict[str, Any]],
    table: Iterable[dict[str, Any]] = (),
) -> None:
    """Writes the picture as PNG and SVG, its points and table as CSV, how it was made as JSON, and prints the path."""
    for kind, options in (("png", {}), ("svg", {"metadata": {"Date": None}})):
        file = io.BytesIO()
        figure.savefig(file, format=kind, **options)
        write_whole(workdir / f"{name}.{kind}", file.getvalue())
    plt.close(figure)
    write_csv(workdir / f"{name}.csv", list(points))
    write_csv(workdir / f"{name}_table.csv", list(table))
    write_json(workdir / f"{name}.json", {**runs.surroundings(), "date": datetime.date.today().isoformat()})
    print(f"\nPicture: {workdir / name}.png (and .svg); numbers: {workdir / name}.csv")


def curve_rows(curves: dict[str, Curve], metric: str, **extra: Any) -> list[dict[str, Any]]:
    """The points of curves as rows of a CSV file."""
    names = ("epoch", "update", f"{metric}_mean", f"{metric}_std")
    return [
        {**extra, "schedule": label, **dict(zip(names, (epoch, int(update), mean, f"{std:.3g}"), strict=True))}
        for label, one in curves.items()
        for epoch, update, mean, std in zip(*one, strict=True)
    ]


def print_results(
    results: dict[str, list[runs.Result]], published: dict[str, tuple[str, float]] | None = None, **extra: Any
) -> list[dict[str, Any]]:
    """Prints a table of the results, and returns it with full precision for a CSV file.

    Args:
      results: of each schedule.
      published: updates and test accuracy in the paper, printed beside them.
      **extra: further columns of the CSV file.
    """
    metric = metric_of(results)
    examples = {label: mean_examples(group) for label, group in results.items()}
    differ = max(examples.values()) > 1.05 * min(examples.values())
    rows, printed = [], []
    for label, group in results.items():
        row, cells = _row_and_cells(metric, group, round(examples[label]))
        if differ:
            cells["examples"] = f"{row['examples']:,}"
        if published:
            row["paper_updates"], row["paper_test_accuracy"] = published[label]
            cells["paper: updates, test %"] = f"{published[label][0]}, {100 * published[label][1]:.1f}"
        rows.append({**extra, "schedule": label, **row})
        printed.append({"schedule": label, **cells})
    print()
    print_table([list(printed[0]), *(list(cells.values()) for cells in printed)])
    return rows


def print_table(lines: Sequence[Sequence[str]], first: Callable[[str, int], str] = str.ljust) -> None:
    """Prints lines in columns, the first one aligned as by `first` and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for name, *cells in lines:
        print("  ".join([first(name, widths[0]), *map(str.rjust, cells, widths[1:])]))


def _row_and_cells(metric: str, group: Sequence[runs.Result], examples: int) -> tuple[dict[str, Any], dict[str, str]]:
    """The columns of one schedule in the CSV file and in the printed table."""
    completed = [result for result in group if result.summary["completed"]]
    value, value_std = final(group, f"final_test_{metric}")
    test_loss, train_loss = final(group, "final_test_loss")[0], final(group, "final_train_loss")[0]
    updates = round(np.mean([result.summary["num_updates"] for result in completed or group]))
    seconds, speed = (
        np.mean([result.summary[name] for result in group]) for name in ("wall_time_s", "examples_per_second")
    )
    row = {
        "updates": updates,
        "examples": examples,
        f"test_{metric}_mean": value,
        f"test_{metric}_std": f"{value_std:.3g}",
        "test_loss": test_loss,
        "train_loss": train_loss,
        "seeds": len(completed),
        "diverged": len(group) - len(completed),
        "wall_time_s": f"{seconds:.1f}",
        "examples_per_second": f"{speed:.0f}",
    }
    shown = f"test {metric.replace('_', ' ')}" + " %" * (metric == "accuracy")
    cells = {
        "updates": f"{updates:,}",
        shown: _spread(metric, value, value_std, len(completed)),
        **({} if metric == "loss" else {"test loss": f"{test_loss:.4f}"}),
        "train loss": f"{train_loss:.4f}",
        "seeds": f"{len(completed)}" if len(completed) == len(group) else f"{len(completed)} of {len(group)}",
        "s per run": f"{seconds:.1f}",
        "images/s": f"{speed:,.0f}",
    }
    return row, cells


def _spread(metric: str, mean: float, std: float, num_runs: int) -> str:
    if not num_runs:
        return "diverged"
    scale, digits = (100, 2) if metric == "accuracy" else (1, 4)
    return f"{scale * mean:.{digits}f}" + f" ± {scale * std:.{digits}f}" * (num_runs > 1)


def _std(values: np.ndarray) -> np.ndarray:
    return values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1:])
