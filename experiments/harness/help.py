"""What --help and --helpfull print, and the list of the scripts."""

import ast
import pathlib
import re
import sys
import textwrap
from collections.abc import Iterable

from absl import flags

import experiments

SHORT = ("--help", "--helpshort", "-help", "-helpshort", "-h")
FULL = ("--helpfull", "-helpfull")
_WIDTH = 80  # of a terminal
_LINES = 40  # of the first screen
_NAME = 28  # of the column of names; longer ones move their text
_DEFAULT = 24  # a longer default is left out
_STUDY = "Study"  # the group of flags that every figure has


def short() -> str:
    """One screen: what the script does, its own flags in a line each, and the names of all others."""
    own: list[flags.Flag] = []
    others: list[str] = []
    for name, found in _groups():
        texts = [f"--{flag.name}" for flag in found]
        if re.match(r"[A-Z]", name) and name != _STUDY:
            others += textwrap.wrap(f"{name}: {' '.join(texts)}", _WIDTH, initial_indent="  ", subsequent_indent="    ")
        else:
            own += found
    more = ["", "More flags; --helpfull describes all:", *others] if others else []
    below = ["", "Flags:", *_lines(own), *more]
    return "\n".join([*_first_paragraphs(_docstring(), _LINES - len(below)), *below])


def full() -> str:
    """The script's docstring, and its flags in their groups."""
    return "\n".join([_docstring(), *(flags.FLAGS.module_help(name) for name, _ in _groups())])


def scripts() -> dict[str, str]:
    """The first line of the docstring of each script, by the script's name; imports none of them."""
    folder = pathlib.Path(experiments.__path__[0])
    paths = {path.stem: path for path in folder.glob("*.py") if not path.stem.startswith("__")}
    paths |= {path.parent.name: path for path in folder.glob("*/__main__.py")}
    ordered = sorted(paths, key=lambda name: (name != "train", name != "plan", name))
    return {name: (ast.get_docstring(_parsed(paths[name])) or "").partition("\n")[0] for name in ordered}


def _parsed(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _docstring() -> str:
    return (sys.modules["__main__"].__doc__ or "").strip()


def _groups() -> list[tuple[str, list[flags.Flag]]]:
    """The script's own flags, and those that scripts share, by group."""
    groups = flags.FLAGS.flags_by_module_dict()
    names = [name for name in groups if re.match(r"experiments\.|[A-Z]", name)]
    return [
        (name, sorted(groups[name], key=lambda flag: flag.name)) for name in (sys.argv[0], *names) if name in groups
    ]


def _lines(found: Iterable[flags.Flag]) -> list[str]:
    """Each flag in one line, with its default if that is short."""
    names = [_name(flag) for flag in found]
    width, lines = min(max(map(len, names)), _NAME), []
    for flag, name in zip(found, names, strict=True):
        start = f"  {name:{width}}  "
        lines.append(start + textwrap.shorten(flag.help, _WIDTH - len(start), placeholder=" ..."))
    return lines


def _name(flag: flags.Flag) -> str:
    default = "" if flag.default in (None, "", []) else f"={flag.default_as_str}".replace("'", "")
    return f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}" + default * (len(default) <= _DEFAULT)


def _first_paragraphs(doc: str, room: int) -> list[str]:
    """The first paragraphs of a docstring that fit into some lines of a terminal's width; the first one always."""
    lines: list[str] = []
    for paragraph in re.split(r"(?<!:)\n\n", doc):  # not between a list and what announces it
        added = "\n\n".join(map(_wrapped, paragraph.split("\n\n"))).split("\n")
        if lines and len(lines) + 1 + len(added) > room:
            break
        lines += [*([""] if lines else []), *added]
    return lines


def _wrapped(paragraph: str) -> str:
    """Prose, a list or an indented block at the width of a terminal."""
    if paragraph.startswith(" "):
        return "\n".join(map(_folded, paragraph.split("\n")))
    items = re.split(r"\n(?=\* )", paragraph)
    return "\n".join(textwrap.fill(item, _WIDTH, subsequent_indent="  " * item.startswith("* ")) for item in items)


def _folded(line: str) -> str:
    """A line of a command or a table, folded where it is wider than the terminal."""
    indent = " " * (len(line) - len(line.lstrip()))
    parts = textwrap.wrap(line, _WIDTH - 2, subsequent_indent=indent + "    ", break_on_hyphens=False)
    return (" \\\n" if " -m " in line else "\n").join(parts)
