"""scripts/tpu_vm.sh with a cloud in a folder: its workers are folders too, and run their commands here."""

import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "scripts/tpu_vm.sh"
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


# Computes until there is a file `go`, and stops at SIGTERM with a checkpoint, as training does.
JOB = """trap 'echo $WORKER >bucket/checkpoint-$WORKER; exit 143' TERM; python -c 'print(6 * 7)'
echo >>bucket/starts-$WORKER; until [[ -e bucket/go ]]; do sleep 0.05; done"""
RUN = ("run", "--bucket=bucket", "--", "bash", "-c")
RESUME = ("run", "--resume", *RUN[1:])


def test_create_waits_until_it_is_there_and_takes_what_is_there(cloud):
    cloud.write("states", "WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    flags = ["--spot", "--type=v6e-16", "--zone=us-east5-b", "--project=p", "--create_flags=--network=n"]
    output = cloud("create", *flags)
    states = ["MISSING", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    assert re.findall(r"bsjax: (\w+)$", output, re.MULTILINE) == states and "billed" in output
    cloud("create")
    assert cloud.calls("create") == [
        "compute tpus queued-resources create bsjax --node-id=bsjax --accelerator-type=v6e-16 "
        "--runtime-version=v2-alpha-tpuv6e --spot --network=n --zone=us-east5-b --project=p"
    ]


def test_create_replaces_a_request_that_has_failed(cloud):
    cloud.write("states", "FAILED")
    assert "no node; why: gcloud compute" in cloud("create", code=1)
    cloud.write("states", "ACTIVE")
    assert "FAILED: deleting it" in cloud("create")
    assert len(cloud.calls("delete")) == 1 and len(cloud.calls("create")) == 2


@pytest.mark.parametrize(("action", "code"), [("create", 7), ("describe", 1)])
def test_create_says_what_gcloud_says(cloud, action, code):
    cloud.write("fail", f"{action} {code}")
    assert f"{action} fails on purpose" in cloud("create", code=code)


def test_setup_brings_everything(node):
    for home in ("workers/0", "workers/1"):
        assert node.read(f"{home}/bsjax/bsjax/recipe.py") == (ROOT / "bsjax/recipe.py").read_text()
        assert not (node.folder / home / "bsjax/.git").exists()
        assert node.read(f"{home}/apt").split() == ["python3.11-venv", "gcsfuse"]
        assert "gcsfuse-jammy main" in node.read(f"{home}/sources") and ".[tpu]" in node.read(f"{home}/pip")
        assert node.read(f"{home}/mounted") == (
            "--metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 --rename-dir-limit=0 "
            f"--enable-streaming-writes=false bucket {node.folder}/{home}/bucket\n"
        )
        assert node.read(f"{home}/.cache/bsjax/images") == node.read(f"{home}/bsjax/bucket/data/images") == "pixels"


def test_setup_fails_with_a_worker(cloud):
    cloud("create")
    cloud.tool("sudo", "[[ $WORKER == 0 ]] || { echo no apt; exit 9; }")
    assert "no apt" in cloud("setup", code=9)
    assert [(cloud.folder / f"workers/{i}/bsjax-run/ready").exists() for i in range(2)] == [True, False]


def test_run_outlives_its_connection_and_stops_with_a_checkpoint(node):
    assert "running in the background" in node(*RUN, JOB)
    node.wait_for_starts()
    assert re.search("queued resource ACTIVE, node READY(.*running){2}", node("status"), re.DOTALL)
    assert "error: worker-0 still runs: bash -c trap" in node(*RUN, "true", code=3)
    assert "bash -c trap" in node.start("logs", "--worker=1").stdout.readline()
    assert [node("stop").count("ended 143") for _ in range(2)] == [2, 2]
    for worker in range(2):
        assert node.read(f"bucket/checkpoint-{worker}") == f"{worker}\n"
        (log,) = node.folder.glob(f"bucket/logs/worker-{worker}-*.log")
        assert "42\n" in log.read_text() and "ended with 143" in log.read_text()


def test_stop_kills_what_does_not_stop(node):
    node(*RUN, f"{JOB.replace('exit 143', '')}")
    node.wait_for_starts()
    assert node("stop", "--stop_s=1").count("ended 137") == 2


@pytest.mark.parametrize("state", ["SUSPENDED", "SUSPENDING", "PREEMPTED"])
def test_resume_after_preemption(cloud, state):
    loop = cloud.start("run", "--spot", "--delete_when_complete", *RESUME[1:], JOB)
    cloud.wait_for_starts()
    cloud.switch_off()
    cloud.write("node" if state == "PREEMPTED" else "state", state)  # sometimes only the node says it
    cloud.wait_for_starts(2)
    cloud.write("bucket/go")
    output = cloud.end(loop)
    assert [len(cloud.calls(action)) for action in ("create", "delete", "scp")] == [2, 2, 2]
    assert all("--spot" in call for call in cloud.calls("create"))
    assert re.search(f"{state}: deleting it.*deleted.*complete.*deleted; nothing of it is billed", output, re.DOTALL)


def test_a_process_that_ends_before_the_news_of_the_preemption_is_no_failure(node):
    job = """if [[ -e bucket/again ]]; then exit 0; fi
if [[ $WORKER == 0 ]]; then printf '%s\\n' ACTIVE ACTIVE SUSPENDED >~/new; mv ~/new $CLOUD/state; touch bucket/again; fi
until [[ -e bucket/again ]]; do sleep 0.05; done; exit 143"""
    output = node(*RESUME, job)
    assert "complete" in output and len(node.calls("create")) == 2


def test_resume_ends_with_the_code_of_the_cause(node):
    output = node(*RESUME, f"if [[ $WORKER == 1 ]]; then exit 5; fi\n{JOB}", code=5)
    assert "it ended with 5" in output and "billed" in output
    assert node.read("workers/0/bsjax-run/exit_code") == "143\n"  # the other one was stopped
    assert "ended with 2" in node(*RESUME, "exit $((2 - WORKER))", code=2)
    assert len(node.calls("create")) == 1


def test_resume_attaches_and_outlives_an_interrupt_an_outage_and_a_restart(node):
    loop = node.start(*RESUME, JOB)
    node.wait_for_starts()
    loop.send_signal(signal.SIGINT)
    assert "the run continues, and so does the bill" in node.end(loop, 130)
    loop = node.start(*RESUME, JOB)
    looks = len(node.calls("ssh"))
    node.wait(lambda: len(node.calls("ssh")) > looks + 3)
    assert node.read("bucket/starts-0") == "\n"
    for failures in (["ssh 255"] * 4, ["describe 1"] * 7, ["ssh 255"] * 4):
        node.write("fail", *failures)
        looks = len(node.calls("ssh"))
        node.wait(lambda: not node.read("fail") and len(node.calls("ssh")) > looks + 5)  # noqa: B023
    node.switch_off()
    node.wait_for_starts(2)
    node.write("bucket/go")
    assert "complete" in node.end(loop)
    assert len(node.calls("create")) == 1


def test_resume_gives_up_after_failures_in_a_row(cloud):
    cloud.write("fail", *["scp 4"] * 9)
    output = cloud("run", "--resume", "--", "true", code=1)
    assert "no --bucket" in output and "gave up after 5 failures in a row" in output
    assert len(cloud.calls("scp")) == 5 and len(cloud.calls("create")) == 1


@pytest.mark.parametrize("when", ["it waits", "it runs"])
def test_resume_ends_when_somebody_deletes(cloud, when):
    if when == "it waits":
        cloud.write("states", "WAITING_FOR_RESOURCES", "DELETING")
    loop = cloud.start(*RESUME, JOB)
    if when == "it runs":
        cloud.wait_for_starts()
        cloud("delete")
    assert "deleted by somebody" in cloud.end(loop, 1)
    assert len(cloud.calls("create")) == 1


def test_delete_says_what_is_left(cloud):
    cloud("create")
    cloud.write("fail", "delete 1")
    assert "nothing of it is billed" in cloud("delete")  # at the second try
    cloud.write("node", "READY")  # without a request
    assert "nothing of it is billed" in cloud("delete")
    assert cloud.calls("delete")[1:] == [
        "compute tpus queued-resources delete bsjax --force --quiet --zone=us-central1-a",
        "compute tpus tpu-vm delete bsjax --quiet --zone=us-central1-a",
    ]
    cloud("create")
    cloud.write("fail", *["delete 1"] * 6)
    assert "STILL THERE, AND MAYBE BILLED: queued resource ACTIVE, node READY" in cloud("delete", code=1)


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        ("create --spot", ["create bsjax .* --spot"]),
        ("logs --worker=3", ["--worker=3 .*tail"]),
        ("status", ["status"]),
        ("stop", ["tpu_worker.sh stop 120"]),
        ("delete", ["queued-resources delete bsjax --force --quiet"]),
        ("run", ["start"]),
        ("run --resume", ["create", "^tar", "scp", "^rm", "setup b-1", "start", "status"]),
    ],
)
def test_dry_run_prints_every_command_and_calls_none(cloud, arguments, printed):
    words = ["--", "python", "-c", "a 'b'"] if arguments.startswith("run") else []
    lines = [shlex.split(line) for line in cloud(*arguments.split(), "--dry_run", "--bucket=b-1", *words).splitlines()]
    for line, part in zip(lines, printed, strict=True):
        assert re.search(part, " ".join(line))
        if part == "start":
            (command,) = (word for word in line if word.startswith("--command="))
            assert shlex.split(command)[-3:] == words[1:]
    assert not cloud.calls("")
