"""All runs of the paper's figures, a slice of time after the other.

    python -m experiments.paper_runs --preset=cifar10 --workdir=runs/cifar10 --list
    python -m experiments.paper_runs --preset=cifar10 --workdir=runs/cifar10 --seconds=540
    python -m experiments.paper_runs --preset=cifar10 --workdir=runs/cifar10 --rehearse

The first lists them; the second goes on with the next ones, the most telling first, and stops in time; the third
tries the first update of every phase of every schedule, and tells its speed. `--figures=5,2` keeps to these. The
figures find the runs in the same --workdir: `python -m experiments.figure5 --preset=cifar10 --workdir=runs/cifar10`.
Needs a prepared data set, jax, flax, optax, orbax-checkpoint and absl-py only, so that any accelerator for ten
minutes will do.
"""

import dataclasses
import pathlib
import time
from collections.abc import Iterable, Sequence

import jax
from absl import flags

from bsjax.data import load_dataset
from bsjax.errors import check_choice
from experiments import cli, presets, runs, studies
from experiments.config import Config


def paper_runs(study: studies.Study, names: Sequence[str] | None = None) -> dict[Config, list[str]]:
    """The runs, the most telling first, and the figures that show them.

    Figure 5 with all seeds, then the others seed by seed; runs that several figures show are there once.

    Args:
      study: preset, flags and seeds.
      names: of the figures, such as "figure5"; default, all.

    Raises:
      InvalidArgument: there is no such figure.
    """
    figures = presets.figures(study.preset, study.config)
    if names is not None:
        figures = {check_choice("figures", name, figures): figures[name] for name in names}
    order = [("figure5", seed) for seed in study.seeds if "figure5" in figures]
    order += [(figure, seed) for seed in study.seeds for figure in figures if figure != "figure5"]
    found: dict[Config, list[str]] = {}
    for figure, seed in order:
        for config in figures[figure]:
            found.setdefault(dataclasses.replace(config, seed=seed), []).append(figure)
    return found


def status(config: Config, folder: pathlib.Path, dataset_size: int) -> tuple[str, str]:
    """ "done", "part" or "missing"; and how far, or what came out."""
    if runs.has_ended(folder):
        summary = runs.read_summary(folder)
        if not summary["completed"]:
            return "done", "diverged"
        return "done", f"{100 * summary['final_test_accuracy']:.2f} %, {summary['wall_time_s']:,.0f} s"
    num_updates = config.recipe(dataset_size).plan().num_updates
    checkpoints = [int(path.name) for path in folder.glob("checkpoints/*") if path.name.isdigit()]
    if checkpoints:
        return "part", f"update {max(checkpoints):,} of {num_updates:,}"
    return "missing", f"{num_updates:,} updates"


def print_list(study: studies.Study, todo: dict[Config, list[str]]) -> None:
    """Prints a line for each run."""
    counts = {"done": 0, "part": 0, "missing": 0}
    for config, figures in todo.items():
        name = runs.run_name(config, study.preset.config)
        state, outcome = status(config, study.workdir / "runs" / name, study.preset.dataset_size)
        counts[state] += 1
        print(f"{state:8}{','.join(figure.removeprefix('figure') for figure in figures):9}{outcome:28}{name}")
    print(", ".join(f"{count} {state}" for state, count in counts.items()))


def rehearse(study: studies.Study, todo: Iterable[Config]) -> None:
    """Runs the first update of every phase, from one state on, and prints what it took."""
    dataset = load_dataset(study.config.dataset, study.control.data_dir)
    print(f"{'batch':>8}{'microbatch':>12}{'lr':>9}{'momentum':>10}{'loss':>9}{'images/s':>10}{'compiled in s':>15}")
    for config in todo:
        print(runs.run_name(config, study.preset.config), flush=True)
        plan = config.recipe(len(dataset.train.labels)).plan()
        engine = config.create_engine(dataset, plan, study.control.images_on)
        state = engine.init()
        for phase in plan.phases:
            update = plan[phase.start_update]
            compiled, start = engine.stall_time_s, time.perf_counter()
            state, metrics = engine.update(
                state, update.examples_seen, update.batch_size, update.learning_rate, update.momentum
            )
            jax.block_until_ready(metrics)
            compiled = engine.stall_time_s - compiled
            seconds = time.perf_counter() - start - compiled
            print(
                f"{update.batch_size:8,}{engine.layout(update.batch_size).microbatch_size:12,}{update.learning_rate:9.4g}"
                f"{update.momentum:10.4g}{float(metrics[0, 0]):9.4f}{update.batch_size / seconds:10,.0f}"
                f"{compiled:15.1f}",
                flush=True,
            )


def main() -> None:
    """Lists, rehearses, or trains."""
    study = studies.study_from_flags()
    names = flags.FLAGS.figures
    todo = paper_runs(study, names and [name if name.startswith("figure") else f"figure{name}" for name in names])
    if flags.FLAGS.list:
        print_list(study, todo)
    elif flags.FLAGS.rehearse:
        rehearse(study, [config for config in todo if config.seed == study.seeds[0]])
    else:
        studies.train_all(study, list(todo))
        print(f"All {len(todo)} runs are complete.")


if __name__ == "__main__":
    studies.define_flags(preset="cifar10")
    flags.DEFINE_list("figures", None, "Only the runs of these figures, such as 5,2; default, of all.")
    flags.DEFINE_bool("list", False, "Only list the runs: done, part or missing.")
    flags.DEFINE_bool("rehearse", False, "Only try the first update of every phase of every schedule.")
    flags.DEFINE_alias("seconds", "stop_after_s")
    cli.run(main)
