#!/usr/bin/env bash
# Trains on a Slurm cluster with GPUs: submits a job that runs a command as one process per GPU, or per node, and that goes
# on where it was after its time limit, a pre-emption or the loss of a node, until the command is complete.
#
#   scripts/setup_venv.sh cuda      once, in a folder that all nodes see, like this one and --workdir
#   scripts/slurm.sh --nodes=2 --gpus_per_node=4 --time=4:00:00 -- \
#     python -m experiments.train --preset=cifar10 --multihost --workdir=runs/cifar10
#   tail -F runs/slurm/bsjax-JOB.log
#   scancel JOB                     ends it; scancel --signal=TERM JOB writes a checkpoint and queues it again
#
# Inside an allocation (salloc), scripts/slurm.sh --in_job ... -- COMMAND runs COMMAND at once.
#
#   --name=NAME (bsjax)          --nodes=N (1)               --gpus_per_node=N (1)     --time=TIME (the partition's)
#   --partition=P, --account=A   (the cluster's)             --cpus_per_task=N (the cluster's)
#   --process_per=gpu            or node: one process with all of a node's GPUs
#   --log_dir=FOLDER (runs/slurm)
#   --grace_s=120                SIGTERM comes this long before the time limit: time for a checkpoint
#   --wait_s=300                 how long the other processes may still run after the first has ended
#   --max_requeues=100           how often the job may be queued again
#   --sbatch_flags="FLAGS"       more flags for sbatch, such as --constraint=a100
#   --dry_run                    prints the commands instead
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source-path=SCRIPTDIR
source "$root/scripts/flags.sh"
flag=([name]=bsjax [nodes]=1 [gpus_per_node]=1 [time]='' [partition]='' [account]='' [cpus_per_task]=''
  [process_per]=gpu [log_dir]=runs/slurm [grace_s]=120 [wait_s]=300 [max_requeues]=100 [sbatch_flags]='' [in_job]=false
  [dry_run]=false)

check_flags() {
  check_whole nodes gpus_per_node grace_s wait_s max_requeues
  check_choice --process_per "${flag[process_per]}" gpu node
  check_flag time '([0-9]+(-[0-9]+(:[0-9]+){0,2})?|[0-9]+(:[0-9]+){1,2})?' "a time such as 4:00:00 or 1-12:00:00" 4:00:00
  check_flag cpus_per_task '([1-9][0-9]*)?' "a whole number of 1 or more" 8
  check_flag name '[-_.A-Za-z0-9]+' "letters, digits, and any of -_." bsjax
  if ((${#command[@]} == 0)); then
    invalid COMMAND "" "given after --" "-- python -m experiments.train --multihost ..."
  fi
  # Without it, every process would train the same run by itself, in the same folder.
  if (($(tasks_per_node) * flag[nodes] > 1)) && [[ ${command[*]} == *experiments* && ${command[*]} != *--multihost* ]]; then
    invalid COMMAND "${command[*]}" "given --multihost: it has several processes" "${command[*]} --multihost"
  fi
}

tasks_per_node() { if [[ ${flag[process_per]} == gpu ]]; then echo "${flag[gpus_per_node]}"; else echo 1; fi; }

submit() {
  local name more=() again=()
  cd "$root"
  read -ra more <<<"${flag[sbatch_flags]}"
  for name in time partition account; do
    if [[ -n ${flag[$name]} ]]; then more+=("--$name=${flag[$name]}"); fi
  done
  if [[ -n ${flag[cpus_per_task]} ]]; then
    more+=("--cpus-per-task=${flag[cpus_per_task]}")
    again+=("--cpus_per_task=${flag[cpus_per_task]}") # srun does not take it from the job
  fi
  for name in nodes gpus_per_node process_per wait_s max_requeues; do again+=("--$name=${flag[$name]}"); done
  call mkdir -p "${flag[log_dir]}" # Slurm makes no folders
  # --signal reaches the processes that srun has started, not the job's shell: that is still there to queue the job again.
  # --requeue lets Slurm do that itself after a pre-emption or the loss of a node.
  call sbatch --job-name="${flag[name]}" --nodes="${flag[nodes]}" --ntasks-per-node="$(tasks_per_node)" \
    --gpus-per-node="${flag[gpus_per_node]}" --requeue --signal="TERM@${flag[grace_s]}" --open-mode=append \
    --output="${flag[log_dir]}/${flag[name]}-%j.log" --chdir="$root" "${more[@]}" \
    --wrap="exec scripts/slurm.sh --in_job ${again[*]} -- $(quoted "${command[@]}")"
}

run_job() {
  local code=0 gpus=() cpus=() requeues=${SLURM_RESTART_COUNT:-0}
  cd "$root"
  export PATH=$root/.venv/bin:$PATH
  if [[ ${flag[process_per]} == node ]]; then # JAX gives each Slurm process one GPU unless it is told
    gpus=(env "JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((flag[gpus_per_node] - 1)))")
  fi
  if [[ -n ${flag[cpus_per_task]} ]]; then cpus=(--cpus-per-task="${flag[cpus_per_task]}"); fi
  # All GPUs of a node are visible to all of its processes, and JAX takes the one numbered SLURM_LOCALID: so none are bound.
  # A process that ends does not end the others at once (--kill-on-bad-exit=0): they may be writing a checkpoint.
  call srun --nodes="${flag[nodes]}" --ntasks-per-node="$(tasks_per_node)" --gpu-bind=none --kill-on-bad-exit=0 \
    --wait="${flag[wait_s]}" "${cpus[@]}" "${gpus[@]}" "${command[@]}" || code=$?
  if ((code != 143)); then return "$code"; fi # 143: stopped by SIGTERM, with a checkpoint
  if ((requeues >= flag[max_requeues])); then
    echo "error: stopped by SIGTERM, and queued again $requeues times before; --max_requeues allows no more" >&2
    return 143
  fi
  echo "Stopped by SIGTERM, with a checkpoint; queued again"
  call scontrol requeue "$SLURM_JOB_ID"
}

parse_flags "$@"
check_flags
if [[ ${flag[in_job]} == true ]]; then run_job; else submit; fi
