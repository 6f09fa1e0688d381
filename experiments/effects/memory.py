"""Claim: memory grows with the batch."""

import dataclasses
import functools
import json
import math
import os
import pathlib
import subprocess
import sys
from typing import Any

import matplotlib.pyplot as plt

from bsjax.errors import RunError
from experiments.effects import pictures, plain_step
from experiments.effects.claim import Claim, Findings
from experiments.effects.peak_memory import Request
from experiments.effects.study import Study
from experiments.harness import figures
from experiments.harness.config import Config

_MARGIN = 1.5
_MIB, _KIB_128 = 2**20, 2**17
_WAYS = {"one microbatch": False, "accumulated": True}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Batch sizes, the microbatch that is accumulated, and the network."""

    batch_sizes: tuple[int, ...] = (64, 128, 256, 512, 1024)
    microbatch_size: int = 64
    repeats: int = 1  # processes
    fields: tuple[tuple[str, Any], ...] = (
        ("dataset", "synthetic"),
        ("model", "cnn"),
        ("model_depth", 2),
        ("model_width", 16),
        ("ghost_batch_size", 16),
        ("optimizer", "sgd"),
    )


def measure(study: Study, settings: Settings) -> Findings:
    """Asks XLA, and runs each in processes of its own."""
    table: list[dict[str, Any]] = []
    for size in settings.batch_sizes:
        for way, accumulates in _WAYS.items():
            microbatch = settings.microbatch_size if accumulates else size
            row: dict[str, Any] = {"way": way, "batch_size": size, "microbatch_size": microbatch}
            about = {**row, "repeats": settings.repeats, "fields": dict(settings.fields)}
            name = f"memory_{size}_{way.replace(' ', '_')}"
            found = study.kept(name, about, functools.partial(_measure, study, settings, row))
            table.append({**row, **found})
    smallest, largest = settings.batch_sizes[0], settings.batch_sizes[-1]
    verdicts: dict[str, bool | None] = {}
    for way in _WAYS:
        by_size = {row["batch_size"]: row for row in table if row["way"] == way}
        for name in ("xla_bytes", "measured_bytes"):
            growth = by_size[largest][name] / max(by_size[smallest][name], 1)
            verdicts[f"{way} by {name.removesuffix('_bytes')}"] = growth > _MARGIN
    lines = [["way", "batch", "microbatch", "XLA's plan, MiB", "peak of a process, MiB"]]
    for row in table:
        sizes = [f"{row['batch_size']:,}", f"{row['microbatch_size']:,}"]
        lines.append([row["way"], *sizes, *(f"{row[n] / _MIB:,.1f}" for n in ("xla_bytes", "measured_bytes"))])
    return Findings(verdicts, lines, table, table, _draw(table))


def _measure(study: Study, settings: Settings, row: dict[str, Any]) -> dict[str, float]:
    study.check_time()
    data_dir = study.setup.control.data_dir
    config = Config().replace(**dict(settings.fields))
    plan = plain_step.create(config, row["microbatch_size"], data_dir).temporary_bytes
    request = Request(dict(settings.fields), row["batch_size"], row["microbatch_size"], data_dir)
    peaks = [_peak_of_a_process(request) for _ in range(settings.repeats)]
    return {"xla_bytes": plan, "measured_bytes": sorted(peaks)[len(peaks) // 2]}


def _peak_of_a_process(request: Request) -> float:
    root = str(pathlib.Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "experiments.effects.peak_memory", json.dumps(request._asdict())]
    # Large arrays go back to the system when they are freed, so that those of an earlier update hide nothing.
    environment = {**os.environ, "PYTHONPATH": path, "MALLOC_MMAP_THRESHOLD_": str(_KIB_128)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
        raise RunError(f"the process of batch size {request.batch_size} failed, perhaps for lack of memory: {why}")
    return float(json.loads(done.stdout.splitlines()[-1])["bytes"])


def _draw(table: list[dict[str, Any]]) -> Any:
    figure, axes = plt.subplots(figsize=(6, 3.8), layout="constrained")
    for i, way in enumerate(_WAYS):
        rows = [row for row in table if row["way"] == way]
        x = [row["batch_size"] for row in rows]
        for name, style, label in (("measured_bytes", "o-", "peak of a process"), ("xla_bytes", "x--", "XLA's plan")):
            y = [row[name] / _MIB or math.nan for row in rows]
            axes.plot(x, y, style, color=pictures.color(i), markersize=5, label=f"{way}, {label}")
    axes.set(xscale="log", yscale="log", xlabel="Batch size", ylabel="MiB")
    for axis in (axes.xaxis, axes.yaxis):
        figures.plain_ticks(axis)
    figures.legend_above(figure, axes, columns=2)
    return figure


CLAIM = Claim(
    name="memory",
    question="Does a large batch need much memory?",
    claim="Memory grows with the batch size.",
    prediction="Activations are kept for each example of a microbatch, so memory grows with the microbatch. A batch "
    "that is accumulated from microbatches of one size takes what one of them takes, and one gradient.",
    measurement="Of one update, as one microbatch and accumulated: the temporaries that XLA plans for a microbatch, "
    "and the peak of the resident set of a process of its own while the update runs, above what it held before "
    "(median of the repetitions).",
    margin=f"a factor {_MARGIN:g} from the smallest to the largest batch; true where memory grows by more",
    settings={
        "digits": Settings(),
        "fashion_mnist": Settings(),
        "cifar10": Settings(
            batch_sizes=(128, 512, 2048, 8192),
            microbatch_size=128,
            fields=(
                ("dataset", "cifar10"),
                ("model", "wide_resnet"),
                ("model_depth", 16),
                ("model_width", 4),
                ("ghost_batch_size", 128),
                ("optimizer", "sgd"),
            ),
        ),
        "quick": Settings((128,), 32, 1, (("model", "mlp"), ("model_width", 8), ("optimizer", "sgd"))),
    },
    measure=measure,
)
