"""All runs of the paper: which they are, how far they are, and working on them a slice after the other."""

import csv
import dataclasses
import json
import re
import subprocess
import sys

import numpy as np
import pytest

from bsjax.checkpoint import Checkpoint, Checkpoints
from experiments import paper_runs, presets, runs, studies
from experiments.config import Config

# An mlp compiles fast; --rehearse and --list say nothing of how well it learns.
_ARGUMENTS = ("--preset=digits", "--model=mlp", "--model_width=8", "--num_epochs=1", "--lr_decay_epochs=0.4,0.8")


def call(*arguments, without=()):
    """Runs the script in a process where some packages cannot be imported."""
    hide = f"import sys; sys.modules.update(dict.fromkeys({list(without)!r}))"
    code = f"{hide}; import runpy; runpy.run_module('experiments.paper_runs', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", code, *_ARGUMENTS, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture
def study(tmp_path):
    preset = presets.get("cifar10")
    return studies.Study(preset, preset.config, tmp_path, range(5), jobs=1, control=runs.Control())


def test_every_run_of_the_papers_cifar10_figures_is_there_once_and_figure5_comes_first(study):
    todo = paper_runs.paper_runs(study)
    per_seed = 3 + 1 + 2 + 3 + 6 + 5  # Figures 5 (without the original), 2 (with it), 3, 4, 8
    assert len(todo) == 5 * per_seed
    assert [figures[0] for figures in todo.values()][:20] == ["figure5"] * 20
    first = list(todo)
    assert [config.seed for config in first[:8]] == [0] * 4 + [1] * 4
    assert [config.seed for config in first[20:36]] == [0] * 16
    assert todo[study.config] == ["figure5", "figure2", "figure3"]
    for figure, configs in presets.figures(study.preset, study.config).items():
        for seed in study.seeds:
            for config in configs:
                assert figure in todo[dataclasses.replace(config, seed=seed)]


def test_status(tmp_path):
    config, dataset_size = Config(), 1437
    assert paper_runs.status(config, tmp_path / "run", dataset_size) == ("missing", "10,778 updates")
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    for update in (180, 1200):
        checkpoints.save(Checkpoint(update, {"x": np.ones(1)}, {}))
    checkpoints.close()
    assert paper_runs.status(config, tmp_path / "run", dataset_size) == ("part", "update 1,200 of 10,778")
    for summary, outcome in (
        ({"completed": True, "final_test_accuracy": 0.987654, "wall_time_s": 1234.5}, "98.77 %, 1,234 s"),
        ({"completed": False, "error": "train_loss is nan"}, "diverged"),
    ):
        (tmp_path / "run" / "summary.json").write_text(json.dumps(summary))
        assert paper_runs.status(config, tmp_path / "run", dataset_size) == ("done", outcome)


def test_rehearse_runs_every_phase_of_every_schedule_without_pictures_or_bars(tmp_path):
    result = call(
        "--rehearse",
        "--seeds=1",
        "--figures=5,4",
        f"--workdir={tmp_path}",
        without=["tqdm", "matplotlib", "matplotlib.pyplot", "tensorflow_datasets", "tensorflow", "grain"],
    )
    assert result.returncode == 0, result.stderr
    sizes = {}
    for line in result.stdout.splitlines()[1:]:
        if line.endswith("seed=0"):
            phases = sizes[line.replace("model=mlp,model_width=8,num_epochs=1.0,lr_decay_epochs=0.4+0.8,", "")] = []
        else:
            assert re.fullmatch(r" +[\d,]+ +[\d,]+ +[\d.]+ +[\d.]+ +[\d.]+ +[\d,]+ +[\d.]+", line), line
            phases.append(int(line.split()[0].replace(",", "")))
    assert len(sizes) == 4 + 6
    assert sizes["seed=0"] == [8]
    assert sizes["schedule=increase_batch_size,max_batch_size=144,seed=0"] == [8, 40, 144]
    assert not (tmp_path / "runs").exists()


def test_slices_of_time_come_to_the_end(tmp_path):
    arguments = ("--seeds=1", "--jobs=1", f"--workdir={tmp_path}")
    stopped = call(*arguments, "--seconds=0.001")
    assert (stopped.returncode, stopped.stderr) == (0, "")
    assert stopped.stdout == "0 of 19 runs are complete; the same command goes on.\n"
    assert call(*arguments, "--list").stdout.endswith("0 done, 0 part, 19 missing\n")

    result = call(*arguments, "--seconds=290")
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("All 19 runs are complete.\n")
    assert call(*arguments, "--list").stdout.endswith("19 done, 0 part, 0 missing\n")

    # What the study's tables say is what the runs say.
    with open(tmp_path / "summary.csv", newline="", encoding="utf-8") as file:
        summaries = list(csv.DictReader(file))
    with open(tmp_path / "metrics.csv", newline="", encoding="utf-8") as file:
        points = list(csv.DictReader(file))
    assert len(summaries) == 19
    for row in summaries:
        summary = json.loads((tmp_path / "runs" / row["run"] / "summary.json").read_text())
        assert float(row["final_test_accuracy"]) == pytest.approx(summary["final_test_accuracy"], rel=1e-5)
        assert int(row["num_updates"]) == summary["num_updates"]
        last = [point for point in points if point["number"] == row["number"]][-1]
        assert int(last["update"]) == summary["num_updates"]
        assert float(last["test_accuracy"]) == pytest.approx(summary["final_test_accuracy"], rel=1e-4)
        assert float(last["train_loss"]) == pytest.approx(summary["final_train_loss"], rel=1e-4)


def test_a_figure_that_there_is_not(tmp_path):
    result = call("--list", "--figures=5,6", f"--workdir={tmp_path}")
    assert (result.returncode, result.stdout) == (2, "")
    expected = "--figures is 'figure6'; it must be one of figure5, figure2, figure3, figure4, figure8; nearest: figure"
    assert result.stderr.startswith(f"error: {expected}")
