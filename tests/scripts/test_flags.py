"""The flags of tpu_vm.sh and slurm.sh: errors are one line, --help and the documentation are right."""

import pathlib
import re
import shlex
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def call(script, *arguments):
    return subprocess.run([ROOT / "scripts" / script, *arguments], capture_output=True, text=True, timeout=60)


VERBS = "verb is '{}'; it must be one of create setup run logs status stop delete; nearest: "


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("tpu_vm.sh", VERBS.format("")),
        ("tpu_vm.sh creat", VERBS.format("creat") + "create"),
        ("tpu_vm.sh create --zon=x", "flag is '--zon'; it must be one that --help names; nearest: --zone"),
        ("tpu_vm.sh create --zone", "--zone is ''; it must be given as --zone=VALUE; nearest: --zone=us-central1-a"),
        ("tpu_vm.sh create zone", "argument is 'zone'; it must be a flag, or stand after --; nearest: -- zone"),
        ("tpu_vm.sh create --spot=yes", "--spot is 'yes'; it must be given without a value; nearest: --spot"),
        ("tpu_vm.sh create --type=v6-8", "--type is 'v6-8'; it must be known, .*; nearest: v6e-8"),
        ("tpu_vm.sh setup --bucket=gs://b-1/x", "--bucket is 'b-1/x'; it must be the name of a .*; nearest: b-1"),
        ("tpu_vm.sh stop --stop_s=0", "--stop_s is '0'; it must be a whole number of 1 or more; nearest: 120"),
        ("tpu_vm.sh status --poll_s=soon", "--poll_s is 'soon'; it must be a number of seconds; nearest: 30"),
        ("tpu_vm.sh run", "COMMAND is ''; it must be given after --; nearest: run -- python .*"),
        ("tpu_vm.sh stop -- python", "verb is 'stop'; it must be run, to take a command; nearest: run"),
        ("slurm.sh", "COMMAND is ''; it must be given after --; nearest: -- python .*"),
        ("slurm.sh --nodes=0 -- true", "--nodes is '0'; it must be a whole number of 1 or more; nearest: 1"),
        ("slurm.sh --process_per=cpu -- true", "--process_per is 'cpu'; it must be one of gpu node; nearest: gpu"),
        ("slurm.sh --nodes=2 -- python -m experiments.train", "COMMAND is '.*'; it must be given --multihost: .*"),
    ],
)
def test_bad_input_is_one_line(command, error):
    result = call(*command.split())
    assert result.returncode == 2
    assert re.fullmatch(f"error: {error}\\w*\n", result.stderr)


def test_commands_in_the_docs_are_accepted():
    text = (ROOT / "docs/cloud.md").read_text(encoding="utf-8").replace("\\\n", "")
    commands = re.findall(r"(?:^    |`)scripts/(tpu_vm\.sh \w+|slurm\.sh)\b([^`\n]*)", text, re.MULTILINE)
    assert len(commands) >= 9
    for script, arguments in commands:
        result = call(*script.split(), "--dry_run", *shlex.split(arguments))
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("script", ["tpu_vm.sh", "slurm.sh"])
def test_help_names_every_flag(script):
    flags = re.search(r"^flag=\((.*?)\)$", (ROOT / "scripts" / script).read_text(), re.DOTALL | re.MULTILINE).group(1)
    assert set(re.findall(r"\[(\w+)\]=", flags)) <= set(re.findall(r"--(\w+)", call(script, "--help").stdout))
