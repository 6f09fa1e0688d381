#!/usr/bin/env bash
# A Cloud TPU VM of one or more hosts, as a queued resource: from nothing to a finished run, and to no bill.
#
#   scripts/tpu_vm.sh create [--spot] [--type=v5litepod-16]   asks for it and waits until it is there, and billed
#   scripts/tpu_vm.sh setup --bucket=NAME                     this repository and its environment on every worker
#   scripts/tpu_vm.sh run [--resume] -- COMMAND...            starts COMMAND on all workers, in the background
#   scripts/tpu_vm.sh logs                                    follows the log of a worker
#   scripts/tpu_vm.sh status                                  the request, the node, the run
#   scripts/tpu_vm.sh stop                                    SIGTERM: the run writes a checkpoint; the node stays, billed
#   scripts/tpu_vm.sh delete                                  removes node and request, and looks that nothing is left
#
# run --resume stays until COMMAND exits with 0 everywhere. It creates and sets up what is missing, also when the node is
# pre-empted (--spot), and attaches to a run that is under way. Another failure ends it, with COMMAND's exit code.
#
# Every verb takes (defaults in parentheses)
#   --name=NAME (bsjax)           --project=PROJECT (gcloud's)       --zone=ZONE (us-central1-a)
#   --type=TYPE (v5litepod-8)     --runtime_version=VERSION (what Google names for the type)
#   --spot                        cheaper; may be taken away at any moment
#   --bucket=NAME                 a Cloud Storage bucket, mounted at bucket/: COMMAND has --workdir=bucket/...; its data/
#                                 is copied to where experiments look for prepared data; its logs/ keeps the logs
#   --repo=URL --ref=REF (main)   clones this instead of copying the working tree
#   --create_flags="FLAGS"        more flags for gcloud's create, such as --network=NETWORK
#   --worker=0 --lines=100 --nofollow           for logs
#   --stop_s=120                                how long stop waits for the checkpoint, before SIGKILL
#   --delete_when_complete                      run --resume deletes the node when the command is complete
#   --poll_s=30 --grace_s=60                    time between looks; time for a failure to turn out to be a pre-emption
#   --fast_s=300 --max_fast_failures=3          run --resume gives up after so many runs in a row of less than fast_s
#   --dry_run                                   prints the commands instead
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source-path=SCRIPTDIR
source "$root/scripts/flags.sh"
VERBS=(create setup run logs status stop delete)
flag=([name]=bsjax [project]='' [zone]=us-central1-a [type]=v5litepod-8 [runtime_version]='' [spot]=false [bucket]=''
  [repo]='' [ref]='' [create_flags]='' [resume]=false [worker]=0 [lines]=100 [follow]=true [stop_s]=120
  [delete_when_complete]=false [poll_s]=30 [grace_s]=60 [fast_s]=300 [max_fast_failures]=3 [dry_run]=false)
assumed_state=ACTIVE # with --dry_run
made=false           # whether it has been there: if it is missing then, somebody has deleted it

check_flags() {
  check_flag name '[a-z]([-a-z0-9]{0,61}[a-z0-9])?' "lower-case letters, digits and hyphens, a letter first" bsjax
  check_flag zone '[a-z]+-[a-z]+[0-9]+-[a-z]' "a zone: gcloud compute tpus locations list" "${flag[zone]%-[a-z]}-a"
  check_flag worker '[0-9]+' "the number of a worker" 0
  check_whole lines stop_s fast_s max_fast_failures
  check_seconds poll_s grace_s
  flag[bucket]=${flag[bucket]#gs://}
  check_flag bucket '([a-z0-9][-_.a-z0-9]{1,61}[a-z0-9])?' "the name of a bucket, without folders" "${flag[bucket]%%/*}"
  if [[ -n ${flag[ref]} && -z ${flag[repo]} ]]; then invalid --ref "${flag[ref]}" "given with --repo" --repo=URL; fi
  case ${flag[type]} in # cloud.google.com/tpu/docs/runtimes
    v6e-[1-9]*) : "${flag[runtime_version]:=v2-alpha-tpuv6e}" ;;
    v5p-[1-9]*) : "${flag[runtime_version]:=v2-alpha-tpuv5}" ;;
    v5litepod-[1-9]*) : "${flag[runtime_version]:=v2-alpha-tpuv5-lite}" ;;
    v[234]-[1-9]*) : "${flag[runtime_version]:=tpu-ubuntu2204-base}" ;;
    *) if [[ -z ${flag[runtime_version]} ]]; then
      invalid --type "${flag[type]}" "a known type, or come with --runtime_version" \
        "$(nearest "${flag[type]}" v5litepod-{1,4,8,16,32,64} v6e-{1,4,8,16,32,64} v5p-{8,16,32} v4-{8,16,32} v3-8 v2-8)"
    fi ;;
  esac
}

# gcloud, on the queued resource and on its node, which have the same name. All that leaves this machine goes through here.

