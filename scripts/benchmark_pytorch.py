"""The engine against PyTorch on the same CPU: `scripts/benchmark.py --part=pytorch`.

    python scripts/benchmark.py --part=pytorch --output=pytorch.json
    python scripts/benchmark.py --part=pytorch --check   # only compares the numbers that the two compute

The engine and PyTorch each have a process with all cores, and take turns: one is idle while the other works.
docs/speed.md says what is compared. The benchmark begins with `--check`, and refuses to time what differs.
"""

import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags
from benchmark_pytorch_worker import CONTESTS, TRIAL_UPDATES

from bsjax.errors import InvalidArgument, check_choice

TOLERANCE, MIN_PAIRS = 1e-4, 5
WORKER = pathlib.Path(__file__).resolve().with_name("benchmark_pytorch_worker.py")
WAITS: dict[str, dict[str, str]] = {"actively": {}, "passively": {"OMP_WAIT_POLICY": "PASSIVE"}}
_QUICK_CONTESTS = ("mlp 28×28", "cnn 8×8")

_CHECK = flags.DEFINE_bool("check", False, "--part=pytorch: compare what the engine and PyTorch compute; time nothing.")
_CONTESTS = flags.DEFINE_list("pytorch_models", list(CONTESTS), f"--part=pytorch: of {', '.join(CONTESTS)}.")
_BATCHES = flags.DEFINE_list("pytorch_batches", ["8", "32", "128", "512", "2048"], "--part=pytorch: batch sizes.")
_COMPILE = flags.DEFINE_bool("pytorch_compile", True, "--part=pytorch: also try torch.compile, which takes minutes.")
_ROW_SECONDS = flags.DEFINE_float("pytorch_row_seconds", 120.0, "--part=pytorch: leave out rows that take longer.")


def measure(seconds: float, repeats: int, quick: bool) -> dict[str, Any]:
    """Checks that both compute the same, then times every model at every batch size.

    Args:
      seconds: length of a turn.
      repeats: pairs of turns.
      quick: few models and batch sizes, turns of 0.1 s, and no torch.compile.

    Raises:
      InvalidArgument: PyTorch is missing, or a flag names an unknown model.
      subprocess.CalledProcessError: the two compute something else.
    """
    if importlib.util.find_spec("torch") is None:
        raise InvalidArgument("part", "pytorch", "left out without PyTorch: pip install bsjax[benchmark]")
    names = [check_choice("pytorch_models", name, CONTESTS) for name in _CONTESTS.value]
    batch_sizes = [int(size) for size in _BATCHES.value]
    compiles = _COMPILE.value and not quick
    if quick:
        names, seconds = [name for name in names if name in _QUICK_CONTESTS or len(names) < len(CONTESTS)], 0.1
        batch_sizes = batch_sizes if _BATCHES.present else [8, 128]
    check = Worker("check", "passively").ask(names=names, compiles=compiles)
    print(f"largest difference of logits {check['logits']:.1e}, of losses {check['losses']:.1e}", flush=True)
    if not all(difference <= TOLERANCE for difference in check.values()):  # also where one is NaN
        sys.exit(f"error: PyTorch computes something else than the engine, by more than {TOLERANCE:g}: {check}")
    results: dict[str, Any] = {"check": check, "rows": [], "left_out": []}
    if _CHECK.value:
        return results
    results["pytorch_waits"] = waits = _faster_wait(names[0])
    print(f"PyTorch's threads wait for each other: {waits}", flush=True)
    for name in names:
        workers = Worker("engine"), Worker("pytorch", waits)
        speed = 0.0  # images/s of both together, at the batch size before
        for batch_size in batch_sizes:
            if speed and (need := _seconds_of_row(batch_size / speed, compiles)) > _ROW_SECONDS.value:
                left_out = (
                    f"{name}, batch {batch_size}: {MIN_PAIRS} pairs of updates and the trials would take {need:.0f} s"
                )
                print(f"left out: {left_out}", flush=True)
                results["left_out"].append(left_out)
                continue
            row = _measure_row(workers, name, batch_size, seconds, repeats, compiles)
            results["rows"].append(row)
            print(_line(row), flush=True)
            speed = 1 / sum(1 / row[f"{which}_images_per_second"] for which in ("engine", "pytorch"))
        for worker in workers:
            worker.close()
    print("\n" + markdown(results), flush=True)
    return results


