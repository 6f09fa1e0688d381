"""Figure 4: test accuracy of the three schedules of Section 5.1 with plain SGD and with Adam.

python -m experiments.figure4 --preset=digits --seeds=5 --workdir=runs/digits
"""

import dataclasses

from experiments import cli, figures, presets


def main() -> None:
    """Trains what is missing, then draws the figure and prints the tables."""
    study = figures.study_from_flags()
    preset = study.preset
    optimizers = {
        "SGD": dataclasses.replace(study.config, optimizer="sgd", learning_rate=preset.sgd_learning_rate),
        "Adam": dataclasses.replace(study.config, optimizer="adam", learning_rate=preset.adam_learning_rate),
    }
    figures.compare_optimizers(study, "figure4", optimizers, presets.section_5_1)


if __name__ == "__main__":
    figures.define_flags()
    cli.run(main)
