#!/usr/bin/env bash
# The paper's Figure 5 in miniature, on embedded images of handwritten digits: a decayed learning rate against
# a grown batch, three seeds each. Prints the table and where the picture is. Flags of experiments/figure5.py may follow.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup_venv.sh

command=(.venv/bin/python -m experiments.figure5 --preset=digits --seeds=3 --workdir=runs/demo "$@")
echo "Running ${command[*]}"
exec "${command[@]}"
