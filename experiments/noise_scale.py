"""The gradient noise scale along training, and where the batch is larger than it.

    python -m experiments.noise_scale --preset=digits --seeds=5 --workdir=runs/noise_scale

It measures Figure 5's four schedules as they train (`bsjax.gradient_noise`). B_simple = tr(Σ)/|G|² is drawn with both
averaged over seeds before they are divided; thin lines are single seeds. Where the batch size is larger, an update uses
more examples than its noise requires. A ghost is half of the smallest batch, so that its noise can be measured.
"""

from collections.abc import Sequence
from typing import NamedTuple

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


def main() -> None:
    """Trains the missing runs, then draws the picture and prints the table."""
    study = studies.study_from_flags()
    ghost = max(1, min(study.config.task.ghost_batch_size, study.config.recipe.batch_size // 2))
    measured = study.config.replace(measure_noise=True, ghost_batch_size=ghost)
    results = studies.train(study, presets.section_5_2(study.preset, measured))
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
    points, table = [], []
    head = ("B_simple: first, middle, last", "batch / B_simple", "above, % of epochs")
    print(f"\n{'schedule':<34}{head[0]:>32}{head[1]:>24}{head[2]:>23}")
    for i, (label, group) in enumerate(results.items()):
        epoch, batch_size, noise_scale, seeds = noise_curve(group)
        if not len(epoch):
            print(f"{label:<34}{'not measured':>32}")
            continue
        left.plot(epoch, noise_scale, **figures.line_style(i), label=label)
        for seed in seeds:
            left.plot(epoch, seed, color=figures.COLORS[i], linewidth=0.4, alpha=0.5)
        right.plot(epoch, batch_size / noise_scale, **figures.line_style(i))
        some = [0, len(epoch) // 2, len(epoch) - 1]
        share, last = outrun(epoch, batch_size, noise_scale)
        scales, ratios = (", ".join(map(_text, values[some])) for values in (noise_scale, batch_size / noise_scale))
        where = f"{100 * share:.0f}" + (f", epoch {last:g}" if last else "")
        print(f"{label:<34}{scales:>32}{ratios:>24}{where:>23}")
        row = {"schedule": label, "noise_scale": scales, "ratio": ratios}
        table.append({**row, "share_above": f"{share:.3f}", "last_epoch": "" if last is None else str(last)})
        points += [
            {"schedule": label, "epoch": f"{e:.5g}", "batch_size": int(b), "noise_scale": f"{s:.5g}"}
            for e, b, s in zip(epoch, batch_size, noise_scale, strict=True)
        ]
    left.set(xlabel="Epochs", ylabel=r"$B_{simple} = \mathrm{tr}\,\Sigma\,/\,|G|^2$ (examples)", yscale="log")
    right.set(xlabel="Epochs", ylabel=r"Batch size / $B_{simple}$", yscale="log")
    right.axhline(1, color="#555555", linewidth=0.8)
    figures.legend_above(figure, left, columns=2)
    figures.save(figure, study.workdir, "noise_scale", points, table)


def _ratio(trace: np.ndarray, grad_sq: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(grad_sq > 0, trace / grad_sq, np.nan)


def _text(value: float) -> str:
    return f"{value:,.3g}" if np.isfinite(value) else "unknown"


if __name__ == "__main__":
    studies.define_flags()
    cli.run(main, multihost=True)
