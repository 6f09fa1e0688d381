"""Measured layouts: kept on the disk and in checkpoints, and smaller where memory ends."""

import json
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from bsjax import InvalidArgument, Recipe
from bsjax.engine import Engine, StepTimes, measure
from bsjax.engine.devices import first_replica
from bsjax.models import MLP
from bsjax.optimizers import create_optimizer
from bsjax.run import train
from bsjax.tasks import Classification

PLAN = Recipe(lambda epoch: 0.1 if epoch < 1 else 0.02, 8, 48, num_epochs=2).increase_batch_size(40).plan()


@pytest.fixture
def make_engine(make_dataset, tmp_path, monkeypatch):
    """A function that makes an engine which measures, with its own cache folder."""
    monkeypatch.setenv("BSJAX_DATA_DIR", str(tmp_path / "cache"))
    dataset = make_dataset(48)

    def make(width=4, microbatch_size="measure", num_devices=1):
        task = Classification(MLP(10, depth=1, width=width), mean=dataset.mean, std=dataset.std)
        splits, devices = (dataset.train, dataset.test), jax.devices()[:num_devices]
        sizes = PLAN.batch_sizes.tolist()
        return Engine(task, create_optimizer("momentum"), *splits, sizes, 0, microbatch_size, devices=devices)

    return make


def trained(engine):
    state = engine.init()
    for update in PLAN:
        state, _ = engine.update(state, update)
    return first_replica(state.params)


def cached(tmp_path) -> list[pathlib.Path]:
    return sorted((tmp_path / "cache" / "step_times").glob("*.json"))


def test_what_was_measured_decides_and_is_kept(make_engine, tmp_path):
    first = make_engine()
    before = trained(first)
    times = StepTimes.from_json(first.layout_choice.measured["times"])
    assert set(times.accumulate_s) <= {8, 16, 32, 48, 64}
    given = make_engine(microbatch_size=times)
    assert first.layout(40) == given.layout(40)
    jax.tree.map(np.testing.assert_array_equal, before, trained(given))  # measuring has left no trace
    assert f"{min(times.accumulate_s)}: " in first.layout_choice.describe([8, 40], "images")
    many = first.layout_choice.describe(range(8, 48), "images")
    assert re.match(r"Microbatches per device: \d+ \(batch 8\) to \d+ \(batch 47\)\. Measured images/s: ", many)
    # The second engine reads what the first one wrote: other times on the disk are its times.
    [path] = cached(tmp_path)
    found = json.loads(path.read_text())
    assert found["times"] == first.layout_choice.measured["times"]
    path.write_text(json.dumps({**found, "times": StepTimes({8: 1.0, 16: 1e-9}, 0.0).to_json()}))
    assert make_engine().layout(40).microbatch_size == 16
    path.write_text("{")  # damaged: it measures anew
    assert make_engine().layout_choice.describe([8], "images").startswith("Microbatches per device: ")
    assert StepTimes.from_json(json.loads(path.read_text())["times"]).accumulate_s.keys() <= {8, 16, 32, 48, 64}
    assert make_engine(width=5).layout_choice.describe([8], "images")  # another model
    assert len(cached(tmp_path)) == 2


def test_a_resumed_run_keeps_its_layout(make_engine, tmp_path):
    """Although the cache folder says something else by then; on other devices it measures anew."""
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    first = make_engine()
    expected = train(first, PLAN, whole, show="none", about={})
    assert json.loads((whole / "config.json").read_text())["measured_times"] == first.layout_choice.measured
    assert train(make_engine(), PLAN, pieces, should_stop=lambda: True, show="none") is None
    for path in cached(tmp_path):
        other = {8: 1e-9, 16: 1.0} if first.layout(40).microbatch_size != 8 else {8: 1.0, 16: 1e-9}
        path.write_text(json.dumps({**json.loads(path.read_text()), "times": StepTimes(other, 0.0).to_json()}))
    assert make_engine().layout(40) != first.layout(40)
    resumed = make_engine()
    found = train(resumed, PLAN, pieces, show="none")
    assert resumed.layout_choice.measured == first.layout_choice.measured
    assert expected is not None and found is not None and found["final_test_loss"] == expected["final_test_loss"]
    moved = make_engine(num_devices=2)
    moved.layout_choice.adopt(first.layout_choice.measured)
    assert moved.layout_choice.measured is None


def test_a_size_that_xla_says_does_not_fit_is_not_tried(make_engine, monkeypatch):
    monkeypatch.setattr(measure, "memory_bytes", lambda devices: 0.0)
    engine = make_engine()
    assert engine.layout(40).microbatch_size == 8
    assert " would take " in engine.layout_choice.describe([40], "images")


LIMITED = """
import resource, sys
import jax, numpy as np, optax
jax.config.update("jax_platforms", "cpu")
import jax.numpy as jnp
from bsjax.data import ArraySource
from bsjax.engine import Engine
from bsjax.tasks import from_loss

# Each example asks for 128 MiB, so that 1 fits into the 512 MiB below, and 4, the next to be tried, do not.
def loss(params, examples, keys, train):
    wide = jnp.broadcast_to(examples["x"][:, None, None] * params, (len(keys), 2**15, 2**10))
    return jnp.tanh(wide @ jnp.ones((2**10, 8))).mean(axis=(1, 2))

source = ArraySource({"x": np.ones(256, np.float32)})
task = from_loss(loss, lambda key: jnp.ones(2**10))
tx = optax.inject_hyperparams(optax.sgd)(learning_rate=0.0)
engine = Engine(task, tx, source, source, [1, 256], microbatch_size="measure")
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**29,) * 2)
print(engine.layout_choice.describe([256], "examples"))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of the address space")
def test_where_memory_runs_out_the_microbatch_stays_smaller(tmp_path, monkeypatch):
    """A real RESOURCE_EXHAUSTED, in a process whose memory is limited."""
    monkeypatch.setenv("BSJAX_DATA_DIR", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True)
    assert "; 4 fails: RESOURCE_EXHAUSTED: " in done.stdout


def test_bad_input(make_engine):
    with pytest.raises(InvalidArgument) as refusal:
        make_engine(microbatch_size="fast")
    assert (
        str(refusal.value) == "microbatch_size is 'fast'; it must be a whole number, auto or measure; nearest: measure"
    )
