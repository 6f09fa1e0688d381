"""Figure 8 (Appendix B): final test accuracy against the initial learning rate, with the batch scaled along.

python -m experiments.figure8 --preset=digits --seeds=5 --workdir=runs/digits

Each run scales learning rate and batch from the start and then grows the batch up to Section 5.2's cap.
Accuracy is constant up to some learning rate; above it, linear scaling breaks down. The recipe is a band, its learning
rate without decay a line (`--nocontrols` leaves both out).
"""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import ticker

from bsjax.analysis.statistics import mean_interval
from experiments.harness import cli, figures, presets, runs, studies


def draw(results: dict[Any, list[runs.Result]], scale: figures.Scale) -> Any:
    """The figure of runs by their learning rate, or by the name of a control."""
    name = f"final_test_{figures.metric_of(results)}"
    finals = {key: scale.factor * figures.finals(group, name) for key, group in results.items()}
    found = {key: mean_interval(values, resolution=scale.factor * scale.resolution) for key, values in finals.items()}
    controls = {key: found[key] for key in results if isinstance(key, str)}
    rates = [key for key in results if key not in controls]
    updates = [results[rate][0].summary["num_updates"] for rate in rates]
    mean, low, high = np.array([found[rate] for rate in rates]).T
    error = np.array([mean - low, high - mean]) if np.isfinite([low, high]).all() else None

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.9), layout="constrained", sharey=True)
    label = "Increasing batch size"
    color = figures.style_of(label)["color"]
    for panel, x, axis in ((left, rates, "Initial learning rate"), (right, updates, "Parameter updates")):
        panel.errorbar(x, mean, error, color=color, marker=figures.marker_of(label), capsize=3, label=label)
        panel.set(xlabel=axis, xscale="log", xmargin=0.1)
        for key, (estimate, *ends) in controls.items():
            panel.axhline(estimate, **figures.style_of(key) | {"linewidth": 1.2}, label=key, zorder=1)
            if not figures.is_control(key) and np.isfinite(ends).all():
                panel.axhspan(*ends, color=figures.style_of(key)["color"], alpha=0.15, linewidth=0)
    left.set_ylabel(scale.label)
    left.set_xticks(rates, [f"{rate:g}" for rate in rates])
    left.xaxis.set_minor_locator(ticker.NullLocator())
    figures.plain_ticks(right.xaxis)
    for rate, x, y in zip(rates, updates, mean, strict=True):
        crowded = any(x < other < 1.2 * x for other in updates)  # then the label is on the left of its point
        offset, side = ((-5, 5), "right") if crowded else ((5, 5), "left")
        right.annotate(f"{rate:g}", (x, y), offset, textcoords="offset points", ha=side, fontsize=7, color=color)
    spread = 2 * max(float(np.nanstd(values)) for values in finals.values())
    means = np.array([one.estimate for one in found.values()])
    if np.isfinite(means).all():  # few seeds have intervals that are larger than the picture
        left.set_ylim(means.min() - spread, min(means.max() + spread, 100 if scale.factor == 100 else np.inf))
    figures.schedule_legend(figure, left)
    return figure


def main() -> None:
    """Trains the missing runs, then draws the figure and prints the table."""
    study = studies.study_from_flags()
    schedules = presets.appendix_b(study.preset, study.config)
    results = figures.train(study, schedules, lambda: presets.figure8_controls(study.config))
    scale = figures.scale_of(study, figures.metric_of(results))
    figure = draw(results, scale._replace(label=f"Final {scale.label[0].lower()}{scale.label[1:]}"))
    note = "Bars and band: 95 % interval of the mean. Numbers: the initial learning rate."
    figures.caption(figure, study, scale, note)
    original = study.config.optimizer.learning_rate
    order = sorted(results, key=[presets.ORIGINAL, *schedules, presets.CONSTANT].index)
    named = {key if isinstance(key, str) else f"learning rate {key:g}": results[key] for key in order}
    table = figures.print_results(named, study)
    figures.print_notes(study, table)
    rates = [f"{original if isinstance(key, str) else key:g}" for key in order]
    points = [{"learning_rate": rate, **row} for rate, row in zip(rates, table, strict=True)]
    figures.save(figure, study.workdir, "figure8", points, table, jobs=figures.jobs_of(study))


if __name__ == "__main__":
    figures.define_flags()
    cli.run(main, multihost=True)
