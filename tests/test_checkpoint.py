"""A run that stops and goes on leaves what an uninterrupted one leaves, to the last bit."""

import contextlib
import functools
import itertools
import json
import math
import pathlib
import resource
import shutil
import types

import jax
import numpy as np
import optax
import pytest

from bsjax import InvalidArgument, Plan, Recipe, loop
from bsjax.checkpoint import Checkpoints
from bsjax.engine import Engine
from bsjax.errors import DivergedError, RunError
from bsjax.models import CNN, MLP
from bsjax.optimizers import OPTIMIZERS, create_optimizer
from bsjax.parallel import first_replica


def lines_of(workdir: pathlib.Path) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "examples_per_second"} for line in lines]


def last_state(workdir: pathlib.Path, engine: Engine):
    with contextlib.closing(Checkpoints(workdir / "checkpoints", read_only=True)) as checkpoints:
        found = checkpoints.restore(first_replica(engine.init()))
    return found.state, found.number


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
    while (pieces := train("pieces", should_stop=lambda: True)) is None:
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
    for name, stop in (("whole", False), ("cut", True)):
        (tmp_path / name).mkdir()
        loop.train(engine, plan, tmp_path / name, 0.1, 0.1, should_stop=lambda stop=stop: stop, show="none")
    with open(tmp_path / "cut/metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"update": 2, "train_loss": 1.0}\n{"upd')
    loop.train(engine, plan, tmp_path / "cut", 0.1, 0.1, show="none")
    assert lines_of(tmp_path / "cut") == lines_of(tmp_path / "whole")


# What follows trains a small MLP, which compiles fast: twelve updates, a checkpoint every two.
PLAN = Plan(48, [8] * 6 + [16] * 6, [0.1] * 12, [0.9] * 12)
EVERY = {"eval_every_epochs": 0.5, "log_every_epochs": 0.1, "checkpoint_every_epochs": 1 / 3, "show": "none"}


@pytest.fixture(scope="module")
def make_engine(make_dataset):
    """A function that makes an engine; tests share them, for they keep nothing from one call to the next."""

    @functools.cache
    def make(optimizer="momentum", width=4, num_devices=1, **options):
        model, tx = MLP(10, depth=1, width=width), create_optimizer(optimizer)
        devices = jax.devices()[:num_devices]
        return Engine(model, tx, make_dataset(48), [8, 16], microbatch_size=2, devices=devices, **options)

    return make


@pytest.fixture
def train(tmp_path):
    """A function that trains in a folder, and stops after some updates."""

    def train(engine, name, num_updates=math.inf, plan=PLAN, **options):
        workdir = tmp_path / name
        workdir.mkdir(exist_ok=True)
        asked = itertools.count(1)
        summary = loop.train(
            engine, plan, workdir, **{**EVERY, **options}, should_stop=lambda: next(asked) >= num_updates
        )
        return workdir, summary

    return train


def assert_same(workdir, expected, engine):
    assert lines_of(workdir) == lines_of(expected)
    (state, number), (expected_state, expected_number) = (last_state(path, engine) for path in (workdir, expected))
    assert number == expected_number
    jax.tree.map(np.testing.assert_array_equal, state, expected_state)


def numbers_of(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_goes_on_to_the_same_bits(train, make_engine, optimizer):
    whole, _ = train(make_engine(optimizer), "whole")
    for num_updates in (3, 4):  # in a phase, and up to its end
        train(make_engine(optimizer), "cut", num_updates)
    cut, _ = train(make_engine(optimizer), "cut")
    assert_same(cut, whole, make_engine(optimizer))


def test_when_there_are_checkpoints(train, make_engine):
    """At each change of a batch size that stays for a while, however rare they are otherwise, and at the end."""
    workdir, _ = train(make_engine(), "run", checkpoint_every_epochs=math.inf, keep_checkpoints=9)
    assert numbers_of(workdir) == [6, 12]
    plan = Plan(48, [8] * 300 + [16, 24] + [16] * 2, [0.1] * 304, [0.9] * 304)
    workdir, _ = train(make_engine(), "short phases", 302, plan=plan, checkpoint_every_epochs=10, keep_checkpoints=99)
    assert numbers_of(workdir) == [60, 120, 180, 240, 300, 302]
    workdir, _ = train(make_engine(), "few", keep_checkpoints=3)
    assert numbers_of(workdir) == [10, 11, 12]


def test_checkpoints_that_are_due_too_soon_wait(tmp_path, make_engine, monkeypatch):
    """Updates take a second: what is due after updates 2, 4, 6, then 7, 8 to 12 waits for five seconds to be over."""
    clock = itertools.count(1)

    def take_a_second():
        now = float(next(clock))
        monkeypatch.setattr(loop, "time", types.SimpleNamespace(perf_counter=lambda: now))
        return False

    monkeypatch.setattr(loop, "time", types.SimpleNamespace(perf_counter=lambda: 0.0))
    options = {**EVERY, "checkpoint_min_s": 5.0, "keep_checkpoints": 9, "should_stop": take_a_second}
    loop.train(make_engine(), PLAN, tmp_path, **options)
    assert numbers_of(tmp_path) == [5, 10, 12]


def test_a_run_that_stops_does_not_wait_for_its_checkpoint(train, make_engine):
    workdir, _ = train(make_engine(), "run", 3, checkpoint_min_s=1e9)
    assert numbers_of(workdir) == [3]


def test_on_other_devices_it_goes_on_with_the_same_examples(train, make_engine):
    whole, _ = train(make_engine(), "whole")
    train(make_engine(num_devices=2), "moved", 5)
    moved, summary = train(make_engine(num_devices=4), "moved")
    assert summary["num_devices"] == 4
    (state, _), (expected, _) = (last_state(path, make_engine()) for path in (moved, whole))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), state, expected)


