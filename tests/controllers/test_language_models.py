"""Controllers of a language model that trains with Adam: the square-root rule, and the same bits when interrupted."""

import contextlib
import json

import jax
import numpy as np
import pytest

from bsjax import Recipe, run
from bsjax.controllers import CONTROLLERS, Limits, create_controller
from bsjax.data import TokenWindows
from bsjax.engine import Engine
from bsjax.engine.devices import first_replica
from bsjax.models import Transformer
from bsjax.optimizers import create_optimizer
from bsjax.tasks import LanguageModel

CONTEXT, N = 4, 96
OPTIONS = {
    "gradient_noise": {"factor": 0.5},
    "critical_batch": {"measure_every_epochs": 0.7, "branch_examples": 32, "tolerance": 0.05},
    "plateau": {"patience": 2, "factor": 0.5, "rtol": 0.5},
}


@pytest.fixture(scope="module")
def engine():
    tokens = np.random.RandomState(0).randint(6, size=N * CONTEXT + 1).astype(np.uint8)
    windows, model = TokenWindows(tokens, CONTEXT), Transformer(6, CONTEXT, depth=1, width=4, num_heads=2)
    task, tx = LanguageModel(model, CONTEXT), create_optimizer("adamw", weight_decay=0.1)
    return Engine(task, tx, windows, windows, (8, 16, 32), microbatch_size=4, devices=jax.devices()[:1])


@pytest.mark.parametrize("name", OPTIONS)
def test_interrupted_it_grows_and_ends_as_it_would_have(tmp_path, engine, name):
    def train(folder, stop_after=None):
        recipe = Recipe(lambda epoch: 0.02 * 0.6**epoch, 8, N, num_epochs=3)
        options = CONTROLLERS[name].options_type(**OPTIONS[name])
        controller = create_controller(name, recipe, Limits(8, 32, growth=2, hysteresis=0.1), "adamw", options)
        asked, intervals = iter(range(10_000)), run.Intervals(1.0, 0.1, 1.0)
        should_stop = lambda: stop_after is not None and next(asked) >= stop_after  # noqa: E731
        return run.train(engine, controller, tmp_path / folder, intervals, should_stop, show="none")

    def final_state_of(folder):
        with contextlib.closing(run.Checkpoints(tmp_path / folder / "checkpoints", read_only=True)) as checkpoints:
            return checkpoints.restore(first_replica(engine.init())).state

    def lines_of(folder):
        lines = [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if not key.endswith("_per_second")} for line in lines]

    whole, summary = train("whole"), None
    while summary is None:
        summary = train("cut", stop_after=5)
    assert lines_of("cut") == lines_of("whole")
    jax.tree.map(np.testing.assert_array_equal, final_state_of("cut"), final_state_of("whole"))
    assert {key: summary[key] for key in summary if key.startswith("final")} == {
        key: whole[key] for key in whole if key.startswith("final")
    }
    lines = [line for line in lines_of("whole") if "learning_rate" in line]
    assert {line["batch_size"] for line in lines} > {8}
    if name != "plateau":  # whose factor lowers the rate
        for line in lines:
            epoch = (line["examples_seen"] - line["batch_size"]) / N  # of its first example
            expected = 0.02 * 0.6**epoch * (line["batch_size"] / 8) ** 0.5
            assert line["learning_rate"] == pytest.approx(expected, rel=1e-5)