def _faster_wait(name: str) -> str:
    """How OpenMP's threads wait, "actively" for milliseconds or "passively": active suits a quiet machine only."""
    seconds = {}
    for waits in WAITS:
        worker = Worker("pytorch", waits)
        seconds[waits] = worker.ask(name=name, batch_size=32, compiles=False)["seconds_per_update"]
        worker.close()
    return min(seconds, key=lambda waits: seconds[waits])


def _seconds_of_row(seconds_per_pair: float, compiles: bool) -> float:
    """Least time of a row whose turns have an update each."""
    return seconds_per_pair * (1 + MIN_PAIRS + (TRIAL_UPDATES + 1) * (5 if compiles else 3) / 2)


def _measure_row(
    workers: Sequence["Worker"], name: str, batch_size: int, seconds: float, repeats: int, compiles: bool
) -> dict[str, Any]:
    about = [worker.ask(name=name, batch_size=batch_size, compiles=compiles) for worker in workers]
    per_update = [each["seconds_per_update"] for each in about]
    num_updates = max(1, round(seconds / statistics.mean(per_update)))
    affordable = int(_ROW_SECONDS.value / (num_updates * sum(per_update)))
    repeats = max(min(repeats, MIN_PAIRS), min(repeats, affordable))
    times, idle = np.empty((1 + repeats, 2)), []
    for repeat in range(1 + repeats):
        for which in (0, 1) if repeat % 2 else (1, 0):
            answer = workers[which].ask(num_updates=num_updates)
            times[repeat, which] = answer["seconds"]
            idle.append((answer["idle_cpu_s"], times[repeat, 1 - which]))
    burnt = sum(cpu for cpu, _ in idle[3:]) / sum(other for _, other in idle[3:])
    low, ratio, high = np.quantile(times[1:, 1] / times[1:, 0], (0.25, 0.5, 0.75)).tolist()
    engine, pytorch = (batch_size * num_updates / np.median(times[1:], axis=0)).tolist()
    return {
        "model": name,
        "batch_size": batch_size,
        "engine_images_per_second": engine,
        "pytorch_images_per_second": pytorch,
        "ratio": ratio,
        "ratio_quartiles": [low, high],
        "pairs": repeats,
        "updates_per_turn": num_updates,
        "microbatch_size": about[0]["microbatch_size"],
        "pytorch_form": about[1]["form"],
        "pytorch_trials": about[1]["trials"],
        "idle_cores": burnt,  # CPU time of the one that waits, over the time that it waits
    }


def _line(row: dict[str, Any]) -> str:
    low, high = row["ratio_quartiles"]
    return (
        f"{row['model']}, batch {row['batch_size']}: engine {row['engine_images_per_second']:.0f} (microbatch "
        f"{row['microbatch_size']}), PyTorch {row['pytorch_images_per_second']:.0f} images/s ({row['pytorch_form']}), "
        f"ratio {row['ratio']:.2f} ({low:.2f} to {high:.2f}); {row['pairs']} pairs, idle {row['idle_cores']:.3f} cores"
    )


def markdown(results: dict[str, Any]) -> str:
    """The table for the documentation."""
    lines = ["| model | batch | engine, images/s | PyTorch, images/s | PyTorch's form | ratio (quartiles) |"]
    lines.append("|---|---|---|---|---|---|")
    for row in results["rows"]:
        low, high = row["ratio_quartiles"]
        speeds = f"{row['engine_images_per_second']:,.0f} | {row['pytorch_images_per_second']:,.0f}"
        ratio = f"{row['ratio']:.2f} ({low:.2f}-{high:.2f})"
        lines.append(f"| {row['model']} | {row['batch_size']:,} | {speeds} | {row['pytorch_form']} | {ratio} |")
    return "\n".join([*lines, *(f"\nLeft out: {left_out}." for left_out in results["left_out"])])


class Worker:
    """A process that answers questions, a line of JSON each."""

    def __init__(self, role: str, waits: str = "actively", program: pathlib.Path = WORKER):
        path = os.pathsep.join(filter(None, [str(WORKER.parent.parent), os.environ.get("PYTHONPATH")]))
        env = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"} | WAITS[waits]
        command = [sys.executable, str(program), role]
        self._process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **question: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("{"):  # libraries print other things
                return json.loads(line)
        raise subprocess.CalledProcessError(self._process.wait() or 1, self._process.args)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
