"""Figure 3: test accuracy of the three schedules of Section 5.1 with momentum and with Nesterov momentum.

python -m experiments.figure3 --preset=digits --seeds=5 --workdir=runs/digits
"""

import dataclasses

from experiments import cli, figures, presets


def main() -> None:
    """Trains what is missing, then draws the figure and prints the tables."""
    study = figures.study_from_flags()
    optimizers = {
        "SGD with momentum": study.config,
        "Nesterov momentum": dataclasses.replace(study.config, optimizer="nesterov"),
    }
    figures.compare_optimizers(study, "figure3", optimizers, presets.section_5_1)


if __name__ == "__main__":
    figures.define_flags()
    cli.run(main)
