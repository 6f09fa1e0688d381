"""Shared by the figures: curves, differences, and the files of a figure."""

import datetime
import io
import pathlib
import textwrap
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from absl import flags
from matplotlib import ticker

from bsjax.run.metrics import write_json, write_whole
from experiments.harness import presets, runs, studies
from experiments.harness.config import Config
from experiments.harness.curves import Curve, curve, curve_rows, lines_with
from experiments.harness.looks import (
    COLORS,
    DASHES,
    MARKERS,
    is_control,
    legend_above,
    line_style,
    marker_of,
    plain_ticks,
    schedule_legend,
    style_of,
)
from experiments.harness.studies import Study, write_csv
from experiments.harness.tables import (
    finals,
    jobs_of,
    margin_of,
    metric_of,
    print_notes,
    print_published,
    print_results,
    print_table,
    resolution_of,
)

__all__ = [  # what the scripts use, wherever it is
    "COLORS",
    "DASHES",
    "MARKERS",
    "is_control",
    "legend_above",
    "line_style",
    "marker_of",
    "plain_ticks",
    "schedule_legend",
    "style_of",
    "curve",
    "curve_rows",
    "finals",
    "jobs_of",
    "lines_with",
    "metric_of",
    "print_notes",
    "print_published",
    "print_results",
    "print_table",
]

_CLOCKS = {"epoch": "Epochs", "update": "Parameter updates"}
_GREY = "#555555"


def metric_axis(metric: str, when: str = "Test") -> tuple[str, float]:
    """The label of a metric's axis, and the factor of its values.

    >>> metric_axis("accuracy"), metric_axis("loss", "Final test")
    (('Test accuracy (%)', 100.0), ('Final test loss', 1.0))
    >>> metric_axis("top5_accuracy")
    ('Test top5 accuracy (%)', 100.0)
    """
    label = f"{when} {metric.replace('_', ' ')}"
    return (f"{label} (%)", 100.0) if metric.endswith("accuracy") else (label, 1.0)


def define_flags(**options: Any) -> None:
    """Defines the flags of a figure with controls; options are those of `studies.define_flags`."""
    studies.define_flags(**options)
    flags.DEFINE_bool("controls", True, "Also train and show the runs that the figure is compared with.")


def train(
    study: Study[presets.Workload], schedules: dict[Any, Config], controls: Callable[[], dict[Any, Config]]
) -> dict[Any, list[runs.Result]]:
    """Trains each schedule with each seed and then, unless --nocontrols is set, each control with each seed."""
    groups = [schedules, controls() if flags.FLAGS.controls else {}]
    labels = [label for group in groups for _ in study.seeds for label in group]
    configs = [config.replace(seed=seed) for group in groups for seed in study.seeds for config in group.values()]
    found: dict[Any, list[runs.Result]] = {label: [] for label in labels}
    for label, result in zip(labels, studies.train_all(study, configs), strict=True):
        found[label].append(result)
    return found


class Scale(NamedTuple):
    """How a metric is drawn and compared."""

    label: str
    factor: float = 1.0  # of what is drawn
    margin: float | None = None  # the largest difference that does not matter
    resolution: float = 0.0  # the step between neighbouring values
    log: bool = False  # then spreads are geometric, and ratios are drawn instead of differences

    @property
    def to_original(self) -> str:
        """The label of differences."""
        return (
            "Ratio to the original" if self.log else "Difference to the original" + " (points)" * (self.factor == 100)
        )


def scale_of(study: Study[presets.Workload], metric: str) -> Scale:
    """How a test metric of a study is drawn and compared."""
    return Scale(*metric_axis(metric), margin_of(study, metric), resolution_of(study, metric))


