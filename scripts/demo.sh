#!/usr/bin/env bash
# A small version of the paper's Figure 5 on the handwritten digits that come with bsjax: a decayed learning rate, three
# schedules with a growing batch, and four controls, which would do as well if the idea were wrong. Prints a table and
# the picture's path. Takes the flags of experiments.figure5.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup_venv.sh

command=(.venv/bin/python -m experiments.figure5 --preset=digits --seeds=5 --workdir=runs/demo "$@")
echo "Running ${command[*]}"
echo "It trains the paper's four schedules and four controls with five seeds, for a minute or two. Updates are the same"
echo "on every machine; the last digits of accuracies depend on the CPU."
exec "${command[@]}"
