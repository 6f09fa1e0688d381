"""`experiments.train --multihost`: processes that find each other, train as one, stop as one, and do not hang."""

import json
import pathlib
import signal
import socket
import subprocess
import time

import pytest

from bsjax.run import read_metrics

RUN = [
    *("--model_depth=1", "--model_width=4", "--augmentation=crop", "--dropout=0.1", "--num_epochs=2"),
    *("--lr_decay_epochs=0.5,1", "--lr_decay_factor=2", "--schedule=increase_batch_size"),
    *("--eval_every_epochs=0.25", "--log_every_epochs=0.25", "--microbatch_size=auto"),
]
TIMEOUT_S = 240


class Processes:
    """Processes of one run on this machine, each with devices of its own."""

    def __init__(self, start_python, workdir: pathlib.Path, devices: tuple[int, ...], *flags: str, only: str = ""):
        """Starts one for each number of devices; `only` is a flag of the last one."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            shared = [f"--coordinator_address=localhost:{free.getsockname()[1]}", f"--num_processes={len(devices)}"]
        shared = ["-m", "experiments.train", f"--workdir={workdir}", *RUN, *flags, "--multihost", *shared]
        self._logs = [workdir.with_name(f"{workdir.name}-{process}.log") for process, _ in enumerate(devices)]
        self.processes = []
        for process, (log, num_devices) in enumerate(zip(self._logs, devices, strict=True)):
            own = [f"--process_id={process}"] + [only] * (only != "" and process == len(devices) - 1)
            with open(log, "w") as file:
                options = {"num_devices": num_devices, "stdout": file, "stderr": subprocess.STDOUT}
                self.processes.append(start_python(*shared, *own, **options))

    def wait(self) -> list[int]:
        """Their exit codes; fails if one hangs."""
        deadline = time.monotonic() + TIMEOUT_S
        try:
            return [process.wait(max(0.1, deadline - time.monotonic())) for process in self.processes]
        except subprocess.TimeoutExpired:
            pytest.fail(f"a process hangs\n{self}")
        finally:
            for process in self.processes:
                process.kill()
                process.wait()

    def log(self, process: int) -> str:
        return self._logs[process].read_text()

    def __str__(self) -> str:
        return "\n".join(f"== {log.name}\n{log.read_text()[-4000:]}" for log in self._logs)


@pytest.fixture
def start(start_python, tmp_path):
    """A function that starts the processes of the test's run."""
    return lambda *arguments, **options: Processes(start_python, tmp_path / "run", *arguments, **options)


def lines_of(workdir: pathlib.Path) -> list[dict]:
    # The times differ, and the noise between devices: one device, with one microbatch at first, sees less of it.
    left_out = ("examples_per_second", "input_wait_s", "gradient_noise_scale", "grad_sq", "grad_trace")
    lines = read_metrics(workdir / "metrics.jsonl")
    return [{name: value for name, value in line.items() if not name.startswith(left_out)} for line in lines]


@pytest.fixture(scope="module")
def expected(start_python, tmp_path_factory):
    """The lines of one process with one device."""
    workdir = tmp_path_factory.mktemp("one")
    process = start_python("-m", "experiments.train", f"--workdir={workdir}", *RUN)
    assert process.communicate(timeout=TIMEOUT_S) and process.returncode == 0
    return lines_of(workdir)


def assert_completes(processes: Processes, workdir: pathlib.Path, expected: list[dict]) -> None:
    """The processes end, and write the lines of a single one."""
    assert not any(processes.wait()), str(processes)
    for line, other in zip(lines_of(workdir), expected, strict=True):
        assert line == pytest.approx(other, rel=2e-3, abs=1e-6)


def test_two_processes_are_one(start, tmp_path, expected):
    """Ghosts of 8 span both processes: a device's share of the first batches is two examples. Both measure as one."""
    processes = start((2, 2), "--microbatch_size=measure")
    assert_completes(processes, tmp_path / "run", expected)
    assert "test accuracy" in processes.log(0)
    assert "accuracy" not in processes.log(1)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["num_devices"] == 4


def test_one_dies_the_others_end_and_two_continue_the_run_of_four(start, wait_for_checkpoint, tmp_path, expected):
    """The four share the optimizer's state, the two do not."""
    processes = start((2, 2, 2, 2), "--checkpoint_every_epochs=0.1", "--shard_optimizer")
    wait_for_checkpoint(tmp_path / "run", *processes.processes)
    processes.processes[2].kill()
    killed = time.monotonic()
    codes = processes.wait()
    assert time.monotonic() - killed < 60
    assert codes[2] == -signal.SIGKILL
    assert all(codes), str(processes)
    assert not (tmp_path / "run" / "summary.json").exists()
    for process in (0, 1, 3):
        last = processes.log(process).splitlines()[-1]
        assert last.startswith("error: ")
        assert "another process of the run" in last
    assert_completes(start((1, 1)), tmp_path / "run", expected)


def test_a_signal_to_one_stops_all_and_they_continue(start, wait_for_checkpoint, tmp_path, expected):
    processes = start((1, 1), "--checkpoint_every_epochs=0.1")
    wait_for_checkpoint(tmp_path / "run", *processes.processes)
    processes.processes[1].send_signal(signal.SIGTERM)
    assert processes.wait() == [143, 143], str(processes)
    assert "error: stopped by SIGTERM; the same command continues" in processes.log(0)
    assert_completes(start((1, 1), "--checkpoint_every_epochs=0.1"), tmp_path / "run", expected)


@pytest.mark.parametrize(
    ("devices", "only", "refused"),
    [
        ((1, 1), "--seed=3", "--seed is '3'; it must be '0' as in process 0; this is process 1\n"),
        (
            (1, 2),
            "",
            "--multihost is True; it must be of processes with as many devices as each other; "
            "process 0 has 1, process 1 has 2\n",
        ),
    ],
    ids=["flags", "devices"],
)
def test_processes_that_differ(start, tmp_path, devices, only, refused):
    processes = start(devices, only=only)
    assert processes.wait() == [2, 2], str(processes)
    assert all(f"error: {refused}" in processes.log(process) for process in (0, 1)), str(processes)
    assert not (tmp_path / "run").exists()