def plot_curves(axes: Any, curves: dict[str, Curve], clock: str, scale: Scale) -> None:
    """Draws curves against "epoch" or "update", with a band of one standard deviation around those of no control."""
    for label, one in curves.items():
        mean, low, high = (scale.factor * values for values in one.band(scale.log))
        x, look = getattr(one, clock), style_of(label)
        axes.plot(x, mean, **look, label=label)
        if not is_control(label):
            axes.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)
    axes.set(xlabel=_CLOCKS[clock], ylabel=scale.label)
    if scale.log:
        axes.set_yscale("log")


def plot_differences(axes: Any, curves: dict[str, Curve], scale: Scale) -> None:
    """Draws each schedule's difference to the first one against epochs, paired by seed, with its 95 % interval.

    A schedule that has not been evaluated at the epochs of the first one, because it is shorter, is left out.
    """
    (_, original), *others = curves.items()
    reach = 1.5 * (scale.margin or 0.0) * scale.factor
    for label, one in others:
        if (found := one.difference(original, scale.log, scale.resolution)) is None:
            continue
        (estimate, low, high), look = scale.factor * found, style_of(label)
        axes.plot(one.epoch, estimate, **look)
        if not is_control(label) and np.isfinite(low).all():
            axes.fill_between(one.epoch, low, high, color=look["color"], alpha=0.15, linewidth=0)
        late = np.abs(np.log(estimate) if scale.log else estimate)[len(estimate) // 3 :]
        reach = max(reach, 1.2 * np.quantile(late, 0.95)) if np.isfinite(late).all() else reach
    _draw_margin(axes.axhspan, axes.axhline, scale)
    axes.set(xlabel=_CLOCKS["epoch"], ylabel=scale.to_original.replace(" to the ", "\nto the "))
    reach = reach or 0.01 * scale.factor
    if scale.log:
        axes.set_yscale("log")
        plain_ticks(axes.yaxis, reach)
    axes.set_ylim(*np.exp([-reach, reach]) if scale.log else (-reach, reach))


def plot_final_differences(axes: Any, curves: dict[str, Curve], scale: Scale) -> None:
    """Draws each schedule's difference to the first one at the end, with its 95 % interval, a line per schedule."""
    (_, original), *others = curves.items()
    others = [(label, one) for label, one in others if len(one.update) and len(original.update)]
    for y, (label, one) in enumerate(others):
        estimate, low, high = scale.factor * one.final_difference(original, scale.log, scale.resolution)
        error = [[estimate - low], [high - estimate]] if np.isfinite([low, high]).all() else None
        color = style_of(label)["color"]
        axes.errorbar(estimate, y, xerr=error, color=color, marker=marker_of(label), markersize=5, linewidth=1.3)
        axes.text(0.01, y - 0.36, label, transform=axes.get_yaxis_transform(), fontsize=6.5, color=color, va="center")
    _draw_margin(axes.axvspan, axes.axvline, scale)
    axes.set(yticks=[], ylim=(len(others) - 0.5, -0.8), xlabel=f"{scale.to_original}, at the end")
    axes.xaxis.set_major_locator(ticker.MaxNLocator(7, steps=[1, 2, 5, 10]))  # short labels
    if scale.log:
        axes.set_xscale("log")
        plain_ticks(axes.xaxis, np.log(axes.get_xlim()[1]))


def _draw_margin(span: Callable, line: Callable, scale: Scale) -> None:
    """The line of no difference, and the margin as a stripe."""
    line(1.0 if scale.log else 0.0, color="black", linewidth=0.8, zorder=1)
    if scale.margin is not None:
        half = scale.factor * scale.margin
        span(-half, half, facecolor="#F0E44250", edgecolor="#A89A00", linestyle=":", linewidth=0.8, zorder=0)


def compare_optimizers(name: str, optimizers: Callable[[presets.Preset, Config], dict[str, Config]]) -> None:
    """A figure with a column per optimizer: the test metric against epochs and updates, and its differences below."""
    study = studies.study_from_flags()
    bases = optimizers(study.preset, study.config)
    schedules = presets.by_optimizer(study.preset, bases)
    results = train(study, schedules, lambda: presets.constant_by_optimizer(bases))
    metric = metric_of(results)
    scale = scale_of(study, metric)
    figure, panels = plt.subplots(3, len(bases), figsize=(8, 7.5), layout="constrained", height_ratios=(3, 3, 2))
    rows, table = [], []
    for (epochs, updates, differences), optimizer in zip(panels.T, bases, strict=True):
        group = {schedule: runs for (its_optimizer, schedule), runs in results.items() if its_optimizer == optimizer}
        curves = {schedule: curve(runs, f"test_{metric}") for schedule, runs in group.items()}
        epochs.set_title(optimizer)
        plot_curves(epochs, curves, "epoch", scale)
        plot_curves(updates, curves, "update", scale)
        plot_differences(differences, curves, scale)
        zoom([epochs, updates], curves, scale.factor)
        print(f"\n{optimizer}", end="")
        table += print_results(group, study, optimizer=optimizer)
        rows += curve_rows(curves, f"test_{metric}", resolution=scale.resolution, optimizer=optimizer)
    print_notes(study, table)
    schedule_legend(figure, panels[0, 0])
    caption(figure, study, scale)
    save(figure, study.workdir, name, rows, table, jobs=jobs_of(study))


def draw_schedules(curves: dict[str, Curve], scale: Scale) -> tuple[Any, Any]:
    """The figure of some schedules, and its panels [2, 2].

    Above are the curves against epochs and against updates; below, the differences along training and at the end.
    """
    figure, panels = plt.subplots(2, 2, figsize=(8, 6.2), layout="constrained", height_ratios=(3, 2))
    plot_curves(panels[0, 0], curves, "epoch", scale)
    plot_curves(panels[0, 1], curves, "update", scale)
    panels[0, 1].sharey(panels[0, 0])
    panels[0, 1].set_ylabel("")
    panels[1, 0].sharex(panels[0, 0])
    plot_differences(panels[1, 0], curves, scale)
    plot_final_differences(panels[1, 1], curves, scale)
    schedule_legend(figure, panels[0, 0])
    return figure, panels


def zoom(panels: Iterable[Any], curves: dict[str, Curve], factor: float = 1.0) -> None:
    """Limits panels to the height at which curves are after a tenth of training, and logarithmic x to where they are.

    All but the worst seventh of each curve is in view, and so is what the first decay changes.
    """
    some = {label: one for label, one in curves.items() if len(one.update)}
    if not some:
        return
    means = {label: factor * one.spread()[0] for label, one in some.items()}
    tops = [factor * one.band()[0 if is_control(label) else 2] for label, one in some.items()]
    low = min(float(np.quantile(mean[len(mean) // 10 :], 0.15)) for mean in means.values())
    high = max(float(top[len(top) // 10 :].max()) for top in tops)
    space = max(0.05 * (high - low), 0.001 * factor)
    low -= 4 * space
    left = min(float(one.update[means[label] >= low][0]) for label, one in some.items())
    for panel in panels:
        panel.set_ylim(low, min(high + space, factor) if factor == 100 else high + space)
        if panel.get_xscale() == "log":
            panel.set_xlim(left=left / 1.1)


def caption(figure: Any, study: Study[presets.Workload], scale: Scale, note: str = "") -> None:
    """Says below a figure what its bands and stripes are, or that and a note instead of the bands."""
    seeds = len(study.seeds)
    kind, change = ("geometric standard deviation", "ratio") if scale.log else ("standard deviation", "difference")
    bands = f"Band: ± {kind} over seeds; of a {change}, its 95 % interval, paired by seed."
    texts = [f"{seeds} seeds. {note or bands}" if seeds > 1 else "One seed."]
    if scale.margin is not None and not note:
        texts.append(f"Stripe: the margin, ±{100 * scale.margin:.1f} points.")
    if scale.resolution > 0.001:
        texts.append(f"One test image is {100 * scale.resolution:.2f} points.")
    figure.supxlabel(textwrap.fill(" ".join(texts), 130), fontsize=7, color=_GREY)


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
