"""Charts of a run: the same numbers as its lines, the same charts after a restart, and no run that they stop."""

import json
import struct
import sys
import types
import warnings

import numpy as np
import pytest

from bsjax import InvalidArgument, Plan
from bsjax.run import Intervals, read_metrics, train

N = 40
PLAN = Plan(N, [8] * 10 + [16] * 5, np.linspace(0.2, 0.1, 15), np.full(15, 0.9))


class Recorder:
    """Charts of one's own, which may fail."""

    def __init__(self, fail_at=None):
        self.fail_at, self.points, self.closed = fail_at, [], 0

    def write(self, update, values):
        if update == self.fail_at:
            raise ConnectionError("the service is away\nand more")
        self.points.append((update, dict(values)))

    def close(self):
        self.closed += 1


@pytest.fixture
def run(fake_engine, tmp_path):
    """A function that trains the fake engine, all of it or until it has done some updates."""

    def run(log_to, stop_at=None):
        engine = fake_engine(N, np.linspace(2, 1, 15))

        def should_stop():
            return stop_at is not None and sum(event == "update" for event, _ in engine.events) >= stop_at

        return train(engine, PLAN, tmp_path, Intervals(log_every_epochs=0.2), should_stop, show="none", log_to=log_to)

    return run


def test_charts_get_the_numbers_of_the_lines(run, tmp_path):
    recorder = Recorder()
    run([recorder])
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [update for update, _ in recorder.points] == [line["update"] for line in lines]
    for (_, values), line in zip(recorder.points, lines, strict=True):
        expected = {name: value for name, value in line.items() if name != "update" and value is not None}
        assert values == pytest.approx(expected, rel=1e-6)
    assert {"test_loss", "train_loss", "batch_size"} <= {name for _, values in recorder.points for name in values}
    assert recorder.closed == 1


def test_charts_that_fail_warn_once_and_the_run_goes_on(run, tmp_path):
    failing, other = Recorder(fail_at=4), Recorder()
    text = r"^log_to=recorder fails \(ConnectionError: the service is away\); the run goes on without it$"
    with pytest.warns(UserWarning, match=text) as warned:
        summary = run([failing, other])
    assert summary["completed"] and len(warned) == 1
    assert failing.points[-1][0] == 3 and failing.closed == 0
    assert other.points[-1][0] == 15 and len(read_metrics(tmp_path / "metrics.jsonl")) == len(other.points)


def install(monkeypatch, name, module):
    module.__spec__ = types.SimpleNamespace(name=name)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("method", ["__init__", "close"])
def test_charts_that_cannot_be_opened_or_closed_stop_no_run(run, monkeypatch, method):
    def fail(*arguments, **options):
        raise OSError("no network")

    module = types.ModuleType("tensorboardX")
    methods = {"__init__": lambda *_, **options: None, "add_scalar": lambda *_: None, "close": lambda _: None}
    module.SummaryWriter = type("SummaryWriter", (), methods | {method: fail})
    install(monkeypatch, "tensorboardX", module)
    with pytest.warns(UserWarning, match=r"log_to=tensorboard fails \(OSError: no network\)") as warned:
        assert run("tensorboard")["completed"]
    assert len(warned) == 1


@pytest.mark.parametrize(
    ("log_to", "message"),
    [
        (["wndb"], "log_to is 'wndb'; it must be one of tensorboard, wandb, trackio; nearest: wandb"),
        (["tensorboard"], r"log_to is 'tensorboard'; it must be of an installed package: pip install 'bsjax\[tens"),
        ([object()], "log_to is <object .*; it must be one of tensorboard, wandb, trackio, or have methods write"),
    ],
)
def test_what_cannot_be_opened_is_refused_before_anything_is_written(run, tmp_path, monkeypatch, log_to, message):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InvalidArgument, match=f"^{message}"):
        run(log_to)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for wandb and trackio that notes what is called."""
    calls = []

    class FakeRun:
        def define_metric(self, *arguments, **options):
            calls.append(("define_metric", arguments, options))

        def log(self, values, step=None):
            calls.append(("log", values, step))

        def finish(self):
            calls.append(("finish",))

    module = types.ModuleType("wandb")
    module.init = lambda **options: calls.append(("init", options)) or FakeRun()
    for name in ("wandb", "trackio"):
        install(monkeypatch, name, module)
    return calls


@pytest.mark.parametrize("service", ["wandb", "trackio"])
def test_a_restart_goes_on_in_the_same_run_of_a_service(run, tmp_path, wandb, monkeypatch, service):
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    assert run([service], stop_at=7) is None
    run([service])
    first, second = (call[1] for call in wandb if call[0] == "init")
    assert first == second and first["resume"] == "allow" and first["project"] == "bsjax"
    [identity] = json.loads((tmp_path / "charts.json").read_text()).values()
    assert identity in (first["id"] if service == "wandb" else first["name"]) and first["config"]["controller"]
    logged = [(call[1].get("update", call[2]), call[1]) for call in wandb if call[0] == "log"]
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [update for update, _ in logged] == [line["update"] for line in lines]
    assert sum(call == ("finish",) for call in wandb) == 2
    if service == "wandb":
        assert ("define_metric", ("*",), {"step_metric": "update"}) in wandb


def test_tensorboard_is_told_what_to_forget_and_where_to_write(run, tmp_path, monkeypatch):
    writers = []

    class SummaryWriter:
        def __init__(self, logdir, purge_step):
            self.logdir, self.purge_step, self.scalars, self.closed = logdir, purge_step, [], False
            writers.append(self)

        def add_scalar(self, name, value, step):
            self.scalars.append((name, value, step))

        def close(self):
            self.closed = True

    module = types.ModuleType("tensorboardX")
    module.SummaryWriter = SummaryWriter
    install(monkeypatch, "tensorboardX", module)
    assert run("tensorboard", stop_at=7) is None
    run("tensorboard")
    first, second = writers
    assert first.logdir == second.logdir == str(tmp_path / "tensorboard") and first.closed and second.closed
    last = max(step for _, _, step in first.scalars)
    assert (first.purge_step, second.purge_step) == (None, last + 1) and last < 15
    losses = [(step, value) for writer in writers for name, value, step in writer.scalars if name == "test_loss"]
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "test_loss" in line]
    assert losses == [(line["update"], pytest.approx(line["test_loss"], rel=1e-6)) for line in lines]


def scalars(folder):
    """The name, step and value of each scalar in the event files of a folder, which are TFRecords."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("events.*")):
        contents, start = path.read_bytes(), 0
        while start < len(contents):
            (size,) = struct.unpack("<Q", contents[start : start + 8])
            event = Event.FromString(contents[start + 12 : start + 12 + size])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            start += size + 16
    return found


def test_tensorboards_files_hold_the_numbers(run, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("tensorboardX", reason="tensorboardX, of the extra test, is missing")
    run("tensorboard")
    losses = {step: value for name, step, value in scalars(tmp_path / "tensorboard") if name == "train_loss"}
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "train_loss" in line]
    assert losses == {line["update"]: pytest.approx(line["train_loss"], rel=1e-6) for line in lines} and losses
