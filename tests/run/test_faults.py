"""Real processes that are asked to stop, killed, or in each other's way."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

TIMEOUT_S = 120


@pytest.fixture
def start(start_python, tmp_path):
    """A function that starts a script on a small model, in the test's folder."""
    small = ["--model_depth=1", "--model_width=4", "--checkpoint_every_epochs=0.1", "--checkpoint_min_s=0"]
    small.append("--microbatch_size=auto")
    return lambda script, *flags: start_python("-m", f"experiments.{script}", f"--workdir={tmp_path}", *small, *flags)


def end_of(process):
    """The exit code, stdout and stderr of a process."""
    output, error = process.communicate(timeout=TIMEOUT_S)
    assert "Traceback" not in error
    return process.returncode, output, error


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_a_checkpoint_and_its_exit_code(start, wait_for_checkpoint, tmp_path, signum, code):
    process = start("train")
    wait_for_checkpoint(tmp_path, process)
    process.send_signal(signum)
    asked = time.monotonic()
    returned, _, error = end_of(process)
    assert time.monotonic() - asked < 10
    assert returned == code
    name = signal.Signals(signum).name
    assert f"{name}: stopping; a second signal ends the process at once\n" in error
    assert error.endswith(f"error: stopped by {name}; the same command continues\n")
    assert not (tmp_path / "summary.json").exists()


def test_a_study_stops_all_its_runs_with_checkpoints(start, wait_for_checkpoint, tmp_path):
    process = start("figure5", "--nocontrols", "--seeds=1", "--jobs=2")
    wait_for_checkpoint(tmp_path, process)
    process.send_signal(signal.SIGTERM)
    code, _, error = end_of(process)
    assert code == 143, error
    assert error.endswith("error: stopped by SIGTERM; the same command continues\n")
    runs = [path.parent for path in tmp_path.glob("runs/*/config.json")]
    assert runs
    for run in runs:
        # The last checkpoint is at the last line or later.
        assert list(run.glob("checkpoints/[0-9]*")) or not (run / "metrics.jsonl").read_text()


def test_a_study_that_dies_takes_its_runs_with_it(start, wait_for_checkpoint, tmp_path):
    flags = ["--nocontrols", "--seeds=1", "--jobs=2", "--num_epochs=400", "--lr_decay_epochs=300"]
    process = start("figure5", *flags)
    wait_for_checkpoint(tmp_path, process)
    process.kill()
    process.communicate(timeout=TIMEOUT_S)
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:  # until the folders are free
        code, output, error = end_of(start("figure5", *flags, "--stop_after_s=0.1"))
        if code == 0:
            break
        assert re.search(r"error: .* is in use by process \d+ on ", error)
    assert "0 of 4 runs are complete; the same command continues" in output


def test_killed_and_damaged_at_random_a_run_ends_with_the_same_bits(start_python, tmp_path):
    """A short form of the 100 rounds; and a comparison of the run in peace with what differs from it must fail."""
    flags = ["--rounds=3", "--num_epochs=3", "--longest_wait_s=0.2", f"--workdir={tmp_path}"]
    output, error = start_python("scripts/torture.py", *flags).communicate()
    assert re.search(r"^3 kills .* parameters and metrics equal to the last bit$", output, re.M), output + error
    code = """
import pathlib, sys
sys.path.insert(0, "scripts")
import torture
workdir = pathlib.Path(sys.argv[1])
expected = torture.result(workdir)
for name in ("metrics", "summary", next(name for name in expected if "params" in name)):
    try:
        torture.compare(workdir, {**expected, name: None})
    except torture.Different as different:
        print(str(different).split(" in ")[-1])
"""
    _, output, error = end_of(start_python("-c", code, tmp_path / "peace"))
    assert re.fullmatch(r"metrics\nsummary\n.*params.*\n", output), error


def test_ctrl_c_ends_a_study_that_compiles_without_training(start, tmp_path):
    process = start("figure5", "--nocontrols", "--seeds=1", "--jobs=2", "--nocompilation_cache")
    while not list(tmp_path.glob("runs/*/identity.json")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    code, _, error = end_of(process)
    assert (code, error.splitlines()[-1]) == (130, "error: stopped by SIGINT; the same command continues")
    assert not list(tmp_path.glob("runs/*/checkpoints/*"))


@pytest.mark.parametrize(
    ("script", "size"), [("train", 4), ("train", 200), ("figure5 --nocontrols --seeds=1 --jobs=2", 300)]
)
def test_on_a_full_disk_and_then_with_space_again(tmp_path, script, size):
    """A file system in memory, of so many KiB. The run writes checkpoints of 80 KiB."""
    if subprocess.run(["sh", "-c", f"unshare -rm mount -t tmpfs tmpfs {tmp_path}"], capture_output=True).returncode:
        pytest.skip("this system mounts no file systems for its users")
    flags = "--model=mlp --num_epochs=4 --checkpoint_every_epochs=1 --checkpoint_min_s=0 --microbatch_size=auto"
    check = "import json, pathlib; [json.loads(path.read_text()) for path in pathlib.Path().glob('**/*.json')]"
    program = f"""
run() {{ {sys.executable} -m experiments.{script} {flags} --workdir={tmp_path}/run || code=$?; echo code $code >&2; }}
code=0
mount -t tmpfs -o size={size}k tmpfs {tmp_path}
run
(cd {tmp_path} && {sys.executable} -c "{check}")
mount -o remount,size=100m {tmp_path}
code=0
run
"""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    command = ["unshare", "-rm", "sh", "-ec", program]
    error = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT_S).stderr
    lines = [line for line in error.splitlines() if not line.startswith(("epoch ", "The preset's decays move"))]
    assert re.fullmatch(rf"error: .*{tmp_path}/run/?.* cannot be written: No space left on device", lines[0]), error
    assert lines[1:] == ["code 1", "code 0"], error


def test_a_full_disk_is_an_error_of_one_line(start_python, tmp_path):
    """A limit on the size of files stands for a full disk."""
    code = """
import resource, runpy
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
runpy.run_module("experiments.train", run_name="__main__", alter_sys=True)
"""
    flags = ["--model_depth=1", "--model_width=32", "--nocompilation_cache", "--microbatch_size=auto"]
    code, _, error = end_of(start_python("-c", code, f"--workdir={tmp_path}", *flags))
    assert code == 1
    assert re.search(rf"^error: .*{tmp_path}.* cannot be written: .*$", error, re.M), error
    assert not (tmp_path / "summary.json").exists()
