"""Kills and damages real training runs at random, and checks that they end as if nothing had happened.

    python scripts/torture.py --rounds=100

It trains a run on the embedded digits, with a batch that grows, ghost batch norm, crops and dropout, once in peace.
Then it trains the run again: a round waits for a random moment and kills the process with SIGKILL or SIGTERM, or with
SIGTERM and then SIGKILL; some rounds also damage the newest checkpoint (a file truncated, emptied, deleted, or with a
bit flipped) or cut off the end of the metrics. The same command continues the run. At the end, its parameters and
metrics must equal those of the run in peace to the last bit. New runs begin until there have been enough rounds.

It exits with 1 at the first difference, and leaves the folders.
"""

import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import app, flags, logging

_ROUNDS = flags.DEFINE_integer("rounds", 100, "How many times to kill.", 1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the random moments and damages.")
_EPOCHS = flags.DEFINE_float("num_epochs", 12.0, "Length of a run.", 0.1)
_LONGEST_WAIT_S = flags.DEFINE_float("longest_wait_s", 1.5, "Longest wait once a process has begun to train.", 0.0)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the runs; default, a temporary one.")

_STARTS_S = 4.0  # about the time until a process trains; some are killed earlier
_SHARE_KILLED_EARLY = 0.15
_SHARE_DAMAGED = 0.3
_PROCESS_TIMEOUT_S = 300


class Different(Exception):  # noqa: N818  (reads as what it says)
    """A run did not end as it should."""


@dataclasses.dataclass
class Torture:
    """Kills and damages runs, and counts both."""

    random: random.Random
    kills: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    damages: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def run(self, workdir: pathlib.Path) -> None:
        """Trains to the end, with as many kills as --rounds allows."""
        process = start(workdir)
        while self.kills.total() < _ROUNDS.value and self._kill(process, workdir):
            if self.random.random() < _SHARE_DAMAGED:
                self._damage(workdir)
            process = start(workdir)
        process.wait(_PROCESS_TIMEOUT_S)
        _check_code(process, workdir)

    def _kill(self, process: subprocess.Popen, workdir: pathlib.Path) -> bool:
        """Kills a process; returns False if it ended before."""
        how = self.random.choice(["SIGKILL", "SIGKILL", "SIGTERM", "SIGTERM", "SIGTERM, SIGKILL"])
        early = self.random.random() < _SHARE_KILLED_EARLY
        wait_s = self.random.uniform(0, _STARTS_S if early else _LONGEST_WAIT_S.value)
        if not early:
            _wait_until_it_trains(process, workdir)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait_s)
        if process.poll() is not None:
            return False
        for name in how.split(", "):
            process.send_signal(signal.Signals[name])
            if name == "SIGTERM" and how != name:
                time.sleep(self.random.uniform(0, 0.05))
        process.wait(_PROCESS_TIMEOUT_S)
        # 0: it was writing its summary. A process that does not train yet has nothing to save, and dies of the signal.
        _check_code(process, workdir, 0, -signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM)
        self.kills[how] += 1
        return True

    def _damage(self, workdir: pathlib.Path) -> None:
        """Does damage that the run can repair, for which it needs one whole checkpoint, and the metrics up to it."""
        checkpoints = checkpoints_of(workdir)
        if (workdir / "summary.json").exists() or len(checkpoints) < 2:
            return
        how = self.random.choice(["cut the metrics", "truncate", "empty", "flip a bit", "delete a file"])
        if how == "cut the metrics":
            path = workdir / "metrics.jsonl"
            os.truncate(path, max(0, path.stat().st_size - self.random.randrange(1, 60)))
        else:
            files = sorted(path for path in checkpoints[-1].rglob("*") if path.is_file())
            largest = max(files, key=lambda path: path.stat().st_size)  # it has the arrays
            path = largest if self.random.random() < 0.5 else self.random.choice(files)
            size = path.stat().st_size
            if how == "delete a file":
                path.unlink()
            elif how == "flip a bit" and size:
                contents = bytearray(path.read_bytes())
                contents[self.random.randrange(size)] ^= 1 << self.random.randrange(8)
                path.write_bytes(contents)
            else:
                os.truncate(path, self.random.randrange(size or 1) if how == "truncate" else 0)
        self.damages[how] += 1