tpus() { # GROUP ACTION FLAG...
  local words=(gcloud compute tpus "$1" "$2")
  if [[ $2 != scp ]]; then words+=("${flag[name]}"); fi
  call "${words[@]}" "${@:3}" --zone="${flag[zone]}" ${flag[project]:+"--project=${flag[project]}"} </dev/null
}

remote() { # COMMAND_LINE: on all workers at once
  tpus tpu-vm ssh --worker=all --command="$1"
}

ask() { # GROUP FIELD: its value; MISSING; or UNKNOWN, if gcloud cannot tell
  local answer
  if answer=$(tpus "$1" describe --format="value($2)" 2>&1); then
    echo "${answer##*$'\n'}"
  elif [[ $answer == *NOT_FOUND* ]]; then
    echo MISSING
  else
    echo "$answer" >&2
    echo UNKNOWN
  fi
}

state() { # of the queued resource, or PREEMPTED
  if [[ ${flag[dry_run]} == true ]]; then
    tpus queued-resources describe --format="value(state.state)"
    echo "$assumed_state"
    return
  fi
  local now
  now=$(ask queued-resources state.state)
  if [[ $now == ACTIVE && $(ask tpu-vm state) =~ ^(PREEMPTED|TERMINATED)$ ]]; then now=PREEMPTED; fi
  echo "$now"
}

say() { if [[ ${flag[dry_run]} == false ]]; then echo "${flag[name]}: $*" >&2; fi; }

# The verbs.

ask_for_node() {
  local spot=() more=()
  if [[ ${flag[spot]} == true ]]; then spot=(--spot); fi
  read -ra more <<<"${flag[create_flags]}"
  say "asking for a ${flag[type]} in ${flag[zone]}. Once it is ACTIVE it is billed, until: scripts/tpu_vm.sh delete"
  tpus queued-resources create --node-id="${flag[name]}" --accelerator-type="${flag[type]}" \
    --runtime-version="${flag[runtime_version]}" "${spot[@]}" "${more[@]}" || return
  assumed_state=ACTIVE
}

create() {
  local now before='' unknown=0
  now=$(state)
  if [[ $now == UNKNOWN ]]; then return 1; fi
  if [[ $now =~ ^(FAILED|SUSPENDING|SUSPENDED|PREEMPTED)$ ]]; then
    say "$now: making it anew"
    delete || return
    made=false now=MISSING
  fi
  if [[ $now == MISSING && $made == false ]]; then ask_for_node || return; fi
  made=true
  while :; do
    now=$(state)
    if [[ $now != "$before" ]]; then say "$now after $((SECONDS / 60)) min" && before=$now; fi
    case $now in
      ACTIVE) return ;;
      UNKNOWN) if ((++unknown == 5)); then return 1; fi ;;
      MISSING | DELETING)
        deleted
        return 1
        ;;
      FAILED | SUSPENDING | SUSPENDED | PREEMPTED)
        say "there is no node; why: gcloud compute tpus queued-resources describe ${flag[name]} --zone=${flag[zone]}"
        return 1
        ;;
    esac
    sleep "${flag[poll_s]}"
  done
}

setup() {
  if [[ -n ${flag[repo]} ]]; then
    remote "git init -q bsjax && cd bsjax && git fetch -q $(quoted "${flag[repo]}" "${flag[ref]:-main}") &&
      git checkout -q --force --detach FETCH_HEAD" || return
  else
    local code=0 archive=${TMPDIR:-/tmp}/bsjax-$$.tar.gz # one file: scp --recurse takes a minute and .venv with it
    call tar -czf "$archive" -C "$root" --exclude=./.git --exclude=./.venv --exclude=./runs --exclude='./.*_cache' \
      --exclude=./.hypothesis --exclude=__pycache__ . || return
    tpus tpu-vm scp "$archive" "${flag[name]}:bsjax.tar.gz" --worker=all || code=$?
    call rm "$archive"
    if ((code)); then return "$code"; fi
    remote "mkdir -p bsjax && tar -xzf bsjax.tar.gz -C bsjax" || return
  fi
  remote "bsjax/scripts/tpu_worker.sh setup ${flag[bucket]}"
}

start() { remote "bsjax/scripts/tpu_worker.sh start $(quoted "${command[@]}")"; }

run() {
  if [[ ${flag[resume]} == true ]]; then
    run_until_complete
  else
    start && say "running in the background; next: scripts/tpu_vm.sh logs, status, stop, delete"
  fi
}

