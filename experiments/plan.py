"""Prints the phases, updates and noise scale of a run without training.

    python -m experiments.plan --preset=cifar10 --schedule=increase_batch_size --max_batch_size=5120
    python -m experiments.plan --dataset_size=1281167 --model=mlp --learning_rate=3 --batch_size=8192 --num_epochs=90 \\
        --lr_decay_epochs=30,60,80 --lr_decay_factor=10 --schedule=increase_batch_size --max_batch_size=65536

It takes the flags of experiments.train. `--num_devices=8` also prints, for each phase, the number of devices (of 8)
that `--devices=auto` would use, and the size of a microbatch.
"""

import dataclasses
from typing import Any

from absl import flags

from bsjax import Plan
from bsjax.engine import max_microbatch_size
from bsjax.engine.layout import Layouts
from bsjax.errors import check_whole
from experiments.harness import build, cli, config_flags, language_models
from experiments.harness.concerns import ConversionConfig
from experiments.harness.config import Config

_PRESET = flags.DEFINE_string("preset", "digits", f"Defaults of the others. One of {', '.join(language_models.ALL)}.")
_DATASET_SIZE = flags.DEFINE_integer("dataset_size", None, "Examples in an epoch; default, the preset's.")
_NUM_DEVICES = flags.DEFINE_integer("num_devices", None, "Print how each phase runs on this many accelerators at most.")
_JSON = flags.DEFINE_bool("json", False, "Print the plan as JSON: runs of [number of updates, value].")


def main() -> None:
    """Prints the plan that the flags describe."""
    preset = language_models.get(_PRESET.value)
    size = preset.dataset_size if _DATASET_SIZE.value is None else _DATASET_SIZE.value
    config = config_flags.config_from_flags(preset.config)
    build.warn_of_instability(config)
    plan = build.recipe(config, size).plan()
    if _JSON.value:
        print(plan.to_json())
        return
    num_devices = _NUM_DEVICES.value
    print(plan if num_devices is None else plan.table(more=_layout_columns(config, plan, num_devices)))
    unconverted = build.recipe(dataclasses.replace(config, conversion=ConversionConfig()), size).plan().num_updates
    if unconverted != plan.num_updates:
        print(f"{unconverted / plan.num_updates:.2f} times fewer updates than the {unconverted:,} of the recipe")


def _layout_columns(config: Config, plan: Plan, num_devices: int) -> dict[str, Any]:
    check_whole("num_devices", num_devices)
    layouts = Layouts(
        plan.batch_sizes.tolist(),
        build.unit_of(config),
        range(1, num_devices + 1),
        max_microbatch_size("accelerator", 0),
        build.fixed_microbatch_size(config),
    )
    return {
        "devices": lambda phase: str(layouts(phase.batch_size).num_devices),
        "microbatch": lambda phase: f"{layouts(phase.batch_size).microbatch_size:,}",
    }


if __name__ == "__main__":
    config_flags.define_flags()
    cli.run(main, presets=language_models.ALL)
