"""Runs scripts for the tests, each in a fork of this process: importing is most of what a small script does.

A line of standard input is a script in JSON: its arguments as Python takes them, its folder, its environment and
the files of its output. The answer is a line with its exit code.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import sys
import warnings

IMPORTED = ("absl.app", "bsjax.data.prepare", "bsjax.run", "matplotlib.pyplot", "scipy.optimize", "tqdm")
TIMEOUT_S = 300


def main() -> None:
    """Ends when there are no more lines; in a fork, as the script does."""
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # a collection in a fork would copy the memory of all that is imported
    for line in sys.stdin:
        if not (process := os.fork()):
            return run(*json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


def run(arguments: list[str], folder: str, environment: dict[str, str], outputs: list[str]) -> None:
    signal.alarm(TIMEOUT_S)
    os.chdir(folder)
    for number, path in enumerate([os.devnull, *outputs]):
        os.dup2(os.open(path, os.O_RDWR), number)
    os.environ.clear()
    os.environ.update(environment)
    if arguments[0] == "-W":
        warnings.simplefilter(arguments[1])
        arguments = arguments[2:]
    is_module = arguments[0] == "-m"
    sys.argv = arguments[is_module:]
    if is_module:
        sys.path[0] = folder
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = os.path.dirname(sys.argv[0])
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
