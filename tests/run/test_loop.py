"""The loop: when it evaluates, logs and reads, and its files."""

import itertools
import json
import math
import time
import types

import jax
import numpy as np
import pytest

from bsjax import InvalidArgument, gradient_noise
from bsjax.controllers import LAG
from bsjax.engine import Engine
from bsjax.errors import DivergedError
from bsjax.models import MLP
from bsjax.optimizers import create_optimizer
from bsjax.plan import Plan
from bsjax.run import Intervals, read_metrics, read_summary, train
from bsjax.tasks import Classification

N = 40
BATCH_SIZES = [8] * 5 + [16] * 4 + [24] * 4 + [100] * 3
PLAN = Plan(N, BATCH_SIZES, np.linspace(0.2, 0.1, 16), np.linspace(0.5, 0.9, 16))
ENDS = [8, 16, 24, 32, 40, 56, 72, 88, 104, 128, 152, 176, 200, 300, 400, 500]  # examples after each update


@pytest.fixture
def fake_run(fake_engine):
    """A function that trains the fake engine along the plan: the engine, the summary, and the lines."""

    def fake_run(workdir, losses=None, show="none", **intervals):
        engine = fake_engine(N, np.linspace(2, 1, 16) if losses is None else losses)
        summary = train(engine, PLAN, workdir, Intervals(**intervals), show=show)
        return engine, summary, read_metrics(workdir / "metrics.jsonl")

    return fake_run


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        (1.0, [5, 8, 10, 12, 13, 14, 15, 16]),  # every 40 examples
        (0.3, [2, 3, *range(5, 17)]),
        (2.5, [9, 13, 14, 15, 16]),
        (7.0, [14, 16]),
        (100.0, [16]),
    ],
)
def test_evaluations_and_lines_are_on_a_clock_of_examples(fake_run, tmp_path, every, expected):
    """The batch grows from 8 to 100 without moving the clock, and the end is always included."""
    engine, _, lines = fake_run(tmp_path / "evaluations", eval_every_epochs=every, log_every_epochs=1.0)
    assert [state for event, state in engine.events if event == "evaluate"] == expected
    evaluations = [(line["update"], line["examples_seen"]) for line in lines if "test_loss" in line]
    assert evaluations == [(update, ENDS[update - 1]) for update in expected]

    _, _, lines = fake_run(tmp_path / "lines", eval_every_epochs=1.0, log_every_epochs=every)
    assert [line["update"] for line in lines if "train_loss" in line] == expected


def test_lines_that_are_read_in_one_go_have_their_own_times(fake_engine, tmp_path, monkeypatch):
    """As at the end, where the updates that the loop was ahead of are read together."""
    engine, update = fake_engine(N, np.ones(16)), fake_engine.update

    def with_metrics_that_take_time(*arguments):
        state, metrics = update(engine, *arguments)
        return state, types.SimpleNamespace(read=lambda: time.sleep(0.01) or metrics.read())

    monkeypatch.setattr(engine, "update", with_metrics_that_take_time)
    train(engine, PLAN, tmp_path, Intervals(log_every_epochs=0.2), show="none")
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "train_loss" in line]
    assert len(lines) == 16
    for line in lines:
        assert line["examples_per_second"] < line["batch_size"] / 0.01


def test_lines_hold_the_means_over_examples(fake_run, tmp_path):
    losses = np.random.RandomState(0).uniform(1, 2, 16)
    _, summary, lines = fake_run(tmp_path, losses, log_every_epochs=2.5)
    lines, start = [line for line in lines if "train_loss" in line], 0
    for line in lines:
        last, stretch = PLAN[line["update"] - 1], slice(start, line["update"])
        start = line["update"]
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


