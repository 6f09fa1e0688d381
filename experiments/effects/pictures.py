"""The pictures that several claims share."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from bsjax.analysis.statistics import Interval
from experiments.harness import figures

Series = Mapping[str, Sequence[tuple[float, Interval]]]  # by label: (batch size, value)


def against_batch(axes: Any, series: Series, ylabel: str, factor: float = 1.0, log: bool = False) -> None:
    """Draws values with their intervals against the batch size."""
    for i, (label, points) in enumerate(series.items()):
        shown = [(x, interval) for x, interval in points if np.isfinite(interval.estimate)]
        if not shown:
            continue
        x = np.array([x for x, _ in shown])
        middle, low, high = factor * np.array([interval for _, interval in shown], float).T
        known = np.isfinite(low) & np.isfinite(high)
        bars = [np.where(known, middle - low, 0), np.where(known, high - middle, 0)]
        marker = figures.MARKERS[i % len(figures.MARKERS)]
        axes.errorbar(
            x, middle, bars, color=color(i), marker=marker, markersize=4, linewidth=1.2, capsize=2, label=label
        )
    axes.set(xlabel="Batch size", ylabel=ylabel, xscale="log")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:,g}")
    if log:
        axes.set_yscale("log")
        bottom, top = axes.get_ylim()
        figures.plain_ticks(axes.yaxis, np.log(top / bottom))


def color(i: int) -> str:
    """The colour of series i."""
    return figures.COLORS[i % len(figures.COLORS)]


def panels(columns: int, rows: int = 1, height: float = 3.6) -> tuple[Any, np.ndarray]:
    """A figure and its panels [rows, columns]."""
    figure, axes = plt.subplots(rows, columns, figsize=(8, height * rows), layout="constrained", squeeze=False)
    return figure, axes


def finish(figure: Any, axes: Any, columns: int, note: str) -> Any:
    """Adds the legend of some panel above all, and a note below."""
    figures.legend_above(figure, axes, columns)
    figure.supxlabel(note, fontsize=7)
    return figure


def bars_note(num_seeds: int) -> str:
    """What bars are."""
    return f"Bars: 95 % intervals over {num_seeds} seeds" if num_seeds > 1 else "One seed"
