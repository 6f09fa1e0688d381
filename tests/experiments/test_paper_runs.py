"""All runs of the paper: the list, their progress, and training them in slices of time."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from bsjax.run.checkpoint import Checkpoint, Checkpoints
from experiments import paper_runs
from experiments.harness import presets, studies
from experiments.harness.config import Config
from experiments.harness.control import Control

# An mlp compiles fast; no test here looks at its accuracy.
_ARGUMENTS = ("--preset=digits", "--model=mlp", "--model_width=8", "--num_epochs=1", "--lr_decay_epochs=0.4,0.8")
_ARGUMENTS += ("--microbatch_size=auto",)


def call_without(packages, *arguments):
    """Runs the script in a process where these packages cannot be imported."""
    hide = f"import sys; sys.modules.update(dict.fromkeys({packages!r}))"
    code = f"{hide}; import runpy; runpy.run_module('experiments.paper_runs', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", code, *_ARGUMENTS, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture
def study(tmp_path):
    preset = presets.get("cifar10")
    return studies.Study(preset, preset.config, tmp_path, range(5), jobs=1, control=Control())


def test_every_run_of_the_papers_cifar10_figures_is_there_once_and_figure5_comes_first(study):
    todo = paper_runs.paper_runs(study)
    per_seed = 3 + 1 + 2 + 3 + 6 + 5  # Figures 5 (without the original), 2 (with it), 3, 4, 8
    controls = 4 + 1 + 2  # Figures 5 and 2, 3 (Nesterov alone), 4
    assert len(todo) == 5 * (per_seed + controls)
    assert list(paper_runs.paper_runs(study, with_controls=False)) == list(todo)[: 5 * per_seed]
    assert [figures[0] for figures in todo.values()][5 * per_seed :][:20] == ["figure5"] * 20
    assert [figures[0] for figures in todo.values()][:20] == ["figure5"] * 20
    first = list(todo)
    assert [config.run.seed for config in first[:8]] == [0] * 4 + [1] * 4
    assert [config.run.seed for config in first[20:36]] == [0] * 16
    assert todo[study.config] == ["figure5", "figure2", "figure3", "figure8"]
    for part in (presets.figures, presets.figure_controls):
        for figure, configs in part(study.preset, study.config).items():
            for seed in study.seeds:
                for config in configs:
                    assert figure in todo[config.replace(seed=seed)]


def test_status(tmp_path):
    config, dataset_size = Config(), 1437
    assert paper_runs.status(config, tmp_path / "run", dataset_size) == ("missing", "10,778 updates")
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    for update in (180, 1200):
        checkpoints.save(Checkpoint(update, {"x": np.ones(1)}, {}))
    checkpoints.close()
    assert paper_runs.status(config, tmp_path / "run", dataset_size) == ("part", "update 1,200 of 10,778")
    complete = {"completed": True, "final_test_accuracy": 0.987654, "final_test_loss": 0.1, "wall_time_s": 1234.5}
    diverged = {"completed": False, "error": "train_loss is nan"}
    for summary, outcome in ((complete, "98.77 %, 1,234 s"), (diverged, "diverged")):
        (tmp_path / "run" / "summary.json").write_text(json.dumps(summary | {"num_updates": 9}))
        assert paper_runs.status(config, tmp_path / "run", dataset_size) == ("done", outcome)


def test_rehearse_runs_every_phase_of_every_schedule_without_pictures_or_bars(tmp_path):
    without = ["tqdm", "matplotlib", "matplotlib.pyplot", "tensorflow_datasets", "tensorflow", "grain"]
    flags = ("--rehearse", "--seeds=1", "--figures=5,4", "--nocontrols", f"--workdir={tmp_path}")
    result = call_without(without, *flags)
    assert result.returncode == 0, result.stderr
    sizes = {}
    for line in result.stdout.splitlines()[1:]:
        if line.endswith("seed=0"):
            name = line.replace("model=mlp,model_width=8,num_epochs=1.0,lr_decay_epochs=0.4+0.8,", "")
            phases = sizes[name.replace("microbatch_size=auto,", "")] = []
        else:
            assert re.fullmatch(r" +[\d,]+ +[\d,]+ +[\d.]+ +[\d.]+ +[\d.]+ +[\d,]+ +[\d.]+", line), line
            phases.append(int(line.split()[0].replace(",", "")))
    assert len(sizes) == 4 + 6
    assert sizes["seed=0"] == [8]
    assert sizes["schedule=increase_batch_size,max_batch_size=144,seed=0"] == [8, 40, 144]
    assert not (tmp_path / "runs").exists()


def test_slices_of_time_come_to_the_end(call, read_csv, tmp_path):
    arguments = ("paper_runs", *_ARGUMENTS, "--seeds=1", "--jobs=1", "--nocontrols", f"--workdir={tmp_path}")
    assert call(*arguments, "--list").stdout.endswith("0 done, 0 part, 18 missing\n")
    arguments += ("--figures=5",)
    stopped = call(*arguments, "--seconds=0.001")
    assert (stopped.returncode, stopped.stderr) == (0, "")
    assert stopped.stdout == "0 of 4 runs are complete; the same command continues.\n"
    assert call(*arguments, "--list").stdout.endswith("0 done, 0 part, 4 missing\n")

    result = call(*arguments, "--seconds=290")
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("All 4 runs are complete.\n")
    assert call(*arguments, "--list").stdout.endswith("4 done, 0 part, 0 missing\n")

    # The study's tables agree with the summaries of the runs.
    summaries, points = read_csv(tmp_path / "summary.csv"), read_csv(tmp_path / "metrics.csv")
    assert len(summaries) == 4
    for row in summaries:
        summary = json.loads((tmp_path / "runs" / row["run"] / "summary.json").read_text())
        assert float(row["final_test_accuracy"]) == pytest.approx(summary["final_test_accuracy"], rel=1e-5)
        assert int(row["num_updates"]) == summary["num_updates"]
        last = [point for point in points if point["number"] == row["number"]][-1]
        assert int(last["update"]) == summary["num_updates"]
        assert float(last["test_accuracy"]) == pytest.approx(summary["final_test_accuracy"], rel=1e-4)
        assert float(last["train_loss"]) == pytest.approx(summary["final_train_loss"], rel=1e-4)