run_until_complete() {
  local outcome code ran_s fast=0 # what attempt finds out
  if [[ -z ${flag[bucket]} ]]; then say "no --bucket: what the run writes is lost with its node"; fi
  trap 'say "the run goes on, and so does the bill; the same command attaches to it again"; exit 130' INT
  while :; do
    attempt
    case $outcome in
      complete)
        say "complete"
        if [[ ${flag[delete_when_complete]} == true ]]; then
          delete
        else
          say "still billed, until: scripts/tpu_vm.sh delete"
        fi
        return
        ;;
      failed)
        say "it ended with $code; its log: scripts/tpu_vm.sh logs. Still billed, until: scripts/tpu_vm.sh delete"
        return "$code"
        ;;
    esac
    if ((ran_s >= flag[fast_s])); then fast=0; fi
    if ((++fast == flag[max_fast_failures])); then
      say "gave up after $fast runs of less than ${flag[fast_s]} s. It may be billed: scripts/tpu_vm.sh status, delete"
      return 1
    fi
    sleep "${flag[poll_s]}"
  done
}

attempt() { # sets outcome to complete, failed (with a code) or again
  local started=$SECONDS
  outcome=again ran_s=0
  create || return 0
  if [[ ${flag[dry_run]} == true ]] || ! remote "test -e bsjax-run/ready"; then setup || return 0; fi
  start || return 0
  started=$SECONDS
  follow
  ran_s=$((SECONDS - started))
}

follow() {
  local report looked unreachable=0
  while :; do
    sleep "${flag[poll_s]}"
    if ! report=$(remote "bsjax/scripts/tpu_worker.sh status" 2>&1); then # gcloud says much on stderr when all is well
      echo "$report" >&2
      looked=0
      gone || looked=$?
      if ((looked == 0)); then return; fi
      if ((looked == 1 && ++unreachable == 5)); then # an outage here, at 2, does not hurt the run: wait it out
        say "no answer from its workers"
        outcome=failed code=1
        return
      fi
      continue
    fi
    unreachable=0
    if [[ ${flag[dry_run]} == true ]]; then outcome=complete && return; fi
    if grep -Eq 'bsjax-run .* (lost|idle|ended [1-9])' <<<"$report"; then break; fi
    if ! grep -q 'bsjax-run .* running' <<<"$report"; then outcome=complete && return; fi
  done
  grep bsjax-run <<<"$report" >&2
  # The workers whose peer has died end with 1: so the largest code is that of the cause.
  code=$(awk '$1 == "bsjax-run" && $3 == "ended" && $4 > code { code = $4 } END { print code + 0 }' <<<"$report")
  # A machine that is about to be taken away ends its processes first: give the news time to arrive.
  if gone || { sleep "${flag[grace_s]}" && gone; }; then return; fi
  stop || true # what may still be running on other workers
  if ((code)); then outcome=failed; fi
}

gone() { # whether the node was taken away, or deleted, which ends the loop; 2 if that is not known
  case $(state) in
    SUSPENDING | SUSPENDED | PREEMPTED | FAILED) say "pre-empted" ;;
    MISSING | DELETING) deleted ;;
    UNKNOWN) return 2 ;;
    *) return 1 ;;
  esac
}

deleted() { # not by us: that ends the loop
  say "deleted by somebody"
  outcome=failed code=1
}

logs() {
  local follow=()
  if [[ ${flag[follow]} == true ]]; then follow=(-F); fi
  tpus tpu-vm ssh --worker="${flag[worker]}" --command="tail -n ${flag[lines]} ${follow[*]} bsjax-run/log"
}

status() {
  local resource node
  resource=$(ask queued-resources state.state)
  node=$(ask tpu-vm state)
  say "queued resource $resource, node $node"
  if [[ $node == READY || ${flag[dry_run]} == true ]]; then remote "bsjax/scripts/tpu_worker.sh status"; fi
}

stop() { remote "bsjax/scripts/tpu_worker.sh stop ${flag[stop_s]}"; }

delete() {
  local tries resource node
  if [[ ${flag[dry_run]} == true ]]; then
    tpus queued-resources delete --force --quiet
    return
  fi
  for tries in 1 2 3 4 5; do
    resource=$(ask queued-resources state.state)
    node=$(ask tpu-vm state)
    if [[ $resource == MISSING && $node == MISSING ]]; then
      say "gone; nothing of it is billed. Other requests: gcloud compute tpus queued-resources list --zone=${flag[zone]}"
      return
    fi
    if ((tries > 1)); then sleep "${flag[poll_s]}"; fi
    if [[ $resource != MISSING ]]; then
      tpus queued-resources delete --force --quiet || true
    else
      tpus tpu-vm delete --quiet || true
    fi
  done
  say "STILL THERE, AND MAYBE BILLED: queued resource $resource, node $node. Look at console.cloud.google.com/compute/tpus"
  return 1
}

if [[ ${1:-} == --help || ${1:-} == -h ]]; then parse_flags "$1"; fi
check_choice verb "${1:-}" "${VERBS[@]}"
parse_flags "${@:2}"
check_flags
if [[ $1 == run ]]; then
  if ((${#command[@]} == 0)); then invalid COMMAND "" "given after --" "run -- python -m experiments.figure5 ..."; fi
elif ((${#command[@]})); then
  invalid verb "$1" "run, to take a command" run
fi
if [[ $1 == create || ${flag[resume]} == true ]]; then assumed_state=MISSING; fi
"$1"
