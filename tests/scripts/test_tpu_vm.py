"""scripts/tpu_vm.sh with the cloud of conftest.py: its workers are folders, and run their commands here."""

import pathlib
import re
import shlex
import signal

import pytest

ROOT = pathlib.Path(__file__).parents[2]
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
