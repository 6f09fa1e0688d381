"""Writes the README's results table from what is under experiments/results/.

    python scripts/results_table.py            # rewrites the README's table
    python scripts/results_table.py --check    # exits with 1 if it is not what the results say

A study is a folder with figureN_table.csv and figureN.json, as a figure's script leaves them in its --workdir.
"""

import csv
import json
import pathlib
import sys

from absl import app, flags

_CHECK = flags.DEFINE_bool("check", False, "Only say whether the README agrees.")

ROOT = pathlib.Path(__file__).parent.parent
BEGIN, END = "<!-- results: scripts/results_table.py -->\n", "<!-- end of results -->\n"


def results_table(results: pathlib.Path) -> str:
    """Every study's figures as Markdown: the command, then a table."""
    parts = []
    for path in sorted(results.glob("*/figure*_table.csv")):
        about = json.loads((path.parent / f"{path.stem.removesuffix('_table')}.json").read_text(encoding="utf-8"))
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        device = f"{len(about['devices'])} × {about['devices'][0]}, {about['cores']} cores"
        parts.append(
            f"`{about['command']}` ({device}, jax {about['versions']['jax']}, {about['date']})\n\n"
            + "".join(f"| {' | '.join(cells)} |\n" for cells in (*_head(rows[0]), *map(_cells, rows)))
        )
    return "\n".join(parts)


def with_table(readme: str, table: str) -> str:
    """The README with the table between its two marks."""
    head, rest = readme.split(BEGIN)
    tail = rest.split(END)[1]
    return f"{head}{BEGIN}\n{table}\n{END}{tail}"


def _head(row: dict[str, str]) -> list[list[str]]:
    names = ["schedule", "updates", "test accuracy", "seeds", "time per run", "images/s"]
    if "paper_updates" in row:
        names += ["paper: updates", "paper: test accuracy"]
    return [names, ["---"] * len(names)]


def _cells(row: dict[str, str]) -> list[str]:
    schedule = f"{row['optimizer']}: {row['schedule']}" if "optimizer" in row else row["schedule"]
    accuracy = f"{100 * float(row['test_accuracy_mean']):.2f}"
    if int(row["seeds"]) > 1:
        accuracy += f" ± {100 * float(row['test_accuracy_std']):.2f}"
    diverged = f", {row['diverged']} diverged" if int(row["diverged"]) else ""
    cells = [schedule, f"{int(row['updates']):,}", f"{accuracy} %", row["seeds"] + diverged, f"{row['wall_time_s']} s"]
    cells.append(f"{int(row['examples_per_second']):,}")
    if "paper_updates" in row:
        cells += [row["paper_updates"], f"{100 * float(row['paper_test_accuracy']):.1f} %"]
    return cells


def main(argv: list[str]) -> None:
    """Rewrites or checks the README."""
    del argv
    path = ROOT / "README.md"
    readme = path.read_text(encoding="utf-8")
    wanted = with_table(readme, results_table(ROOT / "experiments" / "results"))
    if _CHECK.value:
        sys.exit(None if readme == wanted else "README.md differs from experiments/results: scripts/results_table.py")
    path.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
