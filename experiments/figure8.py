"""Figure 8 (Appendix B): final test accuracy against the initial learning rate, with the batch scaled along.

python -m experiments.figure8 --preset=digits --seeds=5 --workdir=runs/digits

Each run scales learning rate and batch from the start and then grows the batch up to Section 5.2's cap.
Accuracy holds up to some learning rate, above which the linear scaling of the two breaks down.
"""

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import ticker

from experiments import cli, figures


def main() -> None:
    """Trains what is missing, then draws the figure and prints the table."""
    study = figures.study_from_flags()
    growing = dataclasses.replace(
        study.config, schedule="increase_batch_size", max_batch_size=study.preset.max_batch_size
    )
    rates = [factor * study.config.learning_rate for factor in study.preset.learning_rate_factors]
    results = figures.train(
        study,
        {
            f"learning rate {rate:g}": dataclasses.replace(growing, scale_learning_rate=factor)
            for rate, factor in zip(rates, study.preset.learning_rate_factors, strict=True)
        },
    )
    updates = [group[0].summary["num_updates"] for group in results.values()]
    mean, std = np.array([figures.final(group, "final_test_accuracy") for group in results.values()]).T

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained", sharey=True)
    for panel, x, name in ((left, rates, "Initial learning rate"), (right, updates, "Parameter updates")):
        panel.errorbar(x, 100 * mean, 100 * std, color=figures.COLORS[0], marker="o", capsize=3)
        panel.set(xlabel=name, xscale="log")
        panel.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter("")
    left.set_ylabel("Final test accuracy (%)")
    table = figures.print_results(results)
    points = [{"learning_rate": f"{rate:g}", **row} for rate, row in zip(rates, table, strict=True)]
    figures.save(figure, study.workdir, "figure8", points, table)


if __name__ == "__main__":
    figures.define_flags()
    cli.run(main)
