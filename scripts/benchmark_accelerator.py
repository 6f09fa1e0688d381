"""The paper's network on an accelerator: scripts/benchmark.py --accelerator, in less than ten minutes.

WRN-16-4 on synthetic images of 32×32×3, in bfloat16 and float32, at each of the paper's batch sizes: images/s of the
engine, which chooses its microbatches, and of a bare jit loop, on one device in pairs that take turns; memory; FLOPs,
bytes and model FLOP utilisation, see `bsjax.engine.Cost`. With several devices: the engine on all of them, and its
all-reduce.

A process for each dtype, because a device's peak of memory cannot be reset. It leaves out what it has no time for, and
rewrites its results after each row; at the end of the time it is killed. Rows come in increasing batch size, since a
peak is seen only if it is a new one; one that is not is null.
"""

import dataclasses
import functools
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import benchmark_loops as loops
import jax
import jax.numpy as jnp
import numpy as np

from bsjax.analysis.flops import peak_flops_per_s
from bsjax.engine.devices import all_devices, replicate
from bsjax.models import create_model
from bsjax.models.ghost_batch_norm import AXIS_NAME
from bsjax.run import read_json, write_json


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured, and for how long."""

    dtypes: tuple[str, ...] = ("bfloat16", "float32")
    batch_sizes: tuple[int, ...] = (128, 640, 3200, 5120)
    ghost_batch_size: int = 128
    depth: int = 16
    width: int = 4
    max_pairs: int = 15
    seconds: float = 0.7  # of each measurement
    total_s: float = 560.0  # of everything


QUICK = Settings(("float32",), (16, 32), ghost_batch_size=8, depth=10, width=1, max_pairs=2, seconds=0.0)


def run(settings: Settings, output: str | None) -> int:
    """Measures each dtype in a process, prints the rows, writes them to a JSON file; returns the exit code."""
    end = time.time() + settings.total_s
    with tempfile.TemporaryDirectory() as folder:
        results, code = [], 0
        for number, dtype in enumerate(settings.dtypes):
            part = pathlib.Path(folder) / f"{dtype}.json"
            seconds = (end - time.time()) / (len(settings.dtypes) - number)
            order = json.dumps(dataclasses.asdict(settings) | {"total_s": seconds - 10})
            try:
                code |= subprocess.run([sys.executable, __file__, dtype, order, str(part)], timeout=seconds).returncode
            except subprocess.TimeoutExpired:
                print(f"{dtype}: the time is up; the rows so far count", file=sys.stderr, flush=True)
            if part.exists():
                results.append(read_json(part, ("rows",)))
            if output:
                write_json(pathlib.Path(output), results)
    return code


class _Clock:
    """Shares the time out among rows."""

    def __init__(self, seconds: float):
        self._end, self._longest = time.perf_counter() + seconds, 0.0

    def left(self) -> float:
        return self._end - time.perf_counter()

    def tried(self, work: Callable[[], Any]) -> str | None:
        """Does a piece of work that compiles, unless the time left is too short for it; returns why it was not done."""
        start = time.perf_counter()
        if self.left() < 1.2 * self._longest:
            return "no time was left"
        try:
            work()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return "out of memory"
        self._longest = max(self._longest, time.perf_counter() - start)
        return None


def measure(dtype: str, settings: Settings, part: pathlib.Path) -> None:
    """All rows of a dtype, in this process."""
    clock, sizes = _Clock(settings.total_s), settings.batch_sizes
    model = create_model(
        "wide_resnet",
        num_classes=10,
        ghost_batch_size=settings.ghost_batch_size,
        dtype=jnp.dtype(dtype).type,
        depth=settings.depth,
        width=settings.width,
    )
    device = jax.devices()[0]
    rows: list[dict[str, Any]] = [{"batch_size": size} for size in sizes]
    results = {
        "model": f"WRN-{settings.depth}-{settings.width}",
        "dtype": dtype,
        "device": device.device_kind,
        "num_devices": jax.device_count(),
        "jax": jax.__version__,
        "rows": rows,
    }
    engine = loops.EngineLoop(model, sizes, "measure")
    flops = engine.engine.model_flops
    peak = peak_flops_per_s(device.device_kind, dtype)
    results |= {"model_flops_per_image": flops.per_example, "peak_flops_per_s": peak}
    for row in rows:  # before the bare loop takes more memory
        row["engine"] = _prepared(clock, engine, row["batch_size"], device)
        layout, cost = engine.engine.layout(row["batch_size"]), None
        if "failed" not in row["engine"]:
            cost = engine.engine.cost_of(row["batch_size"])._asdict()
        row["engine"] |= {"microbatch_size": layout.microbatch_size, "cost_per_update": cost}
        write_json(part, results)
    bare = loops.BareLoop(model)
    for left, row in zip(range(len(rows), 0, -1), rows, strict=True):
        row["bare"] = _prepared(clock, bare, row["batch_size"], device)
        if row["bare"].get("failed") == "out of memory":
            bare = loops.BareLoop(model)  # its state was donated
        _compare(row, engine, bare, clock.left() / left, settings)
        for name in ("engine", "bare"):
            speed = row[name].get("images_per_second")
            known = None not in (speed, peak, flops.per_example)
            row[name]["model_flop_utilisation"] = speed * flops.per_example / peak if known else None
        print(_line(dtype, row), flush=True)
        write_json(part, results)
    if jax.device_count() > 1:
        results["all_devices"] = _all_devices(model, sizes, clock, settings)
        print(f"{dtype}, all {jax.device_count()} devices: {json.dumps(results['all_devices'])}", flush=True)
        write_json(part, results)


def _prepared(clock: _Clock, loop: Any, batch_size: int, device: jax.Device) -> dict[str, Any]:
    """Compiles, and notes the peak of memory if it is a new one."""
    before, start = _peak_bytes(device), time.perf_counter()
    if failed := clock.tried(lambda: loops.seconds_of(loop, batch_size, 3)):
        return {"failed": failed}
    after = _peak_bytes(device)
    is_new = before is not None and after is not None and after > before
    return {"first_updates_s": time.perf_counter() - start, "peak_bytes": after if is_new else None}


def _compare(row: dict[str, Any], engine: Any, bare: Any, seconds: float, settings: Settings) -> None:
    """Adds images/s of the loops that run, and their ratio by pairs that take turns."""
    pair = [(name, loop) for name, loop in (("engine", engine), ("bare", bare)) if "failed" not in row[name]]
    if not pair:
        return
    start, size = time.perf_counter(), row["batch_size"]
    count = max(1, round(2 * settings.seconds / max(loops.seconds_of(loop, size, 2) for _, loop in pair)))
    times: dict[str, list[float]] = {name: [] for name, _ in pair}
    for number in range(settings.max_pairs):
        for name, loop in pair if number % 2 else pair[::-1]:
            times[name].append(loops.seconds_of(loop, size, count))
        used = time.perf_counter() - start
        if used + used / (number + 1) > seconds:
            break
    for name, measured in times.items():
        row[name]["images_per_second"] = size * count / statistics.median(measured)
    row |= {"pairs": number + 1, "updates_per_measurement": count}
    if len(pair) == 2:
        ratios = np.array(times["bare"]) / np.array(times["engine"])
        row["ratio_quartiles"] = np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()


def _all_devices(model: Any, sizes: tuple[int, ...], clock: _Clock, settings: Settings) -> dict[str, Any]:
    """Images/s of the engine on all devices, and seconds of a sum over them of what an update sums."""
    devices = all_devices()
    loop, images_per_second = loops.EngineLoop(model, sizes, "measure", devices), {}
    for size in sizes:
        if clock.tried(functools.partial(loops.seconds_of, loop, size, 3)) is None:
            count = max(1, round(2 * settings.seconds / loops.seconds_of(loop, size, 2)))
            measured = [loops.seconds_of(loop, size, count) for _ in range(3)]
            images_per_second[size] = size * count / statistics.median(measured)
    grads = replicate(jax.tree.map(lambda x: np.zeros(x.shape[1:], np.float32), loop.state.params), devices)
    add = jax.pmap(lambda arrays: jax.lax.psum(arrays, AXIS_NAME), AXIS_NAME, devices=devices)
    seconds = []
    for _ in range(2 + settings.max_pairs):
        start = time.perf_counter()
        jax.block_until_ready(add(grads))
        seconds.append(time.perf_counter() - start)
    num_bytes = 4 * sum(x[0].size for x in jax.tree.leaves(grads))
    return {
        "images_per_second": images_per_second,
        "all_reduce_s": statistics.median(seconds[2:]),
        "all_reduce_bytes": num_bytes,
    }


def _peak_bytes(device: jax.Device) -> int | None:
    return (device.memory_stats() or {}).get("peak_bytes_in_use")


def _line(dtype: str, row: dict[str, Any]) -> str:
    parts = [f"{dtype}, batch {row['batch_size']}, microbatch {row['engine']['microbatch_size']}"]
    for name in ("engine", "bare"):
        one = row[name]
        text = one.get("failed") or f"{one['images_per_second']:.0f} images/s"
        if one["model_flop_utilisation"] is not None:
            text += f", {100 * one['model_flop_utilisation']:.1f} % of the peak"
        if one.get("peak_bytes"):
            text += f", {one['peak_bytes'] / 2**20:.0f} MiB"
        parts.append(f"{name} {text}")
    if "ratio_quartiles" in row:
        low, ratio, high = row["ratio_quartiles"]
        parts.append(f"ratio {ratio:.3f} ({low:.3f} to {high:.3f})")
    return "; ".join(parts)


if __name__ == "__main__":
    _dtype, _order, _part = sys.argv[1:]
    _fields = json.loads(_order)
    measure(_dtype, Settings(**_fields | {"batch_sizes": tuple(_fields["batch_sizes"])}), pathlib.Path(_part))
