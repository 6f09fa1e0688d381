"""Writes the tables of results in README.md and docs/ from the studies in experiments/results/.

    python scripts/results_table.py            # rewrites the tables
    python scripts/results_table.py --check    # exits with 1 if a table differs from the results

A study is a folder with NAME_table.csv and NAME.json, which a script writes to its --workdir. A page names the studies
that it shows, by patterns of FOLDER/NAME, and has their tables between two marks:

    <!-- results: */figure? (written by scripts/results_table.py) -->
    <!-- end of results -->

Of a study with predictions, the page says which held; of one that measured the noise of the layer norms, whether it
agrees with that of all parameters.

Where the first mark begins with "verdicts:" and names folders of `experiments.effects`, the table has the verdict on
each claim, with a column for each folder.
"""

import csv
import fnmatch
import itertools
import json
import math
import pathlib
import re
import sys
from typing import Any

from absl import app, flags

_CHECK = flags.DEFINE_bool("check", False, "Write nothing; exit with 1 if a table differs.")

ROOT = pathlib.Path(__file__).parent.parent
_MARKED = re.compile(
    r"(<!-- (?P<kind>results|verdicts): (?P<patterns>[^\n]+) \(written by scripts/results_table\.py\) -->\n)"
    r".*?(?P<end><!-- end of results -->\n)",
    re.DOTALL,
)


def with_tables(page: str, results: pathlib.Path) -> str:
    """A page with the tables between each pair of marks."""

    def marked(match: re.Match[str]) -> str:
        write = {"results": tables, "verdicts": verdicts}[match["kind"]]
        return f"{match[1]}\n{write(results, match['patterns'].split())}\n{match['end']}"

    return _MARKED.sub(marked, page)


def tables(results: pathlib.Path, patterns: list[str]) -> str:
    """Markdown of the studies that match a pattern: the command of each, and its table."""
    parts = []
    for path in sorted(results.glob("*/*_table.csv")):
        name = path.stem.removesuffix("_table")
        if not any(fnmatch.fnmatch(f"{path.parent.name}/{name}", pattern) for pattern in patterns):
            continue
        about = json.loads((path.parent / f"{name}.json").read_text(encoding="utf-8"))
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        parts.append(
            f"{_made_by(about)}\n\n"
            + _by_group(rows, about.get("jobs") == 1)
            + "".join(f"\n{note}\n" for note in _notes(rows, about.get("jobs") == 1))
            + _predictions(about.get("predictions", {}))
            + _agreement(about.get("agreement", {}))
        )
    return "\n".join(parts)


def verdicts(results: pathlib.Path, folders: list[str]) -> str:
    """Markdown of the verdicts of `experiments.effects` in some folders: a row for each claim, and the commands."""
    found: dict[str, dict[str, Any]] = {}
    for folder in folders:
        for path in sorted((results / folder).glob("*.json")):
            found.setdefault(path.stem, {})[folder] = json.loads(path.read_text(encoding="utf-8"))
    heads = [next(claims[folder]["preset"] for claims in found.values() if folder in claims) for folder in folders]
    lines = [["", "claim", *heads], ["---"] * (2 + len(folders))]
    for name, its in found.items():
        cells = (
            f"**{one['verdict']}** {one['detail']}".strip() if (one := its.get(folder)) else "" for folder in folders
        )
        lines.append([f"`{name}`", next(iter(its.values()))["claim"], *cells])
    every = [re.sub(r"--claim=\w+", "--claim=NAME", _made_by(one)) for its in found.values() for one in its.values()]
    commands = dict.fromkeys(every)
    table = "".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |\n" for cells in lines)
    return f"{table}\n" + "\n".join(f"* {command}" for command in commands) + "\n"


def _made_by(about: dict[str, Any]) -> str:
    """The command, the devices and the date."""
    device = f"{len(about['devices'])} × {about['devices'][0]}, {about['cores']} cores"
    return f"`{about['command']}` ({device}, jax {about['versions']['jax']}, {about['date']})"


def _by_group(rows: list[dict[str, str]], alone: bool) -> str:
    """Markdown of the table, or of one for each group of schedules that are compared, below what they share."""
    names, parts = _groups(rows[0]), []
    for values, group in itertools.groupby(rows, lambda row: [row[name] for name in names]):
        shared = ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))
        lines = "".join(f"| {' | '.join(cells)} |\n" for cells in _cells(list(group), alone))
        parts.append(f"{shared.capitalize()}:\n\n{lines}" if shared else lines)
    return "\n".join(parts)


