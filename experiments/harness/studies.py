"""The flags and the runs of a figure. This file draws nothing, so that it needs no matplotlib."""

import csv
import dataclasses
import io
import pathlib
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar, overload

from absl import flags

from bsjax.engine.devices import is_first_process
from bsjax.errors import check_choice, check_whole
from bsjax.run import identity
from bsjax.run import workdir as workdirs
from bsjax.run.metrics import read_metrics, read_summary, write_whole
from experiments.harness import build, config_flags, control, presets, runs
from experiments.harness.config import CONCERNS, Config

# The figures of the paper set these themselves.
_VARIED = ("optimizer", "momentum", "schedule", "scale_learning_rate", "scale_momentum", "max_batch_size", "seed")
_CONTROLLERS_OWN = ("controller", "controller_options", "min_batch_size")
# Columns of summary.csv, before and after those of the task's metrics, and of metrics.csv, before them.
_OUTCOME = ("completed", "num_updates")
_COST = ("final_train_loss", "examples_per_second", "wall_time_s", "compile_time_s", "num_devices")
_METRICS = ("epoch", "batch_size", "learning_rate", "train_loss")
_GROUP = "Study"


AnyPreset = TypeVar("AnyPreset", bound=presets.Workload, covariant=True)  # of most figures, a presets.Preset


class Study(NamedTuple, Generic[AnyPreset]):
    """The settings of a figure and its runs."""

    preset: AnyPreset
    config: Config  # the preset's, with the flags that were set
    workdir: pathlib.Path
    seeds: range
    jobs: int | None
    control: control.Control


def define_flags(
    preset: str = "digits",
    controllers: bool = False,
    choices: Iterable[str] = presets.PRESETS,
    varied: Collection[str] = _VARIED,
) -> None:
    """Defines --preset, --workdir, --seeds, --jobs, and the flags of a run that the script does not vary.

    Args:
      preset: the default preset.
      controllers: whether some runs have a controller, so that its settings are flags.
      choices: of --preset.
      varied: the fields of a run that the script sets itself.
    """
    define_study_flags(preset, choices)
    of_controllers = [field.name for field in dataclasses.fields(CONCERNS["controller"])]
    config_flags.define_flags(except_for=(*varied, *(_CONTROLLERS_OWN if controllers else of_controllers)))
    control.define_flags()


def define_study_flags(preset: str, choices: Iterable[str]) -> None:
    """Defines --preset, --workdir, --seeds and --jobs."""
    folder = "Folder for the figure and its runs, which figures can share."
    jobs = "Runs at the same time; default, one per core, or one on an accelerator."
    flags.DEFINE_string("preset", preset, f"Data set and recipe. One of {', '.join(choices)}.", module_name=_GROUP)
    flags.DEFINE_string("workdir", None, folder, required=True, module_name=_GROUP)
    flags.DEFINE_integer("seeds", 5, "Number of seeds of each schedule.", module_name=_GROUP)
    flags.DEFINE_integer("jobs", None, jobs, module_name=_GROUP)


@overload
def study_from_flags() -> Study[presets.Preset]: ...
@overload
def study_from_flags(choices: Mapping[str, AnyPreset]) -> Study[AnyPreset]: ...
def study_from_flags(choices: Mapping[str, Any] = presets.PRESETS) -> Study[Any]:
    """The study that the command line describes, with one of some presets; its folder is not made yet."""
    preset, (seeds, jobs) = choices[check_choice("preset", flags.FLAGS.preset, choices)], seeds_and_jobs_from_flags()
    config = config_flags.config_from_flags(preset.config)
    workdir = pathlib.Path(flags.FLAGS.workdir).expanduser()
    identity.is_claimed(workdir, "study")
    return Study(preset, config, workdir, seeds, jobs, control.control_from_flags())


def seeds_and_jobs_from_flags() -> tuple[range, int | None]:
    """The seeds, and the number of runs at the same time."""
    jobs = flags.FLAGS.jobs
    return range(check_whole("seeds", flags.FLAGS.seeds)), None if jobs is None else check_whole("jobs", jobs)


def make_workdir(path: str | pathlib.Path) -> pathlib.Path:
    """Makes the folder of a study.

    Raises:
      InvalidArgument: the folder cannot be made, or it is the folder of a run.
    """
    workdir = pathlib.Path(path).expanduser()
    if not identity.is_claimed(workdir, "study"):
        workdirs.make(workdir)
        if is_first_process():
            identity.claim(workdir, "study")
    return workdir


def train(study: Study[presets.Workload], schedules: dict[Any, Config]) -> dict[Any, list[runs.Result]]:
    """Trains each schedule with each seed, one seed of every schedule first."""
    configs = [config.replace(seed=seed) for seed in study.seeds for config in schedules.values()]
    results = train_all(study, configs)
    return {label: results[i :: len(schedules)] for i, label in enumerate(schedules)}


def train_all(study: Study[presets.Workload], configs: Sequence[Config]) -> list[runs.Result]:
    """Trains runs of a study and writes its tables, see `write_summary`.

    Of many processes, only the first one returns, to draw and to print.

    Raises:
      InvalidArgument: the settings of a run are invalid. Nothing is written then.
    """
    for config in configs:
        if config.data == study.preset.config.data:  # its size is known before it is read
            build.recipe(config, study.preset.dataset_size)
    make_workdir(study.workdir)
    try:
        results = runs.train_all(configs, study.preset.config, study.workdir / "runs", study.jobs, study.control)
    finally:
        if is_first_process():
            write_summary(study.workdir)
    if not is_first_process():
        sys.exit()
    return results


def write_summary(workdir: pathlib.Path) -> None:
    """Writes summary.csv, a row for each run that has ended, and metrics.csv, their curves."""
    folders = [path.parent for path in sorted(workdir.glob("runs/*/summary.json"))]
    ended = [(folder, summary) for folder in folders if (summary := read_summary(folder))]
    finals = sorted({name for _, summary in ended for name in summary if name.startswith("final_test_")})
    tests = sorted((name.removeprefix("final_") for name in finals), key=lambda name: (name != "test_loss", name))
    summaries, points = [], []
    for number, (folder, summary) in enumerate(ended):
        about = runs.read_surroundings(folder)
        values = {name: summary.get(name) for name in (*_OUTCOME, *finals, *_COST)}
        made_with = {"device": about.get("devices", [""])[0], "jax": about.get("versions", {}).get("jax", "")}
        summaries.append({"number": number, "run": folder.name, **values, **made_with})
        merged: dict[int, dict[str, Any]] = {}
        for line in read_metrics(folder / "metrics.jsonl"):
            merged.setdefault(line["update"], {}).update(line)
        for update, line in merged.items():
            texts = {name: "" if line.get(name) is None else f"{line[name]:.5g}" for name in (*_METRICS, *tests)}
            points.append({"number": number, "update": update, **texts})
    write_csv(workdir / "summary.csv", summaries)
    write_csv(workdir / "metrics.csv", points)


def write_csv(path: pathlib.Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes a table unless it is empty, floats with six significant digits."""
    if rows:
        file = io.StringIO(newline="")
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: f"{x:.6g}" if isinstance(x, float) else x for name, x in row.items()})
        write_whole(path, file.getvalue().encode())
