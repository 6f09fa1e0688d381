"""One HTML page of a study or of a run, which opens without a network: pictures, tables, settings, commands.

    python -m experiments.report --workdir=runs/demo

Writes report.html into --workdir, or the file --out. Means are over seeds, with 95 % intervals by Student's t. A second
or two.
"""

import pathlib

from absl import flags

from bsjax.run.metrics import write_whole
from experiments.harness import cli, report_page

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a study or of a run.", required=True)
_OUT = flags.DEFINE_string("out", None, "The page to write; default, report.html in --workdir.")


def main() -> None:
    """Writes the page."""
    workdir = pathlib.Path(_WORKDIR.value).expanduser()
    out = workdir / "report.html" if _OUT.value is None else pathlib.Path(_OUT.value).expanduser()
    write_whole(out, report_page.page(workdir).encode())
    print(out)


if __name__ == "__main__":
    cli.run(main)
