"""scripts/tpu_vm.sh against a cloud in a folder: its workers are folders, and what is sent to them runs here."""

import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SCRIPT = ROOT / "scripts/tpu_vm.sh"
TIMEOUT_S = 120

# The first line of $CLOUD/state is the queued resource's; `describe` moves on to the next one, if there is one, and
# `create` begins with those in $CLOUD/states. A line "ACTION CODE" of $CLOUD/fail makes a call fail, once.
GCLOUD = r"""#!/usr/bin/env bash
cd "$CLOUD"
echo "$*" >>calls
name=$5 words=("$@")
if grep -q "^$4 " fail; then
  code=$(grep -m1 "^$4 " fail | cut -d' ' -f2)
  sed -i "0,/^$4 /{/^$4 /d}" fail
  echo "ERROR: $4 fails on purpose" >&2
  exit "$code"
fi
switch_off() { # the machines
  for pid in workers/*/bsjax-run/pid; do
    if [[ $(ps -o args= -p "$(cat "$pid")" 2>/dev/null) == *tpu_worker.sh* ]]; then kill -KILL -- "-$(<"$pid")"; fi
  done
}
missing() { echo "ERROR: (gcloud.compute.tpus.$1) NOT_FOUND: Resource '$name' was not found" >&2; exit 1; }
case "$3 $4" in
  "queued-resources create")
    cp states state
    echo READY >node
    switch_off
    for worker in 0 1; do
      rm -rf "workers/$worker"
      mkdir -p "workers/$worker/bin" "workers/$worker/bsjax/.venv/bin"
      cp bin/python "workers/$worker/bsjax/.venv/bin/python"
      (cd "workers/$worker/bsjax" && { pwd && .venv/bin/python --version && cat "$ROOT"/{setup.cfg,pyproject.toml}; } |
        cksum >.venv/installed-tpu) # as scripts/setup_venv.sh notes that all is installed
    done
    ;;
  "queued-resources describe")
    [[ -s state ]] || missing queued-resources.describe
    head -n 1 state
    if (($(wc -l <state) > 1)); then sed -i 1d state; fi
    ;;
  "queued-resources delete") rm -f state node ;;
  "tpu-vm describe") [[ -s node ]] || missing tpu-vm.describe; cat node ;;
  "tpu-vm delete") rm -f node ;;
  "tpu-vm scp") for worker in 0 1; do cp "$5" "workers/$worker/${6#*:}" || exit; done ;;
  "tpu-vm ssh")
    if [[ $(head -n 1 state) != ACTIVE ]]; then echo "ssh: connect to host $name port 22: timed out" >&2; exit 255; fi
    for word; do
      case $word in
        --worker=all) workers=(0 1) ;;
        --worker=*) workers=("${word#--worker=}") ;;
        --command=*) command=${word#--command=} ;;
      esac
    done
    for worker in "${workers[@]}"; do
      (
        export HOME=$CLOUD/workers/$worker SLURM_PROCID=$worker SLURM_LOCALID=$worker
        export PATH=$HOME/bin:$CLOUD/bin:$PATH
        cd && bash -c "$command"
      ) &
      pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || : "${code:=$?}"; done # that of the first worker that failed
    exit "${code:-0}"
    ;;
  *) echo "unknown: $*" >&2; exit 99 ;;
esac
"""
WORKER_TOOLS = {
    "hostname": 'echo "worker-$SLURM_PROCID"',
    "lsb_release": "echo jammy",
    "curl": "echo key",
    "python": f'exec {shlex.quote(sys.executable)} "$@"',
    "python3.11": f'[[ -e ~/apt ]] && exec {shlex.quote(sys.executable)} "$@"',  # it has to be installed first
    "sudo": 'if [[ $1 == tee ]]; then cat >>~/sources; elif [[ $* == *install* ]]; then echo "${*: -1}" >>~/apt; fi\n'
    "if [[ $* == *gcsfuse ]]; then cp $CLOUD/bin/fake_gcsfuse ~/bin/gcsfuse; fi",
    "fake_gcsfuse": 'echo "$*" >>~/mounted; rmdir "${*: -1}"; ln -s "$CLOUD/${*: -2:1}" "${*: -1}"',
    "mountpoint": "[[ -e ~/mounted ]]",
    # Once all workers have begun, their machines are switched off, this one last, and the state becomes what is given.
    "preempt": "cd $CLOUD/workers; until [[ -s 0/bsjax-run/pid && -s 1/bsjax-run/pid ]]; do sleep 0.05; done\n"
    "echo $1 >state.$SLURM_PROCID; mv state.$SLURM_PROCID $CLOUD/state\n"
    "kill -KILL -- -$(<$((1 - SLURM_PROCID))/bsjax-run/pid); kill -KILL -- -$(<$SLURM_PROCID/bsjax-run/pid)",
}