def test_metrics_are_read_behind_the_updates(fake_run, tmp_path):
    """The device never waits: one or two later updates are under way, except at evaluations and checkpoints."""
    checkpoints = [("update", update) for update in (5, 9, 13)]  # before these, where the batch size changes
    engine, _, _ = fake_run(tmp_path, eval_every_epochs=5.0)
    events = [event for event in engine.events if event[0] != "compile"]
    for update in range(16):
        read = events.index(("read", update))
        dispatched_after = [event for event in events[:read] if event[0] == "update" and event[1] > update]
        remaining = [event for event in events[read:] if event[0] != "read"]
        assert dispatched_after or remaining[0][0] == "evaluate" or remaining[0] in checkpoints
        assert len(dispatched_after) <= 2
    assert [update for event, update in events if event == "read"] == list(range(16))


def test_the_next_batch_size_is_compiled_ahead(fake_run, tmp_path):
    engine, _, _ = fake_run(tmp_path)
    events = [event for event in engine.events if event[0] in ("update", "compile")]
    for batch_size, update in ((16, 0), (24, 5), (100, 9)):  # after the first update of the phase before
        assert events[events.index(("compile", batch_size)) - 1] == ("update", update)


def test_summary(fake_run, tmp_path):
    _, summary, lines = fake_run(tmp_path)
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    times = {name: summary.pop(name) for name in ("wall_time_s", "examples_per_second", "flops_per_s")}
    assert min(times.values()) >= 0
    assert summary == {
        "completed": True,
        "final_test_loss": pytest.approx(lines[-1]["test_loss"], rel=1e-6),
        "final_test_accuracy": 0.25,
        "num_updates": 16,
        "examples_seen": 500,
        "branch_examples": 0,
        "final_train_loss": summary["final_train_loss"],
        "compile_time_s": 0.0,
        "compile_stall_time_s": 0.0,
        "flops_per_update": 100 * 500 / 16,
        "bytes_accessed_per_update": None,
        "model_flop_utilisation": None,
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
def test_a_loss_that_is_not_finite_stops_the_run(fake_run, tmp_path, loss):
    losses = np.linspace(2, 1, 16)
    losses[10] = loss
    with pytest.raises(DivergedError) as diverged:
        fake_run(tmp_path, losses)
    assert str(diverged.value) == (
        f"train_loss is {loss} at update 10 (epoch 3.2) with batch_size 24, "
        f"learning_rate {PLAN[10].learning_rate:.4g}, momentum {PLAN[10].momentum:.4g}, gradient norm 2; "
        "try a smaller learning rate, in another folder"
    )
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["examples_seen"] for line in lines if "train_loss" in line] == [40, 88, 128]
    assert [line["examples_seen"] for line in lines if "test_loss" in line] == [40, 88, 128]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["completed"], summary["error"]) == (False, str(diverged.value))
    assert (summary["num_updates"], summary["examples_seen"]) == (10, 128)
    assert summary["final_train_loss"] == pytest.approx(lines[-2]["train_loss"], rel=1e-6)


def test_a_run_that_diverges_at_once_leaves_valid_json_and_diverges_again(fake_run, tmp_path):
    for _ in range(2):
        with pytest.raises(DivergedError, match=r"^train_loss is nan at update 0"):
            fake_run(tmp_path, np.full(16, math.nan))
    assert "NaN" not in (tmp_path / "summary.json").read_text()
    summary = read_summary(tmp_path)
    assert (summary["completed"], summary["num_updates"], summary["final_train_loss"]) == (False, 0, None)


def test_progress(fake_run, tmp_path, capsys):
    fake_run(tmp_path, show="auto", eval_every_epochs=5)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[:3] for line in lines] == [
        ["epoch 5.0/12.5", "update 13", "B 24"],
        ["epoch 10.0/12.5", "update 15", "B 100"],
        ["epoch 12.5/12.5", "update 16", "B 100"],
    ]
    assert "B 100  lr 0.1  loss 1.0" in lines[-1]
    assert "test 25.00 %" in lines[-1]


@pytest.fixture
def make_engine(make_dataset):
    """A function that makes a real engine."""
    dataset = make_dataset(N)
    task = Classification(MLP(10, depth=1, width=8), mean=dataset.mean, std=dataset.std)

    def make(num_devices):
        tx, options = create_optimizer("momentum"), {"microbatch_size": 4, "devices": jax.devices()[:num_devices]}
        return Engine(task, tx, dataset.train, dataset.test, np.unique(BATCH_SIZES), **options)

    return make


