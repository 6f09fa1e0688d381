"""Figure 3: test accuracy of the three schedules of Section 5.1 with momentum and with Nesterov momentum.

python -m experiments.figure3 --preset=digits --seeds=5 --workdir=runs/digits
"""

from experiments.harness import cli, figures, presets, studies


def main() -> None:
    """Trains the missing runs, then draws the figure and prints the tables."""
    figures.compare_optimizers(studies.study_from_flags(), "figure3", presets.figure3_optimizers)


if __name__ == "__main__":
    studies.define_flags()
    cli.run(main, multihost=True)
