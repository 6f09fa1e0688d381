"""The look of a schedule, the same in every figure, and of a picture: colours, ticks and legends."""

import zlib
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import ticker

from bsjax.plan_plots import COLORS, DASHES, look_of
from experiments.harness import presets

MARKERS = ("o", "s", "^", "D", "v", "P")

# Colour, dashes, width and marker of each schedule. Wider ones are drawn first, so that they stay visible where curves
# coincide. Controls are grey.
_LOOKS: dict[str, tuple[str, Any, float, str]] = {
    presets.ORIGINAL: (COLORS[0], DASHES[0], 2.8, "o"),
    "Decaying learning rate": (COLORS[0], DASHES[0], 2.8, "o"),
    "Hybrid": (COLORS[4], DASHES[3], 2.1, "P"),
    "Increasing batch size": (COLORS[1], DASHES[1], 1.7, "s"),
    "Increased initial learning rate": (COLORS[2], DASHES[2], 1.5, "^"),
    "Increased momentum coefficient": (COLORS[3], DASHES[3], 1.3, "D"),
    presets.CONSTANT: ("#333333", (0, (8, 2)), 1.0, "x"),
    "Control: as few updates, small batch": ("#555555", (0, (1, 1.5)), 1.0, "1"),
    "Control: grown and decayed": ("#777777", (0, (4, 1, 1, 1)), 1.0, "2"),
    "Control: grown twice too much": ("#999999", (0, (3, 3)), 1.0, "+"),
}
# Of the studies of language models and of Figure 7, in these orders.
_ORDERED = (
    ("Cosine decay", "Seesaw", "Linear rule, rate held", "Square-root rule, rate held", "Batch warm-up"),
    ("rate ∝ √κ", "rate held", "rate ∝ κ"),
    ("Momentum 0.9", "Momentum 0.95", "Momentum 0.975"),
    ("rate ∝ √κ", "√κ, b2 follows", "√κ, eps follows", "√κ, weight decay follows", "√κ, all follow"),
)
_LOOKS |= {
    label: (COLORS[i], DASHES[i], 2.6 - 0.3 * i, MARKERS[i]) for labels in _ORDERED for i, label in enumerate(labels)
}
_MORE_COLORS = ("#56B4E9", "#8C564B", "#882255", "#999933", "#332288")

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


def line_style(i: int) -> dict[str, Any]:
    """The look of curve i. Lower curves are wider, so that they stay visible where curves coincide."""
    return look_of(i)


def style_of(label: str) -> dict[str, Any]:
    """The look of a schedule's line, the same in every figure: its colour, linestyle and linewidth.

    Schedules that are the same share a colour; controls are thin and grey. A name that the paper lacks has a look that
    depends on the name alone.

    >>> style_of("Original training schedule") == style_of("Decaying learning rate")
    True
    """
    return dict(zip(("color", "linestyle", "linewidth"), _look(label), strict=False))


def marker_of(label: str) -> str:
    """The marker of a schedule, the same in every figure."""
    return _look(label)[3]


def _look(label: str) -> tuple[str, Any, float, str]:
    if label in _LOOKS:
        return _LOOKS[label]
    number = zlib.crc32(label.encode())  # the same in every process, unlike hash()
    return _MORE_COLORS[number % 5], DASHES[number // 5 % 6], 1.4, MARKERS[number // 30 % 6]


def is_control(label: str) -> bool:
    """Whether a schedule is there only for others to be compared with."""
    return label.startswith("Control")


def plain_ticks(axis: Any, reach: float = np.inf) -> None:
    """Ticks of a logarithmic axis as plain numbers, evenly spaced where it does not reach further than a factor e."""
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)) if reach > 1 else ticker.MaxNLocator(5))
    axis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:,.10g}"))
    axis.set_minor_locator(ticker.NullLocator())


def schedule_legend(figure: Any, axes: Any) -> None:
    """A legend above all panels, with several controls in a column of their own."""
    handles, labels = axes.get_legend_handles_labels()
    if (controls := sum(map(is_control, labels))) > 1:
        blanks = max(2 * controls - len(labels), 0)  # below the schedules
        handles[len(labels) - controls : len(labels) - controls] = [plt.Line2D([], [], linestyle="none")] * blanks
        labels[len(labels) - controls : len(labels) - controls] = [""] * blanks
    figure.legend(handles, labels, loc="outside upper center", ncols=2, handlelength=3.2)


def legend_above(figure: Any, axes: Any, columns: int) -> None:
    """One legend for all panels, above them."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=columns, handlelength=3.2)
