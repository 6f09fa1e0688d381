"""Figure 3: test accuracy of the three schedules of Section 5.1 with momentum and with Nesterov momentum.

python -m experiments.figure3 --preset=digits --seeds=5 --workdir=runs/digits

A constant learning rate shows whether the decay is needed; --nocontrols leaves it out.
"""

from experiments.harness import cli, figures, presets


def main() -> None:
    """Trains the missing runs, then draws the figure and prints the tables."""
    figures.compare_optimizers("figure3", presets.figure3_optimizers)


if __name__ == "__main__":
    figures.define_flags()
    cli.run(main, multihost=True)
