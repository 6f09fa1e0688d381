"""Lists the scripts: `python -m experiments`."""

import shutil
import textwrap

from experiments.harness import help as help_texts


def main() -> None:
    """Prints the name and the summary of each script."""
    width = min(shutil.get_terminal_size().columns, 120)
    found = help_texts.scripts()
    indent = " " * (2 + max(map(len, found)) + 2)
    print("Run a script with python -m experiments.NAME; --help shows its flags.\n")
    for name, summary in found.items():
        print(textwrap.fill(f"  {name:{len(indent) - 4}}  {summary}", width, subsequent_indent=indent))


if __name__ == "__main__":
    main()
