"""Shared by the figures: the look of a schedule and of a picture, curves, differences, and the files of a figure."""

import datetime
import io
import pathlib
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from absl import flags
from matplotlib import ticker

from bsjax.run.metrics import write_json, write_whole
from experiments.harness import presets, runs, studies
from experiments.harness.config import Config
from experiments.harness.curves import Curve, curve, curve_rows, lines_with
from experiments.harness.studies import Study, write_csv
from experiments.harness.tables import (
    final,
    finals,
    jobs_of,
    margin_of,
    mean_examples,
    metric_of,
    print_notes,
    print_published,
    print_results,
    print_table,
)

__all__ = [  # what the scripts use, wherever it is
    "Curve",
    "curve",
    "curve_rows",
    "final",
    "finals",
    "jobs_of",
    "lines_with",
    "margin_of",
    "mean_examples",
    "metric_of",
    "print_notes",
    "print_published",
    "print_results",
    "print_table",
]

# Okabe and Ito's colours, in an order that also differs in grey, and a dash pattern each.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), (0, (3, 1)), (0, (1, 2)))
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
_MORE_COLORS = ("#56B4E9", "#8C564B", "#882255", "#999933", "#332288")
_CLOCKS = {"epoch": "Epochs", "update": "Parameter updates"}
_GREY = "#555555"

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


def metric_axis(metric: str, when: str = "Test") -> tuple[str, float]:
    """The label of a metric's axis, and the factor of its values.

    >>> metric_axis("accuracy"), metric_axis("loss", "Final test")
    (('Test accuracy (%)', 100.0), ('Final test loss', 1.0))
    """
    label = f"{when} {metric.replace('_', ' ')}"
    return (f"{label} (%)", 100.0) if metric == "accuracy" else (label, 1.0)


def line_style(i: int) -> dict[str, Any]:
    """The look of curve i. Lower curves are wider, so that they stay visible where curves coincide."""
    return {"color": COLORS[i], "linestyle": DASHES[i], "linewidth": max(1.2, 2.8 - 0.7 * i)}


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
    number = zlib.crc32(label.encode())  # the same in every process, unlike hash()
    color, dashes, marker = (kind[number % len(kind)] for kind in (_MORE_COLORS, DASHES, MARKERS))
    return _LOOKS.get(label, (color, dashes, 1.4, marker))


def is_control(label: str) -> bool:
    """Whether a schedule is there only for others to be compared with."""
    return label.startswith("Control")


def define_flags() -> None:
    """Defines the flags of a figure with controls."""
    studies.define_flags()
    flags.DEFINE_bool("controls", True, "Also train and show the runs that the figure is compared with.")


def train(
    study: Study, schedules: dict[Any, Config], controls: Callable[[], dict[Any, Config]]
) -> dict[Any, list[runs.Result]]:
    """Trains each schedule with each seed and then, unless --nocontrols is set, each control with each seed."""
    groups = [schedules, controls() if flags.FLAGS.controls else {}]
    labels = [label for group in groups for _ in study.seeds for label in group]
    configs = [config.replace(seed=seed) for group in groups for seed in study.seeds for config in group.values()]
    found: dict[Any, list[runs.Result]] = {label: [] for label in labels}
    for label, result in zip(labels, studies.train_all(study, configs), strict=True):
        found[label].append(result)
    return found


def plot_curves(
    axes: Any, curves: dict[str, Curve], clock: str, ylabel: str = "", scale: float = 1.0, log: bool = False
) -> None:
    """Draws curves against "epoch" or "update", with a band of one standard deviation around those of no control.

    On a logarithmic axis, mean and deviation are geometric, so that no band reaches zero.
    """
    for label, one in curves.items():
        mean, low, high = (scale * values for values in one.band(log))
        x, look = getattr(one, clock), style_of(label)
        axes.plot(x, mean, **look, label=label)
        if not is_control(label):
            axes.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)
    axes.set(xlabel=_CLOCKS[clock], ylabel=ylabel)
    if log:
        axes.set_yscale("log")


