"""What the figures share: means over seeds, the table, and the way a picture looks."""

import datetime
import math
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np

from bsjax.metrics import write_json
from experiments import presets, runs, studies
from experiments.config import Config
from experiments.studies import Study, write_csv

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
    lines = [[line for line in result.metrics if metric in line] for result in results if result.summary["completed"]]
    if not lines:
        return Curve(*(np.zeros(0) for _ in range(4)))
    values = np.array([[line[metric] for line in run] for run in lines])
    epoch, update = (np.array([line[clock] for line in lines[0]]) for clock in ("epoch", "update"))
    return Curve(epoch, update, values.mean(axis=0), _std(values))


def final(results: Sequence[runs.Result], name: str) -> tuple[float, float]:
    """Mean and standard deviation over seeds of a value in the summaries; NaN where none completed."""
    values = np.array([result.summary[name] for result in results if result.summary["completed"]])
    return (float(values.mean()), float(_std(values))) if len(values) else (math.nan, math.nan)


def mean_examples(results: Sequence[runs.Result]) -> float:
    """Examples that a run took on average, with those of a controller's branches."""
    group = [result.summary for result in results if result.summary["completed"]] or [r.summary for r in results]
    return float(np.mean([summary["examples_seen"] + summary.get("branch_examples", 0) for summary in group]))


def line_style(i: int) -> dict[str, Any]:
    """The look of curve i. Where curves coincide, the wider ones below stay visible."""
    return {"color": COLORS[i], "linestyle": DASHES[i], "linewidth": max(1.2, 2.8 - 0.7 * i)}


def plot_curves(
    axes: Any, curves: dict[str, Curve], clock: str, ylabel: str | None = None, scale: float = 1.0, log_x: bool = False
) -> None:
    """Draws curves against "epoch" or "update", with a band of one standard deviation."""
    for i, (label, one) in enumerate(curves.items()):
        x = getattr(one, clock)
        axes.plot(x, scale * one.mean, **line_style(i), label=label)
        low, high = scale * (one.mean - one.std), scale * (one.mean + one.std)
        axes.fill_between(x, low, high, color=COLORS[i], alpha=0.18, linewidth=0)
    axes.set_xlabel({"epoch": "Epochs", "update": "Parameter updates"}[clock])
    if ylabel:
        axes.set_ylabel(ylabel)
    if log_x:
        axes.set_xscale("log")


def compare_optimizers(
    study: Study, name: str, optimizers: Callable[[presets.Preset, Config], dict[str, Config]]
) -> None:
    """A figure with a column per optimizer: test accuracy against epochs above, against updates below."""
    bases = optimizers(study.preset, study.config)
    grid = {
        (optimizer, label): config
        for optimizer, base in bases.items()
        for label, config in presets.section_5_1(study.preset, base).items()
    }
    results = studies.train(study, grid)
    figure, panels = plt.subplots(2, 2, figsize=(8, 6), layout="constrained", sharey="col")
    rows, table = [], []
    for column, optimizer in zip(panels.T, bases, strict=True):
        group = {label: runs for (its_optimizer, label), runs in results.items() if its_optimizer == optimizer}
        curves = {label: curve(runs, "test_accuracy") for label, runs in group.items()}
        column[0].set_title(optimizer)
        for axes, clock in zip(column, ("epoch", "update"), strict=True):
            plot_curves(axes, curves, clock, "Test accuracy (%)", scale=100)
        zoom_to_ends(column[0], curves, scale=100)
        print(f"\n{optimizer}", end="")
        table += print_results(group, optimizer=optimizer)
        rows += curve_rows(curves, "test_accuracy", optimizer=optimizer)
    legend_above(figure, panels[0, 0], columns=3)
    save(figure, study.workdir, name, rows, table)


