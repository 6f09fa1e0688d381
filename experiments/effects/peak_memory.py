"""Measures the memory of one update in a process of its own: `python -m experiments.effects.peak_memory JSON`.

The argument holds the fields of `Request`; the answer is one line of JSON. The memory is the peak of the resident set
while the update runs, above what the process held after it was compiled.
"""

import contextlib
import json
import pathlib
import re
import resource
import sys
import time
from typing import Any, NamedTuple

import jax

from bsjax import Update
from bsjax.data import load_dataset
from bsjax.engine import Engine
from experiments.harness import build
from experiments.harness.config import Config

_REST_S = 0.3


class Request(NamedTuple):
    """What to run."""

    fields: dict[str, Any]  # of the config
    batch_size: int
    microbatch_size: int
    data_dir: str | None = None


def measure(request: Request) -> dict[str, float]:
    """Bytes that the second update takes."""
    config = Config().replace(**request.fields)
    dataset = load_dataset(config.data.dataset, request.data_dir)
    engine = Engine(
        build.task(config, dataset),
        build.optimizer(config),
        dataset.train,
        dataset.test,
        [request.batch_size],
        microbatch_size=request.microbatch_size,
        devices=jax.devices()[:1],
    )
    state, _ = engine.update(engine.init(), Update(0, 0, request.batch_size, 0.0, 0.0))
    jax.block_until_ready(state)
    time.sleep(_REST_S)  # what the update no longer needs goes back to the system after it has ended
    _forget_peak()
    before = _resident_bytes("VmRSS")
    state, _ = engine.update(state, Update(1, 0, request.batch_size, 0.0, 0.0))
    jax.block_until_ready(state)
    return {"bytes": max(0, _resident_bytes("VmHWM") - before)}


def _forget_peak() -> None:
    """Lets the peak begin anew; where the system does not, it stays that of the process."""
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")


def _resident_bytes(name: str) -> int:
    with contextlib.suppress(OSError):
        status = pathlib.Path("/proc/self/status").read_text()
        return 1024 * int(re.search(rf"{name}:\s+(\d+)", status)[1])  # type: ignore[index]
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    print(json.dumps(measure(Request(**json.loads(sys.argv[1])))))
