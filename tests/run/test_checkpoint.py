"""A run that stops and continues leaves the same bits as an uninterrupted one."""

import contextlib
import functools
import itertools
import logging
import math
import os
import pathlib
import resource
import shutil
import sys

import jax
import numpy as np
import optax
import pytest

from bsjax import InvalidArgument, Plan, Recipe
from bsjax.engine import Engine
from bsjax.engine.devices import first_replica
from bsjax.errors import DivergedError, RunError
from bsjax.models import CNN, MLP
from bsjax.optimizers import OPTIMIZERS, create_optimizer
from bsjax.run import Checkpoints, Intervals, read_metrics, train
from bsjax.tasks import Classification


def lines_of(workdir: pathlib.Path) -> list[dict]:
    return [untimed(line) for line in read_metrics(workdir / "metrics.jsonl")]


def untimed(values: dict) -> dict:
    timed = ("wall_time_s", "compile_time_s", "compile_stall_time_s", "examples_per_second", "flops_per_s")
    timed += ("input_wait_s",)
    return {name: value for name, value in values.items() if name not in timed}


def last_checkpoint(workdir: pathlib.Path, engine: Engine):
    with contextlib.closing(Checkpoints(workdir / "checkpoints", read_only=True)) as checkpoints:
        return checkpoints.restore(first_replica(engine.init()))


def assert_same(workdir, expected, engine):
    assert lines_of(workdir) == lines_of(expected)
    found, expected = (last_checkpoint(path, engine) for path in (workdir, expected))
    assert found.number == expected.number
    jax.tree.map(np.testing.assert_array_equal, found.state, expected.state)


@pytest.mark.parametrize(("optimizer", "examples_on", "num_devices"), [("momentum", "device", 1), ("adam", "host", 2)])
def test_stopped_after_every_update_is_uninterrupted(tmp_path, make_dataset, optimizer, examples_on, num_devices):
    """With a batch that grows, crops, dropout and ghosts."""
    dataset = make_dataset(48)
    steps = optax.piecewise_constant_schedule(0.1, {1: 0.5, 2: 0.5})
    plan = Recipe(steps, 8, 48, num_epochs=3).increase_batch_size(max_batch_size=24, multiple_of=4).plan()
    assert len(plan.phases) == 3
    model = CNN(10, depth=1, width=2, dropout=0.2, ghost_batch_size=4)
    task = Classification(model, augmentation="crop", mean=dataset.mean, std=dataset.std)
    tx, sizes = create_optimizer(optimizer, weight_decay=0.01), set(plan.batch_sizes.tolist())
    options = {"microbatch_size": 8, "examples_on": examples_on, "devices": jax.devices()[:num_devices]}
    engine = Engine(task, tx, dataset.train, dataset.test, sizes, **options)
    intervals = Intervals(eval_every_epochs=0.5, log_every_epochs=0.7, checkpoint_every_epochs=0.5)

    whole = train(engine, plan, tmp_path / "whole", intervals, show="none")
    stops = 0
    while (pieces := train(engine, plan, tmp_path / "pieces", intervals, lambda: True, show="none")) is None:
        stops += 1
    assert stops == plan.num_updates - 1
    assert untimed(pieces) == untimed(whole)
    assert last_checkpoint(tmp_path / "whole", engine).number == plan.num_updates
    assert_same(tmp_path / "pieces", tmp_path / "whole", engine)


# Twelve updates of the fake engine, a checkpoint every two.
PLAN = Plan(48, [8] * 6 + [16] * 6, [0.1] * 12, [0.9] * 12)
EVERY = {"eval_every_epochs": 0.5, "log_every_epochs": 0.1, "checkpoint_every_epochs": 1 / 3}


@pytest.fixture
def engine(fake_engine):
    return fake_engine(48, engine={"seed": 0})


@pytest.fixture
def run(tmp_path):
    """A function that trains in a folder, and stops after some updates."""

    def run(engine, name, num_updates=math.inf, plan=PLAN, about=None, fork=None, **intervals):
        workdir, asked = tmp_path / name, itertools.count(1)
        intervals = Intervals(**EVERY | intervals)
        summary = train(engine, plan, workdir, intervals, lambda: next(asked) >= num_updates, about, fork, "none")
        return workdir, summary

    return run


