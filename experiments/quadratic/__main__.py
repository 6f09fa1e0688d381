"""The noisy quadratic model, where theory is exact: a decayed learning rate against a growing batch.

    python -m experiments.quadratic --workdir=runs/quadratic

The loss is ½ Σ h_i θ_i², and the gradient of a batch of B out of N examples has noise of variance
c_i/B · (N-B)/(N-1): each batch is a new draw without replacement. Expected losses under SGD with
momentum come from the exact recursion of the second moments, and from simulated runs. The recipe is
the paper's for CIFAR-10 (N = 50,000, B = 128, 200 epochs, learning rate ÷ 5 at 60, 120 and 160), the
curvatures go from 0.001 to 0.1 with c = h, and the learning rate starts at 1 - m = 0.1.

Above: the schedules of Sections 5.1 and 5.2 by epoch and by update. Below: where they stop being the
same, as the loss under a growing batch divided by that under the decayed learning rate, at the end and
at its largest on the way:

* B near N: a batch without replacement has less noise than 1/B, and none if it is the whole data set;
* lr·h near the limit of stability, 2(1+m): the growing batch keeps the large learning rate, and its
  stationary loss is 1/(1 - lr·h/(2(1+m))) times that of a small one;
* a momentum near 1: its memory, B/(N(1-m)) epochs, delays the start and each fall of the loss.

A quarter of a minute on two CPU cores. The final expected losses:

    schedule                         updates  expected loss  ÷ decayed
    Decaying learning rate            78,125      5.160e-06      1.000
    Hybrid                            34,376      5.107e-06      0.990
    Increasing batch size             29,142      4.686e-06      0.908
    Increased initial learning rate    6,407      4.653e-06      0.902
    Increased momentum coefficient     2,305      4.654e-06      0.902

The last batches have less noise, by the factor 1 - 5120/50,000 = 0.898.
"""

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import optax
from absl import flags

from bsjax import Recipe
from bsjax.errors import check_whole
from experiments.harness import cli, config_flags, figures, studies
from experiments.harness.concerns import field
from experiments.quadratic.model import (
    POWER_LAW,
    Quadratic,
    at_epochs,
    expected_losses,
    simulated_losses,
    stationary_losses,
)

DATASET_SIZE = 50_000
BATCH_SIZE = 128


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings on the command line."""

    seed: int = field(0, "Seed of the simulated runs.")
    num_runs: int = field(100, "Simulated runs per schedule.")
    num_epochs: float = field(200, "Length of the training; the steps scale with it.")
    momentum: float = field(0.9, "Momentum of the recipe; its learning rate is 1 - momentum.")

    @property
    def epochs(self) -> np.ndarray:
        """Where losses are compared."""
        return np.linspace(0, self.num_epochs, 401)


class Line(NamedTuple):
    """A line of the picture, with the results of simulated runs."""

    panel: str
    label: str
    x: np.ndarray
    y: np.ndarray
    simulated: np.ndarray = np.zeros((0, 2))  # mean over the runs and its standard error, if there are runs


def make_recipe(config: Config, factor: float = 5) -> Recipe:
    """The paper's recipe for CIFAR-10, with a learning rate of 1 - m."""
    steps = {fraction * config.num_epochs: 1 / factor for fraction in (0.3, 0.6, 0.8)}
    learning_rate = optax.piecewise_constant_schedule(1 - config.momentum, steps)
    return Recipe(learning_rate, BATCH_SIZE, DATASET_SIZE, config.num_epochs, config.momentum)


def make_schedules(recipe: Recipe) -> dict[str, Recipe]:
    """The schedules of Sections 5.1 and 5.2."""
    faster = recipe.scale_learning_rate(5)
    return {
        "Decaying learning rate": recipe,
        "Hybrid": recipe.increase_batch_size(max_batch_size=640),
        "Increasing batch size": recipe.increase_batch_size(max_batch_size=5120),
        "Increased initial learning rate": faster.increase_batch_size(max_batch_size=5120),
        "Increased momentum coefficient": faster.scale_momentum(0.98).increase_batch_size(max_batch_size=5120),
    }


