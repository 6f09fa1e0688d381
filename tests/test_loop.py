"""The loop: when it evaluates, logs and reads, and what it writes."""

import io
import json
import math
import sys

import jax
import numpy as np
import pytest

from bsjax import gradient_noise
from bsjax.engine import METRICS, Engine
from bsjax.errors import DivergedError
from bsjax.loop import train
from bsjax.metrics import read_metrics
from bsjax.models import MLP
from bsjax.optimizers import create_optimizer
from bsjax.parallel import first_replica, replicate
from bsjax.plan import Plan

N = 40
BATCH_SIZES = [8] * 5 + [16] * 4 + [24] * 4 + [100] * 3  # 40, 104, 200 and 500 examples
PLAN = Plan(N, BATCH_SIZES, np.linspace(0.2, 0.1, 16), np.linspace(0.5, 0.9, 16))
ENDS = np.cumsum(BATCH_SIZES).tolist()


class FakeEngine:
    """Trains nothing: the loss of update k is losses[k]. Keeps a record of what happened in what order."""

    num_devices, num_compilations, compile_time_s, stall_time_s, identity = 1, 0, 0.0, 0.0, {}

    def __init__(self, losses):
        self.losses = losses
        self.events = []

    def init(self):
        return self.place({"updates": np.int32(0)})

    def place(self, state):
        return replicate(state, jax.devices()[:1])

    def update(self, state, examples_seen, batch_size, learning_rate, momentum, stop):
        update = int(first_replica(state)["updates"])
        assert PLAN[update] == (update, examples_seen, batch_size, learning_rate, momentum)
        self.events.append(("update", update))
        return self.place({"updates": np.int32(update + 1)}), FakeMetrics(update, self)

    def num_shards(self, batch_size):
        return 1

    def evaluate(self, state):
        self.events.append(("evaluate", int(first_replica(state)["updates"])))
        return {"test_loss": 1.0, "test_accuracy": 0.25}

    def compile_ahead(self, state, batch_size):
        self.events.append(("compile", batch_size))


class FakeMetrics:
    """Stands for an array on a device; notes when it is read."""

    def __init__(self, update, engine):
        self.update, self.engine = update, engine

    def addressable_data(self, index):
        self.engine.events.append(("read", self.update))
        return np.array([[self.engine.losses[self.update], 0.5, 2.0, 0.0, 0.0]])


def fake_run(workdir, losses=None, **options):
    engine = FakeEngine(np.linspace(2, 1, 16) if losses is None else losses)
    summary = train(engine, PLAN, workdir, show="none", **options)
    return engine, summary, read_metrics(workdir / "metrics.jsonl")


def first_to_pass(every_epochs):
    """Numbers of the updates, from 1, that are the first to end at or past a multiple."""
    multiples = np.arange(1, math.ceil(ENDS[-1] / (every_epochs * N)) + 1) * every_epochs * N
    return sorted({int(np.searchsorted(ENDS, multiple - 1e-6)) + 1 for multiple in multiples if multiple <= ENDS[-1]})


@pytest.mark.parametrize("every", [1.0, 0.3, 2.5, 7.0, 100.0])
def test_evaluations_and_lines_are_on_a_clock_of_examples(tmp_path, every):
    """The batch grows from 8 to 100 without moving the clock, and the end is always included."""
    expected = sorted({*first_to_pass(every), len(BATCH_SIZES)})
    for name in ("evaluations", "lines"):
        (tmp_path / name).mkdir()
    engine, _, lines = fake_run(tmp_path / "evaluations", eval_every_epochs=every, log_every_epochs=1.0)
    assert [state for event, state in engine.events if event == "evaluate"] == expected
    evaluations = [line for line in lines if "test_loss" in line]
    assert [line["update"] for line in evaluations] == expected
    assert [line["examples_seen"] for line in evaluations] == [ENDS[update - 1] for update in expected]

    _, _, lines = fake_run(tmp_path / "lines", eval_every_epochs=1.0, log_every_epochs=every)
    assert [line["update"] for line in lines if "train_loss" in line] == expected


def test_some_evaluations_in_numbers(tmp_path):
    engine, _, _ = fake_run(tmp_path, eval_every_epochs=2.5)  # 100 examples
    assert [ENDS[state - 1] for event, state in engine.events if event == "evaluate"] == [104, 200, 300, 400, 500]


