"""Measures how long a model's microbatches take on the devices at hand, so that the fastest layout is known.

The candidates are powers of two times the group. Larger ones are tried until they no longer process more examples per
second, or until a device's memory does not hold them. What was measured is kept in the cache folder, per task,
optimizer, shapes, devices and versions: the same command on the same machine runs with the same layout, and gives the
same bits. Remove the folder `step_times` there to measure anew.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import pathlib
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from bsjax.data.cache import resolve_data_dir
from bsjax.engine.devices import (
    compiler_options,
    from_first_process,
    is_first_process,
    largest_of_all_processes,
    num_cores,
)
from bsjax.engine.feed import memory_bytes
from bsjax.engine.layout import Layouts, StepTimes, candidate_microbatch_sizes
from bsjax.engine.programs import Programs
from bsjax.engine.step import TrainState
from bsjax.errors import InvalidArgument
from bsjax.tasks import Task

# Largest microbatch per device unless told otherwise: on accelerators; on CPUs; there for examples of more numbers than
# these, with which larger microbatches need temporaries that malloc takes from the system anew at each call.
_MAX_MICROBATCH_SIZE, _MAX_MICROBATCH_SIZE_CPU, _MAX_MICROBATCH_SIZE_CPU_LARGE_EXAMPLES = 1024, 64, 32
_LARGE_EXAMPLE = 3 * 16**2
_LARGEST, _LARGEST_CPU = 8192, 1024  # those that are measured
_SMALLEST = 8  # examples per device, unless a batch that is to come has fewer
_SECONDS = 0.02  # that each timing lasts at least
_TURNS_S = 2.0  # no round begins later
_ROUNDS = 5  # of timings in turns, whose shortest counts: other work on the machine only adds to it
_LONGEST_S = 1.5  # a microbatch that takes longer is not repeated, and no larger one is tried
_WORSE = 1.1  # a size that takes this much longer per example than the best one ends the search
_MOST_NAMED = 8  # batch sizes in a line


class Measurement(NamedTuple):
    """What was found."""

    times: StepTimes
    note: str  # why no larger microbatch was tried


class LayoutChoice:
    """An engine's layouts, and the times behind them, which are measured when they are first needed.

    Args:
      make_layouts: makes the layouts, by times or by a rule of thumb.
      microbatch_size: see `bsjax.engine.Engine`.
      measure: measures, with the smallest batch size that is to come.
      devices: their kinds.

    Attributes:
      measured: the times, as JSON, if they were measured: for a checkpoint, see `adopt`.

    Raises:
      InvalidArgument: no layout is possible, or there is no such choice.
    """

    def __init__(
        self,
        make_layouts: Callable[..., Layouts],
        microbatch_size: int | str | StepTimes,
        measure: Callable[[int], Measurement],
        devices: list[str],
    ):
        if isinstance(microbatch_size, str) and microbatch_size not in ("auto", "measure"):
            raise InvalidArgument("microbatch_size", microbatch_size, "a whole number, auto or measure", "measure")
        size = microbatch_size if isinstance(microbatch_size, int) else None
        times = microbatch_size if isinstance(microbatch_size, StepTimes) else None
        self._make_layouts, self._measure, self._devices = make_layouts, measure, devices
        self._layouts = make_layouts(microbatch_size=size, times=times)  # refuses now what no layout can do
        self._is_to_measure = microbatch_size == "measure"
        self.measured: dict[str, Any] | None = None

    @property
    def layouts(self) -> Layouts:
        """The layouts."""
        if self._is_to_measure:
            times, note = self._measure(self._layouts.smallest_batch_size)
            self.adopt({"devices": self._devices, "times": times.to_json(), "note": note})
        return self._layouts

    def adopt(self, measured: Mapping[str, Any] | None) -> None:
        """Takes what another engine has measured, if this one still has to, on the same devices."""
        if self._is_to_measure and measured is not None and measured["devices"] == self._devices:
            self._is_to_measure = False
            self.measured = dict(measured)
            self._layouts = self._make_layouts(times=StepTimes.from_json(measured["times"]))

    def describe(self, batch_sizes: Iterable[int], unit: str, units_per_example: int = 1) -> str:
        """A line with the microbatch of each batch size and the measurement behind it; "" if nothing was measured."""
        layouts, measured = self.layouts, self.measured
        if measured is None:
            return ""
        sizes = sorted(batch_sizes)
        named, separator = (sizes, ", ") if len(sizes) <= _MOST_NAMED else (sizes[:: len(sizes) - 1], " to ")
        chosen = separator.join(f"{layouts(size).microbatch_size} (batch {size})" for size in named)
        times = StepTimes.from_json(measured["times"])
        per_second = {size: size * units_per_example / seconds for size, seconds in times.accumulate_s.items()}
        speeds = ", ".join(f"{size}: {speed:,.0f}" for size, speed in per_second.items())
        return f"Microbatches per device: {chosen}. Measured {unit}/s: {speeds}; {measured['note']}."


def max_microbatch_size(platform: str, example_size: int) -> int:
    """The largest microbatch per device that the engine chooses.

    Args:
      platform: "cpu" or another.
      example_size: numbers in an example, such as height × width × channels.
    """
    if platform != "cpu":
        return _MAX_MICROBATCH_SIZE
    return _MAX_MICROBATCH_SIZE_CPU if example_size <= _LARGE_EXAMPLE else _MAX_MICROBATCH_SIZE_CPU_LARGE_EXAMPLES


def step_times(
    task: Task,
    programs: Programs,
    init: Callable[[], TrainState],
    num_controls: int,
    smallest_batch_size: int,
    dataset_size: int,
    about: Mapping[str, Any],
) -> Measurement:
    """The times of the steps on some devices, from the cache folder if they are there.

    Args:
      task: what is trained.
      programs: of the devices.
      init: makes a state, which is thrown away.
      num_controls: how many numbers each update is given.
      smallest_batch_size: of those that are to come.
      dataset_size: no microbatch is larger than its share of this.
      about: what the times depend on, besides task, shapes, devices and versions; JSON.
    """
    num_devices, device = len(programs.devices), programs.devices[0]
    largest = _LARGEST_CPU if device.platform == "cpu" else _LARGEST
    sizes = candidate_microbatch_sizes(
        task.group_size,
        num_devices,
        min(largest, -(-dataset_size // num_devices)),
        powers_of_two=True,
        may_span=task.groups_may_span_devices,
    )
    start = min(_SMALLEST, smallest_batch_size // num_devices)
    sizes = [size for size in sizes if size >= start] or sizes[-1:]
    state = init()
    about = {**about, **_surroundings(programs.devices), "task": task.identity, "sizes": sizes}
    about["shapes"] = str(programs.shapes(state))
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
    path = resolve_data_dir() / "step_times" / f"{key}.json"
    with _locked(path) if is_first_process() else contextlib.nullcontext():
        if found := from_first_process(_read(path) if is_first_process() else None):
            return Measurement(StepTimes.from_json(found["times"]), found["note"])
        measured = _measure(programs, state, sizes, [0.0] * num_controls)
        found = from_first_process({"times": measured.times.to_json(), "note": measured.note})
        if is_first_process():
            _write(path, {"about": about, **found})
    return Measurement(StepTimes.from_json(found["times"]), found["note"])


def _measure(programs: Programs, state: TrainState, sizes: Sequence[int], controls: Sequence[float]) -> Measurement:
    """Times every second size until one is of no use, then the neighbours of the best one, and at last all in turns."""
    seconds: dict[int, float] = {}
    note = ""
    for size in sizes[::2]:
        if note := _first_time(programs, state, size, seconds):
            break
        best = min(s / size for size, s in seconds.items())
        if seconds[size] > _LONGEST_S or seconds[size] / size > _WORSE * best:
            note = f"{size} is slower"
            break
    fastest = sizes.index(min(seconds, key=lambda size: seconds[size] / size))
    for size in sizes[max(fastest - 1, 0) : fastest + 2]:
        if size not in seconds and seconds[sizes[fastest]] < _LONGEST_S:
            note = "; ".join(filter(None, (note, _first_time(programs, state, size, seconds))))
    repeats = {size: max(1, round(_SECONDS / s)) for size, s in sorted(seconds.items()) if s <= _LONGEST_S}
    deadline = time.perf_counter() + _TURNS_S
    for _ in range(_ROUNDS):
        for size, count in repeats.items() if time.perf_counter() < deadline else ():
            seconds[size] = min(seconds[size], programs.time_microbatches(state, size, count))
    tried = sorted(seconds)
    for size, larger in zip(tried[-2::-1], tried[:0:-1], strict=True):  # a part takes no longer than the whole
        seconds[size] = min(seconds[size], seconds[larger])
    # The same number in all processes, because updates communicate.
    count = from_first_process(max(1, round(_SECONDS / seconds[tried[0]])))
    updates_s = {1: math.inf, 2: math.inf}  # by number of microbatches
    for _ in range(_ROUNDS + 1):  # the first one compiles
        for number, so_far in updates_s.items():
            now, state = programs.time_updates(state, number, tried[0], count, controls)
            updates_s[number] = min(so_far, now)
    programs.forget()
    apply_s = max(updates_s[2] - 2 * seconds[tried[0]], 0.0)
    saving_s = max(seconds[tried[0]] + apply_s - updates_s[1], 0.0)
    times = StepTimes({size: _rounded(seconds[size]) for size in tried}, _rounded(apply_s), _rounded(saving_s))
    return Measurement(times, note or f"none above {tried[-1]} was tried")


def _first_time(programs: Programs, state: TrainState, size: int, seconds: dict[int, float]) -> str:
    """Compiles and times a size; says why if a device's memory does not hold it."""
    limit = memory_bytes(programs.devices)
    needed = programs.microbatch_bytes(state, size)
    if seconds and needed > limit:
        return f"{size} would take {needed / 2**30:.1f} of {limit / 2**30:.1f} GiB"
    reason, last = "", math.inf
    try:
        programs.time_microbatches(state, size, 1)  # allocates
        last = programs.time_microbatches(state, size, 1)
    except jax.errors.JaxRuntimeError as error:  # most often RESOURCE_EXHAUSTED; a kernel may give it another name
        if not seconds:
            raise
        programs.forget()
        reason = str(error).splitlines()[0]
    if largest_of_all_processes(bool(reason)):
        return f"{size} fails: {reason or 'in another process'}"
    seconds[size] = from_first_process(last)  # so that all processes try the same
    return ""


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.4g}")


def _surroundings(devices: Sequence[jax.Device]) -> dict[str, Any]:
    cpu = ""
    if devices[0].platform == "cpu":
        with contextlib.suppress(OSError):
            lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
            cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "device": devices[0].device_kind,
        "devices": len(devices),
        "processes": jax.process_count(),
        "cpu": f"{cpu or platform.machine()}, {num_cores()} cores",
        "compiler_options": compiler_options(devices[0]),
        "jax": jax.__version__,
        "x64": bool(jax.config.read("jax_enable_x64")),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    """Lets one process at a time measure the same thing; without a folder to write to, each does."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.with_suffix(".lock").open("w")
    except OSError:
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(path: pathlib.Path) -> dict[str, Any] | None:
    """What the file holds, None if there is none or it is damaged."""
    try:
        found = json.loads(path.read_text())
        StepTimes.from_json(found["times"])
        return {"times": found["times"], "note": str(found["note"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _write(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    partial = path.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):
        partial.write_text(json.dumps(value, indent=1) + "\n")
        partial.replace(path)
