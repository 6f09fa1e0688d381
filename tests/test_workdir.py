"""A folder has one writer at a time; the first signal asks, the second one ends."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import pytest

from bsjax import InvalidArgument, workdir
from bsjax.errors import RunError

ROOT = pathlib.Path(__file__).parents[1]


def start_python(code: str, *arguments) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_folder_is_held_by_one_process_and_let_go_when_it_dies(tmp_path):
    holder = start_python(
        """
        import pathlib, sys, time
        from bsjax import workdir
        with workdir.lock(pathlib.Path(sys.argv[1])):
            print("held", flush=True)
            time.sleep(600)
        """,
        tmp_path,
    )
    with holder:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(RunError, match=rf"{tmp_path} is in use by process {holder.pid} on {os.uname().nodename}$"),
            workdir.lock(tmp_path),
        ):
            pass
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
def test_a_signal_is_caught_once_and_the_handlers_are_put_back(capfd, signum):
    before = signal.getsignal(signum)
    calls = []
    with workdir.catch_signals(at_first=lambda: calls.append("first")) as caught:
        assert caught() is None
        os.kill(os.getpid(), signum)
        assert caught() == signum
        assert calls == ["first"]
    assert signal.getsignal(signum) is before
    assert capfd.readouterr().err == f"{signum.name}: stopping; a second one ends at once\n"


def test_a_second_signal_ends_at_once():
    process = start_python(
        """
        import time
        from bsjax import workdir
        with workdir.catch_signals(at_second=lambda: print("bye", flush=True)):
            print("ready", flush=True)
            while True:
                time.sleep(600)
        """
    )
    with process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert "stopping" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == -signal.SIGTERM
        assert process.stdout.read() == "bye\n"


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with workdir.catch_signals() as caught:
            os.kill(os.getpid(), signal.SIGINT)
            assert caught() is None
    finally:
        signal.signal(signal.SIGINT, before)
