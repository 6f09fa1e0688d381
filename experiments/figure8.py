"""Figure 8 (Appendix B): final test accuracy against the initial learning rate, with the batch scaled along.

python -m experiments.figure8 --preset=digits --seeds=5 --workdir=runs/digits

Each run scales learning rate and batch from the start and then grows the batch up to Section 5.2's cap.
Accuracy is constant up to some learning rate; above it, linear scaling breaks down.
"""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import ticker

from experiments.harness import cli, figures, presets, studies


def main() -> None:
    """Trains the missing runs, then draws the figure and prints the table."""
    study = studies.study_from_flags()
    results = studies.train(study, presets.appendix_b(study.preset, study.config))
    rates = list(results)
    updates = [group[0].summary["num_updates"] for group in results.values()]
    metric = figures.metric_of(results)
    label, scale = figures.metric_axis(metric, "Final test")
    mean, std = scale * np.array([figures.final(group, f"final_test_{metric}") for group in results.values()]).T

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained", sharey=True)
    for panel, x, name in ((left, rates, "Initial learning rate"), (right, updates, "Parameter updates")):
        panel.errorbar(x, mean, std, color=figures.COLORS[0], marker="o", capsize=3)
        panel.set(xlabel=name, xscale="log")
        panel.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter("")
    left.set_ylabel(label)
    table = figures.print_results({f"learning rate {rate:g}": group for rate, group in results.items()})
    points = [{"learning_rate": f"{rate:g}", **row} for rate, row in zip(rates, table, strict=True)]
    figures.save(figure, study.workdir, "figure8", points, table)


if __name__ == "__main__":
    studies.define_flags()
    cli.run(main, multihost=True)
