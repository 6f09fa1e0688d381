#!/usr/bin/env bash
# Runs every check: lint, format, types, the site, doctests and tests. Arguments go to pytest, and leave out the site:
# scripts/test.sh -k recipe
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup_venv.sh test

echo "== ruff check"
.venv/bin/python -m ruff check .
echo "== ruff format"
.venv/bin/python -m ruff format --check .
echo "== mypy: bsjax, experiments, scripts"
.venv/bin/python -m mypy
echo "== shellcheck"
.venv/bin/shellcheck --external-sources scripts/*.sh .ci/run
if [[ $# == 0 ]]; then
  echo "== docs: the site, its links and its notebooks"
  scripts/docs.sh
fi
echo "== pytest: doctests of bsjax, tests"
exec .venv/bin/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile "$@"
