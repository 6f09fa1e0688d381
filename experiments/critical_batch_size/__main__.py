"""The critical batch size, by three definitions, and the gradient noise scale beside them.

    python -m experiments.critical_batch_size --preset=digits --seeds=5 --workdir=runs/critical_batch_size_digits
    python -m experiments.critical_batch_size --preset=shakespeare_cpu --seeds=3 --workdir=runs/critical_batch_size_text

Trains to a target test loss at each batch size, with a constant learning rate from a new search on a grid.
Above: steps against the batch size, with linear scaling from the batch size of fewest examples, the hyperbola
(S/S_min - 1)(E/E_min - 1) = 1, and where steps exceed linear scaling by 20 %; and the same as steps against examples.
Below: at points of one run, the largest batch with which a branch loses nothing, and B_simple = tr(Σ)/|G|².
Bars and bands are 95 % intervals over seeds, and triangles the ends of bars that go on outside the frame; only the
table has points where no branch loses anything.

The gradient noise scale is measured at the point's parameters, from 2,048 examples, by updates with learning rate 0.
A language model is a small transformer with Adam, --batch_sizes are in windows of text, and all results in tokens.

One minute on two CPU cores, and four with --preset=fashion_mnist. Of digits, to test loss 0.1:

    S_min, steps                        33.4 (30.3 to 36.7)
    E_min, examples            3,269.2 (2,512.9 to 4,253.0)
    B_crit = E_min / S_min             97.9 (69.8 to 137.3)
    20 % above linear scaling            27.0 (9.6 to 76.2)
    the same of the fit                 20.8 (15.2 to 28.7)
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np

from bsjax.analysis.critical_batch import (
    Interval,
    ParetoFit,
    fit_pareto,
    interval_over_seeds,
    twenty_percent_batch_size,
)
from bsjax.errors import RunError
from bsjax.noise import scaling_exponent
from experiments.critical_batch_size import branched_training, target_loss
from experiments.critical_batch_size.study import PRESETS, Study, define_flags, study_from_flags
from experiments.critical_batch_size.target_loss import Search, geometric_mean
from experiments.harness import build, cli, figures, pool, studies
from experiments.harness.config import Config
from experiments.harness.pool import SideBySide

_NAME = "critical_batch_size"


class Branches(NamedTuple):
    """A run and the measurements of its branches."""

    run: Config
    batch_sizes: list[int]
    measured: list[list[branched_training.Point]]  # of each seed


def main() -> None:
    """Trains the missing runs, then draws the figure and prints the tables."""
    study = study_from_flags()
    with pool.side_by_side(study.jobs) as side_by_side:
        searches = search_all(study, side_by_side)
        reached = [search for search in searches if search.best is not None]
        if len(reached) < 3:
            raise RunError(
                f"{len(reached)} batch sizes reached test loss {study.preset.target_loss:g} with all seeds, not three:"
                " try a larger --target_loss or more --num_epochs"
            )
        branches = branch_all(study, searches, side_by_side)
    steps = np.array([search.steps for search in reached]).T
    unit, units_per_example = build.units(study.preset.config)
    sizes = units_per_example * np.array([search.batch_size for search in reached])
    fit = fit_pareto(steps, sizes * steps)
    twenty = interval_over_seeds(lambda seeds: twenty_percent_batch_size(sizes, geometric_mean(seeds)), steps)
    along = branched_training.along_training(
        branches.measured, branches.batch_sizes, study.preset.branch_tolerance, units_per_example
    )

    rows = _rows(searches, fit, units_per_example)
    quantities = {
        "S_min, steps": fit.min_steps,
        f"E_min, {unit}": fit.min_examples,
        "B_crit = E_min / S_min": fit.critical_batch_size,
        "20 % above linear scaling": twenty,
        "the same of the fit": Interval(*(0.2 * x + 1.2 * float(sizes[0]) for x in fit.critical_batch_size)),
    }
    _print(study, rows, quantities, fit, along, branches)
    figure = _draw(sizes, steps, fit, twenty, along, unit)
    residual = {"rms residual of log steps": Interval(fit.rms_residual, math.nan, math.nan)}
    table = [
        dict(zip(("quantity", "value", "low", "high"), (name, *_csv(name, interval).values()), strict=True))
        for name, interval in (quantities | residual).items()
    ]
    studies.write_csv(study.workdir / f"{_NAME}_search.csv", _search_rows(searches, units_per_example))
    studies.write_csv(study.workdir / f"{_NAME}_along_training.csv", _along_rows(along, branches, units_per_example))
    figures.save(figure, study.workdir, _NAME, rows, table, unit=unit)


def search_all(study: Study, side_by_side: SideBySide) -> list[Search]:
    """Searches the learning rate at each batch size, starting from the scaled best one of the batch size before."""
    preset, searches = study.preset, []
    exponent = scaling_exponent(preset.config.conversion.batch_scaling)
    first_rate = preset.config.optimizer.learning_rate
    batch_size, learning_rate = preset.config.recipe.batch_size, first_rate
    for next_batch_size in preset.batch_sizes:
        # To the nearest point of one grid for all batch sizes.
        scaled = learning_rate * (next_batch_size / batch_size) ** exponent
        points = round(math.log(scaled / first_rate, study.learning_rate_factor))
        found = target_loss.search(
            study.setup,
            next_batch_size,
            first_rate * study.learning_rate_factor**points,
            study.learning_rate_factor,
            study.seeds,
            preset.target_loss,
            study.workdir / "runs",
            side_by_side,
        )
        searches.append(found)
        if found.best is None:
            outcome = "not reached"
        else:
            batch_size, learning_rate = next_batch_size, found.best
            steps = float(geometric_mean(found.steps))
            outcome = f"{steps:,.1f} steps with learning rate {found.best:g}, the best of {len(found.trials)}"
        cli.say(f"[{len(searches)}/{len(preset.batch_sizes)}] batch size {next_batch_size:,}: {outcome}")
    return searches


def branch_all(study: Study, searches: Sequence[Search], side_by_side: SideBySide) -> Branches:
    """Trains the branches of a run of `branch_batch_size`, with the best learning rate of that batch size."""
    preset = study.preset
    [search] = [search for search in searches if search.batch_size == preset.branch_batch_size]
    if search.best is None:
        raise RunError(f"batch size {search.batch_size} has not reached the target; try another --branch_batch_size")
    run = preset.config.replace(batch_size=search.batch_size, learning_rate=search.best)
    steps = float(geometric_mean(search.steps))
    points = [max(1, round(fraction * steps)) * search.batch_size for fraction in preset.branch_points]
    tasks = [
        (study.setup, run.replace(seed=seed), points, preset.branch_factors, study.workdir / "branches")
        for seed in study.seeds
    ]
    batch_sizes = [factor * search.batch_size for factor in preset.branch_factors]
    return Branches(run, batch_sizes, side_by_side(branched_training.measure, tasks))


def _rows(searches: Sequence[Search], fit: ParetoFit, units_per_example: int) -> list[dict[str, Any]]:
    rows = []
    fewest = min(one.batch_size * float(geometric_mean(one.steps)) for one in searches if one.best is not None)
    for search in searches:
        batch_size = units_per_example * search.batch_size
        row: dict[str, Any] = {"batch_size": batch_size}
        row |= dict.fromkeys(("learning_rate", "steps", "steps_low", "steps_high", "examples", "fewest"), "")
        if search.best is not None:
            steps = interval_over_seeds(lambda seeds: float(geometric_mean(seeds)), search.steps)
            examples = batch_size * steps.value
            row |= {"learning_rate": f"{search.best:g}", "examples": f"{examples:.6g}"} | _csv("steps", steps)
            row["fewest"] = f"{search.batch_size * steps.value / fewest:.4g}"
        rows.append({**row, "fit_steps": f"{fit.steps(batch_size):.5g}"})
    return rows


def _search_rows(searches: Sequence[Search], units_per_example: int) -> list[dict[str, Any]]:
    return [
        {
            "batch_size": units_per_example * search.batch_size,
            "learning_rate": f"{rate:g}",
            "seed": trial.config.run.seed,
            "steps": f"{steps:.5g}" if (steps := trial.steps_to(search.target_loss)) else "",
            "given_up_after": "" if steps else (trial.steps or [0])[-1],
            "diverged": int(trial.diverged),
        }
        for search in searches
        for rate, trials in search.trials.items()
        for trial in trials
    ]


def _along_rows(along: Sequence[dict[str, Any]], branches: Branches, units_per_example: int) -> list[dict[str, Any]]:
    rows, names = [], [f"loss_{units_per_example * size}" for size in branches.batch_sizes]
    for row, *points in zip(along, *branches.measured, strict=True):
        losses = geometric_mean(np.array([point.losses for point in points]))
        intervals = _csv("branched", row["branched"]) | _csv("gradient_noise_scale", row["gradient_noise_scale"])
        means = {name: f"{loss:.5g}" for name, loss in zip(names, losses, strict=True)}
        rows.append({"examples_seen": row["examples_seen"], **intervals, **means})
    return rows


def _csv(name: str, interval: Interval) -> dict[str, str]:
    columns = (name, f"{name}_low", f"{name}_high")
    return {column: "" if math.isnan(x) else f"{x:.5g}" for column, x in zip(columns, interval, strict=True)}


def _text(interval: Interval, above: float = math.inf) -> str:
    value = f"{interval.value:,.1f}" if math.isfinite(interval.value) else f"above {above:,g}"
    return value if math.isnan(interval.low) else f"{value} ({interval.low:,.1f} to {interval.high:,.1f})"


def _print(
    study: Study,
    rows: Sequence[dict[str, Any]],
    quantities: dict[str, Interval],
    fit: ParetoFit,
    along: Sequence[dict[str, Any]],
    branches: Branches,
) -> None:
    print(f"\nTo test loss {study.preset.target_loss:g}, mean of {len(study.seeds)} seeds")
    unit, units_per_example = build.units(study.preset.config)
    head = ("batch size", "learning rate", "steps", unit, "÷ fewest", "steps of the fit")
    names = ("batch_size", "learning_rate", "steps", "examples", "fewest", "fit_steps")
    figures.print_table([head, *([str(row[name]) or "-" for name in names] for row in rows)])
    largest = units_per_example * study.preset.batch_sizes[-1]
    print(f"\n95 % intervals over {len(study.seeds)} seeds")
    figures.print_table([(name, _text(interval, largest)) for name, interval in quantities.items()])
    print(f"The fit leaves {100 * fit.rms_residual:.1f} % (root mean square, of seeds and batch sizes).")
    largest_branch, learning_rate = units_per_example * branches.batch_sizes[-1], branches.run.optimizer.learning_rate
    batch_size = units_per_example * branches.run.recipe.batch_size
    print(f"\nAlong a run of batch size {batch_size:,}, learning rate {learning_rate:g}")
    lines = [
        (f"{row['examples_seen']:,}", _text(row["branched"], largest_branch), _text(row["gradient_noise_scale"]))
        for row in along
    ]
    figures.print_table(
        [(f"{unit} seen", f"branch within {100 * study.preset.branch_tolerance:g} %", "B_simple"), *lines]
    )


def _draw(
    sizes: np.ndarray,
    steps: np.ndarray,
    fit: ParetoFit,
    twenty: Interval,
    along: Sequence[dict[str, Any]],
    unit: str,
) -> Any:
    figure, panels = plt.subplots(2, 2, figsize=(8, 7), layout="constrained", sharey="row")
    (left, right), below = panels
    blue, red, green, purple = figures.COLORS[:4]
    mean = geometric_mean(steps)
    fine = np.geomspace(sizes[0], sizes[-1], 200)
    examples = sizes * mean
    for panel, x, fit_x in ((left, sizes, fine), (right, examples, fine * fit.steps(fine))):
        every_x = np.broadcast_to(sizes, steps.shape) if panel is left else sizes * steps
        panel.plot(every_x.ravel(), steps.ravel(), ".", color=blue, alpha=0.35, markersize=4, label="one seed")
        panel.plot(x, mean, "o", color=blue, markersize=5, label=f"mean of {len(steps)} seeds")
        panel.plot(fit_x, fit.steps(fine), color=red, label="hyperbola")
    left.plot(fine, examples.min() / fine, "--", color="grey", linewidth=1, label="linear scaling")
    left.set(
        xlabel=f"Batch size ({unit})", ylabel="Steps to the target loss", ylim=(0.7 * steps.min(), 1.4 * steps.max())
    )
    right.set(xlabel=f"{unit.capitalize()} to the target loss")
    critical = fit.critical_batch_size
    for interval, color, label in (
        (critical, red, "$B_{crit}$ and 95 % interval"),
        (twenty, green, "20 % above linear, and 95 %"),
    ):
        if math.isfinite(interval.value) and interval.value > 0:
            spans = [(left.axvline, left.axvspan), *((panel.axhline, panel.axhspan) for panel in below)]
            for line, span in spans:
                line(interval.value, color=color, linewidth=1, label=label)
                if math.isfinite(interval.high) and not math.isnan(interval.low):
                    span(interval.low, interval.high, color=color, alpha=0.1, linewidth=0)
    figures.legend_above(figure, left, columns=3)

    limits = 0.5 * sizes[0], 2 * max(sizes[-1], *(one for one in _values(along)[:, :, 0].flat if math.isfinite(one)))
    seen = np.array([row["examples_seen"] for row in along], np.float64)
    for panel, color, title, values in zip(
        below, (blue, purple), ("Branches", "$B_{simple}$"), _values(along), strict=True
    ):
        known = np.isfinite(values[:, 0])
        x, (middle, low, high) = seen[known], values[known].T
        bars = [np.nan_to_num(middle - low.clip(limits[0])), np.nan_to_num(high.clip(max=limits[1]) - middle)]
        panel.errorbar(x, middle, bars, color=color, marker="o", markersize=5, capsize=3)
        for end, beyond, marker in ((limits[0], low < limits[0], "v"), (limits[1], high > limits[1], "^")):
            [tips] = panel.plot(x[beyond], np.full(beyond.sum(), end), marker, color=color, clip_on=False)
            tips.set_in_layout(False)
        panel.set(
            title=f"{title}, 95 % interval of {len(steps)} seeds", xlabel=f"{unit.capitalize()} seen", ylim=limits
        )
    below[0].set(ylabel=f"Batch size ({unit})")
    for panel in panels.flat:
        panel.set(xscale="log", yscale="log")
        for axis in (panel.xaxis, panel.yaxis):
            figures.plain_ticks(axis)
    left.set_xscale("log", base=2)
    left.xaxis.set_major_formatter("{x:,g}")
    return figure


def _values(along: Sequence[dict[str, Any]]) -> np.ndarray:
    """[2, points, 3]: the intervals of the branches and of the gradient noise scale."""
    return np.array([[row[name] for row in along] for name in ("branched", "gradient_noise_scale")], np.float64)


if __name__ == "__main__":
    define_flags()
    cli.run(main, caches=True, presets=PRESETS)
