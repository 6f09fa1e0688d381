"""Parts of an HTML page that needs no network: every text is escaped, pictures are inside, nothing runs."""

import base64
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_KINDS = {".png": "image/png", ".svg": "image/svg+xml"}
_LONG_TABLE = 24  # rows; a longer one is folded
# The page may show the pictures inside it, and load and run nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff;
  max-width: 1100px; margin: 2em auto; padding: 0 1em }
h1, h2 { line-height: 1.2 } h2 { margin-top: 2em; border-bottom: 1px solid #ddd }
img { max-width: 100%; height: auto; background: #fff }
pre { background: #f5f5f5; padding: .6em .8em; white-space: pre-wrap; overflow-wrap: anywhere }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: 13px; margin: .8em 0 }
th, td { padding: .2em .8em; border-bottom: 1px solid #e4e4e4; text-align: right; vertical-align: top }
th:first-child, td:first-child { text-align: left } th { border-bottom: 2px solid #bbb; vertical-align: bottom }
th.text, td.text { text-align: left } td.text { overflow-wrap: anywhere; min-width: 7em }
td.text:first-child { min-width: 14em } summary { cursor: pointer }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #1b1b1b } pre { background: #2a2a2a }
  h2, th, td { border-color: #444 } img { padding: 4px } }
"""


def text(value: Any) -> str:
    """A value as it is read, whatever its characters mean in HTML.

    >>> text("<b> & 'c'")
    '&lt;b&gt; &amp; &#x27;c&#x27;'
    """
    return html.escape(str(value))


def page(title: str, parts: Iterable[str]) -> str:
    """The whole page."""
    head = f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><title>{text(title)}</title>'
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    body = "\n".join([f"<h1>{text(title)}</h1>", *parts])
    head = f"<head>{meta}{head}<style>{_STYLE}</style></head>"
    return f'<!doctype html>\n<html lang="en">{head}\n<body>{body}</body></html>\n'


def section(title: str, parts: Iterable[str]) -> str:
    """A heading and what is below it; nothing if that is empty."""
    body = "\n".join(part for part in parts if part)
    return f"<section><h2>{text(title)}</h2>\n{body}</section>" if body else ""


def paragraph(words: Any) -> str:
    """Some prose."""
    return f"<p>{text(words)}</p>"


def code(lines: Any) -> str:
    """Commands as they are."""
    return f"<pre>{text(lines)}</pre>"


def details(title: str, body: str) -> str:
    """What is folded until somebody asks."""
    return f"<details><summary>{text(title)}</summary>\n{body}</details>" if body else ""


def picture(contents: bytes, suffix: str, alt: str) -> str:
    """A picture inside the page; an SVG inside an image cannot run anything either."""
    data = base64.b64encode(contents).decode()
    return f'<p><img alt="{text(alt)}" src="data:{_KINDS[suffix]};base64,{data}"></p>'


def table(rows: Sequence[Mapping[str, Any]], title: str = "Table") -> str:
    """A table with the columns of all rows; folded if it is long, and nothing if it is empty."""
    if not rows:
        return ""
    columns = {name: [number(row.get(name)) for row in rows] for name in dict.fromkeys(n for row in rows for n in row)}
    # Texts are aligned to the left, numbers to the right.
    kinds = [' class="text"' * any(cell[:1].isalpha() for cell in cells) for cells in columns.values()]
    head = "".join(f"<th{kind}>{text(name.replace('_', ' '))}</th>" for name, kind in zip(columns, kinds, strict=True))
    lines = zip(*columns.values(), strict=True)
    body = "\n".join(
        "<tr>" + "".join(f"<td{kind}>{text(cell)}</td>" for cell, kind in zip(line, kinds, strict=True)) + "</tr>"
        for line in lines
    )
    whole = f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'
    return details(f"{title}: {len(rows)} rows", whole) if len(rows) > _LONG_TABLE else whole


def pairs(values: Mapping[str, Any], title: str = "Values") -> str:
    """A table of names and values."""
    return table([{"name": name, "value": value} for name, value in values.items()], title)


def number(value: Any) -> str:
    """A number, or a text that is one, with four significant digits or commas; any other text as it is.

    >>> number(56250), number("0.917664"), number("seed=0"), number(True), number(None)
    ('56,250', '0.9177', 'seed=0', 'True', '')
    >>> number(float("nan"))  # of runs that diverged
    ''
    """
    if value is None or isinstance(value, bool):
        return "" if value is None else str(value)
    try:
        x = float(value)
    except (TypeError, ValueError):
        return str(value)
    if math.isnan(x):
        return ""
    return f"{x:,.0f}" if x.is_integer() and abs(x) < 1e15 else f"{x:.4g}"
