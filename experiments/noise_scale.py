"""The gradient noise scale along training, and where the batch is larger than it.

    python -m experiments.noise_scale --preset=digits --seeds=5 --workdir=runs/noise_scale
    python -m experiments.noise_scale --preset=shakespeare_cpu --seeds=3 --workdir=runs/noise_scale_shakespeare

It measures Figure 5's four schedules as they train (`bsjax.gradient_noise`). B_simple = tr(Σ)/|G|² is drawn with both
averaged over seeds before they are divided; dots are single seeds. Where the batch size is larger, an update uses more
examples than its noise requires. A ghost is half of the smallest batch, so that its noise can be measured.

The estimate of |G|² is without bias, so it can come out below zero where the gradient is small beside its noise.
B_simple is too large to be measured there: the line has a gap, and a cross marks the epoch above it.

The schedules of a language model are its recipe and Seesaw, and its batches are in tokens. Beside B_simple, which is
measured between microbatches, stands that of the layer normalisations alone, from the gradient of every example. It
predicts B_simple if their ratio hardly varies along training: by a factor of at most 1.5 (geometric standard
deviation), which is the margin, and by less than B_simple itself, by which a constant would err.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np

from experiments.harness import build, cli, figures, language_models, presets, runs, studies
from experiments.harness.config import Config

# Seesaw is the growing batch that Adam stands, see `bsjax.check_adam_stability`. The trainings are short: averages over
# half an epoch would hide what changes.
_OF_TEXTS = {"batch_scaling": "sqrt", "batch_share": 0.5, "noise_half_life_epochs": 0.1}
PRESETS: dict[str, presets.Workload] = {
    **presets.PRESETS,
    **{
        name: dataclasses.replace(workload, config=workload.config.replace(**_OF_TEXTS))
        for name, workload in language_models.LANGUAGE_MODELS.items()
    },
}
LAYER_NORMS = ", layer norms"  # the end of a label
_MARGIN = 1.5


class NoiseCurve(NamedTuple):
    """B_simple along training; NaN where the estimate of |G|² is not positive."""

    epoch: np.ndarray
    batch_size: np.ndarray  # of the first seed
    noise_scale: np.ndarray  # of the averages over seeds
    seeds: np.ndarray  # [seeds, n], of each


class Agreement(NamedTuple):
    """How the layer normalisations' B_simple follows that of all parameters; spreads are factors."""

    ratio: float  # theirs over it, geometric mean along training
    spread: float  # of the ratio, geometric standard deviation
    control: float  # spread of B_simple itself
    correlation: float  # of the logarithms


def noise_curve(results: Sequence[runs.Result], prefix: str = "", units_per_example: int = 1) -> NoiseCurve:
    """The curve of a schedule, from its runs' metrics; empty if nothing was measured.

    Args:
      results: of each seed.
      prefix: of the metrics' names; "layer_norm_" for the layer normalisations alone.
      units_per_example: such as the tokens of a window, in which batches are counted.
    """
    lines = figures.lines_with(f"{prefix}grad_sq", results)
    if not lines:
        return NoiseCurve(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros((0, 0)))
    length = min(map(len, lines))
    epoch, batch_size, trace, grad_sq = (
        np.array([[line[name] for line in seed[:length]] for seed in lines], float).reshape(len(lines), length)
        for name in ("epoch", "batch_size", f"{prefix}grad_trace", f"{prefix}grad_sq")
    )
    trace = units_per_example * trace
    mean = _ratio(trace.mean(axis=0), grad_sq.mean(axis=0))
    return NoiseCurve(epoch[0], units_per_example * batch_size[0], mean, _ratio(trace, grad_sq))