def start(workdir: pathlib.Path) -> subprocess.Popen:
    """Starts a process that begins or continues a run."""
    epochs = _EPOCHS.value
    decays = ",".join(f"{epochs * share:g}" for share in (1 / 3, 2 / 3, 5 / 6))
    command = [sys.executable, "-m", "experiments.train", f"--workdir={workdir}", f"--num_epochs={epochs:g}"]
    command += [f"--lr_decay_epochs={decays}", "--schedule=increase_batch_size", "--max_batch_size=144"]
    command += ["--augmentation=crop", "--dropout=0.1", "--checkpoint_every_epochs=0.25", "--keep_checkpoints=3"]
    command += ["--checkpoint_min_s=0", "--eval_every_epochs=0.5", "--log_every_epochs=0.2"]
    with open(workdir.with_name(f"{workdir.name}.log"), "a") as log:
        return subprocess.Popen(command, cwd=pathlib.Path(__file__).parents[1], stdout=log, stderr=subprocess.STDOUT)


def checkpoints_of(workdir: pathlib.Path) -> list[pathlib.Path]:
    """The finished checkpoints, oldest first."""
    folders = [path for path in workdir.glob("checkpoints/*") if path.name.isdigit()]
    return sorted(folders, key=lambda path: int(path.name))


def result(workdir: pathlib.Path) -> dict[str, Any]:
    """The last state, every line of the metrics, and the summary, without times."""
    newest = checkpoints_of(workdir)[-1]
    with ocp.CheckpointManager(newest.parent) as manager:
        state = manager.restore(int(newest.name), args=ocp.args.Composite(state=ocp.args.StandardRestore())).state
    arrays = {jax.tree_util.keystr(path): np.asarray(x).tobytes() for path, x in jax.tree.leaves_with_path(state)}
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        for timed in ("examples_per_second", "input_wait_s"):
            line.pop(timed, None)
    summary = json.loads((workdir / "summary.json").read_text())
    kept = {name: summary[name] for name in summary if name.startswith("final") or name == "num_updates"}
    return {"checkpoint": newest.name, "summary": kept, "metrics": lines, **arrays}


def compare(workdir: pathlib.Path, expected: dict[str, Any]) -> None:
    """Raises Different with the names of what differs."""
    found = result(workdir)
    if differing := [name for name in {**expected, **found} if found.get(name) != expected.get(name)]:
        raise Different(f"{workdir} differs from {workdir.with_name('peace')} in {', '.join(differing)}")


def main(argv: list[str]) -> None:
    """Kills runs, and reports how many ended without a difference."""
    del argv
    logging.set_verbosity(logging.WARNING)
    folder = pathlib.Path(_WORKDIR.value or tempfile.mkdtemp(prefix="torture-")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    if start(folder / "peace").wait() != 0:
        sys.exit(f"error: the run in peace failed\n{_end_of_log(folder / 'peace')}")
    expected = result(folder / "peace")
    torture = Torture(random.Random(_SEED.value))
    num_runs = 0
    try:
        while torture.kills.total() < _ROUNDS.value:
            workdir = folder / f"run-{num_runs}"
            torture.run(workdir)
            compare(workdir, expected)
            num_runs += 1
            print(f"{torture.kills.total()} kills, {num_runs} runs, no difference", flush=True)
    except Different as different:
        sys.exit(f"error: {different}\n{torture.kills.total()} kills, {torture.damages.total()} damages before")
    print(
        f"{torture.kills.total()} kills ({_counts(torture.kills)}) and {torture.damages.total()} damages "
        f"({_counts(torture.damages)}) in {num_runs} runs of {expected['summary']['num_updates']:,} updates, "
        f"{time.monotonic() - started:.0f} s: parameters and metrics equal to the last bit"
    )


def _wait_until_it_trains(process: subprocess.Popen, workdir: pathlib.Path) -> None:
    """Waits until it has written another line or checkpoint."""

    def state() -> Any:
        path = workdir / "metrics.jsonl"
        return path.stat().st_size if path.exists() else 0, checkpoints_of(workdir)[-1:]

    before = state()
    while process.poll() is None and state() == before:
        time.sleep(0.02)


def _check_code(process: subprocess.Popen, workdir: pathlib.Path, *codes: int) -> None:
    if process.returncode not in (codes or (0,)):
        raise Different(f"{workdir} ended with exit code {process.returncode}\n{_end_of_log(workdir)}")


def _counts(counter: collections.Counter) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counter.items())) or "none"


def _end_of_log(workdir: pathlib.Path) -> str:
    return workdir.with_name(f"{workdir.name}.log").read_text()[-3000:]


if __name__ == "__main__":
    app.run(main)