def _cells(rows: list[dict[str, str]], alone: bool) -> list[list[str]]:
    """The head, and a row for each schedule; with times if each run was alone on the machine.

    A table without the updates of schedules is shown as it is, with "-" for what is not a number.
    """
    if not {"schedule", "updates"} <= rows[0].keys():
        cells = (["-" if value == "nan" else value for value in row.values()] for row in rows)
        return [list(rows[0]), ["---"] * len(rows[0]), *cells]
    has_tokens = "tokens" in rows[0]
    tokens = {"tokens": lambda row: f"{int(row['tokens']):,}"} if has_tokens else {}
    columns = {
        "schedule": lambda row: f"{row['optimizer']}: {row['schedule']}" if "optimizer" in row else row["schedule"],
        "updates": lambda row: f"{int(row['updates']):,}",
        **tokens,
        f"test {_metric(rows[0])}": _result,
        "difference": lambda row: _difference(row) if row["difference"] else "",
        "verdict": lambda row: row["verdict"],
        "seeds": lambda row: row["seeds"] + (f", {row['diverged']} diverged" if int(row["diverged"]) else ""),
    }
    if alone:
        columns["time per run"] = lambda row: f"{row['run_time_s']} s"
        name, speed = ("tokens/s", "tokens_per_second") if has_tokens else ("images/s", "examples_per_second")
        columns[name] = lambda row: f"{int(row[speed]):,}"
    if not any(row.get("difference") for row in rows):  # of one schedule, or older than the column
        del columns["difference"]
    if not any(row.get("verdict") for row in rows):
        del columns["verdict"]
    examples = [int(row.get("examples", 0)) for row in rows]
    if max(examples) > 1.05 * min(examples) and not has_tokens:
        columns["examples"] = lambda row: f"{int(row['examples']):,}"
    if "paper_updates" in rows[0]:
        columns["paper: updates"] = lambda row: row["paper_updates"]
        columns["paper: test accuracy"] = lambda row: f"{100 * float(row['paper_test_accuracy']):.1f} %"
    return [list(columns), ["---"] * len(columns), *([cell(row) for cell in columns.values()] for row in rows)]


def _groups(row: dict[str, str]) -> list[str]:
    """The columns before the schedule's that say which rows are compared, such as the batch size to start with."""
    names = list(row)
    before = names[: names.index("schedule")] if "schedule" in row else []
    return [name for name in before if name != "optimizer"]


def _metric(row: dict[str, str]) -> str:
    """The metric of a table, from its column test_METRIC_mean."""
    return next(name for name in row if name.endswith("_mean")).removeprefix("test_").removesuffix("_mean")


def _unit(row: dict[str, str]) -> tuple[float, int, str]:
    """The factor, the digits and the unit in which a metric is shown."""
    return (100.0, 2, " %") if _metric(row) == "accuracy" else (1.0, 4, "")


def _result(row: dict[str, str]) -> str:
    """The mean over seeds and its standard deviation."""
    (factor, digits, unit), name = _unit(row), f"test_{_metric(row)}"
    result = f"{factor * float(row[f'{name}_mean']):.{digits}f}"
    if int(row["seeds"]) > 1:
        result += f" ± {factor * float(row[f'{name}_std']):.{digits}f}"
    return result + unit


def _difference(row: dict[str, str]) -> str:
    """In points or in the metric's unit, with its interval unless there is one seed only; empty where all diverged."""
    factor, digits, _ = _unit(row)
    estimate, low, high = (factor * float(row[f"difference{end}"]) for end in ("", "_low", "_high"))
    if math.isnan(estimate):
        return ""
    return f"{estimate:.{digits}f}" + f" [{low:.{digits}f}, {high:.{digits}f}]" * math.isfinite(low)


def _predictions(said: dict[str, bool | None]) -> str:
    """Markdown of what was predicted before the runs."""
    if not said:
        return ""
    words = {True: "held", False: "**did not hold**", None: "undecided with so few seeds"}
    lines = (
        "| predicted before the runs | |",
        "| --- | --- |",
        *(f"| {x} | {words[held]} |" for x, held in said.items()),
    )
    return "\n" + "".join(f"{line}\n" for line in lines)


def _agreement(found: dict[str, dict[str, float | None]]) -> str:
    """Markdown of how the noise scale of the layer norms follows that of all parameters."""
    if not found:
        return ""
    names = {
        "ratio": "layer norms' B_simple / that of all parameters",
        "spread": "its spread, a factor",
        "control": "spread of B_simple itself",
        "correlation": "correlation of the logarithms",
    }
    lines = [["schedule", *names.values()], ["---"] * (1 + len(names))]
    for label, values in found.items():
        lines.append([label, *("-" if (x := values[name]) is None else f"{x:.3g}" for name in names)])
    return "\n" + "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _notes(rows: list[dict[str, str]], alone: bool) -> list[str]:
    """What the columns mean, below the table."""
    notes = []
    if any(row.get("difference") for row in rows):
        text = "Difference: to the first row"
        text += " of the same optimizer" if "optimizer" in rows[0] else ""
        text += " of each table" if _groups(rows[0]) else ""
        accurate = _metric(rows[0]) == "accuracy"
        text += f", {'in points' if accurate else 'in nats'}, paired by seed, with its 95 % interval."
        if margin := next((row["margin"] for row in rows if row["margin"]), None):
            width = f"{100 * float(margin):.1f} points" if accurate else f"{float(margin):g} nats"
            text += f" Verdict: equal, where the interval lies within the margin of ±{width},"
            text += " which the preset names; else different, where it excludes 0; else undecided."
        notes.append(text)
    if alone:
        notes.append("Time per run: without the compilation that the run waited for; one run at a time.")
    return [" ".join(notes)] if notes else []


def main(argv: list[str]) -> None:
    """Rewrites or checks the pages."""
    del argv
    different = []
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        page = path.read_text(encoding="utf-8")
        wanted = with_tables(page, ROOT / "experiments" / "results")
        if page != wanted:
            different.append(path.relative_to(ROOT).as_posix())
            if not _CHECK.value:
                path.write_text(wanted, encoding="utf-8")
    if _CHECK.value and different:
        sys.exit(f"{', '.join(different)}: tables differ from experiments/results; run scripts/results_table.py")


if __name__ == "__main__":
    app.run(main)
