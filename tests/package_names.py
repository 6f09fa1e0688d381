"""Checks what is in a wheel and in a source archive: `python tests/package_names.py WHEEL ARCHIVE`."""

import sys
import tarfile
import zipfile

IN_WHEEL = (
    "bsjax/py.typed",
    "bsjax/demo.py",
    "bsjax/data/digits.npz",
    "bsjax/data/official.json",
    "bsjax/run/charts.py",
)
IN_ARCHIVE = (*IN_WHEEL, "setup.cfg", "pyproject.toml", "README.md", "LICENSE")


def check_wheel(path):
    """Only bsjax and its metadata, and all its data."""
    names = zipfile.ZipFile(path).namelist()
    missing = [name for name in IN_WHEEL if name not in names]
    folders = {name.split("/")[0] for name in names}
    assert not missing, f"{path} has no {missing}"
    assert folders == {"bsjax", next(name for name in folders if name.endswith(".dist-info"))}, folders
    return names


def check_archive(path):
    """Everything that builds the wheel."""
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    missing = [name for name in IN_ARCHIVE if name not in names]
    assert not missing, f"{path} has no {missing}"


if __name__ == "__main__":
    print(len(check_wheel(sys.argv[1])), "files in the wheel")
    check_archive(sys.argv[2])
