"""scripts/slurm.sh against programs that stand in for Slurm: srun runs its tasks here."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
SCRIPT = ROOT / "scripts/slurm.sh"
TIMEOUT_S = 60

TOOLS = {
    # As Slurm does it: the highest exit code of all tasks. With the file `limit`, the time limit comes for tasks that
    # have written a file `ready`.
    "srun": r"""while [[ $1 == --* ]]; do
  case $1 in
    --nodes=*) nodes=${1#*=} ;;
    --ntasks-per-node=*) tasks=${1#*=} ;;
  esac
  shift
done
for ((task = 0; task < nodes * tasks; task++)); do
  SLURM_NTASKS=$((nodes * tasks)) SLURM_PROCID=$task SLURM_LOCALID=$((task % tasks)) "$@" &
  pids+=($!)
done
if [[ -e $SLURM/limit ]]; then
  rm "$SLURM/limit"
  until (($(cd "$SLURM" && ls | grep -c ready) == nodes * tasks)); do sleep 0.05; done
  kill -TERM "${pids[@]}"
fi
highest=0
for pid in "${pids[@]}"; do code=0; wait "$pid" || code=$?; ((code <= highest)) || highest=$code; done
exit "$highest"
""",
    "sbatch": 'echo "Submitted batch job 7"; exit "${SBATCH_CODE:-0}"',
    "scontrol": "",
}


class Slurm:
    """The programs, and what they were called with."""

    def __init__(self, folder: pathlib.Path, job_id: str):
        self.folder = folder
        self.environment = os.environ | {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "SLURM": str(folder),
            "SLURM_JOB_ID": job_id,
            "SLURM_STEP_NODELIST": "localhost",
            "JAX_PLATFORMS": "cpu",
        }
        (folder / "bin").mkdir()
        (folder / "calls").touch()
        for name, text in TOOLS.items():
            path = folder / "bin" / name
            path.write_text(f'#!/usr/bin/env bash\nprintf "%s\\0" "${{0##*/}}" "$@" END >>"$SLURM/calls"\n{text}\n')
            path.chmod(0o755)

    def run(self, *command, code=0, **environment):
        """Runs a command; returns what it printed."""
        environment = self.environment | environment
        result = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, errors="replace"
        )
        assert result.returncode == code, f"ended with {result.returncode}\n{result.stdout}\n{result.stderr}"
        return result.stdout + result.stderr

    def calls(self, program):
        """The words of each call of a program."""
        calls = (self.folder / "calls").read_text().split("\0END\0")
        lines = [call.split("\0") for call in calls]
        return [line[1:] for line in lines if line[0] == program]


@pytest.fixture
def slurm(tmp_path, slurm_job_id):
    return Slurm(tmp_path, slurm_job_id)


def test_the_job_that_is_submitted_computes(slurm, tmp_path, psum_program):
    flags = ["--nodes=2", "--gpus_per_node=1", "--time=1:00:00", "--partition=p", "--cpus_per_task=3"]
    command = [sys.executable, "-c", psum_program]
    output = slurm.run(SCRIPT, *flags, f"--log_dir={tmp_path}/logs", "--sbatch_flags=--qos=q -C a", "--", *command)
    assert "Submitted batch job 7" in output
    ((*words, wrap),) = slurm.calls("sbatch")
    assert words == [
        *(
            "--job-name=bsjax",
            "--nodes=2",
            "--ntasks-per-node=1",
            "--gpus-per-node=1",
            "--requeue",
            "--signal=TERM@120",
        ),
        *("--open-mode=append", f"--output={tmp_path}/logs/bsjax-%j.log", f"--chdir={ROOT}", "--qos=q", "-C", "a"),
        *("--time=1:00:00", "--partition=p", "--cpus-per-task=3"),
    ]
    assert (tmp_path / "logs").is_dir()
    output = slurm.run("sh", "-c", wrap.removeprefix("--wrap="))  # as Slurm does
    for process in range(2):
        assert f"process {process} of 2 total [3.]" in output
    ((*words, _),) = slurm.calls("srun")
    assert words == [
        *("--nodes=2", "--ntasks-per-node=1", "--gpu-bind=none", "--kill-on-bad-exit=0", "--wait=300"),
        *("--cpus-per-task=3", sys.executable, "-c"),
    ]
    assert not slurm.calls("scontrol")


# Counts in a file, as training counts in its checkpoints.
COUNTING = """cd $SLURM; n=$(cat count || echo 0)
trap 'echo $((n - 1)) >count; rm -f ready-$SLURM_PROCID; exit 143' TERM
while ((++n <= 5)); do
  if ((n == 3)); then touch ready-$SLURM_PROCID; until [[ -e again ]]; do sleep 0.05; done; fi
done
echo n=$n"""


def test_a_time_limit_queues_the_job_again(slurm, tmp_path):
    job = [SCRIPT, "--in_job", "--gpus_per_node=2", "--max_requeues=1", "--", "bash", "-c", COUNTING]
    (tmp_path / "limit").touch()
    assert "Stopped by SIGTERM, with a checkpoint; queued again" in slurm.run(*job)
    assert slurm.calls("scontrol") == [["requeue", slurm.environment["SLURM_JOB_ID"]]]
    assert (tmp_path / "count").read_text() == "2\n"
    (tmp_path / "limit").touch()
    output = slurm.run(*job, code=143, SLURM_RESTART_COUNT="1")
    assert "error: stopped by SIGTERM, and queued again 1 times before; --max_requeues allows no more" in output
    (tmp_path / "again").touch()
    assert slurm.run(*job, SLURM_RESTART_COUNT="1").count("n=6") == 2
    assert len(slurm.calls("scontrol")) == 1


@pytest.mark.parametrize("code", [1, 2, 137])
def test_a_failure_ends_the_job_with_its_code(slurm, code):
    slurm.run(SCRIPT, "--in_job", "--nodes=2", "--", "bash", "-c", f"exit $((SLURM_PROCID * {code}))", code=code)
    assert not slurm.calls("scontrol")


def test_one_process_per_node_has_all_its_gpus(slurm):
    job = 'echo "task $SLURM_PROCID of $SLURM_NTASKS: $JAX_LOCAL_DEVICE_IDS"'
    flags = ["--in_job", "--nodes=2", "--gpus_per_node=4", "--process_per=node"]
    output = slurm.run(SCRIPT, *flags, "--", "bash", "-c", job)
    assert sorted(output.splitlines()) == ["task 0 of 2: 0,1,2,3", "task 1 of 2: 0,1,2,3"]


def test_what_sbatch_refuses_is_refused(slurm):
    slurm.run(SCRIPT, "--", "true", code=5, SBATCH_CODE="5")


def test_dry_run_prints_every_command_and_calls_none(slurm):
    for flags, program in (([], "sbatch"), (["--in_job"], "srun")):
        lines = slurm.run(SCRIPT, "--dry_run", *flags, "--", "python", "-c", "a 'b'").splitlines()
        words = shlex.split(lines[-1])
        assert words[0] == program
        if program == "sbatch":
            assert lines[0] == "mkdir -p runs/slurm"
            words = shlex.split(words[-1])
        assert words[-3:] == ["python", "-c", "a 'b'"]
    assert not slurm.calls("sbatch") + slurm.calls("srun")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("", "COMMAND is ''; it must be given after --; nearest: -- python .*"),
        ("--nodes=0 -- true", "--nodes is '0'; it must be a whole number of 1 or more; nearest: 1"),
        ("--time=4h -- true", "--time is '4h'; it must be a time such as .*; nearest: 4:00:00"),
        ("--process_per=cpu -- true", "--process_per is 'cpu'; it must be one of gpu node; nearest: gpu"),
        ("--cpus_per_task=x -- true", "--cpus_per_task is 'x'; it must be a whole number of 1 or more; nearest: 8"),
        ("--name=a/b -- true", "--name is 'a/b'; it must be letters, digits, .*; nearest: bsjax"),
        ("--gpus=2 -- true", "flag is '--gpus'; it must be one that --help names; nearest: --gpus_per_node"),
        ("--nodes=2 -- python -m experiments.train", "COMMAND is '.*'; it must be given --multihost: .*; nearest: .*"),
    ],
)
def test_bad_input_is_one_line(arguments, error):
    result = subprocess.run([SCRIPT, *arguments.split()], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert result.returncode == 2
    assert re.fullmatch(f"error: {error}\n", result.stderr)