class Cloud:
    """The folder, and what to do with it."""

    def __init__(self, folder: pathlib.Path, slurm_job_id: str):
        self.folder = folder
        self.slurm_job_id = slurm_job_id
        self.processes = []
        (folder / "bin").mkdir(parents=True)
        (folder / "bucket").mkdir()
        for name in ("calls", "fail"):
            (folder / name).touch()
        self.states("ACTIVE")
        self.tool("gcloud", GCLOUD)
        for name, text in WORKER_TOOLS.items():
            self.tool(name, f"#!/usr/bin/env bash\n{text}\n")

    def tool(self, name, text):
        (self.folder / "bin" / name).write_text(text)
        (self.folder / "bin" / name).chmod(0o755)

    def states(self, *states):
        """What `describe` says from the next `create` on."""
        (self.folder / "states").write_text("".join(f"{state}\n" for state in states))

    def fail(self, *lines):
        (self.folder / "fail").write_text("".join(f"{line}\n" for line in lines))

    def start(self, verb, *arguments):
        environment = os.environ | {
            "CLOUD": str(self.folder),
            "ROOT": str(ROOT),
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "JAX_PLATFORMS": "cpu",
            # What jax.distributed.initialize() reads.
            "SLURM_JOB_ID": self.slurm_job_id,
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_NTASKS": "2",
            "SLURM_STEP_NUM_NODES": "2",
        }
        flags = [] if verb == "--help" else ["--poll_s=0.05", "--grace_s=0.05"]
        command = [SCRIPT, verb, *flags, *arguments]
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.processes.append(subprocess.Popen(command, env=environment, text=True, **streams))
        return self.processes[-1]

    def __call__(self, verb, *arguments, code=0):
        """Runs tpu_vm.sh; returns what it printed."""
        process = self.start(verb, *arguments)
        output, error = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == code, f"ended with {process.returncode}\n{output}\n{error}"
        return output + error

    def calls(self, action):
        """The calls of gcloud for an action, such as "create"."""
        lines = (self.folder / "calls").read_text().splitlines()
        return [line for line in lines if re.match(rf"compute tpus \S+ {action}\b", line)]

    def home(self, worker):
        return self.folder / "workers" / str(worker)

    def note(self, worker, name):
        return (self.home(worker) / "bsjax-run" / name).read_text()

    def bucket(self):
        return {path.name: path.read_text() for path in (self.folder / "bucket").iterdir() if path.is_file()}

    def wait_for(self, *names):
        """Waits until files are in the bucket."""
        deadline = time.monotonic() + TIMEOUT_S
        while not set(names) <= set(self.bucket()):
            assert time.monotonic() < deadline, f"no {names} in {self.bucket()}"
            time.sleep(0.02)

    def close(self):
        for path in self.folder.glob("workers/*/bsjax-run/pid"):
            pid = int(path.read_text())
            words = pathlib.Path(f"/proc/{pid}/cmdline")
            if words.exists() and b"tpu_worker.sh" in words.read_bytes():
                os.killpg(pid, signal.SIGKILL)
        for process in self.processes:
            process.kill()
            process.communicate(timeout=TIMEOUT_S)


@pytest.fixture
def cloud(tmp_path, slurm_job_id):
    cloud = Cloud(tmp_path / "cloud", slurm_job_id)
    yield cloud
    cloud.close()


@pytest.fixture
def node(cloud):
    """A cloud whose node is there and set up."""
    cloud("create")
    cloud("setup", "--bucket=bucket")
    return cloud


def bash(text):
    """A command for `run`."""
    return ["--", "bash", "-c", text]


