"""Scripts as people call them, and the tables that they write."""

import csv
import importlib.util
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from bsjax.data import TextDataset, cache


@pytest.fixture(scope="session")
def call(run_python):
    """A function that runs a script in a new process, with further environment variables."""

    def call(script, *arguments, **variables):
        command = ["-m", f"experiments.{script}", *arguments]
        if not variables:
            return run_python(*command)
        command = [sys.executable, *command]  # JAX reads variables when it is imported
        return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=300)

    return call


@pytest.fixture(scope="session")
def read_csv():
    """A function that returns the rows of a table."""

    def read(path):
        with open(path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    return read


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A folder with the text "walk", 1,200 tokens to train on and 100 to test on, of seven different ones."""
    folder = tmp_path_factory.mktemp("data")
    tokens = (np.random.RandomState(0).choice([1, 2], size=1300).cumsum() % 7).astype(np.uint8)
    cache.write(TextDataset("walk", tokens[:1200], tokens[1200:], 7, tuple("abcdefg"), 1.0), folder)
    return folder


@pytest.fixture(scope="session")
def results_table():
    """The script that writes the tables of results, as a module."""
    path = pathlib.Path(__file__).parents[2] / "scripts" / "results_table.py"
    spec = importlib.util.spec_from_file_location("results_table", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
