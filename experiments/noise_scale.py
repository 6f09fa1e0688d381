"""The gradient noise scale along training, and where the batch is larger than it.

    python -m experiments.noise_scale --preset=digits --seeds=5 --workdir=runs/noise_scale

It measures Figure 5's four schedules as they train (`bsjax.gradient_noise`). B_simple = tr(Σ)/|G|² is drawn with both
averaged over seeds before they are divided; dots are single seeds. Where the batch size is larger, an update uses more
examples than its noise requires. A ghost is half of the smallest batch, so that its noise can be measured.

The estimate of |G|² is without bias, so it can come out below zero where the gradient is small beside its noise.
B_simple is too large to be measured there: the line has a gap, and a cross marks the epoch above it.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np

from experiments.harness import cli, figures, presets, runs, studies


class NoiseCurve(NamedTuple):
    """B_simple along training; NaN where the estimate of |G|² is not positive."""

    epoch: np.ndarray
    batch_size: np.ndarray  # of the first seed
    noise_scale: np.ndarray  # of the averages over seeds
    seeds: np.ndarray  # [seeds, n], of each


def noise_curve(results: Sequence[runs.Result]) -> NoiseCurve:
    """The curve of a schedule, from its runs' metrics; empty if nothing was measured."""
    lines = figures.lines_with("grad_sq", results)
    if not lines:
        return NoiseCurve(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros((0, 0)))
    length = min(map(len, lines))
    epoch, batch_size, trace, grad_sq = (
        np.array([[line[name] for line in seed[:length]] for seed in lines], float).reshape(len(lines), length)
        for name in ("epoch", "batch_size", "grad_trace", "grad_sq")
    )
    mean = _ratio(trace.mean(axis=0), grad_sq.mean(axis=0))
    return NoiseCurve(epoch[0], batch_size[0], mean, _ratio(trace, grad_sq))


def outrun(epoch: np.ndarray, batch_size: np.ndarray, noise_scale: np.ndarray) -> tuple[float, float | None]:
    """The share of the measured epochs in which the batch is larger than B_simple, and the last such epoch.

    >>> outrun(np.array([1, 2, 3, 4, 5]), np.array([8, 40, 40, 144, 144]), np.array([20, 30, 30, np.nan, 190]))
    (0.5, 3.0)
    >>> outrun(np.array([1, 2]), np.array([8, 8]), np.array([40, 90]))
    (0.0, None)
    """
    above = batch_size > noise_scale
    last = float(epoch[above][-1]) if above.any() else None
    return float(above.sum() / max(1, np.isfinite(noise_scale).sum())), last


def table_row(label: str, one: NoiseCurve) -> dict[str, Any]:
    """B_simple and batch / B_simple at three epochs, NaN where not measurable, and where the batch is larger."""
    share, last = outrun(one.epoch, one.batch_size, one.noise_scale)
    row: dict[str, Any] = {"schedule": label}
    for name, values in (("noise_scale", one.noise_scale), ("ratio", one.batch_size / one.noise_scale)):
        row |= {f"{name}_first": values[0], f"{name}_middle": values[len(values) // 2], f"{name}_last": values[-1]}
    return row | {"percent_above": 100 * share, "last_epoch": math.nan if last is None else last}


def draw(curves: dict[str, NoiseCurve]) -> Any:
    """The picture."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
    for i, (label, one) in enumerate(curves.items()):
        look = figures.style_of(label)
        left.plot(np.tile(one.epoch, len(one.seeds)), one.seeds.ravel(), ".", color=look["color"], markersize=1.5)
        gaps = one.epoch[np.isnan(one.noise_scale)]
        heights = np.full(len(gaps), 1.02 + 0.03 * i)  # above the panel, in a row for each schedule
        for axes, values in ((left, one.noise_scale), (right, one.batch_size / one.noise_scale)):
            axes.plot(
                one.epoch, values, **look, marker=".", markersize=2, label=label
            )  # dots show what has no neighbour
            above = {"transform": axes.get_xaxis_transform(), "clip_on": False}
            [crosses] = axes.plot(gaps, heights, "x", color=look["color"], markersize=4, **above)
            crosses.set_in_layout(False)
    num_seeds = max((len(one.seeds) for one in curves.values()), default=0)
    left.plot([], [], ".", color="grey", markersize=3, label=f"one of {num_seeds} seeds")
    left.plot([], [], "x", color="grey", markersize=4, label="not measurable: |G|² ≤ 0")
    left.set(xlabel="Epochs", ylabel=r"$B_{simple} = \mathrm{tr}\,\Sigma\,/\,|G|^2$ (examples)", yscale="log")
    right.set(xlabel="Epochs", ylabel=r"Batch size / $B_{simple}$", yscale="log")
    right.axhline(1, color="#555555", linewidth=0.8)
    for axis in (left.yaxis, right.yaxis):
        axis.set_major_formatter("{x:,.10g}")
    figures.legend_above(figure, left, columns=3)
    return figure


def main() -> None:
    """Trains the missing runs, then draws the picture and prints the table."""
    study = studies.study_from_flags()
    ghost = max(1, min(study.config.task.ghost_batch_size, study.config.recipe.batch_size // 2))
    measured = study.config.replace(measure_noise=True, ghost_batch_size=ghost)
    results = studies.train(study, presets.section_5_2(study.preset, measured))
    curves = {label: one for label, group in results.items() if len((one := noise_curve(group)).epoch)}
    table = [table_row(label, one) for label, one in curves.items()]
    head = ["schedule", "B_simple, first", "middle", "last", "batch / B_simple, first", "middle", "last"]
    head += ["above 1, % of epochs", "last at epoch"]
    print()
    figures.print_table([head, *([_text(value) for value in row.values()] for row in table)])
    print("-: not measurable there, because the estimate of |G|² is not positive; or never above 1")
    for label in results.keys() - curves.keys():
        print(f"{label}: not measured")
    points = [
        {"schedule": label, "epoch": f"{e:.5g}", "batch_size": int(b), "noise_scale": f"{s:.5g}"}
        for label, one in curves.items()
        for e, b, s in zip(one.epoch, one.batch_size, one.noise_scale, strict=True)
    ]
    figures.save(draw(curves), study.workdir, "noise_scale", points, table)


def _ratio(trace: np.ndarray, grad_sq: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(grad_sq > 0, trace / grad_sq, np.nan)


def _text(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return "-" if math.isnan(value) else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    studies.define_flags()
    cli.run(main, multihost=True)