def test_create_waits_until_it_is_there(cloud):
    cloud.states("WAITING_FOR_RESOURCES", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    output = cloud(
        "create", "--spot", "--type=v6e-16", "--zone=us-east5-b", "--project=p", "--create_flags=--network=n"
    )
    assert cloud.calls("create") == [
        "compute tpus queued-resources create bsjax --node-id=bsjax --accelerator-type=v6e-16 "
        "--runtime-version=v2-alpha-tpuv6e --spot --network=n --zone=us-east5-b --project=p"
    ]
    assert re.findall(r"bsjax: (\w+) after 0 min", output) == ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    assert "billed" in output


def test_create_takes_what_is_there(cloud):
    cloud("create")
    cloud("create")
    assert len(cloud.calls("create")) == 1


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_create_replaces_a_request_that_has_ended(cloud, state):
    cloud.states(state)
    assert "there is no node; why: gcloud compute" in cloud("create", code=1)
    cloud.states("ACTIVE")
    assert f"{state}: making it anew" in cloud("create")
    assert len(cloud.calls("delete")) == 1 and len(cloud.calls("create")) == 2


def test_create_says_what_gcloud_says(cloud):
    cloud.fail("create 7")
    assert "create fails on purpose" in cloud("create", code=7)


def test_create_gives_up_when_gcloud_cannot_tell(cloud):
    cloud.fail("describe 1")
    assert "describe fails on purpose" in cloud("create", code=1)
    assert not cloud.calls("create")
    cloud.states("PROVISIONING")
    assert cloud.start("create").stderr.readline().startswith("bsjax: asking for a v5litepod-8")
    while len(cloud.calls("describe")) < 4:
        time.sleep(0.02)
    cloud.fail(*["describe 1"] * 5)
    assert "describe fails on purpose" in cloud.processes[-1].communicate(timeout=TIMEOUT_S)[1]
    assert cloud.processes[-1].returncode == 1


def test_setup_brings_everything(cloud):
    cloud("create")
    data = cloud.folder / "bucket/data/set"
    data.mkdir(parents=True)
    (data / "images").write_text("pixels")
    cloud("setup", "--bucket=gs://bucket")
    for worker in range(2):
        home = cloud.home(worker)
        assert (home / "bsjax/bsjax/recipe.py").read_bytes() == (ROOT / "bsjax/recipe.py").read_bytes()
        assert not (home / "bsjax/.git").exists()
        assert (home / "apt").read_text().split() == ["python3.11-venv", "gcsfuse"]
        assert "gcsfuse-jammy main" in (home / "sources").read_text()
        assert (home / "mounted").read_text() == (
            "--metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 --rename-dir-limit=0 "
            f"--enable-streaming-writes=false bucket {home}/bucket\n"
        )
        assert (home / ".cache/bsjax/set/images").read_text() == "pixels"
        assert (home / "bsjax/bucket/data/set/images").exists()
        assert (home / "bsjax-run/ready").exists()


def test_setup_clones(cloud, tmp_path):
    repo = tmp_path / "repo"
    (repo / "scripts").mkdir(parents=True)
    (repo / "scripts/tpu_worker.sh").write_text('#!/bin/sh\necho "cloned $*"\n')
    (repo / "scripts/tpu_worker.sh").chmod(0o755)
    git = ["git", "-C", repo, "-c", "user.name=n", "-c", "user.email=e"]
    for words in (["init", "-q", "-b", "side"], ["add", "."], ["commit", "-qm", "m"]):
        subprocess.run([*git, *words], check=True)
    cloud("create")
    assert cloud("setup", f"--repo={repo}", "--ref=side").count("cloned setup") == 2
    assert not cloud.calls("scp")


def test_setup_fails_with_a_worker(cloud):
    cloud("create")
    cloud.tool("sudo", '#!/bin/sh\n[ "$SLURM_PROCID" = 0 ] || { echo no apt >&2; exit 9; }\n')
    assert "no apt" in cloud("setup", code=9)
    assert [(cloud.home(worker) / "bsjax-run/ready").exists() for worker in range(2)] == [True, False]


def test_workers_compute_together(node, psum_program):
    assert "no --bucket" in node("run", "--resume", "--", "python", "-c", psum_program)
    for worker in range(2):
        (log,) = node.folder.glob(f"bucket/logs/worker-{worker}-*.log")
        assert f"process {worker} of 2 total [3.]" in log.read_text()
    assert "total [3.]" in node("logs", "--nofollow", "--worker=1")
    assert sorted(re.findall("bsjax-run.*", node("status"))) == [f"bsjax-run worker-{i} ended 0" for i in range(2)]


def test_run_outlives_its_connection_and_stops_with_a_checkpoint(node):
    job = 'n=7; trap "echo $n >bucket/checkpoint-$SLURM_PROCID; exit 143" TERM; touch bucket/ready-$SLURM_PROCID\n'
    job += "while :; do sleep 0.05; done"
    assert "running in the background" in node("run", *bash(job))
    node.wait_for("ready-0", "ready-1")
    output = node("status")
    assert "queued resource ACTIVE, node READY" in output and output.count(" running") == 2
    assert node("stop").count("ended 143") == 2
    assert node.bucket()["checkpoint-0"] == node.bucket()["checkpoint-1"] == "7\n"
    assert node("stop").count("ended 143") == 2


def test_stop_kills_what_does_not_stop(node):
    node("run", *bash('trap "" TERM; touch bucket/ready-$SLURM_PROCID; while :; do sleep 0.05; done'))
    node.wait_for("ready-0", "ready-1")
    assert node("stop", "--stop_s=1").count("ended 137") == 2


def test_one_run_at_a_time(node):
    job = bash("touch bucket/ready-$SLURM_PROCID; until [[ -e bucket/go ]]; do sleep 0.05; done")
    node("run", *job)
    node.wait_for("ready-0", "ready-1")
    assert "error: worker-0 still runs: bash -c touch" in node("run", "--", "true", code=3)
    loop = node.start("run", "--resume", *job)  # attaches
    while "tpu_worker.sh status" not in node.calls("ssh")[-1]:
        time.sleep(0.02)
    (node.folder / "bucket/go").touch()
    assert "complete" in loop.communicate(timeout=TIMEOUT_S)[1]
    assert loop.returncode == 0
    assert node.note(0, "log").count("== ") == 2  # it began and ended once


# Counts in the bucket, as training counts in its checkpoints; the node is taken away after the second step.
COUNTING = """[[ $SLURM_PROCID == 0 ]] || exec sleep 0.2
n=$(cat bucket/count || echo 0)
while ((n < 4)); do echo $((++n)) >bucket/count; if ((n == 2)); then preempt LIFE; fi; done"""


@pytest.mark.parametrize("state", ["SUSPENDED", "SUSPENDING", "PREEMPTED"])
def test_resume_after_preemption(cloud, state):
    cloud.states("PROVISIONING", "ACTIVE")
    job = COUNTING.replace("LIFE", "SUSPENDED" if state != "SUSPENDING" else state)
    if state == "PREEMPTED":  # the node says so, its request does not
        job = job.replace("preempt SUSPENDED", "echo PREEMPTED >$CLOUD/node; preempt ACTIVE")
    output = cloud("run", "--resume", "--spot", "--bucket=bucket", "--delete_when_complete", *bash(job))
    assert cloud.bucket()["count"] == "4\n"
    assert [len(cloud.calls(action)) for action in ("create", "delete", "scp")] == [2, 2, 2]
    assert all("--spot" in call for call in cloud.calls("create"))
    assert "making it anew" in output and "complete" in output and output.rstrip().split("\n")[-1].count("gone;") == 1


def test_sigterm_before_the_news_is_a_preemption(node):
    job = """if [[ -e bucket/again ]]; then exit 0; fi
    touch bucket/again-$SLURM_PROCID; if [[ $SLURM_PROCID == 1 ]]; then exec sleep 30; fi
    until [[ -e bucket/again-1 ]]; do sleep 0.05; done
    mv bucket/again-0 bucket/again; printf "ACTIVE\\nACTIVE\\nSUSPENDED\\n" >~/state; mv ~/state $CLOUD; exit 143"""
    # `gone` hears ACTIVE, and after the grace ACTIVE again; ssh and the next look find it suspended.
    output = node("run", "--resume", "--bucket=bucket", *bash(job), code=143)
    assert "ended with 143" in output and len(node.calls("create")) == 1
    job = job.replace("ACTIVE\\nACTIVE\\n", "ACTIVE\\n")
    (node.folder / "bucket/again").unlink()
    node("delete")
    assert "pre-empted" in node("run", "--resume", "--bucket=bucket", *bash(job))
    assert len(node.calls("create")) == 3


def test_resume_ends_with_the_code_of_the_cause(node):
    job = "if [[ $SLURM_PROCID == 0 ]]; then exec sleep 30; fi; exit 5"
    output = node("run", "--resume", *bash(job), code=5)
    assert "it ended with 5" in output and "billed" in output
    assert len(node.calls("create")) == 1
    assert node.note(0, "exit_code") == "143\n"  # the other one was stopped
    assert "ended with 2" in node("run", "--resume", *bash("exit $((2 - SLURM_PROCID))"), code=2)


def test_resume_after_a_restart_of_the_machine(node):
    job = "if [[ -e bucket/lost-$SLURM_PROCID ]]; then exit 0; fi; touch bucket/lost-$SLURM_PROCID\n"
    job += "kill -KILL -- -$(<~/bsjax-run/pid)"
    node("run", "--resume", *bash(job))
    assert len(node.calls("create")) == 1
    assert node.note(0, "log").count("ended with 0") == 1


def test_resume_gives_up_after_fast_failures(cloud):
    cloud.fail(*["scp 4"] * 9)
    output = cloud("run", "--resume", "--max_fast_failures=2", "--", "true", code=1)
    assert "gave up after 2 runs of less than 300 s" in output
    assert len(cloud.calls("scp")) == 2 and len(cloud.calls("create")) == 1


def test_endless_preemptions_are_bounded(cloud):
    cloud("run", "--resume", *bash("preempt SUSPENDED"), code=1)
    assert len(cloud.calls("create")) == 3


def test_slow_runs_are_no_fast_failures(cloud):
    job = "cd $CLOUD/bucket; echo >>runs-$SLURM_PROCID; sleep 1.1; (($(wc -l <runs-0) > 2)) || preempt SUSPENDED"
    cloud("run", "--resume", "--fast_s=1", "--max_fast_failures=2", *bash(job))
    assert len(cloud.calls("create")) == 3


def test_resume_ends_when_somebody_deletes(node):
    job = bash("touch bucket/ready-$SLURM_PROCID; exec sleep 30")
    loop = node.start("run", "--resume", *job)
    node.wait_for("ready-0", "ready-1")
    node("delete")
    assert "deleted by somebody" in loop.communicate(timeout=TIMEOUT_S)[1]
    assert loop.returncode == 1 and len(node.calls("create")) == 1


def test_resume_ends_when_somebody_deletes_what_it_waits_for(cloud):
    cloud.states("WAITING_FOR_RESOURCES", "DELETING")
    assert "deleted by somebody" in cloud("run", "--resume", "--", "true", code=1)
    assert len(cloud.calls("create")) == 1


def test_resume_ends_when_somebody_deletes_what_it_sets_up(cloud):
    cloud.tool("sudo", '#!/bin/sh\nrm -f "$CLOUD/state"; exit 1\n')
    assert "deleted by somebody" in cloud("run", "--resume", "--", "true", code=1)
    assert len(cloud.calls("create")) == 1


@pytest.mark.parametrize("calls", [["ssh 255"] * 3, ["ssh 255", "describe 1"] * 7], ids=["ssh", "all of gcloud"])
def test_resume_outlives_a_lost_connection(node, calls):
    job = bash("touch bucket/ready-$SLURM_PROCID; until [[ -e bucket/go ]]; do sleep 0.05; done")
    loop = node.start("run", "--resume", *job)
    node.wait_for("ready-0", "ready-1")
    node.fail(*calls)
    while (node.folder / "fail").read_text():
        assert loop.poll() is None
        time.sleep(0.02)
    (node.folder / "bucket/go").touch()
    loop.communicate(timeout=TIMEOUT_S)
    assert loop.returncode == 0


def test_an_interrupted_loop_leaves_the_run(node):
    loop = node.start("run", "--resume", *bash("touch bucket/ready-$SLURM_PROCID; exec sleep 30"))
    node.wait_for("ready-0", "ready-1")
    loop.send_signal(signal.SIGINT)
    assert "the run goes on, and so does the bill" in loop.communicate(timeout=TIMEOUT_S)[1]
    assert loop.returncode == 130
    assert node("status").count(" running") == 2


def test_resume_gives_up_without_an_answer(node):
    loop = node.start("run", "--resume", *bash("touch bucket/ready-$SLURM_PROCID; exec sleep 30"))
    node.wait_for("ready-0", "ready-1")
    node.fail(*["ssh 255"] * 99)
    assert "no answer from its workers" in loop.communicate(timeout=TIMEOUT_S)[1]
    assert loop.returncode == 1


def test_delete_says_that_nothing_is_left(cloud):
    cloud("create")
    assert "nothing of it is billed" in cloud("delete")
    assert cloud.calls("delete") == ["compute tpus queued-resources delete bsjax --force --quiet --zone=us-central1-a"]
    assert "nothing of it is billed" in cloud("delete")


def test_delete_tries_again_and_says_what_is_left(cloud):
    cloud("create")
    cloud.fail("delete 1")
    assert "gone" in cloud("delete")
    cloud("create")
    cloud.fail(*["delete 1"] * 9)
    assert "STILL THERE, AND MAYBE BILLED: queued resource ACTIVE, node READY" in cloud("delete", code=1)


def test_delete_removes_a_node_without_a_request(cloud):
    (cloud.folder / "node").write_text("READY\n")
    assert "gone" in cloud("delete")
    assert cloud.calls("delete") == ["compute tpus tpu-vm delete bsjax --quiet --zone=us-central1-a"]


@pytest.mark.parametrize(
    ("verb", "printed"),
    [
        ("create", ["queued-resources describe", "queued-resources create bsjax"]),
        ("setup", ["tar -czf", "tpu-vm scp", "tar -xzf", "tpu_worker.sh setup b-1"]),
        ("logs", ["tail -n 100 -F bsjax-run/log"]),
        ("status", ["queued-resources describe", "tpu-vm describe", "tpu_worker.sh status"]),
        ("stop", ["tpu_worker.sh stop 120"]),
        ("delete", ["queued-resources delete bsjax --force --quiet"]),
        ("run", ["tpu_worker.sh start python -c"]),
        (
            "run --resume",
            ["resources create", "scp", "tpu_worker.sh setup", "tpu_worker.sh start", "tpu_worker.sh status"],
        ),
    ],
)
def test_dry_run_prints_every_command_and_calls_none(cloud, verb, printed):
    words = ["--", "python", "-c", "a 'b'"] if verb.startswith("run") else []
    output = cloud(*verb.split(), "--dry_run", "--bucket=b-1", *words)
    assert re.search(".*".join(map(re.escape, printed)), output, re.DOTALL), output
    assert not cloud.calls("")
    for line in output.splitlines():
        assert shlex.split(line)[0] in ("gcloud", "tar", "rm")
        if "start" in line:
            (command,) = (word for word in shlex.split(line) if word.startswith("--command="))
            assert shlex.split(command)[-3:] == words[1:]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("", "verb is ''; it must be one of create setup run logs status stop delete; nearest: "),
        ("creat", "verb is 'creat'; it must be one of create setup run logs status stop delete; nearest: create"),
        ("create --zon=x", "flag is '--zon'; it must be one that --help names; nearest: --zone"),
        ("create --zone", "--zone is ''; it must be given as --zone=VALUE; nearest: --zone=us-central1-a"),
        ("create zone", "argument is 'zone'; it must be a flag, or stand after --; nearest: --zone"),
        ("create --spot=yes", "--spot is 'yes'; it must be one of true false; nearest: "),
        ("create --zone=us-central1", "--zone is 'us-central1'; it must be a zone: .*; nearest: us-central1-a"),
        ("create --name=My_TPU", "--name is 'My_TPU'; it must be lower-case letters, .*; nearest: bsjax"),
        ("create --type=v6-8", "--type is 'v6-8'; it must be a known type, .*; nearest: v6e-8"),
        ("setup --bucket=gs://b-1/x", "--bucket is 'b-1/x'; it must be the name of a bucket, .*; nearest: b-1"),
        ("setup --ref=main", "--ref is 'main'; it must be given with --repo; nearest: --repo=URL"),
        ("logs --lines=0", "--lines is '0'; it must be a whole number of 1 or more; nearest: 1"),
        ("logs --worker=all", "--worker is 'all'; it must be the number of a worker; nearest: 0"),
        ("status --poll_s=soon", "--poll_s is 'soon'; it must be a number of seconds; nearest: 60"),
        ("run", "COMMAND is ''; it must be given after --; nearest: run -- python .*"),
        ("stop -- python", "verb is 'stop'; it must be run, to take a command; nearest: run"),
    ],
)
def test_bad_input_is_one_line(arguments, error):
    result = subprocess.run([SCRIPT, *arguments.split()], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert result.returncode == 2
    assert re.fullmatch(f"error: {error}\\w*\n", result.stderr)


def test_help_is_the_header(cloud):
    output = cloud("--help")
    flags = set(re.findall(r"--(\w+)", output))
    defaults = set(re.findall(r"\[(\w+)\]=", SCRIPT.read_text().split("\nflag=(")[1].split(")")[0]))
    assert defaults - {"follow"} <= flags
    assert output.startswith("A Cloud TPU VM")
