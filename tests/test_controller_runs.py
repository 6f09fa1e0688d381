"""Controllers in real runs: interrupted anywhere they decide alike to the last bit, and alike on other devices."""

import itertools
import json

import jax
import numpy as np
import pytest

from bsjax import InvalidArgument, Recipe, loop
from bsjax.controllers import CONTROLLERS, Limits, create_controller
from bsjax.engine import Engine
from bsjax.models import MLP
from bsjax.optimizers import create_optimizer
from bsjax.plan import Update

N = 96
OPTIONS = {
    "planned": {},
    "gradient_noise": {"factor": 0.5},
    "cabs": {"smoothing": 0.5},
    "adascale": {},
    "adabatch": {"every_epochs": 1.0},
    "plateau": {"patience": 3, "factor": 0.5},
    "critical_batch": {"measure_every_epochs": 0.7, "branch_examples": 32, "tolerance": 0.05},
}


def make_controller(name):
    peak = 3.0 if name == "cabs" else 0.2  # its batch is proportional to the learning rate
    recipe = Recipe(lambda epoch: peak * 0.5**epoch, 8, N, num_epochs=3)
    return create_controller(name, recipe, Limits(8, 64, multiple_of=4, hysteresis=0.1), "sgd", **OPTIONS[name])


@pytest.fixture(scope="module")
def run(make_dataset):
    """A function that trains with a controller: the summary, and the updates that it decided."""
    engines = {}

    def run(name, workdir, num_devices=1, stop_after=None):
        controller, decided = make_controller(name), []
        if num_devices not in engines:
            model, devices = MLP(10, depth=1, width=4), jax.devices()[:num_devices]
            sizes = range(8, 68, 4)
            engines[num_devices] = Engine(
                model, create_optimizer("sgd"), make_dataset(N), sizes, microbatch_size=4, devices=devices
            )
        next_update = controller.next_update
        controller.next_update = lambda: decided.append(next_update()) or decided[-1]
        workdir.mkdir(exist_ok=True)
        asked = iter(range(1, 10_000))
        summary = loop.train(
            engines[num_devices],
            controller,
            workdir,
            0.5,
            0.25,
            1.0,
            should_stop=lambda: stop_after is not None and next(asked) >= stop_after,
            noise_half_life_epochs=0.5,
            show="none",
        )
        return summary, [update for update in decided if update]

    return run


def lines_of(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "examples_per_second"} for line in lines]


@pytest.mark.parametrize("name", CONTROLLERS)
def test_interrupted_a_controller_decides_as_it_would_have(tmp_path, run, name):
    whole, expected = run(name, tmp_path / "whole")
    decided: dict[int, Update] = {}
    summary = None
    while summary is None:
        summary, updates = run(name, tmp_path / "cut", stop_after=3)
        for update in updates:
            assert decided.setdefault(update.update, update) == update
    assert list(decided.values()) == expected
    assert lines_of(tmp_path / "cut") == lines_of(tmp_path / "whole")
    untimed = [key for key in whole if not key.endswith("_s") and key != "examples_per_second"]
    assert [summary[key] for key in untimed] == [whole[key] for key in untimed]


@pytest.mark.parametrize("name", sorted(set(CONTROLLERS) - {"planned"}))
def test_on_eight_devices_it_decides_as_on_one(tmp_path, run, name):
    _, expected = run(name, tmp_path / "one")
    summary, decided = run(name, tmp_path / "eight", num_devices=8)
    assert summary["num_devices"] == 8
    assert [update.batch_size for update in decided] == [update.batch_size for update in expected]
    for column in (3, 4):
        np.testing.assert_allclose([u[column] for u in decided], [u[column] for u in expected], rtol=1e-3)
    sizes = {update.batch_size for update in decided}
    assert len(sizes) > 1 or name == "adascale"  # it does something
    # Of one microbatch size, whatever was decided: an update of one, the three of several, and the evaluation.
    assert summary["num_compilations"] <= 5


def test_branches_leave_the_run_as_it_is(tmp_path, run, monkeypatch):
    """With decisions that do not depend on them, the run is one without branches."""
    monkeypatch.setitem(OPTIONS, "critical_batch", {**OPTIONS["critical_batch"], "tolerance": 1e9})
    tried, decided = run("critical_batch", tmp_path / "tried")
    assert tried["branch_examples"] > 0
    larger = {b.examples_seen for a, b in itertools.pairwise(decided) if b.batch_size > a.batch_size}
    assert len(larger) > 1
    monkeypatch.setitem(OPTIONS, "critical_batch", {"critical_batch_size": lambda seen: 1e9 * (seen in larger)})
    plain, expected = run("critical_batch", tmp_path / "plain")
    assert plain["branch_examples"] == 0
    assert decided == expected
    assert lines_of(tmp_path / "tried") == lines_of(tmp_path / "plain")


def test_a_controller_of_other_settings_is_refused(tmp_path, run, monkeypatch):
    run("gradient_noise", tmp_path, stop_after=2)
    monkeypatch.setitem(OPTIONS, "gradient_noise", {"factor": 2.0})
    with pytest.raises(InvalidArgument, match=r"its checkpoint has factor 0.5 there, 2.0 here"):
        run("gradient_noise", tmp_path)