def agreement(whole: NoiseCurve, layer_norms: NoiseCurve) -> Agreement:
    """The agreement of two curves of the same runs, where both could be measured; NaN with less than two points.

    >>> curves = [
    ...     NoiseCurve(np.arange(3), np.ones(3), np.array(scale), np.ones((1, 3)))
    ...     for scale in ([10, 20, 40], [20, 40, np.nan])
    ... ]
    >>> agreement(*curves)
    Agreement(ratio=2.0, spread=1.0, control=1.6325, correlation=1.0)
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(np.array([whole.noise_scale, layer_norms.noise_scale]))
    logs = logs[:, np.isfinite(logs).all(axis=0)]
    if logs.shape[1] < 2:
        return Agreement(math.nan, math.nan, math.nan, math.nan)
    ratio = logs[1] - logs[0]
    mean, spread, control = np.exp([ratio.mean(), ratio.std(ddof=1), logs[0].std(ddof=1)]).tolist()
    is_constant = not logs.std(axis=1).all()
    return Agreement(mean, spread, control, math.nan if is_constant else float(np.corrcoef(logs)[0, 1]))


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


def draw(curves: Mapping[str, NoiseCurve], unit: str = "examples") -> Any:
    """The picture."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4), layout="constrained")
    for i, (label, one) in enumerate(curves.items()):
        look = figures.style_of(label.removesuffix(LAYER_NORMS))
        if label.endswith(LAYER_NORMS):
            look |= {"linestyle": ":", "linewidth": 1.0}
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
    left.set(xlabel="Epochs", ylabel=rf"$B_{{simple}} = \mathrm{{tr}}\,\Sigma\,/\,|G|^2$ ({unit})", yscale="log")
    right.set(xlabel="Epochs", ylabel=r"Batch size / $B_{simple}$", yscale="log")
    right.axhline(1, color="#555555", linewidth=0.8)
    for axis in (left.yaxis, right.yaxis):
        axis.set_major_formatter("{x:,.10g}")
    has_pairs = any(label.endswith(LAYER_NORMS) for label in curves)
    figures.legend_above(figure, left, columns=2 if has_pairs else 3)
    return figure


def main() -> None:
    """Trains the missing runs, then draws the picture and prints the table."""
    study = studies.study_from_flags(PRESETS)
    unit, size = build.units(study.config)
    results = studies.train(study, _schedules(study))
    curves: dict[str, NoiseCurve] = {}
    for label, group in results.items():
        curves[label] = noise_curve(group, units_per_example=size)
        if study.config.task.task == "language_model":
            curves[label + LAYER_NORMS] = noise_curve(group, "layer_norm_", size)
    measured = {label: one for label, one in curves.items() if len(one.epoch)}
    table = [table_row(label, one) for label, one in measured.items()]
    head = ["schedule", "B_simple, first", "middle", "last", "batch / B_simple, first", "middle", "last"]
    head += ["above 1, % of epochs", "last at epoch"]
    print()
    figures.print_table([head, *([_text(value) for value in row.values()] for row in table)])
    print("-: not measurable there, because the estimate of |G|² is not positive; or never above 1")
    for label in curves.keys() - measured.keys():
        print(f"{label}: not measured")
    agreements = {
        label: agreement(one, measured[label + LAYER_NORMS])
        for label, one in measured.items()
        if label + LAYER_NORMS in measured
    }
    for label, found in agreements.items():
        print(_sentence(label, found))
    points = [
        {"schedule": label, "epoch": f"{e:.5g}", "batch_size": int(b), "noise_scale": f"{s:.5g}"}
        for label, one in measured.items()
        for e, b, s in zip(one.epoch, one.batch_size, one.noise_scale, strict=True)
    ]
    about: dict[str, Any] = {"unit": unit}
    if agreements:
        about["agreement"] = {label: _json(found) for label, found in agreements.items()}
    figures.save(draw(measured, unit), study.workdir, "noise_scale", points, table, **about)


def _schedules(study: studies.Study) -> dict[str, Config]:
    """The runs of the study, whose noise is measured."""
    config = study.config.replace(measure_noise=True)
    if config.task.task == "language_model":
        config = config.replace(layer_norm_noise=True)
        return {presets.ORIGINAL: config, "Increasing batch size": config.replace(schedule="increase_batch_size")}
    ghost = max(1, min(config.task.ghost_batch_size, config.recipe.batch_size // 2))
    return presets.section_5_2(study.preset, config.replace(ghost_batch_size=ghost))


def _sentence(label: str, found: Agreement) -> str:
    predicts = found.spread <= _MARGIN and found.spread < found.control
    verdict = "predict" if predicts else "do not predict"
    return (
        f"{label}: the layer norms {verdict} B_simple. Theirs is {_text(found.ratio)} times as large; the ratio varies"
        f" by a factor of {_text(found.spread)} (margin {_MARGIN:g}), B_simple itself by {_text(found.control)};"
        f" the correlation of the logarithms is {_text(found.correlation)}"
    )


def _json(found: Agreement) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in found._asdict().items()}


def _ratio(trace: np.ndarray, grad_sq: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(grad_sq > 0, trace / grad_sq, np.nan)


def _text(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return "-" if math.isnan(value) else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    studies.define_flags(choices=PRESETS)
    cli.run(main, multihost=True, presets=PRESETS)
