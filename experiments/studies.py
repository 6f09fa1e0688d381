"""What is trained for a figure: its flags, and its runs; no pictures, so that it needs no matplotlib."""

import csv
import dataclasses
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import flags

from bsjax import InvalidArgument
from bsjax import workdir as workdirs
from bsjax.metrics import read_metrics
from bsjax.parallel import is_first_process
from experiments import config as config_lib
from experiments import presets, runs
from experiments.config import Config

# What the figures vary themselves.
_VARIED = (
    "optimizer",
    "momentum",
    "schedule",
    "scale_learning_rate",
    "scale_momentum",
    "max_batch_size",
    "seed",
)
# The columns of summary.csv and metrics.csv that come from the files of those names.
_SUMMARY = (
    "completed",
    "num_updates",
    "final_test_accuracy",
    "final_test_loss",
    "final_train_loss",
    "examples_per_second",
    "wall_time_s",
    "compile_time_s",
    "num_devices",
)
_METRICS = ("epoch", "batch_size", "learning_rate", "train_loss", "test_loss", "test_accuracy")


class Study(NamedTuple):
    """What a figure is made from."""

    preset: presets.Preset
    config: Config  # the preset's, with the flags that were set
    workdir: pathlib.Path
    seeds: range
    jobs: int | None
    control: runs.Control


def define_flags(preset: str = "digits") -> None:
    """Defines --preset, --workdir, --seeds, --jobs, and the run's flags that figures do not vary."""
    flags.DEFINE_string("preset", preset, f"Data set and recipe. One of {', '.join(presets.PRESETS)}.")
    flags.DEFINE_string("workdir", None, "Folder for the figure and its runs, which figures can share.", required=True)
    flags.DEFINE_integer("seeds", 5, "Number of seeds of each schedule.")
    flags.DEFINE_integer("jobs", None, "Runs at the same time; default, one per core, or one on an accelerator.")
    config_lib.define_flags(except_for=_VARIED)
    runs.define_flags()


def study_from_flags() -> Study:
    """What the command line asks for."""
    values = flags.FLAGS
    for name in ("seeds", "jobs"):
        value = getattr(values, name)
        if value is not None and value < 1:
            raise InvalidArgument(name, value, "a whole number >= 1", 1)
    preset = presets.get(values.preset)
    config = config_lib.config_from_flags(preset.config, except_for=_VARIED)
    workdir = pathlib.Path(values.workdir).expanduser()
    workdirs.make(workdir)
    return Study(preset, config, workdir, range(values.seeds), values.jobs, runs.control_from_flags())


def train(study: Study, schedules: dict[Any, Config]) -> dict[Any, list[runs.Result]]:
    """Trains each schedule with each seed, one seed of every schedule first."""
    configs = [dataclasses.replace(config, seed=seed) for seed in study.seeds for config in schedules.values()]
    results = train_all(study, configs)
    return {label: results[i :: len(schedules)] for i, label in enumerate(schedules)}


def train_all(study: Study, configs: Sequence[Config]) -> list[runs.Result]:
    """Trains runs of a study, and writes what its runs have come to, see `write_summary`.

    Of many processes, only the first one returns, to draw and to print.
    """
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
    summaries, points = [], []
    for number, path in enumerate(sorted(workdir.glob("runs/*/summary.json"))):
        summary, about = runs.read_summary(path.parent), runs.read_surroundings(path.parent)
        values = {name: summary.get(name) for name in _SUMMARY}
        summaries.append(
            {"number": number, "run": path.parent.name}
            | {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in values.items()}
            | {"device": about["devices"][0], "jax": about["versions"]["jax"]}
        )
        merged: dict[int, dict[str, Any]] = {}
        for line in read_metrics(path.parent / "metrics.jsonl"):
            merged.setdefault(line["update"], {}).update(line)
        for update, line in merged.items():
            values = {name: f"{line[name]:.5g}" if line.get(name) is not None else "" for name in _METRICS}
            points.append({"number": number, "update": update, **values})
    write_csv(workdir / "summary.csv", summaries)
    write_csv(workdir / "metrics.csv", points)


def write_csv(path: pathlib.Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes a table, unless it is empty."""
    if rows:
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
