"""Controllers in real runs: an interruption changes no bit of their decisions, and more devices no batch size."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest

from bsjax import InvalidArgument, Recipe, run
from bsjax.controllers import CONTROLLERS, Limits, create_controller
from bsjax.engine import Engine
from bsjax.models import MLP
from bsjax.optimizers import create_optimizer
from bsjax.tasks import Classification

N = 96
INTERVALS = run.Intervals(eval_every_epochs=0.5, log_every_epochs=0.25, checkpoint_every_epochs=1.0)
OPTIONS = {
    "gradient_noise": {"factor": 0.5},
    "cabs": {"smoothing": 0.5},
    "adabatch": {"every_epochs": 1.0},
    "plateau": {"patience": 3, "factor": 0.5},
    "critical_batch": {"measure_every_epochs": 0.7, "branch_examples": 32, "tolerance": 0.05},
}


def make_controller(name, options, decided):
    """A controller that records its decisions by their numbers."""
    peak = 3.0 if name == "cabs" else 0.2  # its batch is proportional to the learning rate
    recipe = Recipe(lambda epoch: peak * 0.5**epoch, 8, N, num_epochs=3, momentum=0.0)
    options = CONTROLLERS[name].options_type(**OPTIONS.get(name, {}) | options)
    controller = create_controller(name, recipe, Limits(8, 64, multiple_of=4, hysteresis=0.1), "sgd", options)

    class Noting(type(controller)):
        def decide(self, state):
            update, state = super().decide(state)
            if update is not None:
                assert decided.setdefault(update.update, update) == update
            return update, state

    return Noting(*(getattr(controller, field.name) for field in dataclasses.fields(controller)))


@pytest.fixture(scope="module")
def train(make_dataset):
    """A function that trains with a controller: the summary, and the updates that it decided, added to `decided`."""
    dataset, engines = make_dataset(N), {}

    def train(name, workdir, num_devices=1, stop_after=None, decided=None, **options):
        decided = {} if decided is None else decided
        if num_devices not in engines:
            task = Classification(MLP(10, depth=1, width=4), mean=dataset.mean, std=dataset.std)
            sizes, devices = range(8, 68, 4), jax.devices()[:num_devices]
            engines[num_devices] = Engine(
                *(task, create_optimizer("sgd"), dataset.train, dataset.test, sizes), microbatch_size=4, devices=devices
            )
        asked = iter(range(1, 10_000))
        controller = make_controller(name, options, decided)
        should_stop = lambda: stop_after is not None and next(asked) >= stop_after  # noqa: E731
        summary = run.train(engines[num_devices], controller, workdir, INTERVALS, should_stop, show="none")
        return summary, list(decided.values())

    return train


def lines_of(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "examples_per_second"} for line in lines]


@pytest.mark.parametrize("name", CONTROLLERS)
def test_interrupted_a_controller_decides_as_it_would_have(tmp_path, train, name):
    whole, expected = train(name, tmp_path / "whole")
    decided, summary = {}, None
    while summary is None:
        summary, updates = train(name, tmp_path / "cut", stop_after=3, decided=decided)
    assert updates == expected
    assert lines_of(tmp_path / "cut") == lines_of(tmp_path / "whole")
    untimed = [key for key in whole if not key.endswith("_s") and key != "examples_per_second"]
    assert [summary[key] for key in untimed] == [whole[key] for key in untimed]


@pytest.mark.parametrize("name", sorted(set(CONTROLLERS) - {"planned"}))
def test_on_eight_devices_it_decides_as_on_one(tmp_path, train, name):
    _, expected = train(name, tmp_path / "one")
    summary, decided = train(name, tmp_path / "eight", num_devices=8)
    assert summary["num_devices"] == 8
    assert [update.batch_size for update in decided] == [update.batch_size for update in expected]
    rates, expected_rates = ([update.learning_rate for update in updates] for updates in (decided, expected))
    np.testing.assert_allclose(rates, expected_rates, rtol=1e-3)
    sizes = {update.batch_size for update in decided}
    assert len(sizes) > 1 or name == "adascale"  # it does something
    # One microbatch size serves all decisions: an update of one, the three programs of several, and the evaluation.
    assert summary["num_compilations"] <= 5


def test_branches_leave_the_run_as_it_is(tmp_path, train):
    """With decisions that do not depend on them, the run is one without branches."""
    tried, decided = train("critical_batch", tmp_path / "tried", tolerance=1e9)
    assert tried["branch_examples"] > 0
    larger = {b.examples_seen for a, b in itertools.pairwise(decided) if b.batch_size > a.batch_size}
    assert len(larger) > 1
    known = {"critical_batch_size": lambda seen: 1e9 * (seen in larger)}
    plain, expected = train("critical_batch", tmp_path / "plain", **known)
    assert plain["branch_examples"] == 0
    assert decided == expected
    assert lines_of(tmp_path / "tried") == lines_of(tmp_path / "plain")


def test_a_controller_of_other_settings_is_refused(tmp_path, train):
    train("gradient_noise", tmp_path, stop_after=2)
    with pytest.raises(InvalidArgument, match=r"factor 0\.5 there, 2\.0 here"):
        train("gradient_noise", tmp_path, factor=2.0)
