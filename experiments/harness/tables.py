"""The tables of the figures: each schedule's result, its difference to the first one, and what that means."""

import math
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bsjax.analysis.statistics import compare, paired_difference
from experiments.harness import build, presets, runs
from experiments.harness.pool import default_jobs
from experiments.harness.studies import Study


def final(results: Sequence[runs.Result], name: str) -> tuple[float, float]:
    """Mean and standard deviation over seeds of a value in the summaries; NaN where none completed."""
    values = finals(results, name)
    values = values[~np.isnan(values)]
    if not len(values):
        return math.nan, math.nan
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0


def finals(results: Sequence[runs.Result], name: str) -> np.ndarray:
    """A value in the summaries [num_seeds]; NaN of a run that diverged."""
    return np.array([result.summary[name] if result.summary["completed"] else math.nan for result in results])


def metric_of(results: dict[Any, list[runs.Result]]) -> str:
    """The name of the task's first metric, or "loss" if it has none or if no run has completed."""
    summaries = [result.summary for group in results.values() for result in group if result.summary["completed"]]
    return runs.metric_of(summaries[0]) if summaries else "loss"


def margin_of(study: Study[presets.Workload] | None, metric: str) -> float | None:
    """The difference of a metric that does not matter, if the preset names one and the data set is the preset's."""
    if study is None or study.config.data != study.preset.config.data:
        return None
    return study.preset.margins.get(metric)


def resolution_of(study: Study[presets.Workload] | None, metric: str) -> float:
    """The step between neighbouring values of a metric, if it is known; else 0."""
    if study is None or not metric.endswith("accuracy") or study.config.data != study.preset.config.data:
        return 0.0
    return 1 / study.preset.test_size if study.preset.test_size else 0.0


def mean_examples(results: Sequence[runs.Result]) -> float:
    """The mean number of examples of a run, with those of a controller's branches."""
    group = [result.summary for result in results if result.summary["completed"]] or [r.summary for r in results]
    return float(np.mean([summary["examples_seen"] + summary.get("branch_examples", 0) for summary in group]))


def jobs_of(study: Study[presets.Workload]) -> int:
    """How many runs of a study are trained at the same time."""
    return default_jobs() if study.jobs is None else study.jobs


def print_results(
    results: dict[str, list[runs.Result]],
    study: Study[presets.Workload] | None = None,
    metric: str | None = None,
    **extra: Any,
) -> list[dict[str, Any]]:
    """Prints a table of the results, and returns it with more columns and full precision for a CSV file.

    Args:
      results: of each schedule, with the same seeds. The others are compared with the first one.
      study: its preset has the margins, without which there is no verdict.
      metric: to show and compare; default, that of the task.
      **extra: further columns of the CSV file.
    """
    metric, original = metric or metric_of(results), next(iter(results.values()))
    margin, name = margin_of(study, metric), f"final_test_{metric}"
    rows, printed = [], []
    for label, group in results.items():
        compared, cells = _NOT_COMPARED, {"difference": "", "verdict": ""}
        if group is not original:
            pair = finals(group, name), finals(original, name)
            compared, cells = _compared(metric, pair, margin, resolution_of(study, metric))
        row = {"schedule": label, **_row(metric, group), **_tokens(study, group), **compared}
        rows.append({**extra, **row})
        alone = study is not None and jobs_of(study) == 1  # else the runs slowed each other down
        printed.append(_cells(metric, row) | cells | {"s/run": row["run_time_s"] if alone else ""})
    unequal = _is_unequal([row["examples"] for row in rows if not row["schedule"].startswith("Control")])
    used = [name for name in printed[0] if any(cells[name] for cells in printed) and (name != "examples" or unequal)]
    print()
    print_table([used, *([cells[name] for name in used] for cells in printed)])
    return rows


def print_notes(study: Study[presets.Workload], rows: Sequence[dict[str, Any]]) -> None:
    """Prints what the columns of the tables mean, and which runs are missing.

    Args:
      study: the study.
      rows: as `print_results` returned them.
    """
    print(f"± is the standard deviation over {len(study.seeds)} seeds." if len(study.seeds) > 1 else "One seed.")
    for row in rows:
        if row["diverged"]:
            name = ", ".join(row[key] for key in ("optimizer", "schedule") if key in row)
            print(f"{row['diverged']} of {len(study.seeds)} seeds diverged and are left out: {name}.")
    print("The difference to the first row is paired by seed; in brackets, its 95 % interval.")
    if margins := [row["margin"] for row in rows if row["margin"] != ""]:
        margin = f"{100 * margins[0]:.1f} points" if "test_accuracy_mean" in rows[0] else f"{margins[0]:g}"
        print(f"Verdict: equal, where the interval lies within ±{margin}, the preset's margin; else different,")
        print("where it excludes 0; else undecided, because there are too few seeds.")
    if jobs_of(study) == 1:
        print("s/run is without the compilation that the run waited for; one run at a time.")


