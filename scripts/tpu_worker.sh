#!/usr/bin/env bash
# The part of tpu_vm.sh that runs on each worker. Notes of the run are in ~/bsjax-run: log, command, pid, exit_code.
#
#   scripts/tpu_worker.sh setup [BUCKET]      the environment; a bucket mounted at bucket/, its data/ copied to the disk
#   scripts/tpu_worker.sh start COMMAND...    in the background, here in the root, with .venv's python
#   scripts/tpu_worker.sh status              a line: "bsjax-run HOST idle", "running", "ended CODE" or "lost"
#   scripts/tpu_worker.sh stop SECONDS        SIGTERM to all of its processes; SIGKILL if they still run after SECONDS
#
# Why the bucket is mounted (with Cloud Storage FUSE) and not copied to and fro: all hosts of a run need to see one folder
# of checkpoints at the same time. What that needs, and what the flags are for:
#   - A checkpoint is complete once its folder is renamed. Only a bucket with a hierarchical namespace renames folders in
#     one step; in another one, rename-dir-limit=0 makes it fail at the first checkpoint instead of losing one later.
#   - What one host writes, the others see at once: nothing about files is cached.
#   - metrics.jsonl stays open for the whole run; without streaming writes, fsync (at each checkpoint) saves it.
# It knows no locks, and reads far slower than a disk: so data sets are copied.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
notes=~/bsjax-run
mount=~/bucket
gcsfuse_flags=(--metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 --rename-dir-limit=0
  --enable-streaming-writes=false)
mkdir -p "$notes"

apt_install() {
  sudo apt-get -qq update
  sudo apt-get -qq -y -o DPkg::Lock::Timeout=600 install "$@" # a new machine may be updating itself
}

install_gcsfuse() { # as cloud.google.com/storage/docs/cloud-storage-fuse/install says
  curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg |
    sudo tee /usr/share/keyrings/cloud.google.asc >/dev/null
  echo "deb [signed-by=/usr/share/keyrings/cloud.google.asc] https://packages.cloud.google.com/apt \
gcsfuse-$(lsb_release -c -s) main" | sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  apt_install gcsfuse
}

mount_bucket() { # the one that setup was given, if any; a machine that has restarted has lost it
  if [[ ! -e $notes/bucket ]] || mountpoint -q "$mount"; then return; fi
  mkdir -p "$mount"
  gcsfuse "${gcsfuse_flags[@]}" "$(<"$notes/bucket")" "$mount"
  ln -sfn "$mount" bucket
}

setup() {
  rm -f "$notes/ready"
  python3.11 -m ensurepip --version >/dev/null 2>&1 || apt_install python3.11-venv # TPU VMs come with 3.10
  if [[ -n ${1:-} ]]; then
    command -v gcsfuse >/dev/null || install_gcsfuse
    echo "$1" >"$notes/bucket"
    mount_bucket
    if [[ -d bucket/data ]]; then mkdir -p ~/.cache/bsjax && cp -r bucket/data/. ~/.cache/bsjax; fi
  fi
  PYTHON=python3.11 scripts/setup_venv.sh tpu
  touch "$notes/ready"
}

running() {
  [[ -e $notes/pid ]] && [[ $(ps -o args= -p "$(<"$notes/pid")" 2>/dev/null) == *"tpu_worker.sh supervise"* ]]
}

start() {
  if running; then
    if [[ $(<"$notes/command") == "$*" ]]; then return; fi
    echo "error: $(hostname) still runs: $(<"$notes/command"); stop it first: scripts/tpu_vm.sh stop" >&2
    exit 3
  fi
  mount_bucket
  printf '%s\n' "$*" >"$notes/command"
  rm -f "$notes/exit_code"
  # In a session of its own, away from the terminal: it outlives the connection, and is one group to signal.
  PATH=$PWD/.venv/bin:$PATH setsid scripts/tpu_worker.sh supervise "$@" >>"$notes/log" 2>&1 </dev/null &
  echo $! >"$notes/pid"
  while ! running && kill -0 $! 2>/dev/null; do sleep 0.05; done
}

supervise() {
  trap : TERM # of the group, this process stays, to write down how the command ended
  echo "== $(date -u +%FT%TZ) $*"
  local code=0
  "$@" || code=$?
  echo "== $(date -u +%FT%TZ) ended with $code"
  save_log || true
  echo "$code" >"$notes/exit_code"
}

save_log() { # where it outlives the machine
  if mountpoint -q "$mount"; then
    mkdir -p "$mount/logs"
    cp "$notes/log" "$mount/logs/$(hostname)-$(date -u +%Y%m%d-%H%M%S).log"
  fi
}

status() {
  local state=lost # it neither runs nor said how it ended: the machine has restarted
  if running; then
    state=running
  elif [[ -e $notes/exit_code ]]; then
    state="ended $(<"$notes/exit_code")"
  elif [[ ! -e $notes/pid ]]; then
    state=idle
  fi
  echo "bsjax-run $(hostname) $state"
}

stop() {
  local deadline=$((SECONDS + $1)) group
  if running; then
    group=$(<"$notes/pid")
    kill -TERM -- "-$group"
    while running && ((SECONDS < deadline)); do sleep 0.1; done
    if running; then
      kill -KILL -- "-$group"
      echo 137 >"$notes/exit_code"
      while running; do sleep 0.1; done
    fi
  fi
  status
}

"$@"
