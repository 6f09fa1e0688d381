"""Prints what a run would do, without training: phases, updates, noise scale.

    python -m experiments.plan --preset=cifar10 --schedule=increase_batch_size --max_batch_size=5120
    python -m experiments.plan --dataset_size=1281167 --model=mlp --learning_rate=3 --batch_size=8192 --num_epochs=90 \\
        --lr_decay_epochs=30,60,80 --lr_decay_factor=10 --schedule=increase_batch_size --max_batch_size=65536

Takes the flags of experiments.train. `--num_devices=8` also prints on how many of 8 devices each phase would run with
`--devices=auto`, and in microbatches of how many examples each.
"""

from typing import Any

from absl import flags

from bsjax import InvalidArgument, Plan
from bsjax.engine import max_microbatch_size
from bsjax.layout import Layouts
from bsjax.models import ghost_batch_size_of
from experiments import cli, config, presets

_PRESET = flags.DEFINE_string("preset", "digits", f"Defaults of the other flags. One of {', '.join(presets.PRESETS)}.")
_DATASET_SIZE = flags.DEFINE_integer("dataset_size", None, "Examples in an epoch; default, the preset's.")
_NUM_DEVICES = flags.DEFINE_integer("num_devices", None, "Print how each phase runs on up to so many accelerators.")
_JSON = flags.DEFINE_bool("json", False, "Print the plan as JSON: runs of [number of updates, value].")


def main() -> None:
    """Prints the plan of what the flags say."""
    preset = presets.get(_PRESET.value)
    size = preset.dataset_size if _DATASET_SIZE.value is None else _DATASET_SIZE.value
    run = config.config_from_flags(preset.config)
    plan = run.recipe(size).plan()
    if _JSON.value:
        print(plan.to_json())
        return
    num_devices = _NUM_DEVICES.value
    print(plan if num_devices is None else plan.table(more=_layout_columns(run, plan, num_devices)))
    unconverted = run.unconverted().recipe(size).plan().num_updates
    if unconverted != plan.num_updates:
        print(f"{unconverted / plan.num_updates:.2f} times fewer updates than the {unconverted:,} of the recipe")


def _layout_columns(run: config.Config, plan: Plan, num_devices: int) -> dict[str, Any]:
    if num_devices < 1:
        raise InvalidArgument("num_devices", num_devices, "a whole number >= 1", 1)
    layouts = Layouts(
        plan.batch_sizes.tolist(),
        ghost_batch_size_of(run.create_model(num_classes=1)),
        range(1, num_devices + 1),
        max_microbatch_size("accelerator", (0, 0)),
        run.microbatch_size,
    )
    return {
        "devices": lambda phase: str(layouts(phase.batch_size).num_devices),
        "microbatch": lambda phase: f"{layouts(phase.batch_size).microbatch_size:,}",
    }


if __name__ == "__main__":
    config.define_flags()
    cli.run(main)
