#!/usr/bin/env bash
# Builds the wheel and the source archive into dist/, installs each wheel where the repository is not, and tries it: what is
# in it, `python -m bsjax.demo`, a user's program that mypy --strict checks, and the time that `import bsjax` takes.
#
#   scripts/package.sh [PYTHON...]    the interpreters to try; default, the oldest and the newest of python3.11 to 3.14
#
# Downloads the requirements for each interpreter, so it takes some minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
unset PYTHONPATH # pip would take a bsjax on it for installed
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

works() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
if (($#)); then
  pythons=("$@")
else
  pythons=()
  for version in 11 12 13 14; do if works "python3.$version"; then pythons+=("python3.$version"); fi; done
  if ((${#pythons[@]} > 2)); then pythons=("${pythons[0]}" "${pythons[-1]}"); fi
fi
if ((${#pythons[@]} == 0)); then echo "error: there is no python3.11 or later; name one" >&2 && exit 2; fi
for python in "${pythons[@]}"; do
  if ! works "$python"; then echo "error: $python is no Python of 3.11 or later" >&2 && exit 2; fi
done

pip() { "$1" -m pip install --quiet --disable-pip-version-check --no-input "${@:2}"; }

echo "== build, with ${pythons[0]}"
"${pythons[0]}" -m venv "$folder/build"
pip "$folder/build/bin/python" build
rm -rf build dist
"$folder/build/bin/python" -m build --outdir dist . >"$folder/build.log" 2>&1 || { tail -20 "$folder/build.log" && exit 1; }
rm -rf build
wheel=$(ls "$root"/dist/bsjax-*.whl)
"$folder/build/bin/python" tests/package_names.py "$wheel" "$root"/dist/bsjax-*.tar.gz

for python in "${pythons[@]}"; do
  echo "== $("$python" --version): install $(basename "$wheel")"
  env=$folder/$(basename "$python")
  "$python" -m venv "$env"
  pip "$env/bin/python" "$wheel" mypy
  mkdir -p "$folder/empty"
  cp tests/package_user.py "$folder/empty/user.py"
  cd "$folder/empty" # so that nothing of the repository is on the path
  "$env/bin/python" -c 'import importlib.util as u; assert not u.find_spec("experiments"), "experiments is installed"'
  "$env/bin/python" -m bsjax.demo --seeds=1
  "$env/bin/python" -W error user.py
  "$env/bin/python" -m mypy --strict user.py
  "$env/bin/python" -c "$(cat "$root/tests/package_import_time.py")" 0.3
  cd "$root"
done
echo "The packages in dist/ are good."