def test_lines_hold_the_means_over_examples(tmp_path):
    losses = np.random.RandomState(0).uniform(1, 2, 16)
    _, summary, lines = fake_run(tmp_path, losses, log_every_epochs=2.5)
    starts = [0, *(line["update"] for line in lines if "train_loss" in line)]
    lines = [line for line in lines if "train_loss" in line]
    for start, line in zip(starts[:-1], lines, strict=True):
        last = PLAN[line["update"] - 1]
        stretch = slice(start, line["update"])
        assert line == {
            "update": last.update + 1,
            "examples_seen": ENDS[last.update],
            "batch_size": last.batch_size,
            "learning_rate": pytest.approx(last.learning_rate, rel=1e-6),
            "epoch": pytest.approx(ENDS[last.update] / N, rel=1e-6),
            "momentum": pytest.approx(last.momentum, rel=1e-6),
            "train_loss": pytest.approx(np.average(losses[stretch], weights=BATCH_SIZES[stretch]), rel=1e-6),
            "train_accuracy": 0.5,
            "train_grad_norm": 2.0,
            "examples_per_second": line["examples_per_second"],
        }
        assert line["examples_per_second"] > 0
    assert summary["final_train_loss"] == pytest.approx(lines[-1]["train_loss"], rel=1e-6)


def test_metrics_are_read_behind_the_updates(tmp_path):
    """So that the device never waits: one or two later updates are under way, but at evaluations and checkpoints."""
    checkpoints = [("update", update) for update in (5, 9, 13)]  # before them: there the batch size changes
    engine, _, _ = fake_run(tmp_path, eval_every_epochs=5.0)
    events = [event for event in engine.events if event[0] != "compile"]
    for update in range(16):
        read = events.index(("read", update))
        dispatched_after = [event for event in events[:read] if event[0] == "update" and event[1] > update]
        remaining = [event for event in events[read:] if event[0] != "read"]
        assert dispatched_after or remaining[0][0] == "evaluate" or remaining[0] in checkpoints
        assert len(dispatched_after) <= 2
    assert [update for event, update in events if event == "read"] == list(range(16))


def test_the_next_batch_size_is_compiled_ahead(tmp_path):
    engine, _, _ = fake_run(tmp_path)
    events = [event for event in engine.events if event[0] in ("update", "compile")]
    before = {batch_size: events[events.index(("compile", batch_size)) - 1] for batch_size in (16, 24, 100)}
    assert before == {16: ("update", 0), 24: ("update", 5), 100: ("update", 9)}  # the first ones of the phases before


def test_summary(tmp_path):
    _, summary, _ = fake_run(tmp_path)
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    times = {name: summary.pop(name) for name in ("wall_time_s", "examples_per_second")}
    assert min(times.values()) >= 0
    assert summary == {
        "completed": True,
        "final_test_loss": 1.0,
        "final_test_accuracy": 0.25,
        "num_updates": 16,
        "examples_seen": 500,
        "branch_examples": 0,
        "final_train_loss": summary["final_train_loss"],
        "compile_time_s": 0.0,
        "compile_stall_time_s": 0.0,
        "num_compilations": 0,
        "num_devices": 1,
        "grad_sq": None,
        "grad_trace": None,
        "gradient_noise_scale": None,
        "gradient_noise_scale_low": None,
        "gradient_noise_scale_high": None,
        "gradient_noise_scale_reason": "one microbatch on one device: at least two are needed",
    }


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, loss):
    losses = np.linspace(2, 1, 16)
    losses[10] = loss
    with pytest.raises(DivergedError) as diverged:
        fake_run(tmp_path, losses)
    assert str(diverged.value) == (
        f"train_loss is {loss} at update 10 (epoch 3.2) with batch_size 24, "
        f"learning_rate {PLAN[10].learning_rate:.4g}, momentum {PLAN[10].momentum:.4g}, gradient norm 2; "
        "try a smaller learning rate"
    )
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["examples_seen"] for line in lines if "train_loss" in line] == [40, 88, 128]
    assert [line["examples_seen"] for line in lines if "test_loss" in line] == [40, 88, 128]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["completed"] is False
    assert summary["error"] == str(diverged.value)
    assert (summary["num_updates"], summary["examples_seen"]) == (10, 128)
    assert summary["final_train_loss"] == pytest.approx(lines[-2]["train_loss"], rel=1e-6)


def refuse_constant(name):
    raise ValueError(f"{name} is not JSON")


