"""`experiments.train --multihost`: processes that find each other, train as one, stop as one, and do not hang."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from experiments import runs
from experiments.config import Config

RUN = Config(
    model_depth=1,
    model_width=4,
    augmentation="crop",
    dropout=0.1,
    num_epochs=2.0,
    lr_decay_epochs=(0.5, 1.0),
    lr_decay_factor=2.0,
    schedule="increase_batch_size",
    eval_every_epochs=0.25,
    log_every_epochs=0.25,
)
TIMEOUT_S = 240


class Processes:
    """Processes of one run on this machine, each with devices of its own."""

    def __init__(self, workdir: pathlib.Path, num_processes: int, num_devices: int, *flags: str, only: str = ""):
        """Starts them; `only` is a flag of the last one alone."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        root = pathlib.Path(__file__).parents[1]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(num_devices),
        }
        self.workdir = workdir
        self._logs = [workdir.with_name(f"{workdir.name}-{process}.log") for process in range(num_processes)]
        self.processes = []
        for process, log in enumerate(self._logs):
            command = [sys.executable, "-m", "experiments.train", f"--workdir={workdir}", "--multihost"]
            command += [f"--coordinator_address={address}", f"--num_processes={num_processes}"]
            command += [f"--process_id={process}", *flags_of(RUN), *flags]
            command += [only] if only and process == num_processes - 1 else []
            with open(log, "w") as file:
                popen = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
            self.processes.append(popen)

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

    def wait_for_checkpoint(self) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not list(self.workdir.glob("checkpoints/[0-9]*[0-9]")):
            if time.monotonic() > deadline or any(process.poll() for process in self.processes):
                self.wait()
                pytest.fail(f"there is no checkpoint\n{self}")
            time.sleep(0.05)

    def log(self, process: int) -> str:
        return self._logs[process].read_text()

    def __str__(self) -> str:
        return "\n".join(f"== {log.name}\n{log.read_text()[-4000:]}" for log in self._logs)


def flags_of(config: Config) -> list[str]:
    values = {name: value for name, value in vars(config).items() if value != getattr(Config(), name)}
    texts = {name: ",".join(map(str, value)) if isinstance(value, tuple) else value for name, value in values.items()}
    return [f"--{name}={text}" for name, text in texts.items()]


def lines_of(workdir: pathlib.Path) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    # How fast it was, and the noise between devices: one device, with one microbatch at first, sees less of it.
    left_out = ("examples_per_second", "gradient_noise_scale", "grad_sq", "grad_trace")
    return [{name: value for name, value in line.items() if not name.startswith(left_out)} for line in lines]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The lines of one process with one device."""
    workdir = tmp_path_factory.mktemp("one")
    runs.train(RUN, workdir, runs.Control(devices="1"), show="none")
    return lines_of(workdir)


def assert_same_lines(workdir: pathlib.Path, expected: list[dict]) -> None:
    lines = lines_of(workdir)
    assert [line["update"] for line in lines] == [line["update"] for line in expected]
    for line, other in zip(lines, expected, strict=True):
        assert line == pytest.approx(other, rel=2e-3, abs=1e-6)


def test_two_processes_are_one(tmp_path, expected):
    """Ghosts of 8 span both processes: a device's share of the first batches is two examples."""
    processes = Processes(tmp_path / "run", 2, 2)
    assert processes.wait() == [0, 0], str(processes)
    assert_same_lines(tmp_path / "run", expected)
    assert "test accuracy" in processes.log(0)
    assert "accuracy" not in processes.log(1)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["num_devices"] == 4


def test_one_dies_the_others_end_and_two_go_on_where_four_were(tmp_path, expected):
    processes = Processes(tmp_path / "run", 4, 2, "--checkpoint_every_epochs=0.1")
    processes.wait_for_checkpoint()
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

    processes = Processes(tmp_path / "run", 2, 1)
    assert processes.wait() == [0, 0], str(processes)
    assert_same_lines(tmp_path / "run", expected)


def test_a_signal_to_one_stops_all_and_they_go_on(tmp_path, expected):
    processes = Processes(tmp_path / "run", 2, 1, "--checkpoint_every_epochs=0.1")
    processes.wait_for_checkpoint()
    processes.processes[1].send_signal(signal.SIGTERM)
    assert processes.wait() == [143, 143], str(processes)
    assert "error: stopped by SIGTERM; the same command goes on" in processes.log(0)
    processes = Processes(tmp_path / "run", 2, 1, "--checkpoint_every_epochs=0.1")
    assert processes.wait() == [0, 0], str(processes)
    assert_same_lines(tmp_path / "run", expected)


def test_processes_that_were_started_differently(tmp_path):
    processes = Processes(tmp_path / "run", 2, 1, only="--seed=3")
    assert processes.wait() == [2, 2], str(processes)
    for process in (0, 1):
        assert "error: --seed is '3'; it must be '0' as in process 0; this is process 1" in processes.log(process)
    assert not (tmp_path / "run").exists()
