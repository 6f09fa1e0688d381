"""Pictures of plans. Matplotlib is imported when something is drawn."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bsjax.errors import InvalidArgument
from bsjax.noise import kept_noise

if TYPE_CHECKING:
    from bsjax.plan import Plan

# Okabe and Ito's colours, in an order that also differs in grey, and a dash pattern each.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1)), (0, (1, 2)))
_CLOCKS = ("Epochs", "Parameter updates")
_MAX_POINTS = 2_000  # of a line
_SMALL = 1e-4  # an axis whose values begin below this share of the largest one is linear


def plot_plans(plans: Mapping[str, "Plan"], ax: Any = None) -> np.ndarray:
    """Draws learning rate, batch size and noise scale of some plans, against epochs and against updates.

    Args:
      plans: by the label of each.
      ax: six axes as this returns them, to draw more plans into; None makes a figure.

    Returns:
      Matplotlib axes [2, 3]: a row for epochs and one for updates, a column for each quantity.
    """
    axes = _figure() if ax is None else np.asarray(ax)
    if axes.shape != (2, 3):
        raise InvalidArgument("ax", f"of shape {list(axes.shape)}", "axes [2, 3], as a plot without ax returns them")
    rho = float(list(plans.values())[-1].scaling)
    for label, plan in plans.items():
        look = {**look_of(len(axes[0, 0].lines)), "label": label}
        epochs, updates = plan.examples_seen / plan.dataset_size, np.arange(plan.num_updates)
        ends = plan.num_examples / plan.dataset_size, plan.num_updates
        for column, values in zip(axes.T, _quantities(plan, rho), strict=True):
            points = _points(values)
            y = np.append(values[points], values[-1])
            for axis, x, end in zip(column, (epochs, updates), ends, strict=True):
                axis.plot(np.append(x[points], end), y, drawstyle="steps-post", **look)
    noise = "Noise scale\nlr·N/(B(1-m))" if rho == 1 else f"Noise scale\nlr·(N/B)^{rho:g}/(1-m)"
    for column, name in zip(axes.T, ("Learning rate", "Batch size (examples)", noise), strict=True):
        for axis, clock in zip(column, _CLOCKS, strict=True):
            axis.set(xlabel=clock, ylabel=name)
            _set_ticks(axis)
    _set_legend(axes[0, 0], axes[0, 0].figure)
    return axes


def new_figure(rows: int, columns: int, size: tuple[float, float]) -> np.ndarray:
    """Axes [rows, columns] of a new figure of this size in inches, light and without boxes."""
    import matplotlib.pyplot as plt  # here because most programs draw nothing

    _, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.flat:
        lighten(axis)
    return axes


def lighten(axis: Any) -> None:
    """Takes the box away from axes, and draws a grid below their lines."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(color="#e4e4e4")
    axis.set_axisbelow(True)


def look_of(number: int) -> dict[str, Any]:
    """The look of a line. Lower ones are wider, so that they stay visible where lines coincide.

    >>> look_of(0)["color"], look_of(0)["linewidth"] > look_of(1)["linewidth"]
    ('#0072B2', True)
    """
    width = max(1.2, 2.8 - 0.7 * number)
    return {"color": COLORS[number % 6], "linestyle": DASHES[number % 6], "linewidth": width}


def plain_numbers(axis: Any) -> None:
    """Labels the ticks of an x axis or a y axis with plain numbers, such as 20,000."""
    from matplotlib import ticker

    axis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:,.6g}"))


def _figure() -> np.ndarray:
    axes = new_figure(2, 3, (9.5, 5.2))
    for row in axes:
        for axis in row[1:]:
            axis.sharex(row[0])
    return axes


def _points(values: np.ndarray) -> np.ndarray:
    """The updates at which a value changes, evenly thinned if they are many."""
    changes = np.concatenate([[0], np.flatnonzero(values[1:] != values[:-1]) + 1])
    return changes[:: -(-len(changes) // _MAX_POINTS)]


def _quantities(plan: "Plan", rho: float) -> tuple[np.ndarray, ...]:
    """A value of each column for each update. The noise is what conversions keep, so that their lines coincide."""
    rates, sizes = plan.learning_rates, plan.batch_sizes
    return rates, sizes, np.asarray(kept_noise(rates, sizes, plan.dataset_size, plan.momentums, rho))


def _set_ticks(axis: Any) -> None:
    """Plain numbers; y is logarithmic unless it has values near zero, as at the end of a cosine."""
    from matplotlib import ticker

    axis.xaxis.set_major_locator(ticker.MaxNLocator(4))
    plain_numbers(axis.xaxis)
    values = np.concatenate([line.get_ydata() for line in axis.lines])
    low, high = values.min(), values.max()
    if low > _SMALL * high:
        axis.set_yscale("log")
        space = (high / low) ** 0.08 if high > low else 2.0
        axis.set_ylim(low / space, high * space)
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        axis.yaxis.set_minor_locator(ticker.NullLocator())
    plain_numbers(axis.yaxis)


def _set_legend(axis: Any, figure: Any) -> None:
    """One legend above all panels, in place of that of an earlier plot."""
    for legend in list(figure.legends):
        legend.remove()
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, handlelength=3.2, frameon=False)