def plot_differences(
    axes: Any, curves: dict[str, Curve], scale: float = 1.0, margin: float | None = None, log: bool = False
) -> None:
    """Draws each schedule's difference to the first one against epochs, paired by seed, with its 95 % interval.

    Args:
      axes: the panel.
      curves: of each schedule. One that has not been evaluated at the epochs of the first is left out.
      scale: factor of the values.
      margin: half the height of the shaded stripe, before scaling.
      log: draw ratios instead of differences.
    """
    (_, original), *others = curves.items()
    late = [scale * 1.5 * (margin or 0.0)]
    for label, one in others:
        if (found := one.difference(original, log)) is None:
            continue
        (estimate, low, high), look = scale * found, style_of(label)
        axes.plot(one.epoch, estimate, **look)
        if not is_control(label) and np.isfinite(low).all():
            axes.fill_between(one.epoch, low, high, color=look["color"], alpha=0.15, linewidth=0)
        end = np.abs(np.log(estimate) if log else estimate)[len(estimate) // 3 :]
        late.append(float(np.nanquantile(end, 0.95)) if np.isfinite(end).any() else 0.0)
    _stripe(axes.axhspan, axes.axhline, scale, margin, log)
    reach = 1.2 * max(late) or 0.01 * scale
    axes.set(xlabel=_CLOCKS["epoch"], ylabel=_to_original(scale, log).replace(" to the ", "\nto the "))
    axes.set_ylim(*np.exp([-reach, reach]) if log else (-reach, reach))


def plot_final_differences(
    axes: Any, curves: dict[str, Curve], scale: float = 1.0, margin: float | None = None, log: bool = False
) -> None:
    """Draws each schedule's difference to the first one at the end, a line per schedule; else as `plot_differences`."""
    (_, original), *others = ((label, one) for label, one in curves.items() if len(one.update))
    for y, (label, one) in enumerate(others):
        estimate, low, high = scale * one.final_difference(original, log)
        error = [[estimate - low], [high - estimate]] if np.isfinite([low, high]).all() else None
        color = style_of(label)["color"]
        axes.errorbar(estimate, y, xerr=error, color=color, marker=marker_of(label), markersize=5, linewidth=1.3)
        axes.text(0.01, y - 0.28, label, transform=axes.get_yaxis_transform(), fontsize=6.5, color=color, va="center")
    _stripe(axes.axvspan, axes.axvline, scale, margin, log)
    axes.set(yticks=[], ylim=(len(others) - 0.5, -0.7), xlabel=f"{_to_original(scale, log)}, at the end")
    if log:
        axes.set_xscale("log")
        plain_ticks(axes.xaxis)


def _stripe(span: Callable, line: Callable, scale: float, margin: float | None, log: bool) -> None:
    """The margin, shaded, and the line of no difference."""
    line(1.0 if log else 0.0, color="black", linewidth=0.8, zorder=1)
    if margin is not None and not log:
        span(-scale * margin, scale * margin, color="#F0E442", alpha=0.3, linewidth=0, zorder=0)


def _to_original(scale: float, log: bool) -> str:
    return "Ratio to the original" if log else "Difference to the original" + " (points)" * (scale == 100)


def plain_ticks(axis: Any) -> None:
    """Ticks at 1, 2 and 5 times powers of ten, as plain numbers."""
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:,.10g}"))
    axis.set_minor_formatter("")


def compare_optimizers(name: str, optimizers: Callable[[presets.Preset, Config], dict[str, Config]]) -> None:
    """A figure with a column per optimizer: the test metric against epochs and updates, and its differences below."""
    study = studies.study_from_flags()
    bases = optimizers(study.preset, study.config)
    schedules = presets.by_optimizer(study.preset, bases)
    results = train(study, schedules, lambda: presets.constant_by_optimizer(bases))
    metric = metric_of(results)
    (label, scale), margin = metric_axis(metric), margin_of(study, metric)
    figure, panels = plt.subplots(3, len(bases), figsize=(8, 7.5), layout="constrained", height_ratios=(3, 3, 2))
    rows, table = [], []
    for (epochs, updates, differences), optimizer in zip(panels.T, bases, strict=True):
        group = {schedule: runs for (its_optimizer, schedule), runs in results.items() if its_optimizer == optimizer}
        curves = {schedule: curve(runs, f"test_{metric}") for schedule, runs in group.items()}
        epochs.set_title(optimizer)
        plot_curves(epochs, curves, "epoch", label, scale)
        plot_curves(updates, curves, "update", label, scale)
        plot_differences(differences, curves, scale, margin)
        zoom([epochs, updates], curves, scale)
        print(f"\n{optimizer}", end="")
        table += print_results(group, study, optimizer=optimizer)
        rows += curve_rows(curves, f"test_{metric}", optimizer=optimizer)
    print_notes(study, table)
    legend_above(figure, panels[0, 0], columns=2)
    caption(figure, study, metric)
    save(figure, study.workdir, name, rows, table, jobs=jobs_of(study))


