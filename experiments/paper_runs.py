"""All runs of the paper's figures, in slices of time.

    python -m experiments.paper_runs --preset=cifar10 --workdir=runs/cifar10 --list
    python -m experiments.paper_runs --preset=cifar10 --workdir=runs/cifar10 --seconds=540
    python -m experiments.paper_runs --preset=cifar10 --workdir=runs/cifar10 --rehearse

The first command lists them. The second trains the next ones, the most important first, and stops in time. The third
runs the first update of every phase of every schedule, and prints its speed. `--figures=5,2` selects these figures, and
`--nocontrols` leaves out what they are compared with. The figures find the runs in the same --workdir:
`python -m experiments.figure5 --preset=cifar10 --workdir=runs/cifar10`.
This script needs a prepared data set, jax, flax, optax, orbax-checkpoint and absl-py only, so that any accelerator that
is free for ten minutes is enough.
"""

import pathlib
import time
from collections.abc import Iterable, Sequence

from absl import flags

from bsjax.errors import check_choice
from bsjax.run.metrics import read_summary
from experiments.harness import build, cli, presets, runs, studies
from experiments.harness.config import Config


def paper_runs(
    study: studies.Study, names: Sequence[str] | None = None, with_controls: bool = True
) -> dict[Config, list[str]]:
    """The runs, the most important first, and the figures that show them.

    Figure 5 comes first with all seeds, then the others seed by seed, and then the controls in the same order. A run of
    several figures occurs once.

    Args:
      study: preset, flags and seeds.
      names: of the figures, such as "figure5"; default, all.
      with_controls: whether the figures' controls are among them.

    Raises:
      InvalidArgument: there is no such figure.
    """
    parts = [presets.figures(study.preset, study.config)]
    if with_controls:
        parts.append(presets.figure_controls(study.preset, study.config))
    names = list(parts[0]) if names is None else [check_choice("figures", name, parts[0]) for name in names]
    found: dict[Config, list[str]] = {}
    for part in parts:
        order = [("figure5", seed) for seed in study.seeds if "figure5" in names]
        order += [(figure, seed) for seed in study.seeds for figure in part if figure in names and figure != "figure5"]
        for figure, seed in order:
            for config in part[figure]:
                figures = found.setdefault(config.replace(seed=seed), [])
                if figure not in figures:
                    figures.append(figure)
    return found


def status(config: Config, folder: pathlib.Path, dataset_size: int) -> tuple[str, str]:
    """ "done", "part" or "missing"; and the progress or the result of a run."""
    if summary := read_summary(folder):
        if not summary["completed"]:
            return "done", "diverged"
        outcome = runs.headlines(summary)[0].removeprefix("test accuracy ")
        return "done", f"{outcome}, {summary['wall_time_s']:,.0f} s"
    num_updates = build.recipe(config, dataset_size).plan().num_updates
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
    """Runs the first update of every phase, each from the state of the one before, and prints its speed."""
    dataset = build.dataset(study.config, study.control.data_dir)
    print(f"{'batch':>8}{'microbatch':>12}{'lr':>9}{'momentum':>10}{'loss':>9}{'images/s':>10}{'compiled in s':>15}")
    for config in todo:
        print(runs.run_name(config, study.preset.config), flush=True)
        plan = build.recipe(config, len(dataset.train)).plan()
        engine = build.engine(config, dataset, plan, study.control.images_on)
        state = engine.init()
        for phase in plan.phases:
            update = plan[phase.start_update]
            compiled, start = engine.stall_time_s, time.perf_counter()
            state, metrics = engine.update(state, update)
            loss = metrics.loss  # waits for the update
            compiled = engine.stall_time_s - compiled
            size, seconds = update.batch_size, time.perf_counter() - start - compiled
            layout = f"{size:8,}{engine.layout(size).microbatch_size:12,}"
            speed = f"{loss:9.4f}{size / seconds:10,.0f}{compiled:15.1f}"
            print(f"{layout}{update.learning_rate:9.4g}{update.momentum:10.4g}{speed}", flush=True)


def main() -> None:
    """Lists, rehearses, or trains."""
    study = studies.study_from_flags()
    names = flags.FLAGS.figures
    names = names and [name if name.startswith("figure") else f"figure{name}" for name in names]
    todo = paper_runs(study, names, flags.FLAGS.controls)
    if flags.FLAGS.list:
        print_list(study, todo)
    elif flags.FLAGS.rehearse:
        rehearse(study, [config for config in todo if config.run.seed == study.seeds[0]])
    else:
        studies.train_all(study, list(todo))
        print(f"All {len(todo)} runs are complete.")


if __name__ == "__main__":
    studies.define_flags(preset="cifar10")
    flags.DEFINE_list("figures", None, "Only the runs of these figures, such as 5,2; default, of all.")
    flags.DEFINE_bool("controls", True, "Also the runs that the figures are compared with, after all others.")
    flags.DEFINE_bool("list", False, "Only list the runs: done, part or missing.")
    flags.DEFINE_bool("rehearse", False, "Only try the first update of every phase of every schedule.")
    flags.DEFINE_alias("seconds", "stop_after_s")
    cli.run(main, multihost=True)
