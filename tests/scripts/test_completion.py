"""The completion of scripts and flags in bash."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-m", "experiments.figure"], [f"experiments.figure{number}" for number in range(1, 9)]),
        (["-m", "experiments.quadratic", "--n"], ["--nocompilation_cache", "--num_epochs=", "--num_runs="]),
        (["-m", "experiments.quadratic", "runs/"], []),  # a file's name is bash's
        (["-m", "pip", "--num_"], []),
    ],
)
def test_names_and_flags_are_completed(words, expected):
    program = """
source scripts/completion.bash
shopt -u progcomp; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_bsjax_complete
printf '%s\\n' "${COMPREPLY[@]}"
"""
    command = ["bash", "-c", program, "bash", sys.executable, *words]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert sorted(result.stdout.split()) == expected, result.stderr
