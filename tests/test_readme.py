"""The README and docs/: their programs run and print what they say, their commands and links exist."""

import csv
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
TEXT = "\n".join(PAGES.values())
BLOCKS = [
    pytest.param(block, id=f"{name}-{number}")
    for name, page in PAGES.items()
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE))
]
FIRST = [block.values[0] for block in BLOCKS if re.match(r"README|docs/train_your_model", block.id)]
COMMANDS = re.findall(r"python(?: -m (experiments\.\w+)| (scripts/\w+\.py))((?:\\\n|[^`#\n])*)", TEXT)


def test_the_readme_begins_with_two_commands():
    lines = [line for line in PAGES["README.md"].splitlines() if line]
    assert [line.split("#")[0].split() for line in lines[1:3]] == [["scripts/demo.sh"], ["scripts/test.sh"]]


@pytest.mark.parametrize("block", BLOCKS)
def test_programs_run_and_print_what_they_say(block, run_python, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(block, encoding="utf-8")
    if block in FIRST:  # in a new Python, where imports may warn
        command, options = [sys.executable, "-W", "error", program], {"capture_output": True, "text": True}
        result = subprocess.run(command, cwd=tmp_path, timeout=300, **options)
    else:
        result = run_python("-W", "error", program, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    expected = re.findall(r"^ *print\(.*\)  # (.*)$", block, re.MULTILINE)
    assert expected
    for text in expected:
        assert text in result.stdout


def test_the_programs_are_those_that_a_newcomer_needs():
    five_lines, engine = FIRST
    assert [f"# line {number}" in five_lines for number in range(1, 7)] == [True] * 5 + [False]
    assert all(name in engine for name in ("from_loss(", "Engine(", "run.train("))


def test_the_readme_is_read_in_three_minutes():
    assert len(PAGES["README.md"].split()) <= 700


def test_commands_and_their_flags_exist():
    sources = {path: path.read_text(encoding="utf-8") for path in ROOT.glob("experiments/**/*.py")}
    shared = "".join(text for path, text in sources.items() if "harness" in path.parts)
    assert len({module or script for module, script, _ in COMMANDS}) > 10
    for module, script, flags in COMMANDS:
        path = ROOT / (script or module.replace(".", "/") + ".py")
        files = [path] if path.exists() else sorted((ROOT / module.replace(".", "/")).glob("*.py"))
        assert files[0].exists() and (path.exists() or "__main__.py" in {file.name for file in files}), path
        text = "".join(file.read_text(encoding="utf-8") for file in files) + shared * bool(module)
        for flag in re.findall(r"--(\w+)", flags):
            assert re.search(rf'"{flag}"|^    {flag}: ', text, re.MULTILINE), (path, flag)


def test_files_exist():
    for path in set(re.findall(r"(?<![\w/])((?:scripts|bsjax|experiments)/[\w/.]+\.(?:py|sh))", TEXT)):
        assert (ROOT / path).exists(), path
    for name, page in PAGES.items():
        for path in re.findall(r"\]\((?!http|#|\.\./\.\./actions/)([^)#]+)[^)]*\)", page):  # GitHub has the actions
            assert ((ROOT / name).parent / path).exists(), (name, path)


def test_what_the_demo_prints_is_told_without_pinning_the_digits():
    demo = PAGES["docs/getting_started.md"].split("## What the demo shows")[1].split("\n## ")[0]
    updates = re.findall(r"^    (?:Original|Increas).*?  ([\d,]+)  ", demo, re.MULTILINE)
    assert updates == ["7,185", "2,747", "1,454", "819"]
    for words in ("± is the standard deviation", "depend on the CPU", "constant learning rate"):
        assert re.search(words.replace(" ", r"\s+"), demo)


def test_the_readmes_results_are_those_of_the_files():
    table = re.findall(r"^\| (\w+) \|((?: [\d.]+ %, [\d,]+ \|)+)$", PAGES["README.md"], re.MULTILINE)
    assert [preset for preset, _ in table] == ["digits", "fashion_mnist", "cifar10_small"]
    for preset, cells in table:
        with open(ROOT / f"experiments/results/{preset}/figure5_table.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        means = [(100 * float(rows[k]["test_accuracy_mean"]), int(rows[k]["updates"])) for k in (0, 1, 2, 4)]
        shown = [f"{accuracy:.1f} %, {updates:,}" for accuracy, updates in means]
        assert [cell.strip() for cell in cells.split("|")[:-1]] == shown
        assert (rows[1]["verdict"], rows[4]["schedule"]) == ("equal", "Control: constant learning rate")


def test_results_are_those_of_the_files():
    command = [sys.executable, str(ROOT / "scripts/results_table.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
