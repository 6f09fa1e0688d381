"""The HTML page of a study or of a run."""

import pathlib

from bsjax.errors import InvalidArgument
from experiments.harness import html, report_parts

_NOT_FIGURES = ("identity", "config", "summary")


def page(workdir: pathlib.Path) -> str:
    """The page of a folder.

    Raises:
      InvalidArgument: it is not the folder of a study or a run, or empty.
      RunError: a file in it is damaged.
    """
    found = report_parts.find_runs(workdir)
    figures = sorted(path for path in workdir.glob("*.json") if path.stem not in _NOT_FIGURES)
    if not found and not figures:
        raise InvalidArgument("workdir", str(workdir), "the folder of a study or of a run that has begun")
    common, differing = report_parts.split_settings(found)
    counts = (
        f"Figures: {len(figures)}. Runs: {len(found)}, of which {sum(bool(run.summary) for run in found)} have ended."
    )
    drawn = report_parts.curves(found, differing) if found and not figures else ""
    parts = [
        html.paragraph(counts),
        *map(report_parts.figure, figures),
        html.section("Results of the runs", [drawn, report_parts.results(found, differing)]),
        html.section("Runs", [report_parts.runs_table(found, differing)]),
        html.section(
            "Settings of all runs", [html.pairs({name: str(value) for name, value in common.items()}, "Settings")]
        ),
        html.section("Commands and versions", _commands(found, figures)),
    ]
    return html.page(workdir.resolve().name, filter(None, parts))


def _commands(found: list[report_parts.Found], figures: list[pathlib.Path]) -> list[str]:
    abouts = [report_parts.read_about(path) for path in figures] + [run.about for run in found]
    commands = dict.fromkeys(str(about["command"]) for about in abouts if "command" in about)
    made = dict.fromkeys(_versions(about) for about in abouts if "versions" in about)
    return [html.code("\n".join(commands)) if commands else "", *map(html.paragraph, made)]


def _versions(about: dict) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in about["versions"].items())
    devices = ", ".join(dict.fromkeys(map(str, about.get("devices", []))))
    return f"{versions}; {len(about.get('devices', []))} × {devices}, {about.get('cores', '?')} cores"
