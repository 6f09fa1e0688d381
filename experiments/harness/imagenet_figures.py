"""What the figures of ImageNet share: flags, plans and tables of both accuracies."""

from collections.abc import Callable, Mapping

from absl import flags

from experiments.harness import cli, figures, imagenet, rehearsal, schedule_figure, studies
from experiments.harness.config import Config
from experiments.harness.imagenet import ImageNetPreset

Schedules = Callable[[ImageNetPreset, Config], dict[str, Config]]


def run(name: str, choices: Mapping[str, ImageNetPreset], schedules: Schedules) -> None:
    """Runs the script of a figure.

    Args:
      name: of its files.
      choices: of --preset.
      schedules: of a preset and a recipe, by label.
    """
    figures.define_flags(preset="imagenet", choices=choices)
    flags.DEFINE_bool("plans", False, "Print the updates of each schedule, and train nothing.")
    flags.DEFINE_bool(
        "rehearse", False, "Time the first microbatches of each phase on random images, and predict the whole training."
    )
    cli.run(lambda: _main(name, choices, schedules), multihost=True, presets=choices)


def _main(name: str, choices: Mapping[str, ImageNetPreset], schedules: Schedules) -> None:
    study = studies.study_from_flags(choices)
    configs = schedules(study.preset, study.config)
    if flags.FLAGS.plans:
        figures.print_table(imagenet.plan_rows(study.preset, configs))
        return
    if flags.FLAGS.rehearse:
        rehearsal.rehearse(study.preset, configs)
        return
    results = figures.train(study, configs, lambda: imagenet.controls(study.preset, study.config))

    def print_more() -> None:
        if any("final_test_top5_accuracy" in result.summary for group in results.values() for result in group):
            figures.print_results(results, study, metric="top5_accuracy")
        print()
        figures.print_table(imagenet.plan_rows(study.preset, configs))

    schedule_figure.report(study, name, results, print_more)