@pytest.mark.parametrize("num_devices", [1, 2])
def test_a_run_is_its_updates_one_after_the_other(tmp_path, make_engine, num_devices):
    """With a real engine, the files hold the results of its updates and evaluation, and of the noise's estimator."""
    workdir, intervals = tmp_path / "new" / "run", Intervals(log_every_epochs=5.0, noise_half_life_epochs=2.0)
    summary = train(make_engine(num_devices), PLAN, str(workdir), intervals, show="none")
    engine = make_engine(num_devices)
    state, averages, values, noises = engine.init(), gradient_noise.zero_averages(), [], []
    for update in PLAN:
        state, metrics = engine.update(state, update)
        values.append([metrics.loss, metrics.accuracy, metrics.grad_norm])
        shards, mean_sq = -(-update.batch_size // 4), metrics.grad_norm**2
        noise = gradient_noise.estimate(metrics.weighted_grad_sq, mean_sq, update.batch_size, shards, N)
        averages = gradient_noise.update_averages(averages, noise, 2 * N)
        scale, interval = gradient_noise.gradient_noise_scale(averages), gradient_noise.confidence_interval(averages)
        noises.append((scale, *interval, averages.grad_sq, averages.trace))
    lines = [line for line in read_metrics(workdir / "metrics.jsonl") if "train_loss" in line]
    names = ("gradient_noise_scale", "gradient_noise_scale_low", "gradient_noise_scale_high", "grad_sq", "grad_trace")
    for line, start, stop in zip(lines, (0, 13, 15), (13, 15, 16), strict=True):
        means = np.average(values[start:stop], axis=0, weights=BATCH_SIZES[start:stop])
        assert line["update"] == stop
        assert [line[f"train_{name}"] for name in ("loss", "accuracy", "grad_norm")] == pytest.approx(means, rel=1e-6)
        numbers = [math.inf if line[name] is None else line[name] for name in names]
        assert numbers == pytest.approx(noises[stop - 1], rel=1e-5)
    assert summary["gradient_noise_scale"] == pytest.approx(noises[-1][0], rel=1e-6)
    assert summary["gradient_noise_scale_reason"] is None
    assert summary["num_devices"] == num_devices
    assert summary["num_compilations"] == engine.num_compilations + 1  # the evaluation
    evaluation = engine.evaluate(state)
    assert {name: summary[f"final_{name}"] for name in evaluation} == evaluation
    assert lines[0]["train_loss"] > 1.2 * lines[-1]["train_loss"]  # it learns


def test_a_controller_observes_each_update_once_and_late(tmp_path, fake_engine, fake_controller):
    """`LAG` updates late, interrupted or not, with the same decisions."""

    def run(name, num_updates):
        controller, asked = fake_controller(PLAN, branch_before=(6, 11)), itertools.count(1)
        engine, should_stop = fake_engine(N, num_shards=2), lambda: next(asked) >= num_updates
        summary = train(engine, controller, tmp_path / name, should_stop=should_stop, show="none")
        return {update.update: update for update in controller.decided}, summary, engine.events

    expected, whole, events = run("whole", math.inf)
    assert [update.batch_size for update in expected.values()] == BATCH_SIZES
    decided, pieces = {}, None
    while pieces is None:
        some, pieces, _ = run("pieces", 2)
        decided |= some
    assert decided == expected
    assert whole["branch_examples"] == pieces["branch_examples"] == 2 * (16 + 32) + 2 * (24 + 48)
    assert [event for event in events if event[0] == "read"].count(("read", 6)) == 1 + 4  # in branches too
    changed = [number for number, update in expected.items() if update.learning_rate != PLAN[number].learning_rate]
    assert changed == list(range(1 + LAG, len(PLAN)))  # by the observations


def test_a_plan_for_another_engine_is_refused_before_anything_is_written(tmp_path, fake_engine):
    with pytest.raises(InvalidArgument, match=r"dataset_size is 40; it must be 500, .*; nearest: 500$"):
        train(fake_engine(500), PLAN, tmp_path / "run", show="none")
    plan = Plan(N, [8], [0.1], [0.9], others={"b2": [0.5]})
    with pytest.raises(InvalidArgument, match=r"b2 is 0; it must be a hyperparameter of the optimizer"):
        train(fake_engine(N), plan, tmp_path / "run", show="none")
    assert not (tmp_path / "run").exists()


def test_a_run_that_has_ended_is_not_run_again_and_not_taken_for_another(fake_run, fake_engine, tmp_path):
    _, summary, _ = fake_run(tmp_path)
    engine, again, _ = fake_run(tmp_path)
    assert (again, engine.events) == (summary, [])
    other = fake_engine(N, optimizer={"weight_decay": 0.1})
    plan = Plan(N, BATCH_SIZES, np.full(16, 0.3), np.full(16, 0.9))
    with pytest.raises(InvalidArgument, match=r"it has controller\..* there, .*; choose another, or remove it$"):
        train(other, plan, tmp_path, show="none")
    train(other, PLAN, tmp_path / "decayed", show="none")
    with pytest.raises(InvalidArgument, match=r"it has optimizer.weight_decay 0.1 there, 0.2 here; choose another"):
        train(fake_engine(N, optimizer={"weight_decay": 0.2}), PLAN, tmp_path / "decayed", show="none")


def test_the_noise_of_layer_norms_has_its_own_columns_and_survives_an_interruption(fake_engine, tmp_path):
    """Each example is a shard. The columns are in examples; the summary has the noise scale in tokens as well."""

    class Measuring(fake_engine):
        def update(self, state, update, stop=False):
            state, metrics = super().update(state, update, stop)
            squares = {"layer_norm_example_sq": 6.0 + update.update % 3, "layer_norm_mean_sq": 2.0}
            return state, types.SimpleNamespace(read=lambda: metrics.read() | squares)

    def run(workdir, stops=()):
        engine, intervals = Measuring(N), Intervals(log_every_epochs=2.5, noise_half_life_epochs=2.0)
        engine.task = types.SimpleNamespace(metrics=("accuracy",), unit="tokens", units_per_example=64)
        return train(engine, PLAN, workdir, intervals, iter([*stops, *[False] * 99]).__next__, show="none")

    averages = gradient_noise.zero_averages()
    for update in PLAN:
        n = update.batch_size
        noise = gradient_noise.estimate(n * (6.0 + update.update % 3), 2.0, n, n, N)
        averages = gradient_noise.update_averages(averages, noise, 2 * N)
    scale, interval = gradient_noise.gradient_noise_scale(averages), gradient_noise.confidence_interval(averages)
    names = ("gradient_noise_scale", "gradient_noise_scale_low", "gradient_noise_scale_high", "grad_sq", "grad_trace")
    expected = dict(zip(names, (scale, *interval, averages.grad_sq, averages.trace), strict=True))

    summary = run(tmp_path / "whole")
    assert {name: summary[f"layer_norm_{name}"] for name in names} == pytest.approx(expected, rel=1e-9)
    assert summary["layer_norm_gradient_noise_scale_reason"] is None
    assert summary["layer_norm_gradient_noise_scale_tokens"] == pytest.approx(64 * scale, rel=1e-9)
    assert summary["gradient_noise_scale_tokens"] is summary["gradient_noise_scale"] is None  # of one microbatch
    last = [line for line in read_metrics(tmp_path / "whole" / "metrics.jsonl") if "train_loss" in line][-1]
    assert {name: last[f"layer_norm_{name}"] for name in names} == pytest.approx(expected, rel=1e-6)

    assert run(tmp_path / "parts", stops=[False, False, False, True]) is None
    resumed = run(tmp_path / "parts")
    kept = [name for name in summary if name.startswith("layer_norm")]
    assert len(kept) == 7
    assert {name: resumed[name] for name in kept} == {name: summary[name] for name in kept}
