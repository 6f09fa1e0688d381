"""Figure 4: test accuracy of the three schedules of Section 5.1 with plain SGD and with Adam.

python -m experiments.figure4 --preset=digits --seeds=5 --workdir=runs/digits

A constant learning rate shows whether the decay is needed; --nocontrols leaves it out.
"""

from experiments.harness import cli, figures, presets


def main() -> None:
    """Trains the missing runs, then draws the figure and prints the tables."""
    figures.compare_optimizers("figure4", presets.figure4_optimizers)


if __name__ == "__main__":
    figures.define_flags()
    cli.run(main, multihost=True)
