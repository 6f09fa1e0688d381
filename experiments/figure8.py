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


def draw(results: dict[Any, list[runs.Result]]) -> Any:
    """The figure of runs by their learning rate, or by the name of a control."""
    metric = figures.metric_of(results)
    label, scale = figures.metric_axis(metric, "Final test")
    found = {
        key: mean_interval(scale * figures.finals(group, f"final_test_{metric}")) for key, group in results.items()
    }
    rates = [key for key in results if not isinstance(key, str)]
    updates = [results[rate][0].summary["num_updates"] for rate in rates]
    mean, low, high = np.array([found[rate] for rate in rates]).T
    error = np.array([mean - low, high - mean]) if np.isfinite(low).all() else None

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.7), layout="constrained", sharey=True)
    color = figures.style_of("Increasing batch size")["color"]
    for panel, x, name in ((left, rates, "Initial learning rate"), (right, updates, "Parameter updates")):
        panel.errorbar(x, mean, error, color=color, marker="o", markersize=5, capsize=3, label="Increasing batch size")
        panel.set(xlabel=name, xscale="log")
        for key in (key for key in results if isinstance(key, str)):
            panel.axhline(found[key].estimate, **figures.style_of(key) | {"linewidth": 1.2}, label=key, zorder=1)
        if presets.ORIGINAL in found and np.isfinite(found[presets.ORIGINAL].low):
            ends, shade = found[presets.ORIGINAL][1:], figures.style_of(presets.ORIGINAL)["color"]
            panel.axhspan(*ends, color=shade, alpha=0.15, linewidth=0)
    left.set_ylabel(label)
    left.xaxis.set_major_locator(ticker.FixedLocator(rates))
    left.xaxis.set_major_formatter("{x:g}")
    left.xaxis.set_minor_locator(ticker.NullLocator())
    figures.plain_ticks(right.xaxis)
    for rate, x, y in zip(rates, updates, mean, strict=True):
        # A point whose right neighbour is close has its label on the left.
        crowded = any(x < other < 1.2 * x for other in updates)
        offset, side = ((-5, 3), "right") if crowded else ((5, 3), "left")
        right.annotate(f"{rate:g}", (x, y), offset, textcoords="offset points", ha=side, fontsize=7, color=color)
    figures.legend_above(figure, left, columns=3)
    return figure


def main() -> None:
    """Trains the missing runs, then draws the figure and prints the table."""
    study = studies.study_from_flags()
    schedules = presets.appendix_b(study.preset, study.config)
    results = figures.train(study, schedules, lambda: presets.figure8_controls(study.config))
    figure = draw(results)
    figures.caption(figure, study, note="Bars and band: 95 % interval of the mean. Numbers: the initial learning rate.")
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