def zoom_to_ends(axes: Any, curves: dict[str, Curve], scale: float = 1.0) -> None:
    """Limits an accuracy axis to where the curves and their bands are in their last two thirds."""
    late = [(one.mean[len(one.mean) // 3 :], one.std[len(one.std) // 3 :]) for one in curves.values() if len(one.mean)]
    if late:
        low = scale * min((mean - std).min() for mean, std in late)
        high = scale * max((mean + std).max() for mean, std in late)
        margin = max(0.15 * (high - low), 0.005 * scale)
        axes.set_ylim(low - margin, min(high + margin, scale))


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
    """Writes the picture as PNG and SVG, its points and its table as CSV, how it was made as JSON; says where."""
    figure.savefig(workdir / f"{name}.png")
    figure.savefig(workdir / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)
    write_csv(workdir / f"{name}.csv", list(points))
    write_csv(workdir / f"{name}_table.csv", list(table))
    write_json(workdir / f"{name}.json", {**runs.surroundings(), "date": datetime.date.today().isoformat()})
    print(f"\nPicture: {workdir / name}.png (and .svg); numbers: {workdir / name}.csv")


def curve_rows(curves: dict[str, Curve], metric: str, **extra: Any) -> list[dict[str, Any]]:
    """The points of curves as rows of a CSV file."""
    return [
        {
            **extra,
            "schedule": label,
            "epoch": f"{epoch:.6g}",
            "update": int(update),
            f"{metric}_mean": f"{mean:.6g}",
            f"{metric}_std": f"{std:.3g}",
        }
        for label, one in curves.items()
        for epoch, update, mean, std in zip(*one, strict=True)
    ]


def print_results(
    results: dict[str, list[runs.Result]], published: dict[str, tuple[str, float]] | None = None, **extra: Any
) -> list[dict[str, Any]]:
    """Prints a table of what came out, and returns it with full precision for a CSV file.

    Args:
      results: of each schedule.
      published: updates and test accuracy in the paper, if they are to be told.
      **extra: further columns of the CSV file.
    """
    head = ("schedule", "updates", "test accuracy %", "test loss", "train loss", "seeds", "s per run", "images/s")
    examples = {label: mean_examples(group) for label, group in results.items()}
    differ = max(examples.values()) > 1.05 * min(examples.values())
    rows, printed = [], [head + ("examples",) * differ + ("paper: updates, test %",) * bool(published)]
    for label, group in results.items():
        completed = [result for result in group if result.summary["completed"]]
        accuracy, accuracy_std = final(group, "final_test_accuracy")
        test_loss, train_loss = final(group, "final_test_loss")[0], final(group, "final_train_loss")[0]
        updates = round(np.mean([result.summary["num_updates"] for result in completed or group]))
        seconds, speed = (
            np.mean([result.summary[name] for result in group]) for name in ("wall_time_s", "examples_per_second")
        )
        row = {
            **extra,
            "schedule": label,
            "updates": updates,
            "examples": round(examples[label]),
            "test_accuracy_mean": f"{accuracy:.6g}",
            "test_accuracy_std": f"{accuracy_std:.3g}",
            "test_loss": f"{test_loss:.6g}",
            "train_loss": f"{train_loss:.6g}",
            "seeds": len(completed),
            "diverged": len(group) - len(completed),
            "wall_time_s": f"{seconds:.1f}",
            "examples_per_second": f"{speed:.0f}",
        }
        cells = [
            label,
            f"{updates:,}",
            _percent(accuracy, accuracy_std, len(completed)),
            f"{test_loss:.4f}",
            f"{train_loss:.4f}",
            f"{len(completed)}" if len(completed) == len(group) else f"{len(completed)} of {len(group)}",
            f"{seconds:.1f}",
            f"{speed:,.0f}",
        ]
        if differ:
            cells.append(f"{examples[label]:,.0f}")
        if published:
            row["paper_updates"], row["paper_test_accuracy"] = published[label]
            cells.append(f"{published[label][0]}, {100 * published[label][1]:.1f}")
        rows.append(row)
        printed.append(tuple(cells))
    widths = [max(map(len, column)) for column in zip(*printed, strict=True)]
    print()
    for first, *others in printed:
        print("  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]))
    return rows


def _percent(mean: float, std: float, num_runs: int) -> str:
    if not num_runs:
        return "diverged"
    return f"{100 * mean:.2f}" + f" ± {100 * std:.2f}" * (num_runs > 1)


def _std(values: np.ndarray) -> np.ndarray:
    return values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1:])
