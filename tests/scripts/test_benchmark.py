"""The benchmark runs end to end, compares like with like, and counts compilations right. Times are not looked at."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    output = tmp_path_factory.mktemp("benchmark") / "benchmark.json"
    command = [sys.executable, "scripts/benchmark.py", "--quick", f"--output={output}"]
    # Without optimizations, compiling takes a third of the time.
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(output.read_text())


def test_the_bare_loop_trains_as_the_engine_does(results):
    fixed, automatic = results["throughput"]
    assert (fixed["batch_size"], fixed["microbatch_size"], fixed["automatic"]) == (32, 32, False)
    assert (automatic["batch_size"], automatic["automatic"]) == (128, True)
    assert automatic["microbatch_size"] % 32 == automatic["bare_batch_size"] % 32 == 0
    for row in fixed, automatic:
        assert row["max_loss_difference"] < 1e-5
        assert row["ratio_quartiles"][0] <= row["ratio"] <= row["ratio_quartiles"][1]
        assert row["engine_images_per_second"] > 0 and row["bare_images_per_second"] > 0


def test_memory_is_that_of_training(results):
    for row, loop in zip(results["memory"], ("engine", "bare"), strict=True):
        assert row["loop"] == loop
        assert row["batch_sizes"] == [64, 128]
        assert min(row["bytes"]) > 2**20
        assert row["ratio"] == row["bytes"][1] / row["bytes"][0]


def test_only_the_bare_loop_compiles_for_each_batch_size(results):
    bare, engine, automatic = results["batch_size_change"]
    assert bare["batch_sizes"] == engine["batch_sizes"] == automatic["batch_sizes"] == [64, 96, 128, 256]
    assert bare["compilations_at_start"] + bare["further_compilations"] == 4
    assert engine["further_compilations"] == 0
    assert engine["compile_stall_s"] == 0
    # Several microbatches of 32 for each: zero_accumulator, accumulate, apply_update.
    assert automatic["compilations_at_start"] == 3
    assert automatic["further_compilations"] == 0


def test_training_is_timed_with_and_without_the_gradient_noise_and_checkpoints(results):
    noise, checkpoints = results["gradient_noise"], results["checkpoints"]
    [layer_norms] = results["layer_norm_noise"]
    assert (noise["batch_size"], noise["microbatch_size"]) == (128, 32)
    assert layer_norms["max_loss_difference"] < 1e-5
    assert checkpoints["num_checkpoints"] == 1  # the last one: nothing else was due
    for row in noise, layer_norms, checkpoints:
        assert min(row["seconds"]) > 0
        assert 0 < row["ratio_quartiles"][0] <= row["ratio"] <= row["ratio_quartiles"][1]


def test_the_accelerators_benchmark_in_small(tmp_path):
    """Both loops run at both batch sizes, and the peak that a CPU does not have is null."""
    output = tmp_path / "accelerator.json"
    command = [sys.executable, "scripts/benchmark.py", "--accelerator", "--quick", f"--output={output}"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    [results] = json.loads(output.read_text())
    assert (results["model"], results["dtype"], results["num_devices"]) == ("WRN-10-1", "float32", 1)
    assert [row["batch_size"] for row in results["rows"]] == [16, 32]
    for row in results["rows"]:
        assert row["pairs"] == 2
        assert row["ratio_quartiles"] == sorted(row["ratio_quartiles"])
        for loop in row["engine"], row["bare"]:
            assert loop["images_per_second"] > 0
            assert loop["model_flop_utilisation"] is loop["peak_bytes"] is None
        cost = row["engine"]["cost_per_update"]
        assert cost["flops"] > row["batch_size"] * results["model_flops_per_image"] > 1e8
        assert cost["bytes_accessed"] > 1e6
    assert len(result.stdout.splitlines()) == 2