def test_a_run_that_diverges_at_once_leaves_valid_json(tmp_path):
    with pytest.raises(DivergedError):
        fake_run(tmp_path, np.full(16, math.nan))
    summary = json.loads((tmp_path / "summary.json").read_text(), parse_constant=refuse_constant)
    assert (summary["completed"], summary["num_updates"], summary["final_train_loss"]) == (False, 0, None)


@pytest.mark.parametrize("is_terminal", [False, True])
def test_progress(tmp_path, monkeypatch, is_terminal):
    stream = io.StringIO()
    stream.isatty = lambda: is_terminal
    monkeypatch.setattr(sys, "stderr", stream)
    train(FakeEngine(np.linspace(2, 1, 16)), PLAN, tmp_path, eval_every_epochs=5)
    lines = stream.getvalue().splitlines()
    if is_terminal:
        assert "100% |" in lines[-1]
    else:
        assert [line.split("  ")[:3] for line in lines] == [
            ["epoch 5.0/12.5", "update 13", "B 24"],
            ["epoch 10.0/12.5", "update 15", "B 100"],
            ["epoch 12.5/12.5", "update 16", "B 100"],
        ]
    assert "B 100  lr 0.1  loss 1.0" in lines[-1]
    assert "test 25.00 %" in lines[-1]


def test_a_run_is_its_updates_one_after_the_other(tmp_path, make_dataset):
    """With a real engine: what is written is what its updates and its evaluation return."""
    dataset = make_dataset(N)

    def make_engine():
        model, tx = MLP(10, depth=1, width=8), create_optimizer("momentum")
        return Engine(model, tx, dataset, np.unique(BATCH_SIZES), microbatch_size=8, devices=jax.devices()[:2])

    summary = train(make_engine(), PLAN, tmp_path, log_every_epochs=5.0, show="none")

    engine = make_engine()
    state, values = engine.init(), []
    for update in PLAN:
        state, metrics = engine.update(state, *update[1:])
        values.append(first_replica(metrics))
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "train_loss" in line]
    assert [line["update"] for line in lines] == [13, 15, 16]
    for line, stretch in zip(lines, (slice(13), slice(13, 15), slice(15, 16)), strict=True):
        means = np.average(values[stretch], axis=0, weights=BATCH_SIZES[stretch])
        assert [line[f"train_{name}"] for name in METRICS[:3]] == pytest.approx(means[:3], rel=1e-6)
    assert summary["num_devices"] == 2
    assert summary["num_compilations"] == engine.num_compilations + 1  # the evaluation
    evaluation = engine.evaluate(state)
    assert {name: summary[f"final_{name}"] for name in evaluation} == evaluation
    assert lines[0]["train_loss"] > 1.2 * lines[-1]["train_loss"]  # it learns


@pytest.mark.parametrize("num_devices", [1, 2])
def test_the_noise_scale_is_that_of_the_updates(tmp_path, make_dataset, num_devices):
    """What is logged is made of what the updates return, by the estimator's own functions."""
    dataset = make_dataset(N)

    def make_engine():
        model, tx = MLP(10, depth=1, width=8), create_optimizer("momentum")
        devices = jax.devices()[:num_devices]
        return Engine(model, tx, dataset, np.unique(BATCH_SIZES), microbatch_size=4, devices=devices)

    summary = train(make_engine(), PLAN, tmp_path, log_every_epochs=5.0, noise_half_life_epochs=2.0, show="none")
    engine = make_engine()
    state, averages, expected = engine.init(), gradient_noise.zero_averages(), {}
    for update in PLAN:
        state, metrics = engine.update(state, *update[1:])
        _, _, grad_norm, weighted, _ = first_replica(metrics).astype(np.float64)
        shards = -(-update.batch_size // 4)
        noise = gradient_noise.estimate(weighted, grad_norm**2, update.batch_size, shards, N)
        averages = gradient_noise.update_averages(averages, noise, 2 * N)
        expected[update.update + 1] = (
            gradient_noise.gradient_noise_scale(averages),
            *gradient_noise.confidence_interval(averages),
            averages.grad_sq,
            averages.trace,
        )
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "train_loss" in line]
    names = ("gradient_noise_scale", "gradient_noise_scale_low", "gradient_noise_scale_high", "grad_sq", "grad_trace")
    for line in lines:
        numbers = [math.inf if line[name] is None else line[name] for name in names]
        assert numbers == pytest.approx(expected[line["update"]], rel=1e-5)
    assert summary["gradient_noise_scale"] == pytest.approx(expected[16][0], rel=1e-6)
    assert summary["gradient_noise_scale_reason"] is None
