#!/usr/bin/env bash
# Makes .venv at the repository root and installs bsjax into it, with an extra if one is named.
# Does nothing if that has been done; starts again if it was interrupted.
#
#   scripts/setup_venv.sh [EXTRA]              EXTRA: test, dev, docs, cuda, tpu, tfds or imagenet (see setup.cfg)
#   PYTHON=python3.12 scripts/setup_venv.sh    with this interpreter
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extra=${1:-}
unfinished=.venv/unfinished # holds our process id until the first install is complete

find_python() {
  local candidates=(python3 python3.13 python3.12 python3.11) candidate
  if [[ -n ${PYTHON:-} ]]; then candidates=("$PYTHON"); fi
  for candidate in "${candidates[@]}"; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "bsjax needs Python 3.11 or later, which is none of: ${candidates[*]}. Name one: PYTHON=/path/to/python3" >&2
  return 1
}

if [[ -e $unfinished && $(ps -o args= -p "$(<$unfinished)" 2>/dev/null) == *scripts/setup_venv.sh* ]]; then
  echo "Process $(<$unfinished) is making .venv: wait for it, then call again" >&2
  exit 1
fi
if [[ -e $unfinished ]] || ! .venv/bin/python -c '' 2>/dev/null; then
  python=$(find_python)
  echo "Making .venv with $("$python" --version)"
  rm -rf .venv
  mkdir .venv
  echo $$ >$unfinished
  "$python" -m venv .venv
fi

# What the install depends on: this folder (it is an editable install), the interpreter, the requirements.
state=$({ pwd && .venv/bin/python --version && cat setup.cfg pyproject.toml; } | cksum)
stamp=.venv/installed-${extra:-base}
if [[ -e $stamp && $(<"$stamp") == "$state" ]]; then
  exit 0
fi

if [[ -e $unfinished ]]; then cost=" (200 MB or more to download, 1 GB on disk; a minute or two)"; fi
echo "Installing bsjax${extra:+[$extra]} and its requirements into .venv${cost:-}"
rm -f .venv/installed-base
.venv/bin/python -m pip --version >/dev/null 2>&1 || .venv/bin/python -m ensurepip >/dev/null
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input --editable ".${extra:+[$extra]}"
echo "$state" | tee .venv/installed-base >"$stamp"
rm -f $unfinished