def numbers_of(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def test_lines_after_the_checkpoint_are_written_once(run, engine):
    """A run that dies between checkpoints repeats updates, not lines."""
    whole, _ = run(engine, "whole")
    cut, _ = run(engine, "cut", 1)
    with open(cut / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"update": 2, "train_loss": 1.0}\n{"upd')
    run(engine, "cut")
    assert_same(cut, whole, engine)


@pytest.fixture(scope="module")
def make_engine(make_dataset):
    """A function that makes a real engine, of a small MLP."""

    @functools.cache
    def make(optimizer="momentum", num_devices=1):
        dataset, devices = make_dataset(48), jax.devices()[:num_devices]
        task = Classification(MLP(10, depth=1, width=4), mean=dataset.mean, std=dataset.std)
        tx, splits = create_optimizer(optimizer), (dataset.train, dataset.test)
        return Engine(task, tx, *splits, [8, 16], microbatch_size=2, devices=devices)

    return make


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_continues_to_the_same_bits(run, make_engine, optimizer):
    plan = Plan(48, PLAN.batch_sizes, PLAN.learning_rates, [0.0 if optimizer == "sgd" else 0.9] * 12)
    whole, _ = run(make_engine(optimizer), "whole", plan=plan)
    for num_updates in (3, 4):  # in a phase, and up to its end
        run(make_engine(optimizer), "cut", num_updates, plan)
    cut, _ = run(make_engine(optimizer), "cut", plan=plan)
    assert_same(cut, whole, make_engine(optimizer))


def test_on_other_devices_it_continues_with_the_same_examples(run, make_engine):
    whole, _ = run(make_engine(), "whole")
    run(make_engine(), "moved", 5)
    moved, summary = run(make_engine(num_devices=2), "moved")
    assert summary["num_devices"] == 2
    state, expected = (last_checkpoint(path, make_engine()).state for path in (moved, whole))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), state, expected)


def test_when_there_are_checkpoints(run, engine):
    """At each change of a batch size that has lasted, also with a long interval, and at the end."""
    workdir, _ = run(engine, "run", checkpoint_every_epochs=math.inf, keep_checkpoints=9)
    assert numbers_of(workdir) == [6, 12]
    plan = Plan(48, [8] * 300 + [16, 24] + [16] * 2, [0.001] * 304, [0.9] * 304)
    workdir, _ = run(engine, "short phases", 302, plan=plan, checkpoint_every_epochs=10, keep_checkpoints=99)
    assert numbers_of(workdir) == [60, 120, 180, 240, 300, 302]
    workdir, _ = run(engine, "few", keep_checkpoints=3)
    assert numbers_of(workdir) == [10, 11, 12]
    workdir, _ = run(engine, "stops", 3, checkpoint_min_s=1e9)  # without a wait
    assert numbers_of(workdir) == [3]


def flip_a_bit(path):
    contents = bytearray(path.read_bytes())
    contents[len(contents) // 2] ^= 4
    path.write_bytes(contents)


def change_a_digit(path):
    text = path.read_text()
    at = text.index("num_updates") + len('num_updates\\": ')
    path.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])


def cut_off(path, size):
    os.truncate(path, path.stat().st_size - size)


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


PROGRESS = "progress/metadata"
DAMAGES = {
    "truncated": lambda folder: cut_off(largest(folder), 100),
    "empty": lambda folder: os.truncate(largest(folder), 0),
    "a bit of the parameters is flipped": lambda folder: flip_a_bit(largest(folder)),
    "a digit of the progress is another": lambda folder: change_a_digit(folder / PROGRESS),
    "the progress is cut": lambda folder: os.truncate(folder / PROGRESS, 40),
    "an empty folder": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
    "the metrics end before it": lambda folder: cut_off(folder.parents[1] / "metrics.jsonl", 20),
}


def contents_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(run, engine, capfd, how):
    whole, _ = run(engine, "whole")
    workdir, _ = run(engine, "run", 7)
    assert numbers_of(workdir) == [6, 7]
    DAMAGES[how](workdir / "checkpoints" / "7")
    before = contents_of(workdir / "checkpoints" / "7")
    run(engine, "run")
    error = capfd.readouterr().err
    assert error.startswith(f"checkpoint 7 in {workdir}/checkpoints is damaged (")
    assert error.endswith(", now damaged-7; continuing from checkpoint 6\n")
    assert error.count("\n") == 1
    assert contents_of(workdir / "checkpoints" / "damaged-7") == before
    assert_same(workdir, whole, engine)


