"""The README's code runs, and its commands exist."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def test_there_are_code_blocks():
    assert len(BLOCKS) == 2


@pytest.mark.parametrize(("block", "printed"), [*zip(BLOCKS, ("574 updates instead of 899", "221 "), strict=True)])
def test_code_blocks_run(block, printed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})
    assert printed in capsys.readouterr().out


def test_commands_exist():
    modules = set(re.findall(r"python -m (experiments\.\w+)", README))
    scripts = set(re.findall(r"scripts/\w+\.\w+", README))
    assert len(modules) >= 4 and len(scripts) >= 3
    for path in (*(module.replace(".", "/") + ".py" for module in modules), *scripts):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / path).exists(), path


def test_results_are_those_of_the_files():
    command = [sys.executable, str(ROOT / "scripts/results_table.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
