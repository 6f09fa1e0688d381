"""Draws the pictures of how_it_works.md as SVG files in _static: python docs/drawings.py

They bring their own white paper, so that they are legible in dark mode, on GitHub as well.
"""

import itertools
import math
import pathlib
from collections.abc import Iterable

import optax

import bsjax

STATIC = pathlib.Path(__file__).parent / "_static"
INK, GREY, BLUE, ORANGE, GREEN = "#222222", "#8a8a8a", "#3b6fb6", "#d1701d", "#3d8f5f"
PALE = {BLUE: "#d6e3f5", ORANGE: "#fae0cb", GREEN: "#d5ebdd"}


def _text(x: float, y: float, words: str, anchor: str = "start", color: str = INK, size: int = 14) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{color}" font-size="{size}">{words}</text>'


def _box(x: float, y: float, width: float, height: float, color: str) -> str:
    shape = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="3"'
    return f'<rect {shape} fill="{PALE[color]}" stroke="{color}" stroke-width="1.5"/>'


def _arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<path d="M{x1:g},{y1:g} L{x2:g},{y2:g}" stroke="{INK}" stroke-width="1.5" marker-end="url(#head)"/>'


def save(name: str, width: int, height: int, title: str, parts: Iterable[str]) -> None:
    """Writes a picture, with a title for those who do not see it."""
    head = f'<marker id="head" markerWidth="8" markerHeight="8" refX="6" refY="3" orient="auto"><path d="M0,0 L6,3 L0,6 z" fill="{INK}"/></marker>'  # noqa: E501
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" font-family="sans-serif">',
        f"<title>{title}</title>",
        f"<defs>{head}</defs>",
        f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>',
        *parts,
        "</svg>",
    ]
    (STATIC / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def one_clock() -> list[str]:
    """The stream of examples, and two runs that take it in batches of their own."""
    left, unit = 150, 14
    parts = [_text(20, 62, "examples"), _text(left, 24, "epoch 0"), _text(left + 20 * unit + 6, 24, "epoch 1")]
    parts.append(_text(left + 40 * unit + 6, 24, "epoch 2, ..."))
    colors = (GREY, INK, GREY)
    parts += [f'<circle cx="{left + unit * (k + 0.5):g}" cy="58" r="4" fill="{colors[k // 20]}"/>' for k in range(48)]
    for edge in (20, 40):
        x = left + unit * edge
        line = f'x1="{x}" y1="14" x2="{x}" y2="196"'
        parts.append(f'<line {line} stroke="{GREY}" stroke-dasharray="4 4"/>')
    rows = ((96, "small batches", BLUE, [4] * 12), (146, "growing batch", ORANGE, [4] * 4 + [8, 8, 16]))
    for y, label, color, sizes in rows:
        parts.append(_text(20, y + 22, label, color=color))
        position = 0
        for size in sizes:
            x = left + unit * position
            parts += [
                _box(x + 1, y, unit * size - 2, 34, color),
                _text(x + unit * size / 2, y + 22, str(size), "middle"),
            ]
            position += size
    parts += [_arrow(left, 210, left + 48 * unit, 210), _text(left + 48 * unit, 232, "examples seen", "end")]
    return parts


def microbatches() -> list[str]:
    """An update: two devices accumulate, then one all-reduce and one step."""
    parts = [_text(20, 28, "one update of 8 microbatches on 2 devices")]
    for device in range(2):
        y = 52 + 76 * device
        parts.append(_text(20, y + 30, f"device {device}"))
        for k in range(4):
            x = 110 + 100 * k
            parts += [_box(x, y, 76, 48, BLUE), _text(x + 38, y + 29, f"micro {2 * k + device}", "middle", size=13)]
            parts.append(_arrow(x + 78, y + 24, x + 96, y + 24))
        parts += [_box(510, y, 100, 48, ORANGE), _text(560, y + 21, "sums,", "middle", size=13)]
        parts += [_text(560, y + 37, "counts", "middle", size=13), _arrow(612, y + 24, 646, 112)]
    parts += [_box(652, 82, 126, 64, GREEN), _text(715, 108, "all-reduce,", "middle", size=13)]
    parts += [_text(715, 126, "divide, one step", "middle", size=13)]
    parts.append(_text(110, 208, "accumulate: no communication; the same program for every batch size", size=13))
    return parts


def ghosts() -> list[str]:
    """Batches of 8 and 16 in ghosts of 4, on one device and on two."""
    parts = [_text(20, 28, "ghosts of 4 examples")]
    rows = (("batch of 8, one device", 2, 1), ("batch of 16, one device", 4, 1), ("batch of 16, two devices", 4, 2))
    for number, (label, count, devices) in enumerate(rows):
        y = 46 + 58 * number
        parts.append(_text(20, y + 25, label))
        for ghost in range(count):
            x = 210 + 112 * ghost + (40 if devices == 2 and ghost >= 2 else 0)
            parts.append(_box(x, y, 104, 38, GREEN))
            parts += [f'<circle cx="{x + 20 + 21 * k}" cy="{y + 19}" r="6" fill="{GREEN}"/>' for k in range(4)]
        if devices == 2:
            line = f'x1="450" y1="{y - 6}" x2="450" y2="{y + 46}"'
            parts.append(f'<line {line} stroke="{GREY}" stroke-dasharray="4 4"/>')
    parts.append(
        _text(20, 226, "one mean and one variance for each ghost, whatever the batch and the devices", size=13)
    )
    return parts


def noise() -> list[str]:
    """Learning rate, batch size and noise scale of the paper's recipe and of its conversion, on logarithmic axes."""
    steps = optax.piecewise_constant_schedule(0.1, {60: 0.2, 120: 0.2, 160: 0.2})
    recipe = bsjax.Recipe(steps, batch_size=128, dataset_size=50_000, num_epochs=200, momentum=0.9)
    grown = recipe.increase_batch_size(max_batch_size=5120)
    parts = []
    columns = (
        ("learning rate", (8e-4, 0.1), lambda one, e: one.at(e).learning_rate),
        ("batch size", (128, 5120), lambda one, e: one.at(e).batch_size),
        ("noise scale", (3.1, 390), lambda one, e: one.noise_scale(e, exact=False)),
    )
    for number, (label, (low, high), value) in enumerate(columns):
        x, y, width, height = 70 + 265 * number, 50, 190, 130
        parts.append(_text(x + width / 2, 32, label, "middle"))
        parts.append(f'<path d="M{x},{y} V{y + height} H{x + width}" fill="none" stroke="{GREY}"/>')
        for end, place in ((high, y + 5), (low, y + height)):
            parts.append(_text(x - 6, place, f"{end:g}", "end", GREY, 12))
        for epoch in (0, 60, 120, 160, 200):
            parts.append(_text(x + width * epoch / 200, y + height + 18, str(epoch), "middle", GREY, 12))
        for one, color, dash, thick in ((recipe, BLUE, "", 5), (grown, ORANGE, "6 4", 2.5)):
            points = []
            for begin, end in itertools.pairwise((0, 60, 120, 160, 200)):
                share = _share(float(value(one, 50_000 * (begin + 1))), low, high)  # after the update across the step
                points += [f"{x + width * at / 200:g},{y + height * (1 - share):.1f}" for at in (begin, end)]
            look = f'stroke="{color}" stroke-width="{thick}" stroke-dasharray="{dash}"'
            parts.append(f'<polyline points="{" ".join(points)}" fill="none" {look}/>')
    parts.append(_text(70, 234, "decaying learning rate: 78,125 updates", color=BLUE))
    parts.append(_text(400, 234, "growing batch (dashed): 29,142 updates", color=ORANGE))
    parts.append(_text(790, 234, "epochs", "end", GREY, 12))
    assert (recipe.plan().num_updates, grown.plan().num_updates) == (78_125, 29_142)
    return parts


def _share(value: float, low: float, high: float) -> float:
    """Where a value is between two others, on a logarithmic axis."""
    return math.log(value / low) / math.log(high / low)


def main() -> None:
    """Draws all."""
    save("one_clock.svg", 840, 244, "One stream of examples, two runs with different batches", one_clock())
    save("microbatches.svg", 800, 224, "An update in microbatches", microbatches())
    save("ghosts.svg", 720, 240, "Ghosts of a fixed size", ghosts())
    save("noise.svg", 810, 248, "Learning rate, batch size and noise scale against epochs", noise())


if __name__ == "__main__":
    main()