def print_published(published: dict[str, tuple[str, float]]) -> None:
    """Prints the updates and the test accuracy of schedules in the paper."""
    if published:
        print()
        head = ["in the paper", "updates", "test acc. %"]
        print_table([head, *([label, updates, f"{100 * x:.1f}"] for label, (updates, x) in published.items())])


def print_table(lines: Sequence[Sequence[str]], first: Callable[[str, int], str] = str.ljust) -> None:
    """Prints lines in columns, the first one aligned as by `first` and the others to the right.

    On a terminal that is too narrow, the columns that do not fit come below, beside the first column again.
    """
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print("\n".join(table_lines(lines, first, width)))


def table_lines(
    lines: Sequence[Sequence[str]], first: Callable[[str, int], str] = str.ljust, width: int | None = None
) -> list[str]:
    """The lines of a table, see `print_table`.

    >>> table_lines([["name", "one", "two"], ["a", "1", "2"]], width=9)
    ['name  one', 'a       1', '', 'name  two', 'a       2']
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    blocks, used = [[0]], widths[0]
    for column in range(1, len(widths)):
        used += 2 + widths[column]
        if width is not None and used > width and len(blocks[-1]) > 1:
            blocks.append([0])
            used = widths[0] + 2 + widths[column]
        blocks[-1].append(column)
    printed: list[str] = []
    for columns in blocks:
        printed += [""] * bool(printed)
        for name, *cells in ([line[column] for column in columns] for line in lines):
            aligned = map(str.rjust, cells, (widths[column] for column in columns[1:]))
            printed.append("  ".join([first(name, widths[0]), *aligned]).rstrip())
    return printed


def _row(metric: str, group: Sequence[runs.Result]) -> dict[str, Any]:
    """The columns of one schedule in the CSV file, without its comparison."""
    completed = [result for result in group if result.summary["completed"]]
    value, std = final(group, f"final_test_{metric}")
    test_loss, train_loss = final(group, "final_test_loss")[0], final(group, "final_train_loss")[0]
    wall_time, waited, speed = (
        np.mean([result.summary[name] for result in group])
        for name in ("wall_time_s", "compile_stall_time_s", "examples_per_second")
    )
    return {
        "updates": round(np.mean([result.summary["num_updates"] for result in completed or group])),
        "examples": round(mean_examples(group)),
        f"test_{metric}_mean": value,
        f"test_{metric}_std": f"{std:.3g}",
        "test_loss": test_loss,
        "train_loss": train_loss,
        "seeds": len(completed),
        "diverged": len(group) - len(completed),
        "wall_time_s": f"{wall_time:.1f}",
        "run_time_s": f"{wall_time - waited:.1f}",  # without the compilation that it waited for
        "examples_per_second": f"{speed:.0f}",
    }


def _tokens(study: Study[presets.Workload] | None, group: Sequence[runs.Result]) -> dict[str, Any]:
    """The columns of one schedule of a language model in the CSV file that count tokens; of other tasks, none."""
    unit, size = ("examples", 1) if study is None else build.units(study.config)
    if unit != "tokens":
        return {}
    speed = np.mean([result.summary["examples_per_second"] for result in group])
    return {"tokens": round(size * mean_examples(group)), "tokens_per_second": f"{size * speed:.0f}"}


def _compared(
    metric: str, pair: tuple[np.ndarray, np.ndarray], margin: float | None, resolution: float
) -> tuple[dict[str, Any], dict[str, str]]:
    """The difference to the first schedule and its verdict: columns of the CSV file and of the printed table."""
    difference, verdict = paired_difference(*pair, resolution=resolution), ""
    if margin is not None:
        verdict = compare(*pair, margin, resolution=resolution).verdict
    row = dict(zip(_NOT_COMPARED, (*difference, verdict, "" if margin is None else margin), strict=True))
    scale, digits = _unit(metric)
    estimate, low, high = (f"{scale * x:.{digits}f}" for x in difference)
    text = "" if math.isnan(difference.estimate) else estimate + f" [{low}, {high}]" * math.isfinite(difference.low)
    return row, {"difference": text, "verdict": verdict}


_NOT_COMPARED = dict.fromkeys(("difference", "difference_low", "difference_high", "verdict", "margin"), "")


def _cells(metric: str, row: dict[str, Any]) -> dict[str, str]:
    """The first columns of one schedule in the printed table."""
    scale, digits = _unit(metric)
    mean, std = (f"{scale * float(row[f'test_{metric}_{name}']):.{digits}f}" for name in ("mean", "std"))
    name = metric.replace("_accuracy", " acc. %").replace("accuracy", "acc. %").replace("_", " ")
    return {
        "schedule": row["schedule"].removesuffix(", small batch"),
        "updates": f"{row['updates']:,}",
        f"test {name}": mean + f" ± {std}" * (row["seeds"] > 1) if row["seeds"] else "diverged",
        "examples": f"{row['examples']:,}",
    }


def _unit(metric: str) -> tuple[float, int]:
    """The factor and the number of digits with which a metric is printed."""
    return (100.0, 2) if metric.endswith("accuracy") else (1.0, 4)


def _is_unequal(examples: Sequence[int]) -> bool:
    return max(examples) > 1.05 * min(examples)
