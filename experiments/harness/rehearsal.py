"""Rehearses the schedules of a figure of ImageNet: their first microbatches, and what the whole training would take.

Random images of the right shape take the place of the data. No update of a large batch is run whole: two and four of
its microbatches are, and the optimizer's step, from which the time model of `bsjax.analysis.time_model` follows.
"""

import math
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from bsjax import InvalidArgument, Plan, Update
from bsjax.engine import Engine, TrainState
from bsjax.engine.devices import is_first_process
from bsjax.engine.layout import StepTimes, num_microbatches
from experiments.harness import build, figures, imagenet
from experiments.harness.config import Config
from experiments.harness.imagenet import ImageNetPreset

_DIFFERENT = 64  # images; more would only take longer to make
MEAN, STD = 127.5, 73.9  # of the random pixels
_FEW, _MANY = 2, 4  # microbatches of the updates that are timed
_REPEATS = 2  # of each, the shortest of which counts
_GIB = 2.0**30


class RandomImages:
    """As many random images as a data set has, of `_DIFFERENT` kinds, which never live on the devices.

    Args:
      num_examples: N.
      shape: height, width and channels.
      num_classes: of the labels.
    """

    nbytes = None

    def __init__(self, num_examples: int, shape: tuple[int, int, int], num_classes: int):
        random = np.random.default_rng(0)
        self._num_examples = num_examples
        self._images = random.integers(0, 256, (_DIFFERENT, *shape), np.uint8)
        self._labels = random.integers(0, num_classes, _DIFFERENT, np.int32)
        self.fingerprint = f"random {shape}, {num_examples} examples"

    def __len__(self) -> int:
        return self._num_examples

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        kinds = indices % _DIFFERENT
        return {"image": self._images[kinds], "label": self._labels[kinds]}


class _RandomDataset(NamedTuple):
    """What `build.engine` wants of a data set."""

    name: str
    train: RandomImages
    test: RandomImages
    num_classes: int
    mean: float
    std: float


class Measured(NamedTuple):
    """What an update of a layout takes."""

    microbatch_size: int  # per device
    num_microbatches: int  # on each device
    microbatch_s: float
    apply_update_s: float  # with the sum over the devices
    memory_bytes: int  # on each device
    is_peak: bool  # whether the device counted them; else XLA planned them

    @property
    def update_s(self) -> float:
        times = StepTimes({self.microbatch_size: self.microbatch_s}, self.apply_update_s)
        return times.update(self.num_microbatches, self.microbatch_size)


