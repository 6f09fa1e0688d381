"""What a report says of a study: its figures and tables, its runs, their settings, and the commands."""

import collections
import csv
import io
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bsjax import plots
from bsjax.analysis.statistics import mean_interval
from bsjax.errors import RunError
from bsjax.plan_plots import lighten
from bsjax.run.identity import flatten
from bsjax.run.metrics import read_json, read_summary
from experiments.harness import html, runs

_TIMES = ("_time_s", "_per_second")  # ends of the names of columns
_SURROUNDINGS = ("command", "versions", "devices", "cores", "jobs", "date")


class Found(NamedTuple):
    """A run of a study, complete or not."""

    name: str
    folder: pathlib.Path
    settings: dict[str, Any]  # flat; {} if it has no config.json
    about: dict[str, Any]
    summary: dict[str, Any]  # {} until it has ended

    @property
    def state(self) -> str:
        """What has become of it."""
        if not self.summary:
            return "not complete"
        return "complete" if self.summary["completed"] else f"diverged: {self.summary.get('error', '')}"


def find_runs(workdir: pathlib.Path) -> list[Found]:
    """The runs of a study, or the one run whose folder this is, by name."""
    folders = [workdir] if (workdir / "metrics.jsonl").exists() else sorted(workdir.glob("runs/*"))
    found = []
    for folder in (folder for folder in folders if (folder / "metrics.jsonl").exists()):
        about = runs.read_surroundings(folder)
        found.append(Found(folder.name, folder, flatten(about.get("config", {})), about, read_summary(folder) or {}))
    return found


def figure(path: pathlib.Path) -> str:
    """A figure of a study, by the path of its JSON file: its picture, what was asked and found, and its table."""
    about = read_about(path)
    pictures = [path.with_suffix(suffix) for suffix in (".svg", ".png") if path.with_suffix(suffix).exists()]
    smallest = min(pictures, key=lambda one: one.stat().st_size, default=None)
    said = {name: value for name, value in about.items() if name not in _SURROUNDINGS}
    short = {name: value for name, value in said.items() if isinstance(value, str | int | float | bool)}
    rest = {name: value for name, value in said.items() if name not in short}
    parts = [
        html.picture(smallest.read_bytes(), smallest.suffix, path.stem) if smallest else "",
        html.pairs(short),
        html.table(merge_columns(_read_csv(path.with_name(f"{path.stem}_table.csv"))), f"{path.stem}_table.csv"),
        html.details("More of this figure", html.code(json.dumps(rest, indent=1))) if rest else "",
    ]
    return html.section(path.stem, parts)


def read_about(path: pathlib.Path) -> dict[str, Any]:
    """The JSON file of a figure: how it was made, and what it found."""
    return dict(read_json(path, ("versions",), way_out="remove it, and make the figure again"))


