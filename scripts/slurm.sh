#!/usr/bin/env bash
# Submits a Slurm job that runs COMMAND on GPUs, as one process per GPU or per node. Slurm queues the job again after a
# pre-emption or the loss of a node; the job queues itself again at its time limit, until COMMAND is complete.
#
#   scripts/setup_venv.sh cuda      once, in a folder that all nodes see
#   scripts/slurm.sh --nodes=2 --gpus_per_node=4 --time=4:00:00 -- \
#     python -m experiments.train --preset=cifar10 --multihost --workdir=runs/cifar10
#
#   --nodes=N (1), --gpus_per_node=N (1), --time=TIME, --partition=P, --account=A     as sbatch takes them
#   --process_per=gpu           or node: one process with all GPUs of a node
#   --log_dir=FOLDER (runs/slurm)
#   --grace_s=120               seconds from SIGTERM, at which COMMAND writes a checkpoint, to the time limit
#   --sbatch_flags="FLAGS"      more flags for sbatch, such as --job-name=NAME or --cpus-per-task=8
#   --dry_run                   prints the sbatch command and the job's script
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source-path=SCRIPTDIR
source "$root/scripts/flags.sh"
flag=([nodes]=1 [gpus_per_node]=1 [time]='' [partition]='' [account]='' [process_per]=gpu [log_dir]=runs/slurm
  [grace_s]=120 [sbatch_flags]='' [dry_run]=false)
parse_flags "$@"
for name in nodes gpus_per_node grace_s; do check_flag $name '[1-9][0-9]*' "a whole number of 1 or more" 1; done
check_choice --process_per "${flag[process_per]}" gpu node
if ((${#command[@]} == 0)); then invalid COMMAND "" "given after --" "-- python -m experiments.train --multihost"; fi

processes=1 devices=()
if [[ ${flag[process_per]} == gpu ]]; then
  processes=${flag[gpus_per_node]}
else # by default, JAX gives each process of a Slurm job one GPU
  devices=(env "JAX_LOCAL_DEVICE_IDS=$(seq -s, 0 $((flag[gpus_per_node] - 1)))")
fi
# Without --multihost, every process would train the same run by itself, in the same folder.
if ((processes * flag[nodes] > 1)) && [[ ${command[*]} == *experiments* && ${command[*]} != *--multihost* ]]; then
  invalid COMMAND "${command[*]}" "given --multihost: it has several processes" "${command[*]} --multihost"
fi
read -ra more <<<"${flag[sbatch_flags]}"
more=(${flag[time]:+"--time=${flag[time]}"} ${flag[partition]:+"--partition=${flag[partition]}"}
  ${flag[account]:+"--account=${flag[account]}"} "${more[@]}")
# SIGTERM reaches the processes of srun, not the job's script, which then queues the job again.
submit=(sbatch --job-name=bsjax --nodes="${flag[nodes]}" --ntasks-per-node="$processes"
  --gpus-per-node="${flag[gpus_per_node]}" --requeue --signal="TERM@${flag[grace_s]}" --open-mode=append
  --output="${flag[log_dir]}/%x-%j.log" --chdir="$root" "${more[@]}")
# No GPUs are bound: all processes of a node see all of its GPUs, and JAX takes the one numbered SLURM_LOCALID.
# A process that ends does not end the others at once (--kill-on-bad-exit=0): they may be writing a checkpoint.
job="#!/usr/bin/env bash
PATH=\$PWD/.venv/bin:\$PATH
srun --gpu-bind=none --kill-on-bad-exit=0 --wait=300 \${SLURM_CPUS_PER_TASK:+--cpus-per-task=\$SLURM_CPUS_PER_TASK} \\
  $(quoted "${devices[@]}" "${command[@]}")
code=\$?
if ((code != 143)); then exit \$code; fi # 143: stopped by SIGTERM, with a checkpoint
echo 'Stopped by SIGTERM, with a checkpoint; queued again'
scontrol requeue \$SLURM_JOB_ID"
if [[ ${flag[dry_run]} == true ]]; then
  printf "%s <<'JOB'\n%s\nJOB\n" "$(quoted "${submit[@]}")" "$job"
else
  cd "$root" && mkdir -p "${flag[log_dir]}" # Slurm makes no folders
  "${submit[@]}" <<<"$job"
fi
