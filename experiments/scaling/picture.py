"""The picture of the predictions: time and device-hours against devices, and where each phase stops speeding up."""

import math
from typing import Any, NamedTuple

import matplotlib.pyplot as plt

from bsjax import Plan
from bsjax.analysis.time_model import Prediction
from experiments.harness import figures

BEYOND = 6  # doublings of the largest number of devices among which a phase may stop speeding up


class Line(NamedTuple):
    """A schedule on every number of devices."""

    plan: Plan
    fixed: dict[int, Prediction]  # on this number throughout
    growing: dict[int, Prediction]  # in each phase on as many as speed it up, up to this number
    stops: tuple[int, ...]  # the number of devices at which each phase stops speeding up; may exceed the others

    def text(self, stop: int) -> str:
        """One of `stops`, with a mark if it is the largest number that is looked at."""
        return "≥ " * (stop == max(self.fixed) << BEYOND) + f"{stop:,}"


def draw(workloads: dict[str, dict[str, Line]]) -> Any:
    """The picture: a column for each workload, by its title."""
    figure = plt.figure(figsize=(9, 9), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(3, 1))
    above, below = parts
    below.suptitle("Devices at which each phase stops speeding up", fontsize="medium")
    columns = above.subplots(2, len(workloads), squeeze=False).T, below.subplots(1, len(workloads), squeeze=False)[0]
    for (time, cost), stops, (title, lines) in zip(*columns, workloads.items(), strict=True):
        time.set_title(title, fontsize="medium")
        for i, (label, line) in enumerate(lines.items()):
            look = figures.style_of(label)
            # Rings of several sizes, all of which can be seen where they coincide.
            ring = {"color": look["color"], "markersize": 9 - 2 * i, "markerfacecolor": "none", "linestyle": ""}
            for axes, name, unit in ((time, "wall_time_s", 3600), (cost, "device_hours", 1)):
                fixed, growing = (
                    [getattr(one, name) / unit for one in found.values()] for found in (line.fixed, line.growing)
                )
                axes.plot(list(line.fixed), fixed, **look, label=label)
                axes.plot(list(line.growing), growing, "o", **ring, zorder=3)
        time.plot([], [], **ring | {"color": "grey"}, marker="o", label="as many as speed up each phase")
        time.set(ylabel="Hours", yscale="log")
        # Less than a decade is drawn from zero on, so that small differences look small.
        smallest, largest = cost.dataLim.intervaly
        cost.set(ylabel="Device-hours", ylim=(0, 1.1 * largest))
        if largest > 10 * smallest:
            cost.set(yscale="log", ylim=(smallest / 2, 2 * largest))
        for axes in (time, cost):
            axes.set_xlabel("Devices")
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:,.0f}")
            if axes.get_yscale() == "log":
                figures.plain_ticks(axes.yaxis)
        time.legend(loc="best", fontsize=7.5, handlelength=3.2)
        _draw_stops(stops, lines)
    return figure


def _draw_stops(axes: Any, lines: dict[str, Line]) -> None:
    """A row for each schedule, and in each phase the number of devices at which it stops speeding up."""
    logs = plt.Normalize(0, 2 * max(math.log2(max(line.stops)) for line in lines.values()) + 1)
    for i, line in enumerate(lines.values()):
        phases, length = line.plan.phases, line.plan.num_examples
        ends = [*(phase.examples_seen for phase in phases[1:]), length]
        for phase, end, stop in zip(phases, ends, line.stops, strict=True):
            x, width = (
                phase.examples_seen / line.plan.dataset_size,
                (end - phase.examples_seen) / line.plan.dataset_size,
            )
            color = plt.get_cmap("Blues")(logs(math.log2(stop)))
            axes.barh(i, width, left=x, color=color, edgecolor="white", linewidth=0.5)
            if end - phase.examples_seen > 0.1 * length:  # there is room
                axes.text(x + width / 2, i, line.text(stop), ha="center", va="center")
    axes.set_yticks(range(len(lines)), lines)
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set_xlabel("Epochs")