def damage(how, folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    progress = folder / "progress" / "metadata"
    match how:
        case "truncated":
            largest.write_bytes(largest.read_bytes()[:-100])
        case "empty":
            largest.write_bytes(b"")
        case "a bit of the parameters is flipped":
            contents = bytearray(largest.read_bytes())
            contents[len(contents) // 2] ^= 4
            largest.write_bytes(contents)
        case "a digit of the progress is another":
            text = progress.read_text()
            at = text.index("num_updates") + len('num_updates\\": ')
            progress.write_text(text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :])
        case "the progress is cut":
            progress.write_text(progress.read_text()[:40])
        case "an empty folder":
            shutil.rmtree(folder)
            folder.mkdir()


DAMAGES = [
    "truncated",
    "empty",
    "a bit of the parameters is flipped",
    "a digit of the progress is another",
    "the progress is cut",
    "an empty folder",
]


def contents_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(train, make_engine, capfd, how):
    whole, _ = train(make_engine(), "whole")
    workdir, _ = train(make_engine(), "run", 7)
    assert numbers_of(workdir) == [6, 7]
    damage(how, workdir / "checkpoints" / "7")
    before = contents_of(workdir / "checkpoints" / "7")
    train(make_engine(), "run")
    error = capfd.readouterr().err
    assert error.startswith(f"checkpoint 7 in {workdir}/checkpoints is damaged (")
    assert error.endswith(", now damaged-7; going on from checkpoint 6\n")
    assert error.count("\n") == 1
    assert contents_of(workdir / "checkpoints" / "damaged-7") == before
    assert_same(workdir, whole, make_engine())


def test_no_checkpoint_is_usable(train, make_engine):
    workdir, _ = train(make_engine(), "run", 7)
    for number in (6, 7):
        damage("truncated", workdir / "checkpoints" / str(number))
    before = contents_of(workdir)
    with pytest.raises(RunError, match=r"no checkpoint in .*/checkpoints can be used \(7: .*; 6: .*\); nothing was ch"):
        train(make_engine(), "run")
    assert contents_of(workdir) == before


def test_metrics_that_end_before_the_checkpoint_are_written_again(train, make_engine, capfd):
    whole, _ = train(make_engine(), "whole")
    workdir, _ = train(make_engine(), "run", 7)
    path = workdir / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    train(make_engine(), "run")
    assert "checkpoint 7" in (error := capfd.readouterr().err)
    assert "(metrics.jsonl does not reach so far, or differs)" in error
    assert_same(workdir, whole, make_engine())


def test_metrics_that_are_gone(train, make_engine):
    workdir, _ = train(make_engine(), "run", 7)
    (workdir / "metrics.jsonl").unlink()
    with pytest.raises(RunError, match=r"no checkpoint .* can be used"):
        train(make_engine(), "run")
    assert not (workdir / "metrics.jsonl").exists()


def test_a_checkpoint_of_another_run_is_refused(train, make_engine):
    workdir, _ = train(make_engine(), "run", 3, about={"config": {"weight_decay": 0.1}})
    before = contents_of(workdir)
    with pytest.raises(InvalidArgument) as refused:
        train(make_engine(width=8, seed=1), "run", plan=Plan(48, [8] * 6, [0.1] * 6, [0.9] * 6), about={"config": {}})
    message = str(refused.value)
    assert f"workdir is '{workdir}'; it must be empty or of this run; its checkpoint has " in message
    for field in (
        "seed 0 there, 1 here",
        "weight_decay 0.1 there, None here",
        "plan '12 updates from example 0",
        "width = 4",
        "width = 8",
    ):
        assert field in message
    assert contents_of(workdir) == before


def fork_of(workdir, engine):
    with contextlib.closing(Checkpoints(workdir / "checkpoints", read_only=True)) as checkpoints:
        return checkpoints.restore(first_replica(engine.init()))


def test_a_setting_that_did_not_exist_yet_differs_from_nothing(train, make_engine):
    train(make_engine(), "run", 3, about={"config": {"weight_decay": 0.1}})
    _, summary = train(make_engine(), "run", about={"config": {"weight_decay": 0.1, "dropout": 0.0}})
    assert summary["num_updates"] == 12


def test_a_fork_goes_on_from_another_runs_state(train, make_engine):
    """With the same plan it ends as that run does; and once it has begun, it does not need it."""
    recipe = Recipe(0.05, 8, 48, num_epochs=2)
    whole, _ = train(make_engine(), "whole", plan=recipe.plan())
    parent, _ = train(make_engine(), "parent", 5, plan=recipe.plan())
    before = contents_of(parent)
    fork = fork_of(parent, make_engine())
    plan = recipe.plan(start=fork.progress["log"]["examples_seen"])
    assert (plan.start, plan.num_updates) == (40, 7)
    child, summary = train(make_engine(), "child", 1, plan=plan, fork=fork)
    assert summary is None
    assert contents_of(parent) == before
    child, summary = train(make_engine(), "child", plan=plan)
    assert (summary["num_updates"], summary["examples_seen"]) == (7, 96)
    (state, number), (expected, _) = (last_state(path, make_engine()) for path in (child, whole))
    assert number == 7
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    losses, expected = ([line["train_loss"] for line in lines_of(w) if "train_loss" in line] for w in (child, whole))
    assert losses == expected[5:]


def test_a_fork_of_another_model(train, make_engine):
    parent, _ = train(make_engine(), "parent", 5)
    with pytest.raises(RunError, match=r"Dense_0'\]\['bias'\] is float32\[4\] there, float32\[8\] here"):
        fork_of(parent, make_engine(width=8))


def test_a_full_disk_ends_the_run_and_spoils_nothing(train, make_engine):
    """A limit on the size of files stands for it; the run goes on once there is room."""
    whole, _ = train(make_engine(), "whole")
    workdir, _ = train(make_engine(), "run", 7)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
    try:
        with pytest.raises((RunError, OSError), match=r"cannot be written|File too large|No space left"):
            train(make_engine(), "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    train(make_engine(), "run")
    assert_same(workdir, whole, make_engine())


def test_after_divergence_the_last_good_checkpoint_stays(train, make_engine):
    plan = Plan(48, [8] * 12, [0.1] * 6 + [1e30] * 6, [0.9] * 12)
    with pytest.raises(DivergedError, match=r"at update 7 .* learning_rate 1e\+30, momentum 0.9, gradient norm nan"):
        train(make_engine(), "run", plan=plan)
    workdir, _ = train(make_engine(), "other", 6, plan=plan)
    state, number = last_state(workdir.with_name("run"), make_engine())
    assert number == 6
    jax.tree.map(np.testing.assert_array_equal, state, last_state(workdir, make_engine())[0])
