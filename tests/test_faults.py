"""Real processes that are asked to stop, killed, or in each other's way."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SMALL = ["--model_depth=1", "--model_width=4", "--checkpoint_every_epochs=0.1", "--checkpoint_min_s=0"]
TIMEOUT_S = 120


def command(script, workdir, *flags):
    return [sys.executable, "-m", f"experiments.{script}", f"--workdir={workdir}", *SMALL, *flags]


def environment():
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
    }


def start(*arguments):
    return subprocess.Popen(command(*arguments), env=environment(), stdout=-1, stderr=-1, text=True)


def wait_for_checkpoint(process, workdir):
    deadline = time.monotonic() + TIMEOUT_S
    while not [*workdir.glob("checkpoints/[0-9]*[0-9]"), *workdir.glob("runs/*/checkpoints/[0-9]*[0-9]")]:
        if time.monotonic() > deadline or process.poll() is not None:
            process.kill()
            pytest.fail(f"there is no checkpoint:\n{process.communicate()}")
        time.sleep(0.02)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_a_checkpoint_and_its_exit_code(tmp_path, signum, code):
    process = start("train", tmp_path)
    wait_for_checkpoint(process, tmp_path)
    process.send_signal(signum)
    asked = time.monotonic()
    _, error = process.communicate(timeout=TIMEOUT_S)
    assert time.monotonic() - asked < 10
    assert process.returncode == code
    name = signal.Signals(signum).name
    assert f"{name}: stopping; a second one ends at once\n" in error
    assert error.endswith(f"error: stopped by {name}; the same command goes on\n")
    assert "Traceback" not in error
    assert not (tmp_path / "summary.json").exists()


def test_a_study_stops_all_its_runs_with_checkpoints(tmp_path):
    process = start("figure5", tmp_path, "--seeds=1", "--jobs=2")
    wait_for_checkpoint(process, tmp_path)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 143, error
    assert error.endswith("error: stopped by SIGTERM; the same command goes on\n")
    assert "Traceback" not in error
    runs = [path.parent for path in tmp_path.glob("runs/*/config.json")]
    assert runs
    for run in runs:
        # The folder is let go, and its last checkpoint is that of its last line or later.
        assert list(run.glob("checkpoints/[0-9]*")) or not (run / "metrics.jsonl").read_text()


def test_a_study_that_dies_takes_its_runs_with_it(tmp_path):
    flags = ["--seeds=1", "--jobs=2", "--num_epochs=400", "--lr_decay_epochs=300"]
    process = start("figure5", tmp_path, *flags)
    wait_for_checkpoint(process, tmp_path)
    process.kill()
    process.communicate(timeout=TIMEOUT_S)
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:  # until the folders are free
        second = subprocess.run(
            [*command("figure5", tmp_path, *flags), "--stop_after_s=0.1"],
            env=environment(),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        if second.returncode == 0:
            break
        assert re.search(r"error: .* is in use by process \d+ on ", second.stderr)
    assert "0 of 4 runs are complete; the same command goes on" in second.stdout


def test_a_folder_in_use(tmp_path):
    process = start("train", tmp_path)
    wait_for_checkpoint(process, tmp_path)
    second = subprocess.run(
        command("train", tmp_path), env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S
    )
    process.kill()
    process.communicate()
    assert second.returncode == 1
    assert second.stderr == f"error: {tmp_path} is in use by process {process.pid} on {os.uname().nodename}\n"


def test_killed_and_damaged_at_random_a_run_ends_with_the_same_bits(tmp_path):
    """A short form of the 100 rounds."""
    torture = [sys.executable, "scripts/torture.py", "--rounds=4", "--num_epochs=3", "--longest_wait_s=0.2"]
    result = subprocess.run(
        [*torture, f"--workdir={tmp_path}"], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert re.search(r"^4 kills .* parameters and metrics equal to the last bit$", result.stdout, re.M), result.stdout


def test_torture_sees_a_difference(tmp_path):
    """So that the test above can fail: a run whose metrics are not those of the other one."""
    code = """
import pathlib, sys
sys.path.insert(0, "scripts")
import torture
workdir = pathlib.Path(sys.argv[1])
expected = torture.result(workdir)
torture.compare(workdir, expected)
for name in ("metrics", "summary", next(name for name in expected if "params" in name)):
    try:
        torture.compare(workdir, {**expected, name: None})
    except torture.Different as different:
        print(str(different).split(" in ")[-1])
"""
    run = tmp_path / "run"
    flags = ["--num_epochs=0.2", "--lr_decay_epochs=0.1"]
    subprocess.run(command("train", run, *flags), env=environment(), capture_output=True, check=True)
    result = subprocess.run(
        [sys.executable, "-c", code, run], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    lines = result.stdout.splitlines()
    assert lines[:2] == ["metrics", "summary"], result.stderr
    assert "params" in lines[2]


def test_a_full_disk_is_said_in_a_line(tmp_path):
    """A limit on the size of files stands for it."""
    limited = ["sh", "-c", 'ulimit -f 40; exec "$@"', "sh", *command("train", tmp_path, "--nocompilation_cache")]
    limited.append("--model_width=32")
    result = subprocess.run(limited, env=environment(), capture_output=True, text=True, timeout=TIMEOUT_S)
    assert result.returncode == 1
    said = r"^error: .*(cannot be written|File too large|No space left).*$"
    assert re.search(said, result.stderr, re.M), result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "summary.json").exists()
