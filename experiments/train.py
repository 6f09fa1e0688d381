"""Trains one run.

    python -m experiments.train --schedule=increase_batch_size --max_batch_size=144 --workdir=runs/example
    python -m experiments.train --task=autoencoder --workdir=runs/autoencoder
    python -m experiments.train --preset=shakespeare_cpu --workdir=runs/shakespeare

Writes into --workdir: config.json (every flag, versions, devices), metrics.jsonl, summary.json.
"""

import pathlib

from absl import flags

from bsjax.run.metrics import read_summary
from experiments.harness import build, cli, config_flags, control, language_models, runs

_PRESET = flags.DEFINE_string("preset", "digits", f"Defaults of the others. One of {', '.join(language_models.ALL)}.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the run's files.", required=True)
_FORK_FROM = flags.DEFINE_string(
    "fork_from", None, "Begin with the last checkpoint of the run in this folder, at its position in the examples."
)
config_flags.define_flags()
control.define_flags()


def main() -> None:
    """Trains the run that the flags describe."""
    config = config_flags.config_from_flags(language_models.get(_PRESET.value).config)
    workdir = pathlib.Path(_WORKDIR.value).expanduser()
    fork_from = pathlib.Path(_FORK_FROM.value).expanduser() if _FORK_FROM.value else None
    build.warn_of_instability(config)
    was_complete = read_summary(workdir) is not None
    summary = runs.train(config, workdir, control.control_from_flags(), fork_from=fork_from)
    if was_complete:
        cli.say(f"{workdir} is complete.")
    speeds = "".join(f", {summary[name]:,.0f} tokens/s" for name in ("tokens_per_second",) if name in summary)
    cli.say(
        f"{summary['num_updates']:,} updates, {summary['examples_seen']:,} examples: "
        f"{', '.join(runs.headlines(summary))}, "
        f"train loss {summary['final_train_loss']:.4f}, {summary['wall_time_s']:.1f} s{speeds}"
    )


if __name__ == "__main__":
    cli.run(main, multihost=True, presets=language_models.ALL)
