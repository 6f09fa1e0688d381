#!/usr/bin/env bash
# Builds the site of docs/ into build/docs, and fails if there is a warning: a link inside that leads
# nowhere, a name of the API that does not exist, a notebook with an error. Arguments go to sphinx-build.
#
#   scripts/docs.sh                               then open build/docs/index.html; it needs no server and no network
#   BSJAX_DOCS_NOTEBOOKS=off scripts/docs.sh      without executing the notebooks, in seconds
#   scripts/docs.sh -E                            reads all pages anew; rm -r build/docs_cache executes all notebooks anew
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup_venv.sh docs

export JAX_PLATFORMS=cpu
.venv/bin/python -m sphinx --builder=html --nitpicky --fail-on-warning --keep-going --quiet \
  --doctree-dir=build/docs_trees "$@" docs build/docs
echo "build/docs/index.html"
