"""scripts/slurm.sh with simple sbatch, srun and scontrol: sbatch runs the job here, and again if it is requeued."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "scripts/slurm.sh"
TOOLS = {
    "sbatch": r"""printf '%s\n' "$@" >"$SLURM/sbatch"
for word; do
  case $word in
    --nodes=*) export NODES=${word#*=} ;;
    --ntasks-per-node=*) export TASKS=${word#*=} ;;
    --cpus-per-task=*) export SLURM_CPUS_PER_TASK=${word#*=} ;;
  esac
done
cat >"$SLURM/job"
while bash "$SLURM/job" || exit; do rm "$SLURM/requeued" 2>/dev/null || exit 0; done""",
    # Each line of the file `limits` is a time limit, which comes when all tasks have written a file `ready-N`.
    # The exit code is the highest of all tasks.
    "srun": r"""printf '%s\n' "$@" >"$SLURM/srun"
while [[ $1 == --* ]]; do shift; done
export SLURM_NTASKS=$((NODES * TASKS)) SLURM_PROCID SLURM_LOCALID
for ((SLURM_PROCID = 0; SLURM_PROCID < SLURM_NTASKS; SLURM_PROCID++)); do
  SLURM_LOCALID=$((SLURM_PROCID % TASKS)) "$@" & pids+=($!)
done
if [[ -s $SLURM/limits ]]; then
  sed -i 1d "$SLURM/limits"
  until (($(ls "$SLURM" | grep -c ready) == SLURM_NTASKS)); do sleep 0.05; done
  rm "$SLURM"/ready-* && kill -TERM "${pids[@]}"
fi
highest=0
for pid in "${pids[@]}"; do code=0; wait "$pid" || code=$?; ((code <= highest)) || highest=$code; done
exit "$highest"
""",
    "scontrol": '[[ $* == "requeue $SLURM_JOB_ID" ]] && touch "$SLURM/requeued"',
}


@pytest.fixture
def slurm(tmp_path, slurm_job_id):
    """Runs slurm.sh, or a command; returns its output and the job's."""
    (tmp_path / "bin").mkdir()
    for name, text in TOOLS.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM": str(tmp_path)}
    environment |= {"SLURM_JOB_ID": slurm_job_id, "SLURM_STEP_NODELIST": "localhost", "JAX_PLATFORMS": "cpu"}

    def run(*arguments, command=(SCRIPT, f"--log_dir={tmp_path}/logs"), code=0):
        result = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=60)
        assert result.returncode == code, f"ended with {result.returncode}\n{result.stdout}\n{result.stderr}"
        return result.stdout + result.stderr

    return run


def test_the_job_that_is_submitted_computes(slurm, tmp_path, psum_program):
    flags = ["--nodes=2", "--gpus_per_node=1", "--time=1:00:00", "--partition=p", "--account=a"]
    output = slurm(*flags, "--sbatch_flags=--cpus-per-task=3 -C c", "--", sys.executable, "-c", psum_program)
    for process in range(2):
        assert f"process {process} of 2 total [3.]" in output
    assert (tmp_path / "sbatch").read_text().splitlines() == [
        *("--job-name=bsjax", "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--requeue"),
        *("--signal=TERM@120", "--open-mode=append", f"--output={tmp_path}/logs/%x-%j.log", f"--chdir={ROOT}"),
        *("--time=1:00:00", "--partition=p", "--account=a", "--cpus-per-task=3", "-C", "c"),
    ]
    options = ["--gpu-bind=none", "--kill-on-bad-exit=0", "--wait=300", "--cpus-per-task=3", sys.executable]
    assert (tmp_path / "srun").read_text().splitlines()[:5] == options
    assert (tmp_path / "logs").is_dir()


# Counts in a file, as training counts in its checkpoints; waits for the time limit at 2 and at 4.
COUNTING = """trap 'exit 143' TERM; count=$SLURM/count-$SLURM_PROCID; n=$(cat $count || echo 0)
while ((++n <= 5)); do
  echo $n >$count
  if ((n % 2 == 0)); then touch $SLURM/ready-$SLURM_PROCID; while :; do sleep 0.05; done; fi
done"""


def test_a_time_limit_queues_the_job_again_until_it_is_complete(slurm, tmp_path):
    (tmp_path / "limits").write_text("\n\n")
    output = slurm("--gpus_per_node=2", "--", "bash", "-c", COUNTING)
    assert output.count("Stopped by SIGTERM, with a checkpoint; queued again") == 2
    assert [(tmp_path / f"count-{i}").read_text() for i in range(2)] == ["5\n"] * 2


@pytest.mark.parametrize("code", [1, 2, 137])
def test_a_failure_ends_the_job_with_its_code(slurm, code):
    output = slurm("--nodes=2", "--", "bash", "-c", f"exit $((SLURM_PROCID * {code}))", code=code)
    assert "queued again" not in output


def test_one_process_per_node_has_all_its_gpus(slurm):
    flags = ["--nodes=2", "--gpus_per_node=4", "--process_per=node"]
    output = slurm(*flags, "--", "bash", "-c", 'echo "task $SLURM_PROCID of $SLURM_NTASKS: $JAX_LOCAL_DEVICE_IDS"')
    assert sorted(output.splitlines()) == ["task 0 of 2: 0,1,2,3", "task 1 of 2: 0,1,2,3"]


def test_what_sbatch_refuses_is_refused(slurm, tmp_path):
    (tmp_path / "bin/sbatch").write_text("#!/bin/sh\nexit 5\n")
    slurm("--", "true", code=5)


def test_dry_run_prints_a_command_that_submits_the_job(slurm, tmp_path):
    output = slurm("--dry_run", "--", sys.executable, "-c", "print('it runs')")
    assert output.startswith("sbatch ") and not (tmp_path / "sbatch").exists()
    (tmp_path / "bin/sbatch").write_text("#!/bin/sh\ncat\n")
    assert f"{sys.executable} -c print" in slurm(output, command=["bash", "-c"])
