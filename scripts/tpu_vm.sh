#!/usr/bin/env bash
# Creates a Cloud TPU VM of one or more hosts as a queued resource, runs a command on all of them, and deletes it.
#
#   scripts/tpu_vm.sh create [--spot] [--type=v5litepod-16]   requests a node and waits until it is ready, and billed
#   scripts/tpu_vm.sh setup --bucket=NAME                     copies this folder to every worker, and installs
#   scripts/tpu_vm.sh run [--resume] -- COMMAND...            starts COMMAND on all workers, in the background
#   scripts/tpu_vm.sh logs                                    follows the log of a worker
#   scripts/tpu_vm.sh status                                  shows the states of the request, the node and the run
#   scripts/tpu_vm.sh stop                                    sends SIGTERM: the run saves and ends; the node is billed
#   scripts/tpu_vm.sh delete                                  removes node and request, and checks that nothing is left
#
# run --resume waits until COMMAND exits with 0 on all workers. It creates and sets up what is missing, also after a
# pre-emption, and attaches to a run that is under way. If COMMAND fails, it ends with COMMAND's exit code.
#
#   --name=NAME (bsjax)           --project=PROJECT (gcloud's)       --zone=ZONE (us-central1-a)
#   --type=TYPE (v5litepod-8)     --runtime_version=VERSION (Google's for the type)
#   --spot                        cheaper; Google may reclaim it at any moment
#   --bucket=NAME                 a Cloud Storage bucket, mounted at bucket/, for --workdir=bucket/...; setup copies its
#                                 data/ to the disk; its logs/ keeps the logs
#   --create_flags="FLAGS"        more flags for gcloud's create, such as --valid-until-duration=6h
#   --worker=0                    whose log to follow
#   --stop_s=120                  how long stop waits for the checkpoint before SIGKILL
#   --delete_when_complete        run --resume deletes the node when COMMAND is complete
#   --poll_s=30                   seconds between queries of the state
#   --dry_run                     prints the commands that change something, and runs none
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source-path=SCRIPTDIR
source "$root/scripts/flags.sh"
flag=([name]=bsjax [project]='' [zone]=us-central1-a [type]=v5litepod-8 [runtime_version]='' [spot]=false [bucket]=''
  [create_flags]='' [resume]=false [worker]=0 [stop_s]=120 [delete_when_complete]=false [poll_s]=30 [dry_run]=false)
declare -A runtimes=([v6e]=v2-alpha-tpuv6e [v5p]=v2-alpha-tpuv5 [v5litepod]=v2-alpha-tpuv5-lite
  [v4]=tpu-ubuntu2204-base [v3]=tpu-ubuntu2204-base [v2]=tpu-ubuntu2204-base) # cloud.google.com/tpu/docs/runtimes
made=false    # whether the queued resource has existed: if it is missing now, a user has deleted it
started=false # whether the run has been started on this node

tpus() { # GROUP ACTION FLAG...: gcloud, on the queued resource or on its node, which have the same name
  local words=(gcloud compute tpus "$1" "$2")
  if [[ $2 != scp ]]; then words+=("${flag[name]}"); fi
  call "${words[@]}" "${@:3}" --zone="${flag[zone]}" ${flag[project]:+"--project=${flag[project]}"} </dev/null
}

remote() { tpus tpu-vm ssh --worker=all --command="$1"; } # COMMAND_LINE: on all workers at once
worker_states() { remote "bsjax/scripts/tpu_worker.sh status"; }
say() { echo "${flag[name]}: $*" >&2; }

finish() { # CODE MESSAGE
  say "$2"
  exit "$1"
}

ask() { # GROUP: its state; MISSING; or UNKNOWN, if gcloud cannot tell
  local answer field=state
  if [[ $1 == queued-resources ]]; then field=state.state; fi
  if answer=$(tpus "$1" describe --format="value($field)" 2>&1); then
    echo "${answer##*$'\n'}"
  elif [[ $answer == *NOT_FOUND* ]]; then
    echo MISSING
  else
    echo "$answer" >&2
    echo UNKNOWN
  fi
}

request() {
  tpus queued-resources create --node-id="${flag[name]}" --accelerator-type="${flag[type]}" \
    --runtime-version="${flag[runtime_version]}" "${create_flags[@]}"
}

create() { # returns when the node is ACTIVE
  local now before='' requested=false
  while :; do
    now=$(ask queued-resources)
    if [[ $now == ACTIVE && $(ask tpu-vm) =~ ^(PREEMPTED|TERMINATED)$ ]]; then now=PREEMPTED; fi
    if [[ $now != "$before" && $started == false ]]; then say "$now"; fi
    before=$now
    case $now in
      ACTIVE) made=true && return ;;
      UNKNOWN) if [[ $made == false ]]; then return 1; fi ;; # later, wait: the run does not depend on this computer
      MISSING | DELETING)
        if [[ $made == true ]]; then finish 1 "deleted by somebody"; fi
        if [[ $now == MISSING ]]; then
          say "requesting a ${flag[type]} in ${flag[zone]}. Once ACTIVE it is billed, until: scripts/tpu_vm.sh delete"
          request || return
          made=true requested=true started=false
        fi
        ;;
      FAILED | SUSPENDING | SUSPENDED | PREEMPTED) # a queued resource does not come back from these
        if [[ $requested == true ]]; then
          say "no node; why: gcloud compute tpus queued-resources describe ${flag[name]} --zone=${flag[zone]}"
          return 1
        fi
        say "$now: deleting it, to request it again"
        delete || return
        made=false started=false
        continue
        ;;
      *) made=true ;;
    esac
    sleep "${flag[poll_s]}"
  done
}

