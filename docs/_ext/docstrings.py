"""Docstrings as reStructuredText: they are written to be read in an editor, with |G|², tables and comments.

* |x|² outside of code is a norm, not a substitution;
* a Markdown table becomes a list-table, and an indented block is literal;
* the comment behind a field of a NamedTuple says what the field is;
* optax.Schedule and jax.typing.ArrayLike keep their names in signatures;
* `name` is a link if there is such a name, else code. A name that begins with bsjax must exist.
"""

import functools
import importlib
import inspect
import pkgutil
import re
from typing import Any

import jax
import optax
from sphinx.application import Sphinx
from sphinx.util.typing import stringify_annotation

import bsjax

_PACKAGES = ("controllers", "data", "engine", "gradient_noise", "models", "run", "tasks")
_INNER = "api/modules"  # the page of the inner modules

_CODE = re.compile(r"(:\w+:`[^`]*`|`+[^`]+`+)")
_EMPHASIS = re.compile(r"((?<![\w*])\*{1,2}(?=[^\s*])[^*]*[^\s*]\*{1,2}(?![\w*]))")


def _prose(text: str) -> str:
    """Prose without code, in which | and a single * are not markup."""
    parts = _EMPHASIS.split(text.replace("|", r"\|"))
    return "".join(part if number % 2 else re.sub(r"\*(?! )", r"\*", part) for number, part in enumerate(parts))


def _text(lines: list[str]) -> list[str]:
    """The lines of a paragraph, in which code may span lines and be followed by letters, as in `Update`s."""
    parts = _CODE.split("\n".join(lines))
    for number in range(2, len(parts), 2):
        followed = parts[number][:1].isalnum()
        parts[number] = (r"\ " if followed else "") + _prose(parts[number])
    return "".join([_prose(parts[0]), *parts[1:]]).split("\n")


def _blocks(lines: list[str]) -> list[list[str]]:
    """The paragraphs."""
    blocks: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
    return [block for block in blocks if block]


def _table(block: list[str]) -> list[str]:
    """A list-table of a Markdown table."""
    cells = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block if "---" not in line]
    rows = [_text(row) for row in cells]
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in rows:
        lines += [f"   {'*' if number == 0 else ' '} - {cell}" for number, cell in enumerate(row)]
    return lines


def as_restructured_text(lines: list[str]) -> list[str]:
    """The lines of a docstring, as Sphinx reads them."""
    result: list[str] = []
    is_literal = False
    for block in _blocks(lines):
        first = block[0].strip()
        was_literal, is_literal = is_literal, block[0].startswith("    ") and not first.startswith((">>>", ".. "))
        if is_literal:
            result += block if was_literal else ["::", "", *block]
        elif first.startswith("|") and len(block) > 2 and set(block[1].strip()) <= set("|-: "):
            result += _table(block)
        elif first.startswith(".. "):
            result += block
        else:
            code = next((number for number, line in enumerate(block) if line.strip().startswith(">>>")), len(block))
            result += [*_text(block[:code]), "", *block[code:]]
        result.append("")
    return result


def _field_comment(name: str) -> str | None:
    """The comment behind a field of a NamedTuple, by the field's full name."""
    owner, _, field = name.rpartition(".")
    parent = pkgutil.resolve_name(owner)
    if not (inspect.isclass(parent) and field in getattr(parent, "_fields", ())):
        return None
    match = re.search(rf"^    {field}: [^#\n]*#\s*(.+)$", inspect.getsource(parent), re.MULTILINE)
    return match[1] if match else None


def _process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    if lines and lines[0].startswith("Alias for field number"):
        lines[:] = [_field_comment(name) or "", ""]
    lines[:] = as_restructured_text(lines)


@functools.cache
def _aliases() -> dict[str, str]:
    """What long types come out as in signatures, and their names."""
    types = {"optax.Schedule": optax.Schedule, "ArrayLike": jax.typing.ArrayLike}
    modes = ("smart", "fully-qualified-except-typing", "fully-qualified")
    return {stringify_annotation(type_, mode): name for name, type_ in types.items() for mode in modes}


def _shorten(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """A signature in which long types have their names."""
    for text, alias in _aliases().items():
        signature = signature and signature.replace(text, alias)
        returns = returns and returns.replace(text, alias)
    return signature, returns


@functools.cache
def _exported() -> frozenset[int]:
    """What a package exports, by identity: it has its place on the package's page."""
    packages = [bsjax] + [importlib.import_module(f"bsjax.{name}") for name in _PACKAGES]
    return frozenset(id(getattr(package, name)) for package in packages for name in package.__all__)


def _skip(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leaves out what flax adds to its modules and, on the page of the inner modules, what a package exports."""
    is_elsewhere = what == "module" and app.env.docname == _INNER and id(obj) in _exported()
    return True if is_elsewhere or name in ("name", "parent", "scope") else None


def _exists(name: str) -> bool:
    """Whether there is a module, or something in a module or in a class, of this name."""
    try:
        return pkgutil.resolve_name(name) is not None
    except (ImportError, AttributeError):
        return False


def _missing(app: Sphinx, env: Any, node: Any, contnode: Any) -> Any:
    """Shows a name that the site has no place for as code; one that begins with bsjax must exist."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or (target.startswith("bsjax.") and not _exists(target)):
        return None
    return contnode


def setup(app: Sphinx) -> dict[str, bool]:
    """Connects it to Sphinx."""
    app.connect("autodoc-process-docstring", _process, priority=400)  # before napoleon
    app.connect("autodoc-process-signature", _shorten)
    app.connect("autodoc-skip-member", _skip)
    app.connect("missing-reference", _missing)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