class Rehearsal:
    """Times the updates of schedules that differ in their batches alone, each program once.

    Args:
      preset: has the sizes of the data.
      config: any of the schedules.
      batch_sizes: of all of them.

    Attributes:
      devices: of the updates.
    """

    def __init__(self, preset: ImageNetPreset, config: Config, batch_sizes: set[int]):
        classes, shape = preset.num_classes, imagenet.image_shape(config)
        train, test = (RandomImages(size, shape, classes) for size in (preset.dataset_size, preset.test_size))
        self._config = config
        self._dataset = _RandomDataset(config.data.dataset, train, test, classes, MEAN, STD)
        chooser = self._engine(batch_sizes, config.run.microbatch_size)
        self._layout, self.devices = chooser.layout, chooser.devices
        self._trained: dict[int, tuple[Engine, TrainState]] = {}  # by microbatch, which each engine has one of
        self._measured: dict[tuple[int, bool], tuple[float, float, int]] = {}  # by microbatch, and whether it is alone

    @property
    def num_compilations(self) -> int:
        """Of programs, for all that was measured."""
        return sum(engine.num_compilations for engine, _ in self._trained.values())

    def measure(self, batch_size: int) -> Measured:
        """What an update of this batch size takes, from at most four of its microbatches.

        Raises:
          InvalidArgument: the loss of the first update is not finite.
        """
        num_devices, size = self._layout(batch_size)
        count = num_microbatches(batch_size, size, num_devices)
        if size not in self._trained:
            engine = self._engine({size * num_devices}, size)
            self._trained[size] = engine, engine.init()
        if (size, count == 1) not in self._measured:
            times = self._times if count == 1 else self._times_of_many
            self._measured[size, count == 1] = times(size)
        microbatch_s, apply_s, planned = self._measured[size, count == 1]
        peak = (self.devices[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
        return Measured(size, count, microbatch_s, apply_s, peak or planned, bool(peak))

    def _engine(self, batch_sizes: set[int], microbatch_size: int | str) -> Engine:
        sizes = np.array(sorted(batch_sizes))
        plan = Plan(len(self._dataset.train), sizes, np.zeros(len(sizes)), np.zeros(len(sizes)))
        return build.engine(self._config.replace(microbatch_size=microbatch_size), self._dataset, plan)

    def _times(self, size: int) -> tuple[float, float, int]:
        """Of an update of one microbatch, which has no step of its own for the optimizer."""
        self._seconds(size, 1)
        return min(self._seconds(size, 1) for _ in range(_REPEATS)), 0.0, self._memory(size, 1)

    def _times_of_many(self, size: int) -> tuple[float, float, int]:
        """Of a microbatch on each device, and of the optimizer's step, from two updates."""
        self._seconds(size, _FEW)
        # Other work on the machine only adds to either time.
        few, many = (min(self._seconds(size, count) for _ in range(_REPEATS)) for count in (_FEW, _MANY))
        microbatch_s = min(max((many - few) / (_MANY - _FEW), few / (2 * _FEW)), many / _MANY)
        return microbatch_s, max(few - _FEW * microbatch_s, 0.0), self._memory(size, _FEW)

    def _memory(self, size: int, count: int) -> int:
        engine, _ = self._trained[size]
        return engine.memory_of(count * size * engine.num_devices)

    def _seconds(self, size: int, count: int) -> float:
        """Of one update of so many microbatches, which changes no parameter."""
        engine, state = self._trained[size]
        start = time.perf_counter()
        state, metrics = engine.update(state, Update(0, 0, count * size * engine.num_devices, 0.0, 0.0))
        loss = metrics.loss
        self._trained[size] = engine, jax.block_until_ready(state)
        seconds = time.perf_counter() - start
        if not math.isfinite(loss):
            raise InvalidArgument("the loss of the first update", loss, "finite; try --dtype=float32")
        return seconds


def rehearse(preset: ImageNetPreset, schedules: dict[str, Config]) -> None:
    """Times the first microbatches of every phase, and prints what each schedule would take here.

    Args:
      preset: has the sizes of the data.
      schedules: by label; they have the same model, optimizer and microbatches.
    """
    plans = {label: build.recipe(config, preset.dataset_size).plan() for label, config in schedules.items()}
    sizes = {int(phase.batch_size) for plan in plans.values() for phase in plan.phases}
    rehearsal = Rehearsal(preset, next(iter(schedules.values())), sizes)
    rows: list[list[str]] = []
    for label, plan in plans.items():
        found = [(phase, rehearsal.measure(phase.batch_size)) for phase in plan.phases]
        rows += _rows(label, plan, found)
    if is_first_process():
        _print(rehearsal, rows, found[-1][1])


def _rows(label: str, plan: Plan, found: list[tuple[Any, Measured]]) -> list[list[str]]:
    rows, total_s = [], 0.0
    for phase, measured in found:
        seconds = phase.num_updates * measured.update_s
        total_s += seconds
        rows.append(
            [
                label,
                f"{phase.examples_seen / plan.dataset_size:.4g}",
                f"{phase.batch_size:,}",
                f"{measured.microbatch_size:,}",
                f"{measured.num_microbatches:,}",
                f"{phase.num_updates:,}",
                _short(measured.update_s),
                f"{measured.memory_bytes / _GIB:.2f}",
                _short(seconds / 3600),
            ]
        )
    return [*rows, [label, "total", "", "", "", f"{plan.num_updates:,}", "", "", _short(total_s / 3600)]]


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _print(rehearsal: Rehearsal, rows: list[list[str]], last: Measured) -> None:
    devices = rehearsal.devices
    head = ["schedule", "from epoch", "batch", "microbatch", "microbatches", "updates", "s/update", "GiB", "hours"]
    print(f"\n{len(devices)} × {devices[0].device_kind}; {rehearsal.num_compilations} programs were compiled.")
    figures.print_table([head, *rows])
    print("microbatch and GiB are of each device; microbatches are those of an update on each device.")
    print(
        "PREDICTED: an update takes its number of microbatches × the time of one, plus the optimizer's step.\n"
        f"Measured: updates of {_FEW} and {_MANY} microbatches, or of one where a batch has no more; no other was run."
    )
    origin = "the device's peak so far" if last.is_peak else "XLA's plan of the largest program"
    print(f"GiB: {origin}. Random images; no time for decoding, compilation, evaluation and checkpoints.")
