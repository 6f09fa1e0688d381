"""The wheel: what is in it, and that it works without the repository. scripts/package.sh does more, with a network."""

import os
import pathlib
import runpy
import shutil
import subprocess
import sys
import zipfile

import pytest

from bsjax import demo

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The path of a wheel, built from a copy, because setuptools leaves a folder behind."""
    folder = tmp_path_factory.mktemp("build")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("bsjax", "experiments"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder]
    result = subprocess.run([*command, folder], capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr
    [path] = folder.glob("bsjax-*.whl")
    return path


def test_the_wheel_holds_bsjax_with_its_data_and_types_and_nothing_else(wheel):
    names = runpy.run_path(str(ROOT / "tests" / "package_names.py"))["check_wheel"](wheel)
    modules = {name for name in names if name.endswith(".py")}
    assert modules == {path.relative_to(ROOT).as_posix() for path in (ROOT / "bsjax").rglob("*.py")}


def test_the_demo_and_the_import_need_no_repository(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "empty").mkdir()
    options = {"cwd": tmp_path / "empty", "env": os.environ | {"PYTHONPATH": str(tmp_path / "site")}}
    options |= {"capture_output": True, "text": True, "timeout": 200}
    shown = subprocess.run([sys.executable, "-m", "bsjax.demo", "--seeds=0"], **options)
    assert (shown.returncode, shown.stderr) == (2, "error: --seeds is 0; it must be a whole number >= 1; nearest: 1\n")
    program = (ROOT / "tests" / "package_import_time.py").read_text() + "\nprint(bsjax.__file__)"
    result = subprocess.run([sys.executable, "-c", program], **options)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == str(tmp_path / "site" / "bsjax" / "__init__.py")


def test_the_demo_compares_the_same_recipe_by_two_plans(capsys):
    plans = demo.schedules(dataset_size=1_437, num_epochs=40)
    sizes = [[phase.batch_size for phase in plan.phases] for plan in plans.values()]
    assert sizes == [[8], [8, 40, 144]]
    assert [plan.num_updates for plan in plans.values()] == [7_185, 2_747]
    assert demo.main(["--seeds=1", "--num_epochs=0.2"]) == 0
    table = capsys.readouterr().out.splitlines()[-4:]
    assert [line.split("  ")[0] for line in table[:3]] == ["schedule", "decaying learning rate", "growing batch"]
    assert table[1].split()[3] == "36" and table[3].startswith("Seeds: 1.")
