"""A folder has one writer at a time; the first signal asks a run to stop, the second one ends the process."""

import contextlib
import os
import signal

import pytest

from bsjax import InvalidArgument, Plan
from bsjax.engine.devices import first_replica
from bsjax.errors import RunError
from bsjax.run import Checkpoints, Interrupted, claim, differences, is_claimed, read_json, train, workdir

PLAN = Plan(40, [8] * 5, [0.1] * 5, [0.9] * 5)


def test_one_process_locks_a_folder_until_it_dies(start_python, tmp_path, fake_engine):
    code = """
import pathlib, sys, time
from bsjax.run import workdir
with workdir.lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""
    with start_python("-c", code, tmp_path) as holder:
        assert holder.stdout.readline() == "held\n"
        in_use = rf"{tmp_path} is in use by process {holder.pid} on {os.uname().nodename}$"
        with pytest.raises(RunError, match=in_use):
            train(fake_engine(40), PLAN, tmp_path, show="none")
        holder.kill()
        holder.wait()
        for _ in range(2):
            with workdir.lock(tmp_path):
                pass


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InvalidArgument, match=r"workdir is .* a folder that can be made and written to \(Not a dir"):
        workdir.make(tmp_path / "file" / "run")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_for_a_script_and_for_the_run_inside(capfd, signum):
    """Also for a run that begins after the signal; the handler interrupts nothing, and is removed at the end."""
    before, calls = signal.getsignal(signum), []
    with workdir.catch_signals(at_first=lambda: calls.append("script")) as outer:
        assert outer() is workdir.caught_signal() is None
        os.kill(os.getpid(), signum)
        with workdir.catch_signals(at_first=lambda: calls.append("run")) as inner:
            assert outer() == inner() == workdir.caught_signal() == signum
        assert calls == ["script", "run"]
        assert outer() == signum
    assert workdir.caught_signal() is None
    assert signal.getsignal(signum) is before
    assert capfd.readouterr().err == f"{signum.name}: stopping; a second signal ends the process at once\n"


def test_a_second_signal_ends_the_process(start_python):
    code = """
import os, time
from bsjax.run import workdir
with workdir.catch_signals(at_second=lambda: os.write(1, b"bye")):
    os.write(1, b"ready\\n")
    while True:
        time.sleep(600)
"""
    with start_python("-c", code) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert "stopping" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == -signal.SIGTERM
        assert process.stdout.read() == "bye"


def test_a_second_signal_ends_the_process_even_if_a_call_fails(start_python):
    code = """
import os, signal
from bsjax.run import workdir
with workdir.catch_signals(at_second=lambda: 1 / 0):
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
"""
    with start_python("-c", code) as process:
        assert process.wait(20) == -signal.SIGTERM


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with workdir.catch_signals() as caught:
            os.kill(os.getpid(), signal.SIGINT)
            assert caught() is None
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_does_not_begin_after_a_signal(tmp_path, fake_engine):
    engine = fake_engine(40)
    with workdir.catch_signals():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted, match="stopped by SIGINT; the same command continues"):
            train(engine, PLAN, tmp_path, show="none")
    assert ("update", 0) not in engine.events
    assert train(engine, PLAN, tmp_path, show="none")["num_updates"] == 5


def test_a_folder_belongs_to_a_run_or_a_study(tmp_path, fake_engine):
    claim(tmp_path, "study")
    claim(tmp_path, "study")
    refused = "empty or of this run: it is the folder of a study; choose another, or remove it"
    with pytest.raises(InvalidArgument, match=refused):
        train(fake_engine(40), PLAN, tmp_path, show="none")
    assert [path.name for path in tmp_path.iterdir()] == ["identity.json"]
    train(fake_engine(40), PLAN, tmp_path / "run", show="none")
    for _ in range(2):
        with pytest.raises(InvalidArgument, match=r"empty or of this study: it is the folder of a run; choose another"):
            claim(tmp_path / "run", "study")
        (tmp_path / "run" / "identity.json").unlink(missing_ok=True)  # as in older folders
    (tmp_path / "old" / "runs").mkdir(parents=True)
    with pytest.raises(InvalidArgument, match=refused):
        train(fake_engine(40), PLAN, tmp_path / "old", show="none")


def test_a_run_that_fails_before_its_first_checkpoint_leaves_its_folder_to_any(tmp_path, fake_engine):
    train(fake_engine(40), PLAN, tmp_path / "parent", show="none")
    with contextlib.closing(Checkpoints(tmp_path / "parent" / "checkpoints", read_only=True)) as checkpoints:
        parent = checkpoints.restore(first_replica(fake_engine(40).init()))
    for fork in (None, parent):
        workdir = tmp_path / ("run" if fork is None else "fork")
        with pytest.raises(IndexError):
            train(fake_engine(40, losses=[], task={"loss": "wrong"}), PLAN, workdir, fork=fork, show="none")
        train(fake_engine(40, task={"loss": "mended"}), PLAN, workdir, should_stop=lambda: True, fork=fork, show="none")
        with pytest.raises(InvalidArgument, match=r"it has task.loss 'mended' there, 'other' here"):
            train(fake_engine(40, task={"loss": "other"}), PLAN, workdir, fork=fork, show="none")


def test_a_summary_without_an_identity_is_refused(tmp_path, fake_engine):
    (tmp_path / "summary.json").write_text('{"completed": true, "num_updates": 5}')
    with pytest.raises(InvalidArgument, match=r"summary.json without an identity.json; choose another, or remove it"):
        train(fake_engine(40), PLAN, tmp_path, show="none")
    (tmp_path / "summary.json").write_text("")
    train(fake_engine(40), PLAN, tmp_path, show="none")
    (tmp_path / "summary.json").write_text("")  # the run continues from its last checkpoint, at its end
    engine = fake_engine(40)
    assert train(engine, PLAN, tmp_path, show="none") == read_json(tmp_path / "summary.json")
    assert engine.events == []


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"kind": "run"}'])
def test_a_damaged_identity_is_one_line_with_the_way_out(tmp_path, text):
    (tmp_path / "identity.json").write_text(text)
    with pytest.raises(
        RunError, match=rf"^{tmp_path}/identity.json .*; remove it, and the run checks its last checkpo"
    ):
        is_claimed(tmp_path, "run")


def test_differences_are_named_by_their_owners():
    def identity(model, others, seed):
        optimizer = {"b2": 0.9, "others": others}
        return {"task": {"model": "A" * 80 + model + "B" * 80}, "optimizer": optimizer, "seed": seed}

    there = identity("x = 1", {}, [1])
    assert differences(there, {**identity("x = 1", {}, (1,)), "data": {"new": 1}}) == ""
    assert differences({**there, "config": {}}, {**there, "config": {"commit": "1"}}) == ""
    model, others, seed = differences(there, identity("x = 2", {"b1": 1}, [2])).split("; ")
    assert "x = 1" in model and "x = 2" in model and len(model) < 180
    assert (others, seed) == ("optimizer.others {} there, nothing here", "seed [1] there, [2] here")
