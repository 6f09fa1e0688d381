"""Pictures of plans and of runs: what is drawn is in them, into axes of one's own too."""

import json
import subprocess
import sys

import numpy as np
import optax
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import bsjax
from bsjax import InvalidArgument, plots

RECIPE = bsjax.Recipe(optax.piecewise_constant_schedule(0.1, {2: 0.1}), 8, 1_000, num_epochs=3)
PLAN = RECIPE.increase_batch_size(max_batch_size=40).plan()


@pytest.fixture
def axes():
    """A function that makes axes without pyplot."""

    def make(*shape):
        figure = Figure()
        FigureCanvasAgg(figure)
        return figure.subplots(*shape)

    return make


def data(axis, number):
    line = axis.lines[number]
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def test_a_plan_is_drawn_beside_its_recipe(axes):
    drawn = PLAN.plot(recipe=RECIPE, ax=axes(2, 3), label="grown")
    assert [axis.get_xlabel() for axis in drawn[:, 0]] == ["Epochs", "Parameter updates"]
    assert [axis.get_ylabel().split("\n")[0] for axis in drawn[0]] == [
        "Learning rate",
        "Batch size (examples)",
        "Noise scale",
    ]
    [legend] = drawn[0, 0].figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["recipe", "grown"]
    x, y = data(drawn[0, 1], 1)  # the batch size of the plan against epochs
    assert y.tolist() == [8, 40, 40] and x.tolist() == [0.0, 2.0, PLAN.num_examples / 1_000]
    x, y = data(drawn[1, 0], 0)  # the learning rate of the recipe against updates
    assert x.tolist() == [0, 250, 375]
    np.testing.assert_allclose(y, [0.1, 0.01, 0.01])
    for number in (0, 1):  # the noise scale is the same
        np.testing.assert_allclose(data(drawn[0, 2], number)[1], [125.0, 12.5, 12.5], rtol=1e-6)
    drawn[0, 0].figure.canvas.draw()


def test_a_converted_recipe_is_drawn_beside_itself_and_more_plans_into_it(axes):
    recipe = RECIPE.increase_batch_size(scaling="sqrt")
    drawn = recipe.plot(ax=axes(2, 3))
    again = PLAN.plot(ax=drawn, label="capped")
    assert again is drawn and [line.get_label() for line in drawn[1, 2].lines] == ["recipe", "converted", "capped"]
    assert len(drawn[0, 0].figure.legends) == 1 and len({line.get_color() for line in drawn[0, 0].lines}) == 3
    assert len(RECIPE.plot(ax=axes(2, 3))[0, 0].lines) == 1


def test_a_cosine_has_a_linear_axis_and_few_points(axes):
    recipe = bsjax.Recipe(optax.cosine_decay_schedule(0.1, 60), 8, 1_000, num_epochs=60)
    drawn = recipe.plot(ax=axes(2, 3))
    assert drawn[0, 0].get_yscale() == "linear" and drawn[0, 1].get_yscale() == "log"
    assert 1_000 < len(data(drawn[0, 0], 0)[0]) <= 2_001


@pytest.fixture
def run_folder(tmp_path):
    """A function that writes the metrics of a run."""

    def write(name, accuracies, metric="test_accuracy"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        lines = [{"update": 10 * (k + 1), "epoch": k + 1.0, "train_loss": 1.5} for k in range(len(accuracies))]
        lines += [{"update": 10 * (k + 1), "epoch": k + 1.0, metric: x} for k, x in enumerate(accuracies)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder

    return write


def test_runs_are_compared_with_the_band_of_their_seeds(run_folder, axes):
    seeds = [run_folder("a0", [0.5, 0.7, 0.8]), run_folder("a1", [0.7, 0.9])]  # the second one still trains
    drawn = plots.compare({"decay": seeds, "growth": run_folder("b", [0.6, 0.8])}, ax=axes(1, 2))
    assert [axis.get_xlabel() for axis in drawn] == ["Epochs", "Parameter updates"]
    assert drawn[0].get_ylabel() == "Test accuracy (%)"
    x, y = data(drawn[1], 0)
    assert x.tolist() == [10, 20] and y == pytest.approx([60, 80])
    assert [len(axis.collections) for axis in drawn] == [1, 1]  # bands
    low, high = drawn[0].collections[0].get_datalim(drawn[0].transData).intervaly
    assert (low, high) == pytest.approx((60 - np.sqrt(200), 80 + np.sqrt(200)))
    assert [text.get_text() for text in drawn[0].get_legend().get_texts()] == ["decay", "growth"]


def test_folders_are_labelled_by_what_tells_them_apart(run_folder, axes, tmp_path):
    folders = [run_folder("x/seed=0", [0.5]), run_folder("y/seed=0", [0.5])]
    labels = [line.get_label() for line in plots.compare(folders, ax=axes(1, 2))[0].lines]
    assert labels == [str(folder) for folder in folders]
    assert [line.get_label() for line in plots.compare(folders[0], ax=axes(1, 2))[0].lines] == ["seed=0"]
    loss = run_folder("loss", [2.0], "test_loss")
    assert plots.compare([loss, folders[0]], ax=axes(1, 2))[0].get_ylabel() == "Train loss"


def test_what_cannot_be_drawn_is_refused(run_folder, axes, tmp_path):
    folder = run_folder("runs/seed=0", [0.5])
    for make, message in (
        (lambda: plots.compare([tmp_path]), f"workdirs is .*the folder of a run.*nearest: {folder}"),
        (lambda: plots.compare([]), "workdirs is {}; .*one folder of a run at least"),
        (lambda: plots.compare(folder, metric="test_acuracy"), "metric is 'test_acuracy'; .*nearest: test_accuracy"),
        (lambda: plots.compare(folder, ax=axes(2, 3)), "ax is 'of shape .2, 3.'; .*two axes"),
        (lambda: PLAN.plot(ax=axes(1, 1)), "ax is 'of shape .*axes .2, 3."),
    ):
        with pytest.raises(InvalidArgument, match=f"^{message}"):
            make()


def test_bsjax_draws_a_figure_of_its_own_and_imports_matplotlib_only_then():
    program = """
import sys, bsjax, bsjax.plots
assert "matplotlib" not in sys.modules
import matplotlib
matplotlib.use("agg")
import matplotlib.pyplot as plt
axes = bsjax.Recipe(0.1, 8, 100, num_epochs=1).plot()
assert axes.shape == (2, 3) and plt.get_fignums() == [axes[0, 0].figure.number]
"""
    result = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