def schedule_lines(config: Config) -> list[Line]:
    """Expected and simulated losses of the schedules, by epoch and by update."""
    lines = []
    for label, recipe in make_schedules(make_recipe(config)).items():
        plan = recipe.plan()
        expected = expected_losses(plan, POWER_LAW).sum(axis=1)
        losses = simulated_losses(plan, POWER_LAW, config.seed, config.num_runs)
        # All runs start from one loss: a spread of zero, which has no logarithm.
        error = losses.std(axis=0, ddof=1).clip(1e-12) / config.num_runs**0.5
        along = at_epochs(plan, np.stack([expected, losses.mean(axis=0), error], axis=1), config.epochs)
        lines.append(Line("epochs", label, config.epochs, along[:, 0], along[:, 1:]))
        updates = np.geomspace(1, plan.num_updates, 800).astype(int)
        lines.append(Line("updates", label, updates, expected[updates]))
    return lines


def limit_lines(config: Config) -> list[Line]:
    """Ratios of the loss under a growing batch to that under a decayed learning rate."""

    def along(recipe: Recipe, model: Quadratic = POWER_LAW, replacement: bool = True) -> np.ndarray:
        plan = recipe.plan()
        return at_epochs(plan, expected_losses(plan, model, replacement), config.epochs)

    # Caps up to the data set, where the learning rate falls 512-fold.
    lines = []
    recipe = make_recipe(config, factor=8)
    caps = np.geomspace(500, DATASET_SIZE, 9).astype(int)
    recipes = [recipe, *(recipe.increase_batch_size(int(cap)) for cap in caps)]
    for label, replacement in (("Without replacement", False), ("With replacement", True)):
        final = [along(other, replacement=replacement)[-1].sum() for other in recipes]
        lines.append(Line("batch size", label, caps / DATASET_SIZE, np.array(final[1:]) / final[0]))

    # Up to the limit of stability: a direction for every point.
    x = np.concatenate([np.geomspace(1e-4, 0.3, 15), 1 - np.geomspace(0.6, 0.03, 8)])
    for momentum in sorted({config.momentum, 0.0}, reverse=True):
        decayed = make_recipe(dataclasses.replace(config, momentum=momentum))
        grown = decayed.increase_batch_size()
        h = x * 2 * (1 + momentum) / (1 - momentum)
        model = Quadratic(h, h, np.ones_like(h))
        ratio = along(grown, model) / along(decayed, model)
        if momentum == config.momentum:
            theory = stationary_losses(grown.plan()[-1], model) / stationary_losses(decayed.plan()[-1], model)
            lines.append(Line("curvature", "Stationary, theory", x, theory))
            lines.append(Line("curvature", "At the end", x, ratio[-1]))
        lines.append(Line("curvature", f"Largest, m = {momentum:g}", x, ratio.max(axis=0)))

    # The momentum scaled towards 1, and then the batch grows.
    recipe = make_recipe(config)
    scale = np.geomspace(1, 30, 9)
    momentums = 1 - (1 - config.momentum) / scale
    recipes = [recipe.scale_momentum(momentum).increase_batch_size(DATASET_SIZE // 10) for momentum in momentums]
    ratio = np.array([along(other).sum(axis=1) for other in recipes]) / along(recipe).sum(axis=1)
    memory = BATCH_SIZE * scale / (DATASET_SIZE * (1 - momentums))
    lines.append(Line("momentum", "At the end", memory, ratio[:, -1]))
    lines.append(Line("momentum", "Largest", memory, ratio.max(axis=1)))
    return lines


def draw(lines: Sequence[Line]) -> Any:
    """The picture."""
    above, below = ["epochs", "updates"], ["batch size", "curvature", "momentum"]
    mosaic: Any = [np.repeat(above, 3), np.repeat(below, 2)]
    figure, panels = plt.subplot_mosaic(mosaic, figsize=(9, 7), height_ratios=(1.3, 1), layout="constrained")
    for name, axes in panels.items():
        for i, line in enumerate(line for line in lines if line.panel == name):
            look = figures.style_of(line.label) if name in above else figures.line_style(i)
            if name in below and "theory" not in line.label:
                look |= {"marker": figures.MARKERS[i], "markersize": 4}
            axes.plot(line.x, line.y, label=line.label, **look)
            some = slice(12 + 16 * i, len(line.simulated), 80)
            mean, error = line.simulated[some].T
            axes.errorbar(line.x[some], mean, 2 * error, color="black", fmt=figures.marker_of(line.label),
                          markersize=4.5, markerfacecolor=look["color"], linewidth=1, zorder=4)  # fmt: skip
        axes.set_xscale("linear" if name == "epochs" else "log")
        axes.set_yscale("linear" if name == "batch size" else "log")
    panels["epochs"].set(xlabel="Epochs", ylabel="Expected loss; marks: simulated, ± 2 s.e.")
    panels["updates"].set(xlabel="Parameter updates", xlim=(100, None), ylim=panels["epochs"].get_ylim())
    panels["batch size"].set(title="B near N, at the end", xlabel="Largest batch ÷ data set", ylim=(0.6, 1.2))
    panels["batch size"].set_ylabel("Loss, growing batch ÷ decayed rate")
    panels["curvature"].set(title="lr·h near the limit of stability", xlabel="lr·h ÷ 2(1+m)")
    panels["momentum"].set(title="Momentum near 1", xlabel="Memory B/(N(1-m)) at first, epochs")
    for name in below:
        panels[name].axhline(1, color="black", linewidth=0.8, zorder=0)
        panels[name].legend(loc="upper left", handlelength=3)
    figures.legend_above(figure, panels["epochs"], columns=3)
    return figure


def table(config: Config, lines: Sequence[Line]) -> str:
    """Updates and final losses of every schedule."""
    rows = [f"{'schedule':33}{'updates':>7}{'expected loss':>15}{'÷ decayed':>11}{'simulated loss':>25}"]
    by_epoch = {line.label: line for line in lines if line.panel == "epochs"}
    for label, recipe in make_schedules(make_recipe(config)).items():
        final, updates = by_epoch[label].y[-1], recipe.plan().num_updates
        decayed = by_epoch["Decaying learning rate"].y[-1]
        simulated = "{:.3e} ± {:.1e}".format(*by_epoch[label].simulated[-1])
        rows.append(f"{label:33}{updates:>7,}{final:>15.3e}{final / decayed:>11.3f}{simulated:>25}")
    return "\n".join(rows)


def csv_rows(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """The points of all lines as rows of a CSV file."""
    names = ("panel", "line", "x", "expected", "simulated", "standard_error")
    return [
        dict(zip(names, (line.panel, line.label, x, y, *pair), strict=True))
        for line in lines
        for x, y, pair in itertools.zip_longest(line.x, line.y, line.simulated, fillvalue=(np.nan, np.nan))
    ]


def main() -> None:
    """Computes the lines, prints the table and writes the picture and its numbers."""
    given: dict[str, Any] = {one.name: flags.FLAGS[one.name].value for one in dataclasses.fields(Config)}
    config = Config(**given)
    check_whole("num_runs", config.num_runs, minimum=2)
    make_recipe(config)
    workdir = studies.make_workdir(flags.FLAGS.workdir)
    lines = schedule_lines(config) + limit_lines(config)
    print(table(config, lines))
    figures.save(draw(lines), workdir, "quadratic", csv_rows(lines))


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder for the picture and its numbers.", required=True)
    config_flags.define_flags_of(Config, sys.argv[0])
    cli.run(main, caches=True)