def draw_schedules(
    curves: dict[str, Curve], ylabel: str, scale: float = 1.0, margin: float | None = None, log: bool = False
) -> tuple[Any, Any]:
    """Curves against epochs and against updates; below, the differences along training and at the end.

    Args:
      curves: of each schedule, the first one the original.
      ylabel: of the upper panels.
      scale: factor of the values.
      margin: the largest difference that does not matter, before scaling.
      log: logarithmic values, and ratios instead of differences.

    Returns:
      The figure and its [2, 2] panels.
    """
    figure, panels = plt.subplots(2, 2, figsize=(8, 5.8), layout="constrained", height_ratios=(3, 2))
    plot_curves(panels[0, 0], curves, "epoch", ylabel, scale, log)
    plot_curves(panels[0, 1], curves, "update", "", scale, log)
    panels[0, 1].sharey(panels[0, 0])
    panels[1, 0].sharex(panels[0, 0])
    plot_differences(panels[1, 0], curves, scale, margin, log)
    plot_final_differences(panels[1, 1], curves, scale, margin, log)
    legend_above(figure, panels[0, 0], columns=2)
    return figure, panels


def zoom(panels: Iterable[Any], curves: dict[str, Curve], scale: float = 1.0) -> None:
    """Limits panels to the height at which curves are after a tenth of training, and logarithmic x to where they are.

    The lower limit lets in all but the worst seventh of each curve, so that what a decay changes stays in view.
    """
    some = {label: one for label, one in curves.items() if len(one.update)}
    if not some:
        return
    means = {label: scale * one.spread()[0] for label, one in some.items()}
    low = min(float(np.quantile(mean[len(mean) // 10 :], 0.15)) for mean in means.values())
    tops = [scale * one.band()[0 if is_control(label) else 2] for label, one in some.items()]
    high = max(float(top[len(top) // 10 :].max()) for top in tops)
    space = max(0.06 * (high - low), 0.002 * scale)
    left = min(float(one.update[means[label] >= low - space][0]) for label, one in some.items())
    for panel in panels:
        panel.set_ylim(low - space, min(high + space, scale) if scale == 100 else high + space)
        if panel.get_xscale() == "log":
            panel.set_xlim(left=left / 1.1)


def caption(figure: Any, study: Study, metric: str = "", log: bool = False, note: str = "") -> None:
    """Says below a figure what its bands and stripes are, or that and a note instead of the bands."""
    seeds, margin = len(study.seeds), margin_of(study, metric)
    kind, change = ("geometric standard deviation", "ratio") if log else ("standard deviation", "difference")
    note = note or f"Band: ± {kind}; of a {change}, its 95 % interval, paired by seed."
    texts = [f"{note} {seeds} seeds." if seeds > 1 else "One seed."]
    if margin is not None:
        texts.append(f"Stripe: the margin, ±{100 * margin:g} points.")
    test_size = study.preset.test_size
    if metric == "accuracy" and test_size and test_size < 1000 and study.config.data == study.preset.config.data:
        texts.append(f"One test image is {100 / test_size:.2f} points.")
    figure.supxlabel(" ".join(texts), fontsize=7, color=_GREY)


def legend_above(figure: Any, axes: Any, columns: int) -> None:
    """One legend for all panels, above them."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=columns, handlelength=3.2)


def save(
    figure: Any,
    workdir: pathlib.Path,
    name: str,
    points: Iterable[dict[str, Any]],
    table: Iterable[dict[str, Any]] = (),
    **about: Any,
) -> None:
    """Writes the picture as PNG and SVG, its points and table as CSV, how it was made as JSON, and prints the path."""
    for kind, options in (("png", {}), ("svg", {"metadata": {"Date": None}})):
        file = io.BytesIO()
        figure.savefig(file, format=kind, **options)
        write_whole(workdir / f"{name}.{kind}", file.getvalue())
    plt.close(figure)
    write_csv(workdir / f"{name}.csv", list(points))
    write_csv(workdir / f"{name}_table.csv", list(table))
    write_json(workdir / f"{name}.json", {**runs.surroundings(), **about, "date": datetime.date.today().isoformat()})
    print(f"\nPicture: {workdir / name}.png (and .svg); numbers: {workdir / name}.csv")
