"""Is the advice on the batch size right? Compared with sweeps that found the critical batch size by training.

    python -m experiments.which_batch_size_check --seeds=5 --workdir=runs/which_batch_size_check

A sweep of experiments.critical_batch_size trains to a target loss at ten batch sizes, each with a learning rate from a
search of its own: hundreds of trainings give one critical batch size, E_min / S_min. Here the noise scale along a
single training predicts it: the sweep's own training of batch size 8, with the learning rate that the sweep found, as
far as the target, and as far as a quarter of that way, when nobody has seen the target yet.

A prediction within a factor of two counts as right; that margin was named before the runs. Intervals are 95 %, over
seeds; the sweep's are those in its folder. The last columns compare the batch that the advice allows, where examples
exceed the fewest by 20 %, with the batch at which the sweep's steps exceed linear scaling by 20 %. The control is one
guess for all sweeps, their geometric mean, which needs no measurement: a prediction must come nearer than that.

Half a minute on two CPU cores; Fashion-MNIST must be prepared. With five seeds, the predictions at the target are 0.60
to 1.15 times the sweeps' critical batch sizes, and at a quarter of the way 0.36 to 0.76 times.
"""

import csv
import functools
import math
import pathlib
from typing import Any, NamedTuple, cast

import matplotlib.pyplot as plt
import numpy as np
from absl import flags

from bsjax.analysis.batch_size_advice import AdviceOptions
from bsjax.analysis.critical_batch import Interval, interval_over_seeds
from bsjax.analysis.noise_along_run import NoiseAlongRun, noise_along_run
from bsjax.errors import InvalidArgument, check_choice, check_whole
from bsjax.run import identity
from experiments.critical_batch_size import study
from experiments.harness import build, cli, figures, studies
from experiments.harness.config import Config

_NAME = "which_batch_size_check"
RESULTS = pathlib.Path(__file__).parent / "results"
_MARGIN = 2.0  # a factor, named before the runs
_SHARES = {"whole": 1.0, "quarter": 0.25}  # of the updates to the target


class Sweep(NamedTuple):
    """A study of the critical batch size whose results are kept."""

    preset: str  # of experiments.critical_batch_size
    label: str
    optimizer: str = "sgd"


SWEEPS = {
    "critical_batch_size_digits": Sweep("digits", "digits, to test loss 0.1"),
    "critical_batch_size_digits_loss_0.3": Sweep("digits", "digits, to test loss 0.3"),
    "critical_batch_size_digits_momentum": Sweep("digits", "digits with momentum, to test loss 0.3", "momentum"),
    "critical_batch_size_fashion_mnist": Sweep("fashion_mnist", "Fashion-MNIST, to test loss 0.45"),
}


class Found(NamedTuple):
    """What a sweep found by training."""

    config: Config  # of its training with the preset's batch size, and the learning rate of the search
    num_updates: int  # of that training to the target
    critical_batch_size: Interval
    twenty_percent: Interval


def define_flags() -> None:
    """Defines --workdir, --sweeps, --seeds and --data_dir."""
    flags.DEFINE_string("workdir", None, "Folder for the picture and the numbers.", required=True)
    flags.DEFINE_list("sweeps", list(SWEEPS), "Folders of experiments/results with the sweeps, comma-separated.")
    flags.DEFINE_integer("seeds", 5, "Number of trainings with each sweep's settings.")
    flags.DEFINE_string("data_dir", None, "Folder of prepared data sets; default, see scripts/prepare_data.py.")


def main() -> None:
    """Trains, compares, prints the table and draws the picture."""
    seeds = range(check_whole("seeds", flags.FLAGS.seeds))
    chosen = {check_choice("sweeps", name, SWEEPS): SWEEPS[name] for name in flags.FLAGS.sweeps}
    if not chosen:
        raise InvalidArgument("sweeps", "", f"some of {', '.join(SWEEPS)}", next(iter(SWEEPS)))
    workdir = pathlib.Path(flags.FLAGS.workdir).expanduser()
    identity.is_claimed(workdir, "study")
    for one in chosen.values():
        _dataset(study.PRESETS[one.preset].config)  # refuses one that is not prepared
    all_found = {one: read(RESULTS / name, one) for name, one in chosen.items()}
    studies.make_workdir(workdir)
    rows: list[dict[str, Any]] = []
    guess = _geometric_mean(np.array([found.critical_batch_size.value for found in all_found.values()]))
    for one, found in all_found.items():
        noises = []
        for seed in seeds:
            noises.append(measure(found, seed))
            cli.say(f"{one.label}, seed {seed}: {noises[-1].critical_batch_size().value:.1f}")
        rows.append(compare(one, found, noises) | {"factor_guess": guess / found.critical_batch_size.value})
    lines = [readable(row) for row in rows]
    print()
    figures.print_table([list(lines[0]), *(list(line.values()) for line in lines)])
    figures.save(draw(rows), workdir, _NAME, rows, lines, seeds=len(seeds), margin=_MARGIN)


