"""A run that stops and goes on leaves what an uninterrupted one leaves, to the last bit."""

import json
import pathlib

import jax
import numpy as np
import optax
import pytest

from bsjax import Recipe, loop
from bsjax.checkpoint import Checkpoints
from bsjax.engine import Engine
from bsjax.models import CNN
from bsjax.optimizers import create_optimizer
from bsjax.parallel import first_replica


def lines_of(workdir: pathlib.Path) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "examples_per_second"} for line in lines]


def last_state(workdir: pathlib.Path, engine: Engine):
    checkpoints = Checkpoints(workdir / "checkpoints")
    state, progress = checkpoints.restore(first_replica(engine.init()))
    checkpoints.close()
    return state, progress["log"]["num_updates"]


@pytest.mark.parametrize(("optimizer", "images_on"), [("momentum", "device"), ("adam", "host")])
@pytest.mark.parametrize("num_devices", [1, 2])
def test_stopped_after_every_update_is_uninterrupted(tmp_path, make_dataset, optimizer, images_on, num_devices):
    """In the middle of epochs and phases, at their ends, with a batch that grows, crops, dropout and ghosts."""
    dataset = make_dataset(48)
    steps = optax.piecewise_constant_schedule(0.1, {1: 0.5, 2: 0.5})
    plan = Recipe(steps, 8, 48, num_epochs=3).increase_batch_size(max_batch_size=24, multiple_of=4).plan()
    assert len(plan.phases) == 3
    engine = Engine(
        CNN(10, depth=1, width=2, dropout=0.2, ghost_batch_size=4),
        create_optimizer(optimizer, weight_decay=0.01),
        dataset,
        set(plan.batch_sizes.tolist()),
        microbatch_size=8,
        augmentation="crop",
        images_on=images_on,
        devices=jax.devices()[:num_devices],
    )

    def train(name, **options):
        workdir = tmp_path / name
        workdir.mkdir(exist_ok=True)
        every = {"eval_every_epochs": 0.5, "log_every_epochs": 0.7, "checkpoint_every_epochs": 0.5}
        return loop.train(engine, plan, workdir, **every, **options, show="none")

    whole = train("whole")
    stops = 0
    while (pieces := train("pieces", stop_after_s=0.0)) is None:
        stops += 1
    assert stops == plan.num_updates - 1
    assert lines_of(tmp_path / "pieces") == lines_of(tmp_path / "whole")
    timed = {"wall_time_s", "compile_time_s", "compile_stall_time_s", "examples_per_second"}
    assert {name: pieces[name] for name in pieces if name not in timed} == {
        name: whole[name] for name in whole if name not in timed
    }
    (state, num_updates), (whole_state, whole_num_updates) = (
        last_state(tmp_path / name, engine) for name in ("pieces", "whole")
    )
    assert num_updates == whole_num_updates == plan.num_updates
    jax.tree.map(np.testing.assert_array_equal, state, whole_state)


def test_lines_after_the_checkpoint_are_written_once(tmp_path, make_dataset):
    """A run that dies between checkpoints repeats updates, not lines."""
    plan = Recipe(0.05, 8, 48, num_epochs=2).plan()
    engine = Engine(
        CNN(10, depth=1, width=2, ghost_batch_size=8),
        create_optimizer("momentum"),
        make_dataset(48),
        [8],
        devices=jax.devices()[:1],
    )
    for name, stop_after_s in (("whole", np.inf), ("cut", 0.0)):
        (tmp_path / name).mkdir()
        loop.train(engine, plan, tmp_path / name, 0.1, 0.1, stop_after_s=stop_after_s, show="none")
    with open(tmp_path / "cut/metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"update": 2, "train_loss": 1.0}\n{"upd')
    loop.train(engine, plan, tmp_path / "cut", 0.1, 0.1, show="none")
    assert lines_of(tmp_path / "cut") == lines_of(tmp_path / "whole")
