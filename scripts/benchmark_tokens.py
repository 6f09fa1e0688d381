"""A transformer's updates by the engine, a bare jit loop and PyTorch: `scripts/benchmark.py --part=tokens`.

    python scripts/benchmark.py --part=tokens --repeats=5 --output=tokens.json

The shape and the optimizer are those of the preset shakespeare_cpu, the tokens are random. Each side has a process with
all cores, and they take turns, in another order each time; without PyTorch there are two. It begins with a comparison
of what the engine and PyTorch compute, and refuses to time what differs. docs/speed.md has the numbers.
"""

import importlib.util
import pathlib
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags
from benchmark_pytorch import TOLERANCE, WAITS, Worker
from benchmark_tokens_worker import CONTEXT

PROGRAM = pathlib.Path(__file__).resolve().with_name("benchmark_tokens_worker.py")
_SIZES = flags.DEFINE_list("tokens_batches", ["12", "48", "192"], "--part=tokens: batch sizes, in windows.")


def measure(seconds: float, repeats: int, quick: bool) -> dict[str, Any]:
    """Checks that engine and PyTorch compute the same, then times every batch size.

    Args:
      seconds: length of a turn.
      repeats: rounds of turns.
      quick: the first batch size, with turns of 0.1 s.
    """
    sizes = [int(size) for size in _SIZES.value][: 1 if quick else None]
    results: dict[str, Any] = {"context_length": CONTEXT, "rows": []}
    sides, waits = ["engine", "bare loop"], "actively"
    if importlib.util.find_spec("torch") is not None:
        sides.append("PyTorch")
        results["check"] = check = Worker("check", "passively", PROGRAM).ask()
        print(f"largest difference of logits {check['logits']:.1e}, of losses {check['losses']:.1e}", flush=True)
        if not all(difference <= TOLERANCE for difference in check.values()):
            sys.exit(f"error: PyTorch computes something else than the engine, by more than {TOLERANCE:g}: {check}")
        results["pytorch_waits"] = waits = _faster_wait(sizes[0])
    for size in sizes:
        workers = {side: Worker(side, waits if side == "PyTorch" else "actively", PROGRAM) for side in sides}
        results["rows"].append(_measure_row(workers, size, 0.1 if quick else seconds, repeats))
        for worker in workers.values():
            worker.close()
    print("\n" + markdown(results["rows"]), flush=True)
    return results


def _faster_wait(batch_size: int) -> str:
    """How OpenMP's threads wait for each other in PyTorch: the faster of both."""
    seconds = {}
    for waits in WAITS:
        worker = Worker("PyTorch", waits, PROGRAM)
        seconds[waits] = worker.ask(batch_size=batch_size)["seconds_per_update"]
        worker.close()
    return min(seconds, key=lambda waits: seconds[waits])


def _measure_row(workers: Mapping[str, Worker], batch_size: int, seconds: float, repeats: int) -> dict[str, Any]:
    about = {side: worker.ask(batch_size=batch_size) for side, worker in workers.items()}
    num_updates = max(1, round(seconds / statistics.mean(one["seconds_per_update"] for one in about.values())))
    order, times = list(workers), {side: np.empty(1 + repeats) for side in workers}
    for repeat in range(1 + repeats):
        for side in order:
            times[side][repeat] = workers[side].ask(num_updates=num_updates)["seconds"]
        order = order[1:] + order[:1]
    row: dict[str, Any] = {"batch_size": batch_size, "updates_per_turn": num_updates, "rounds": repeats}
    row["forms"] = {side: one["form"] for side, one in about.items()}
    row["pytorch_trials"] = about.get("PyTorch", {}).get("trials", {})
    work = batch_size * CONTEXT * num_updates
    row["tokens_per_second"] = {side: work / float(np.median(one[1:])) for side, one in times.items()}
    row["engine_over"] = {
        side: np.quantile(one[1:] / times["engine"][1:], (0.25, 0.5, 0.75)).tolist()
        for side, one in times.items()
        if side != "engine"
    }
    return row


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table for the documentation: tokens/s, and the engine's over the others', with quartiles."""
    sides = list(rows[0]["tokens_per_second"])
    head = ["windows", *(f"{side}, tokens/s" for side in sides), *(f"engine / {side}" for side in sides[1:])]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        speeds = [f"{speed:,.0f} ({row['forms'][side]})" for side, speed in row["tokens_per_second"].items()]
        ratios = [f"{ratio:.2f} ({low:.2f}-{high:.2f})" for low, ratio, high in row["engine_over"].values()]
        lines.append([f"{row['batch_size']:,}", *speeds, *ratios])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