def read(folder: pathlib.Path, sweep: Sweep) -> Found:
    """What the files of a sweep say."""
    config = study.PRESETS[sweep.preset].config.replace(optimizer=sweep.optimizer)
    table = {row["quantity"]: row for row in _rows(folder / "critical_batch_size_table.csv")}
    sizes = {int(row["batch_size"]): row for row in _rows(folder / "critical_batch_size.csv")}
    row = sizes[config.recipe.batch_size]
    critical, twenty = (
        Interval(*(float(table[name][column]) for column in ("value", "low", "high")))
        for name in ("B_crit = E_min / S_min", "20 % above linear scaling")
    )
    config = config.replace(learning_rate=float(row["learning_rate"]))
    return Found(config, round(float(row["steps"])), critical, twenty)


def measure(found: Found, seed: int) -> NoiseAlongRun:
    """The noise along the sweep's own training to the target."""
    dataset = _dataset(found.config)
    plan = build.recipe(found.config, len(dataset.train)).plan()
    task, tx = build.task(found.config, dataset), build.optimizer(found.config)
    return noise_along_run(task, tx, dataset.train, plan, found.num_updates, seed)


def compare(sweep: Sweep, found: Found, noises: list[NoiseAlongRun]) -> dict[str, Any]:
    """The row of a sweep: its critical batch size, the predictions over seeds, and the factors between them."""
    excess = AdviceOptions().excess
    row: dict[str, Any] = {"sweep": sweep.label, "updates": found.num_updates, "seeds": len(noises)}
    row |= _columns("critical_batch_size", found.critical_batch_size)
    for name, share in _SHARES.items():
        num_updates = math.ceil(share * found.num_updates)
        values = [noise.up_to(num_updates).critical_batch_size().value for noise in noises]
        predicted = interval_over_seeds(_geometric_mean, np.array(values))
        factor, *of_one = np.array([predicted.value, min(values), max(values)]) / found.critical_batch_size.value
        row |= _columns(f"predicted_{name}", predicted)
        row |= dict(zip((f"smallest_factor_{name}", f"largest_factor_{name}"), of_one, strict=True))
        row |= {f"factor_{name}": factor, f"within_{name}": 1 / _MARGIN <= factor <= _MARGIN}
        row[f"allowed_{name}"] = excess * predicted.value
    return row | _columns("twenty_percent", found.twenty_percent)


def readable(row: dict[str, Any]) -> dict[str, str]:
    """A row as the table and the page show it."""
    line = {"sweep": row["sweep"], "its B_crit": _text(row, "critical_batch_size")}
    for name, label in (("whole", "at the target"), ("quarter", "at a quarter")):
        line[f"predicted {label}"] = _text(row, f"predicted_{name}")
        smallest, factor, largest = (row[f"{which}factor_{name}"] for which in ("smallest_", "", "largest_"))
        line[f"factor {label}, and of one seed"] = f"{factor:.2f} ({smallest:.2f} to {largest:.2f})"
    line["factor of one guess"] = f"{row['factor_guess']:.2f}"
    line["20 % above linear scaling"] = _text(row, "twenty_percent")
    return line | {"a fifth of the prediction": f"{row['allowed_whole']:.3g}"}


def draw(rows: list[dict[str, Any]]) -> Any:
    """Predictions against what the sweeps found."""
    figure, axes = cast(Any, plt.subplots(figsize=(5, 4.2), layout="constrained"))
    for i, name in enumerate(_SHARES):
        x, y = (
            np.array([[row[f"{column}{end}"] for end in ("", "_low", "_high")] for row in rows], float).T
            for column in ("critical_batch_size", f"predicted_{name}")
        )
        x[0] *= 1.02**i  # so that bars do not cover each other
        label = "at the target" if name == "whole" else "at a quarter of the way"
        look = {"color": figures.COLORS[i], "marker": figures.MARKERS[i], "markersize": 5, "capsize": 2}
        axes.errorbar(x[0], y[0], _bars(y), _bars(x), **look, linestyle="", label=f"predicted {label}")
    values = _all_values(rows)
    ends = np.array([0.5 * min(values), 2 * max(values)])
    axes.plot(ends, ends, color="black", linewidth=0.8)
    axes.fill_between(ends, ends / _MARGIN, ends * _MARGIN, color="#F0E44250", label=f"within a factor {_MARGIN:g}")
    axes.set(xlabel="Critical batch size of the sweep", ylabel="Predicted by the noise", xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        figures.plain_ticks(axis)
    figures.legend_above(figure, axes, columns=2)
    return figure


@functools.cache
def _dataset(config: Config) -> Any:
    return build.dataset(config, flags.FLAGS.data_dir)


def _geometric_mean(values: np.ndarray) -> float:
    return float(np.exp(np.log(values).mean()))


def _columns(name: str, interval: Interval) -> dict[str, float]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), interval, strict=True))


def _text(row: dict[str, Any], name: str) -> str:
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    return f"{value:.3g}" if math.isnan(low) else f"{value:.3g} ({low:.3g} to {high:.3g})"


def _bars(values: np.ndarray) -> np.ndarray:
    """Lengths of bars below and above; none where an end is not known."""
    middle, low, high = values
    return np.nan_to_num([middle - low, high - middle], posinf=0.0)


def _all_values(rows: list[dict[str, Any]]) -> list[float]:
    names = ("critical_batch_size", *(f"predicted_{name}" for name in _SHARES))
    return [row[name] for row in rows for name in names if math.isfinite(row[name])]


def _rows(path: pathlib.Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    define_flags()
    cli.run(main, caches=True)
