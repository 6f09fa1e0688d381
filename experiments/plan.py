"""Prints what a run would do, without training: phases, updates, noise scale.

    python -m experiments.plan --preset=cifar10 --schedule=increase_batch_size --max_batch_size=5120
    python -m experiments.plan --dataset_size=1281167 --model=mlp --learning_rate=3 --batch_size=8192 --num_epochs=90 \\
        --lr_decay_epochs=30,60,80 --lr_decay_factor=10 --schedule=increase_batch_size --max_batch_size=65536

Takes the flags of experiments.train.
"""

from absl import flags

from experiments import cli, config, presets

_PRESET = flags.DEFINE_string("preset", "digits", f"Defaults of the other flags. One of {', '.join(presets.PRESETS)}.")
_DATASET_SIZE = flags.DEFINE_integer("dataset_size", None, "Examples in an epoch; default, the preset's.")
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
    print(plan)
    unconverted = run.unconverted().recipe(size).plan().num_updates
    if unconverted != plan.num_updates:
        print(f"{unconverted / plan.num_updates:.2f} times fewer updates than the {unconverted:,} of the recipe")


if __name__ == "__main__":
    config.define_flags()
    cli.run(main)
