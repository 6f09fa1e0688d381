"""Scripts as people call them, and the tables that they write."""

import csv
import os
import subprocess
import sys

import pytest


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
