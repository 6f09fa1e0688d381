#!/usr/bin/env bash
# tpu_vm.sh calls this on each worker. It keeps the run's log, command, pid and exit_code in ~/bsjax-run.
#
#   scripts/tpu_worker.sh setup [BUCKET]      installs; mounts the bucket at bucket/ and copies its data/ to the disk
#   scripts/tpu_worker.sh start COMMAND...    starts a command in the background, in the root, with .venv's python
#   scripts/tpu_worker.sh status              prints "bsjax-run HOST idle", "running" or "ended CODE"
#   scripts/tpu_worker.sh stop SECONDS        sends SIGTERM to all processes of the run, and SIGKILL after SECONDS
#
# All hosts of a run need the same folder of checkpoints, so Cloud Storage FUSE mounts the bucket. Its flags below:
#   - A checkpoint is complete once its folder is renamed. Only a bucket with a hierarchical namespace renames folders
#     in one step; in any other, rename-dir-limit=0 makes the first checkpoint fail, instead of losing one later.
#   - The caches are off, so that a host sees at once what another one has written.
#   - metrics.jsonl stays open for the whole run; without streaming writes, fsync (at each checkpoint) saves it.
# The mount has no locks and reads far slower than a disk, so data sets are copied.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
notes=~/bsjax-run
mount=~/bucket
mkdir -p "$notes"

apt_install() {
  sudo apt-get -qq update
  sudo apt-get -qq -y -o DPkg::Lock::Timeout=600 install "$@" # a new machine may be updating itself
}

install_gcsfuse() { # as cloud.google.com/storage/docs/cloud-storage-fuse/install says
  local packages=https://packages.cloud.google.com/apt key=/usr/share/keyrings/cloud.google.asc
  curl -fsS $packages/doc/apt-key.gpg | sudo tee $key >/dev/null
  echo "deb [signed-by=$key] $packages gcsfuse-$(lsb_release -c -s) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  apt_install gcsfuse
}

mount_bucket() { # if setup was given one; a restart of the machine unmounts it
  if [[ ! -e $notes/bucket ]] || mountpoint -q "$mount"; then return; fi
  mkdir -p "$mount"
  gcsfuse --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 --rename-dir-limit=0 \
    --enable-streaming-writes=false "$(<"$notes/bucket")" "$mount"
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
  [[ -e $notes/pid && $(ps -o args= -p "$(<"$notes/pid")" 2>/dev/null) == *"tpu_worker.sh supervise"* ]]
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
  # A session of its own outlives the connection, and receives signals as one group.
  PATH=$PWD/.venv/bin:$PATH setsid scripts/tpu_worker.sh supervise "$@" >>"$notes/log" 2>&1 </dev/null &
  echo $! >"$notes/pid"
  while ! running && kill -0 $! 2>/dev/null; do sleep 0.05; done
}

supervise() {
  trap : TERM # the signal is for the whole group; this process stays to save the exit code
  local code=0
  echo "== $(date -u +%FT%TZ) $*"
  "$@" || code=$?
  echo "== $(date -u +%FT%TZ) ended with $code"
  if mountpoint -q "$mount"; then # the log outlives the machine
    mkdir -p "$mount/logs" && cp "$notes/log" "$mount/logs/$(hostname)-$(date -u +%Y%m%d-%H%M%S).log" || true
  fi
  echo "$code" >"$notes/exit_code"
}

status() { # idle: nothing has been started, or the machine has restarted
  local state=idle
  if running; then state=running; elif [[ -e $notes/exit_code ]]; then state="ended $(<"$notes/exit_code")"; fi
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
