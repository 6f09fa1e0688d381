"""Trains one run.

    python -m experiments.train --schedule=increase_batch_size --max_batch_size=144 --workdir=runs/example

Writes into --workdir: config.json (every flag, versions, devices), metrics.jsonl, summary.json.
"""

import pathlib

from absl import flags

from experiments import cli, config, presets, runs

_PRESET = flags.DEFINE_string("preset", "digits", f"Defaults of the other flags. One of {', '.join(presets.PRESETS)}.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the run's files.", required=True)
_FORK_FROM = flags.DEFINE_string(
    "fork_from", None, "Begin with the last checkpoint of the run in this folder, and where it was in the examples."
)
config.define_flags()
runs.define_flags()


def main() -> None:
    """Trains what the flags say."""
    run = config.config_from_flags(presets.get(_PRESET.value).config)
    workdir = pathlib.Path(_WORKDIR.value).expanduser()
    fork_from = _FORK_FROM.value and pathlib.Path(_FORK_FROM.value).expanduser()
    was_complete = runs.has_ended(workdir)
    summary = runs.train(run, workdir, runs.control_from_flags(), fork_from=fork_from or None)
    if was_complete:
        cli.say(f"{workdir} is complete.")
    cli.say(
        f"{summary['num_updates']:,} updates, {summary['examples_seen']:,} examples: "
        f"test accuracy {100 * summary['final_test_accuracy']:.2f} %, test loss {summary['final_test_loss']:.4f}, "
        f"train loss {summary['final_train_loss']:.4f}, {summary['wall_time_s']:.1f} s"
    )


if __name__ == "__main__":
    cli.run(main)