def _read_csv(path: pathlib.Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    try:
        return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RunError(f"{path} cannot be read: {error}; remove it, and make the figure again") from None


def merge_columns(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Rows in which an estimate, its interval and its deviation are one cell, and times come last.

    A column that repeats a mean, such as test_loss beside test_loss_mean, is left out.

    >>> merge_columns([{"loss": 0.5, "loss_low": 0.4, "loss_high": 0.6, "acc_mean": 0.91234, "acc_std": 0.01}])
    [{'loss': '0.5 [0.4, 0.6]', 'acc': '0.9123 ± 0.01'}]
    """
    merged = []
    for row in rows:
        cells, ends = {}, {"value": ("low", "high")}  # of a table whose columns are value, low and high
        used = {end for name in row for end in ends.get(name, (f"{name}_low", f"{name}_high"))}
        means = {name.removesuffix("_mean") for name in row if name and name.endswith("_mean")}
        used |= means | {f"{name}_std" for name in means}
        for name, value in sorted(row.items(), key=lambda item: str(item[0]).endswith(_TIMES)):
            if name is None or name in used:
                continue
            shown, (low, high) = html.number(value), ends.get(name, (f"{name}_low", f"{name}_high"))
            if (interval := [html.number(row.get(end)) for end in (low, high)]) != ["", ""]:
                shown += f" [{', '.join(interval)}]"
            if name.endswith("_mean") and row.get(std := name.removesuffix("_mean") + "_std") not in (None, ""):
                shown += f" ± {html.number(row[std])}"
            cells[name.removesuffix("_mean")] = shown
        merged.append(cells)
    return merged


def split_settings(found: Iterable[Found]) -> tuple[dict[str, Any], list[str]]:
    """The settings that all runs share, and the names of those that differ.

    A setting that some runs lack did not exist when they were made, and is no difference.
    """
    values: dict[str, dict[str, Any]] = collections.defaultdict(dict)
    for run in found:
        for name, value in run.settings.items():
            values[name][json.dumps(value)] = value
    shared = {name: next(iter(ones.values())) for name, ones in values.items() if len(ones) == 1}
    return shared, [name for name in values if name not in shared]


def results(found: Sequence[Found], differing: Sequence[str]) -> str:
    """The final metrics of each group of runs that differ in their seeds alone: means with 95 % intervals."""
    names = [name for name in differing if name != "run.seed"]
    groups: dict[str, list[Found]] = collections.defaultdict(list)
    for run in found:
        if run.summary.get("completed"):
            groups[json.dumps([run.settings.get(name) for name in names])].append(run)
    rows = []
    for group in groups.values():
        row: dict[str, Any] = {_short(name): _shown(group[0].settings.get(name)) for name in names}
        metrics = [name for name in group[0].summary if name.startswith("final_")]
        row |= {"seeds": len(group), "updates": html.number(np.mean([run.summary["num_updates"] for run in group]))}
        row |= {name.removeprefix("final_"): _interval([run.summary.get(name) for run in group]) for name in metrics}
        rows.append(row)
    return html.table(rows, "Results by settings")


def _interval(values: Sequence[Any]) -> str:
    numbers = [value for value in values if isinstance(value, int | float)]
    if len(numbers) < 2:
        return html.number(numbers[0]) if numbers else ""
    estimate, low, high = map(html.number, mean_interval(numbers))
    return f"{estimate} [{low}, {high}]"


def runs_table(found: Sequence[Found], differing: Sequence[str]) -> str:
    """A row for each run: its state, its results, and the settings in which the runs differ."""
    rows = []
    for run in found:
        row = {"run": run.name, "state": run.state, "updates": run.summary.get("num_updates")}
        row |= {n.removeprefix("final_"): value for n, value in run.summary.items() if n.startswith("final_")}
        row |= {"seconds": run.summary.get("wall_time_s")}
        rows.append(row | {_short(name): _shown(run.settings.get(name)) for name in differing})
    return html.table(rows, "Runs")


def _short(name: str) -> str:
    """The name of a setting without its concern's."""
    return name.partition(".")[2] or name


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value)


def curves(found: Sequence[Found], differing: Sequence[str]) -> str:
    """A picture of the runs against epochs and updates, for a folder that has no figure of its own."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # here because most folders have pictures
    from matplotlib.figure import Figure

    groups: dict[str, list[pathlib.Path]] = collections.defaultdict(list)
    for run in (run for run in found if (run.folder / "metrics.jsonl").stat().st_size):
        names = [name for name in differing if name != "run.seed"]
        texts = [f"{_short(name)}={_shown(run.settings.get(name))}" for name in names]
        groups[", ".join(texts) or "run"].append(run.folder)
    if not groups:  # they have just begun
        return ""
    drawing = Figure(figsize=(8, 3.4), layout="constrained", dpi=150)
    FigureCanvasAgg(drawing)
    axes = drawing.subplots(1, 2)
    for axis in axes:
        lighten(axis)
    plots.compare({label.replace("$", r"\$"): paths for label, paths in groups.items()}, ax=axes)
    file = io.BytesIO()
    drawing.savefig(file, format="png")
    return html.picture(file.getvalue(), ".png", "the runs against epochs and updates")