@pytest.mark.parametrize("what", ["checkpoints", "metrics"])
def test_no_checkpoint_is_usable(run, engine, what):
    workdir, _ = run(engine, "run", 7)
    if what == "metrics":
        (workdir / "metrics.jsonl").unlink()
    else:
        for number in (6, 7):
            DAMAGES["truncated"](workdir / "checkpoints" / str(number))
    before = contents_of(workdir)
    with pytest.raises(RunError, match=r"no checkpoint in .*/checkpoints can be used \(7: .*; 6: .*\); nothing was ch"):
        run(engine, "run")
    assert contents_of(workdir) == before


def test_a_checkpoint_of_another_run_is_refused(run, engine, fake_engine):
    """Also where only the checkpoint has the run's identity."""
    workdir, _ = run(engine, "run", 3, about={"config": {"weight_decay": 0.1}})
    other, plan = fake_engine(48, engine={"seed": 1}), Plan(48, [8] * 6, [0.1] * 6, [0.9] * 6)
    for _ in range(2):
        before = contents_of(workdir)
        with pytest.raises(InvalidArgument) as refused:
            run(other, "run", plan=plan, about={"config": {}})
        message = str(refused.value)
        assert message.startswith(f"workdir is '{workdir}'; it must be empty or of this run: it has ")
        assert message.endswith("; choose another, or remove it")
        for field in ("engine.seed 0 there, 1 here", "config.weight_decay 0.1 there, nothing here", "controller."):
            assert field in message
        assert contents_of(workdir) == before
        (workdir / "identity.json").unlink(missing_ok=True)
    # A setting that did not exist when the run began is no difference.
    _, summary = run(engine, "run", about={"config": {"weight_decay": 0.1, "dropout": 0.0}})
    assert summary["num_updates"] == 12


def test_a_fork_continues_from_another_runs_state(run, engine):
    """With the same plan it ends as that run does; once it has begun, it does not need that run."""
    recipe = Recipe(0.05, 8, 48, num_epochs=2)
    whole, _ = run(engine, "whole", plan=recipe.plan())
    parent, _ = run(engine, "parent", 5, plan=recipe.plan())
    before = contents_of(parent)
    fork = last_checkpoint(parent, engine)
    plan = recipe.plan(start=fork.progress["log"]["examples_seen"])
    assert (plan.start, plan.num_updates) == (40, 7)
    child, summary = run(engine, "child", 1, plan=plan, fork=fork)
    assert summary is None
    assert contents_of(parent) == before
    child, summary = run(engine, "child", plan=plan)
    assert (summary["num_updates"], summary["examples_seen"]) == (7, 96)
    found, expected = (last_checkpoint(path, engine) for path in (child, whole))
    assert found.number == 7
    jax.tree.map(np.testing.assert_array_equal, found.state["param"], expected.state["param"])
    losses, expected = ([line["train_loss"] for line in lines_of(w) if "train_loss" in line] for w in (child, whole))
    assert losses == expected[5:]


def test_a_fork_of_another_model(run, engine, make_engine):
    parent, _ = run(engine, "parent", 5)
    with pytest.raises(RunError, match=r"\['bias'\] is missing there, float32\[4\] here.*: remove .*parent to begin"):
        last_checkpoint(parent, make_engine())


@contextlib.contextmanager
def files_limited_to(size):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("size", [10, 300, 2000])
def test_a_full_disk_ends_the_run_and_spoils_nothing(run, engine, capfd, size):
    """The error is one line, with the path, also of what Orbax prints; the run continues once there is room."""
    whole, _ = run(engine, "whole")
    workdir, _ = run(engine, "run", 7)
    filters, hook = list(logging.getLogger("absl").filters), sys.unraisablehook
    with files_limited_to(size), pytest.raises(RunError, match=rf"{workdir}/.* cannot be written: ") as refused:
        run(engine, "run")
    assert "\n" not in str(refused.value)
    assert capfd.readouterr() == ("", "")
    assert (logging.getLogger("absl").filters, sys.unraisablehook) == (filters, hook)
    run(engine, "run")
    assert_same(workdir, whole, engine)


def test_after_divergence_the_last_good_checkpoint_stays(run, make_engine):
    plan, engine = Plan(48, [8] * 12, [0.1] * 6 + [1e30] * 6, [0.9] * 12), make_engine()
    with pytest.raises(DivergedError, match=r"at update 7 .* learning_rate 1e\+30, momentum 0.9, gradient norm nan"):
        run(engine, "run", plan=plan)
    workdir, _ = run(engine, "other", 6, plan=plan)
    found = last_checkpoint(workdir.with_name("run"), engine)
    assert found.number == 6
    jax.tree.map(np.testing.assert_array_equal, found.state, last_checkpoint(workdir, engine).state)
