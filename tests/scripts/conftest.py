"""A cloud in a folder for scripts/tpu_vm.sh: its workers are folders too, and run their commands here."""

import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts/tpu_vm.sh"
TIMEOUT_S = 120

# `create` copies `states` to `state`, whose first line is the state of the queued resource; `describe` deletes that
# line if another one follows. A line "ACTION CODE" of `fail` makes one call fail.
GCLOUD = r"""
cd "$CLOUD"
echo "$*" >>calls
missing() { echo "ERROR: (gcloud.compute.tpus) NOT_FOUND: Resource not found" >&2; exit 1; }
if line=$(grep -m1 "^$4 " fail); then
  sed -i "0,/^$4 /{/^$4 /d}" fail
  echo "ERROR: $4 fails on purpose" >&2
  exit "${line#* }"
fi
case "$3 $4" in
  "queued-resources create") cp states state; echo READY >node; rm -rf workers; mkdir -p workers/{0,1}/bin ;;
  "queued-resources describe") [[ -s state ]] || missing; head -1 state; (($(wc -l <state) == 1)) || sed -i 1d state ;;
  "queued-resources delete") rm -f state node ;;
  "tpu-vm describe") [[ -s node ]] || missing; cat node ;;
  "tpu-vm delete") rm -f node ;;
  "tpu-vm scp") for worker in 0 1; do cp "$5" "workers/$worker/${6#*:}" || exit; done ;;
  "tpu-vm ssh")
    workers=${6#--worker=} command=${7#--command=} code=0
    for WORKER in ${workers/all/0 1}; do
      export WORKER HOME=$CLOUD/workers/$WORKER
      (cd && PATH=$HOME/bin:$PATH exec bash -c "$command") & pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
    exit "$code"
    ;;
esac
"""
TOOLS = {
    "gcloud": GCLOUD,
    "hostname": 'echo "worker-$WORKER"',
    "lsb_release": "echo jammy",
    "curl": "echo key",
    "mountpoint": "[[ -e ~/mounted ]]",
    "python3.11": f"""case "$*" in
  "-m ensurepip --version") [[ -e ~/apt ]] ;; # it has to be installed first
  "-m venv .venv") mkdir .venv/bin && cp "$0" .venv/bin/python ;;
  "-m pip"*) echo "$*" >>~/pip ;;
  *) exec {shlex.quote(sys.executable)} "$@" ;;
esac""",
    "sudo": 'if [[ $1 == tee ]]; then cat >>~/sources; elif [[ $* == *install* ]]; then echo "${*: -1}" >>~/apt; fi\n'
    "if [[ $* == *gcsfuse ]]; then cp $CLOUD/bin/fake_gcsfuse ~/bin/gcsfuse; fi",
    "fake_gcsfuse": 'echo "$*" >>~/mounted; rmdir "${*: -1}"; ln -s "$CLOUD/${*: -2:1}" "${*: -1}"',
}


class Cloud:
    """The cloud's folder, and the processes of tpu_vm.sh."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.processes = folder, []
        for name in ("bin", "bucket/data"):
            (folder / name).mkdir(parents=True)
        for name, text in {"calls": "", "fail": "", "states": "ACTIVE\n", "bucket/data/images": "pixels"}.items():
            (folder / name).write_text(text)
        for name, text in TOOLS.items():
            self.tool(name, text)

    def write(self, name, *lines):
        """Writes a file at once, as the played gcloud may read it at any moment."""
        new = self.folder / "new"
        new.write_text("".join(f"{line}\n" for line in lines))
        return new.rename(self.folder / name)

    def tool(self, name, text):
        self.write(f"bin/{name}", "#!/usr/bin/env bash", text).chmod(0o755)

    def read(self, name):
        return (self.folder / name).read_text()

    def start(self, *arguments):
        environment = os.environ | {"CLOUD": str(self.folder), "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}"}
        command = [SCRIPT, arguments[0], "--poll_s=0.05", *arguments[1:]]
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        self.processes.append(subprocess.Popen(command, env=environment, start_new_session=True, **streams))
        return self.processes[-1]

    def end(self, process, code=0):
        """Waits for a process; returns its output."""
        output, _ = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == code, f"ended with {process.returncode}\n{output}"
        return output

    def __call__(self, *arguments, code=0):
        return self.end(self.start(*arguments), code)

    def calls(self, action):
        """The calls of gcloud for an action, such as "create"."""
        return re.findall(rf"^compute tpus \S+ {action}\b.*", self.read("calls"), re.MULTILINE)

    def wait(self, condition):
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def wait_for_starts(self, starts=1):
        """Waits until JOB has begun this many times on both workers."""
        self.wait(lambda: [p.read_text() for p in self.folder.glob("bucket/starts-*")] == ["\n" * starts] * 2)

    def switch_off(self):
        """Kills the runs, as a pre-emption or a restart of the machines does."""
        for path in self.folder.glob("workers/*/bsjax-run/pid"):
            words = pathlib.Path(f"/proc/{path.read_text().strip()}/cmdline")
            if words.exists() and b"tpu_worker.sh" in words.read_bytes():
                os.killpg(int(path.read_text()), signal.SIGKILL)


@pytest.fixture
def cloud(tmp_path):
    cloud = Cloud(tmp_path / "cloud")
    yield cloud
    for process in cloud.processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=TIMEOUT_S)
    cloud.switch_off()


@pytest.fixture
def node(cloud):
    """A cloud whose node is there and set up."""
    cloud("create")
    cloud("setup", "--bucket=gs://bucket")
    return cloud
