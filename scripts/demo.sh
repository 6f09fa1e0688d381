#!/usr/bin/env bash
# A small version of the paper's Figure 5 on the handwritten digits that come with bsjax: a decayed learning rate and
# three schedules with a growing batch. Prints a table and the picture's path. Takes the flags of experiments.figure5.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup_venv.sh

command=(.venv/bin/python -m experiments.figure5 --preset=digits --seeds=3 --workdir=runs/demo "$@")
echo "Running ${command[*]}"
echo "It trains four schedules. Updates are the same on every machine; the last digits of accuracies and losses depend"
echo "on the CPU. ± is the standard deviation over seeds."
exec "${command[@]}"