setup() {
  local code=0 archive=${TMPDIR:-/tmp}/bsjax-$$.tar.gz # one file: scp --recurse takes a minute and .venv with it
  call tar -czf "$archive" -C "$root" --exclude=./.git --exclude=./.venv --exclude=./runs --exclude='./.*_cache' \
    --exclude=./.hypothesis --exclude=__pycache__ . || return
  tpus tpu-vm scp "$archive" "${flag[name]}:bsjax.tar.gz" --worker=all || code=$?
  call rm "$archive"
  if ((code)); then return "$code"; fi
  remote "mkdir -p bsjax && tar -xzf bsjax.tar.gz -C bsjax && bsjax/scripts/tpu_worker.sh setup ${flag[bucket]}"
}

start() { remote "bsjax/scripts/tpu_worker.sh start $(quoted "${command[@]}")"; }

run() {
  start
  say "running in the background; next: scripts/tpu_vm.sh logs, status, stop, delete"
}

resume() {
  local failures=0 ended=0 report code bill="It is billed, until: scripts/tpu_vm.sh delete"
  if [[ -z ${flag[bucket]} ]]; then say "no --bucket: the files of the run are lost with its node"; fi
  trap 'finish 130 "the run continues, and so does the bill; the same command attaches to it again"' INT
  while ((failures < 5)); do
    if ! create; then
      ((++failures))
    elif [[ $started == false ]]; then
      if { remote "test -e bsjax-run/ready" || setup; } && start; then started=true ended=0; else ((++failures)); fi
    elif ! report=$(worker_states 2>&1); then # gcloud writes to stderr when all is well, too
      echo "$report" >&2
      ((++failures))
    elif grep -Eq 'bsjax-run .* (idle|ended [1-9])' <<<"$report"; then
      # A machine that is taken away ends its processes first: gcloud may report the pre-emption a little later.
      if ((++ended == 3)); then
        grep bsjax-run <<<"$report" >&2
        # Workers whose peer has died end with 1, so the largest code is that of the cause.
        code=$(awk '$1 == "bsjax-run" && $4 > code { code = $4 } END { print code + 0 }' <<<"$report")
        stop || true # other workers may still be running
        if ((code)); then finish "$code" "it ended with $code; its log: scripts/tpu_vm.sh logs. $bill"; fi
        started=false
        ((++failures))
      fi
    elif grep -q 'bsjax-run .* running' <<<"$report"; then
      failures=0 ended=0
    else
      say complete
      if [[ ${flag[delete_when_complete]} == true ]]; then delete; else say "$bill"; fi
      return
    fi
    sleep "${flag[poll_s]}"
  done
  finish 1 "gave up after 5 failures in a row. It may run, and be billed: scripts/tpu_vm.sh status, delete"
}

logs() { tpus tpu-vm ssh --worker="${flag[worker]}" --command="tail -n 100 -F bsjax-run/log"; }

status() {
  local node
  node=$(ask tpu-vm)
  say "queued resource $(ask queued-resources), node $node"
  if [[ $node == READY ]]; then worker_states; fi
}

stop() { remote "bsjax/scripts/tpu_worker.sh stop ${flag[stop_s]}"; }
remove() { tpus queued-resources delete --force --quiet; }

delete() {
  local tries resource node
  for tries in 1 2 3 4 5 6; do
    resource=$(ask queued-resources)
    node=$(ask tpu-vm)
    if [[ $resource$node == MISSINGMISSING ]]; then
      say "deleted; nothing of it is billed. Others: gcloud compute tpus queued-resources list --zone=${flag[zone]}"
      return
    fi
    if ((tries > 1)); then sleep "${flag[poll_s]}"; fi
    if [[ $resource != MISSING ]]; then remove || true; else tpus tpu-vm delete --quiet || true; fi
  done
  say "STILL THERE, AND MAYBE BILLED: queued resource $resource, node $node; see console.cloud.google.com/compute/tpus"
  return 1
}

if [[ ${1:-} == --help || ${1:-} == -h ]]; then parse_flags "$1"; fi
check_choice verb "${1:-}" create setup run logs status stop delete
parse_flags "${@:2}"
check_flag stop_s '[1-9][0-9]*' "a whole number of 1 or more" 120
check_flag poll_s '[0-9]+(\.[0-9]+)?' "a number of seconds" 30
flag[bucket]=${flag[bucket]#gs://}
check_flag bucket '([a-z0-9][-_.a-z0-9]{1,61}[a-z0-9])?' "the name of a bucket, without folders" "${flag[bucket]%%/*}"
generation=${flag[type]%-*}
if [[ -z ${flag[runtime_version]:=${runtimes[$generation]-}} ]]; then
  invalid --type "${flag[type]}" "known, or come with --runtime_version" "$(nearest "$generation" "${!runtimes[@]}")-8"
fi
read -ra create_flags <<<"${flag[create_flags]}"
if [[ ${flag[spot]} == true ]]; then create_flags=(--spot "${create_flags[@]}"); fi
if [[ $1 == run && ${#command[@]} == 0 ]]; then
  invalid COMMAND "" "given after --" "run -- python -m experiments.figure5"
elif [[ $1 != run && ${#command[@]} != 0 ]]; then
  invalid verb "$1" "run, to take a command" run
fi
case $1-${flag[resume]}-${flag[dry_run]} in
  run-true-false) resume ;;
  run-true-true) request && setup && start && worker_states ;;
  run-false-true) start ;;
  create-*-true) request ;;
  status-*-true) worker_states ;;
  delete-*-true) remove ;;
  *) "$1" ;;
esac
