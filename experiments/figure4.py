"""Figure 4: test accuracy of the three schedules of Section 5.1 with plain SGD and with Adam.

python -m experiments.figure4 --preset=digits --seeds=5 --workdir=runs/digits
"""

from experiments.harness import cli, figures, presets, studies


def main() -> None:
    """Trains the missing runs, then draws the figure and prints the tables."""
    figures.compare_optimizers(studies.study_from_flags(), "figure4", presets.figure4_optimizers)


if __name__ == "__main__":
    studies.define_flags()
    cli.run(main, multihost=True)
