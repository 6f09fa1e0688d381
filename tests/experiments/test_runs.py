"""Runs are trained once, side by side or not, with the same result; a folder belongs to one run."""

import json
import os
import pathlib

import pytest

from bsjax import InvalidArgument
from bsjax.errors import DivergedError, RunError
from experiments.harness import build, runs, studies
from experiments.harness.config import Config
from experiments.harness.control import Control
from experiments.harness.pool import StoppedEarly

# An mlp compiles fast.
_SMALL = Config().replace(
    model="mlp",
    model_width=8,
    num_epochs=0.5,
    lr_decay_epochs=(0.2,),
    schedule="increase_batch_size",
    max_batch_size=40,
    microbatch_size="auto",
)


def test_a_run_leaves_its_files_and_is_not_run_again(tmp_path: pathlib.Path, read_csv):
    workdir = tmp_path / "runs" / "run"
    summary = runs.train(_SMALL, workdir)
    assert summary["num_updates"] == build.recipe(_SMALL, 1437).plan().num_updates
    assert json.loads((workdir / "summary.json").read_text()) == summary
    written = json.loads((workdir / "config.json").read_text())
    assert written["config"]["conversion"]["max_batch_size"] == 40
    assert written["versions"]["jax"] and written["devices"]

    before = {path: path.stat().st_mtime_ns for path in workdir.iterdir()}
    assert runs.train(_SMALL, workdir) == summary
    assert {path: path.stat().st_mtime_ns for path in workdir.iterdir()} == before

    (workdir / "config.json").write_text("{")
    with pytest.raises(RunError, match=r"config.json cannot be read: .*; mend or remove this file; the run can do"):
        runs.train(_SMALL, workdir)
    (workdir / "config.json").unlink()
    assert runs.train(_SMALL, workdir) == summary
    with pytest.raises(InvalidArgument, match=r"it has config.run.seed 0 there, 1 here"):
        runs.train(_SMALL.replace(seed=1), workdir)
    studies.write_summary(tmp_path)
    assert [row["device"] for row in read_csv(tmp_path / "summary.csv")] == [""]


def test_nothing_is_written_where_a_flag_is_wrong(tmp_path: pathlib.Path):
    for wrong in ({"dataset": "cifar"}, {"microbatch_size": 12}, {"augmentation": "flip"}, {"batch_size": 12}):
        with pytest.raises(InvalidArgument, match=f"^{next(iter(wrong))} is "):
            runs.train(Config().replace(**wrong), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_runs_stop_in_time_and_go_on(tmp_path: pathlib.Path):
    configs = [_SMALL, _SMALL.replace(seed=1)]
    with pytest.raises(StoppedEarly, match="0 of 2 runs are complete; the same command continues"):
        runs.train_all(configs, Config(), tmp_path, jobs=1, control=Control(stop_at=0.0))
    with pytest.raises(StoppedEarly, match="stopped; the same command continues"):
        runs.train(_SMALL, tmp_path / runs.run_name(_SMALL, Config()), Control(stop_at=0.0))
    results = runs.train_all(configs, Config(), tmp_path, jobs=1)
    expected = runs.train(_SMALL, tmp_path / "whole")
    assert results[0].summary["final_test_loss"] == expected["final_test_loss"]


def test_a_diverged_run_stays_diverged(tmp_path: pathlib.Path):
    wild = _SMALL.replace(learning_rate=1e8)
    for _ in range(2):
        with pytest.raises(DivergedError, match=r"at update .* batch_size 8, learning_rate 1e.08"):
            runs.train(wild, tmp_path)


def test_side_by_side_gives_what_one_after_the_other_gives(tmp_path: pathlib.Path, capsys):
    configs = [_SMALL.replace(seed=0), _SMALL.replace(learning_rate=1e8)]
    cores = os.sched_getaffinity(0)
    alone = runs.train_all(configs, Config(), tmp_path / "alone", jobs=1)
    together = runs.train_all(configs, Config(), tmp_path / "together", jobs=2)
    assert os.sched_getaffinity(0) == cores
    # A worker has one device, this process has eight, so the sums are in another order.
    assert alone[0].summary["final_test_loss"] == pytest.approx(together[0].summary["final_test_loss"], rel=1e-4)
    assert [result.summary["completed"] for result in together] == [True, False]

    capsys.readouterr()
    assert runs.train_all(configs, Config(), tmp_path / "together", jobs=2) == together  # nothing to do
    assert capsys.readouterr().out == ""
