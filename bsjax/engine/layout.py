"""How a batch is laid out over microbatches and devices.

An update of B examples runs as k microbatches of M examples on each of D devices. Microbatch i of
device d takes the examples [(i·D + d)·M, (i·D + d + 1)·M) of the batch; what lies beyond B is padding with
weight 0. So any batch size runs with any microbatch size, and the order of examples, and with it
every group, is the same in all layouts.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from bsjax.errors import InvalidArgument

# Each shape is compiled: with more batch sizes than this, microbatches come in powers of two.
_FEW_BATCH_SIZES = 8


def check_batch_sizes(batch_sizes: Iterable[int], group_size: int) -> None:
    """Refuses a batch that does not hold whole groups.

    >>> check_batch_sizes([32, 100], group_size=32)
    Traceback (most recent call last):
    ...
    bsjax.errors.InvalidArgument: batch_size is 100; it must be a multiple of the group size 32; nearest: 96 or 128
    """
    for size in batch_sizes:
        if size < 1 or size % group_size:
            below = max(size, 0) // group_size * group_size
            nearest = f"{below} or {below + group_size}" if below else str(group_size)
            raise InvalidArgument("batch_size", size, f"a multiple of the group size {group_size}", nearest)


def check_microbatch_size(microbatch_size: int, group_size: int, num_devices: int, may_span: bool = True) -> None:
    """Refuses a microbatch that neither holds whole groups nor shares them evenly with neighbouring devices."""
    if microbatch_size < 1 or not _fits(microbatch_size, group_size, num_devices, may_span):
        valid = candidate_microbatch_sizes(group_size, num_devices, 2 * microbatch_size, may_span=may_span)
        nearest = min(valid, key=lambda size: abs(size - microbatch_size))
        allowed = f"a multiple of the group size {group_size}"
        if may_span and num_devices > 1:
            allowed += f", or a share of it for {num_devices} devices"
        raise InvalidArgument("microbatch_size", microbatch_size, allowed, nearest)


def candidate_microbatch_sizes(
    group_size: int,
    num_devices: int,
    max_microbatch_size: int,
    powers_of_two: bool = False,
    may_span: bool = True,
) -> list[int]:
    """The microbatch sizes per device that are possible.

    Args:
      group_size: the task's, such as the ghost of batch normalisation; 1 without groups.
      num_devices: D.
      max_microbatch_size: the largest that fits; one group is always allowed.
      powers_of_two: only these, times the group: few shapes to compile however many batch sizes there are.
      may_span: whether neighbouring devices may share a group.

    >>> candidate_microbatch_sizes(8, num_devices=2, max_microbatch_size=40)
    [4, 8, 16, 24, 32, 40]
    >>> candidate_microbatch_sizes(8, num_devices=2, max_microbatch_size=40, powers_of_two=True)
    [4, 8, 16, 32]
    """
    largest = max(max_microbatch_size, group_size)
    sizes = [size for size in range(1, largest + 1) if _fits(size, group_size, num_devices, may_span)]
    if powers_of_two:
        sizes = [size for size in sizes if size < group_size or (size // group_size).bit_count() == 1]
    return sizes


@dataclasses.dataclass(frozen=True)
class StepTimes:
    r"""The times of the engine's steps on one device, with all devices at work.

    An update in k microbatches of M takes

    .. math:: k \, accumulate(M) + apply\_update - [k = 1] \, single\_saving

    Times are interpolated between the given microbatch sizes. A smaller microbatch takes as long as the smallest, a
    larger one as long per example as the largest: these are the worst cases.

    Args:
      accumulate_s: seconds of `accumulate`, by microbatch size.
      apply_update_s: seconds of `apply_update`, without its all-reduce.
      single_saving_s: seconds that an update of one microbatch saves, which needs no accumulator.

    Raises:
      InvalidArgument: there is no size, or a size or a time is out of range.

    >>> times = StepTimes({8: 0.002, 32: 0.005}, apply_update_s=0.001)
    >>> [times.accumulate(size) for size in (4, 8, 16, 32, 64)]
    [0.002, 0.002, 0.003, 0.005, 0.01]
    >>> times.update(num_microbatches=2, microbatch_size=32)
    0.011
    """

    accumulate_s: Mapping[int, float]
    apply_update_s: float
    single_saving_s: float = 0.0

    def __post_init__(self):
        if not self.accumulate_s:
            raise InvalidArgument("accumulate_s", self.accumulate_s, "seconds of at least one microbatch size")
        for size, seconds in self.accumulate_s.items():
            if not (size >= 1 and 0 < seconds < math.inf):
                raise InvalidArgument("accumulate_s", {size: seconds}, "positive seconds by microbatch size")
        for name in ("apply_update_s", "single_saving_s"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InvalidArgument(name, getattr(self, name), "a number of seconds >= 0", 0)

    @classmethod
    def affine(
        cls, microbatch_s: float, example_s: float, apply_update_s: float, max_microbatch_size: int = 1024
    ) -> "StepTimes":
        """A time per microbatch plus a time per example, up to a microbatch size.

        >>> StepTimes.affine(0.001, 0.0001, apply_update_s=0).accumulate(10)
        0.002
        """
        return cls({size: microbatch_s + size * example_s for size in (1, max_microbatch_size)}, apply_update_s)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "StepTimes":
        """The inverse of `to_json`.

        >>> times = StepTimes({8: 0.002}, 0.001)
        >>> StepTimes.from_json(times.to_json()) == times
        True
        """
        return cls(**{**value, "accumulate_s": {int(size): s for size, s in value["accumulate_s"].items()}})

    def to_json(self) -> dict[str, Any]:
        """As JSON, whose keys are text."""
        return {**dataclasses.asdict(self), "accumulate_s": {str(size): s for size, s in self.accumulate_s.items()}}

    def accumulate(self, microbatch_size: int) -> float:
        """Seconds of one microbatch."""
        sizes = sorted(self.accumulate_s)
        seconds = np.interp(microbatch_size, sizes, [self.accumulate_s[size] for size in sizes])
        return float(seconds) * max(1.0, microbatch_size / sizes[-1])

    def update(self, num_microbatches: int, microbatch_size: int) -> float:
        """Seconds of an update, without its all-reduce."""
        saving = self.single_saving_s if num_microbatches == 1 else 0.0
        return max(num_microbatches * self.accumulate(microbatch_size) + self.apply_update_s - saving, 0.0)


class Layout(NamedTuple):
    """How a batch size runs."""

    num_devices: int
    microbatch_size: int  # per device


class Layouts:
    """Chooses how each batch size runs: with microbatches of few shapes, on one of several numbers of devices.

    The fastest layout is taken; of equal ones that with the least padding, then the largest microbatch, then the fewest
    devices. Without measured times, a microbatch costs its examples, padding included, plus a fixed cost as of 1/16 of
    the largest possible one.

    Args:
      batch_sizes: those that are to come. If they are many, microbatches come in powers of two.
      group_size: the task's, such as the ghost of batch normalisation; 1 without groups.
      numbers_of_devices: the possible ones, in increasing order.
      max_microbatch_size: per device, without measured times; with these, their largest.
      microbatch_size: per device, for all batch sizes; None chooses one for each.
      measure_noise: only layouts in which the gradient noise can be measured: two microbatches at least, on one device
        or many, of whole groups.
      groups_may_span_devices: whether neighbouring devices may share a group.
      times: measured ones of the steps, which decide what is fastest.

    Attributes:
      microbatch_sizes: the possible ones, by number of devices.
      smallest_batch_size: of those that are to come.

    Raises:
      InvalidArgument: a batch or microbatch size that does not hold whole groups, or no two microbatches.

    >>> layouts = Layouts((128, 640, 3200, 5120), 128, numbers_of_devices=[1], max_microbatch_size=1024)
    >>> [layouts(size).microbatch_size for size in (128, 640, 3200, 5120)]
    [128, 640, 640, 1024]
    >>> Layouts([40], 8, numbers_of_devices=range(1, 9), max_microbatch_size=64)(40)
    Layout(num_devices=5, microbatch_size=8)
    """

    def __init__(
        self,
        batch_sizes: Iterable[int],
        group_size: int,
        numbers_of_devices: Iterable[int],
        max_microbatch_size: int,
        microbatch_size: int | None = None,
        measure_noise: bool = False,
        groups_may_span_devices: bool = True,
        times: StepTimes | None = None,
    ):
        batch_sizes = sorted(set(batch_sizes))
        check_batch_sizes(batch_sizes, group_size)
        self.smallest_batch_size = batch_sizes[0] if batch_sizes else group_size
        max_microbatch_size = max(times.accumulate_s) if times else max_microbatch_size
        self._group_size = group_size
        self._measure_noise = measure_noise
        self._chosen: dict[int, Layout] = {}
        numbers_of_devices = list(numbers_of_devices)
        if microbatch_size is None:
            many = not 0 < len(batch_sizes) <= _FEW_BATCH_SIZES
            self.microbatch_sizes = {
                n: candidate_microbatch_sizes(group_size, n, max_microbatch_size, many, groups_may_span_devices)
                for n in numbers_of_devices
            }
        else:
            check_microbatch_size(microbatch_size, group_size, numbers_of_devices[-1], groups_may_span_devices)
            self.microbatch_sizes = {
                n: [microbatch_size]
                for n in numbers_of_devices
                if _fits(microbatch_size, group_size, n, groups_may_span_devices)
            }
        self._times = {
            n: times or StepTimes.affine(sizes[-1] / 16, 1.0, 0.0, sizes[-1])
            for n, sizes in self.microbatch_sizes.items()
        }
        for smallest in batch_sizes[:1]:  # if it can be measured, all can
            self(smallest)

    def __call__(self, batch_size: int) -> Layout:
        """The layout for a batch size, which need not be one of those that were announced."""
        if batch_size not in self._chosen:
            check_batch_sizes([batch_size], self._group_size)

            def cost(layout: Layout) -> tuple[float, int, int, int]:
                num_devices, size = layout
                count = num_microbatches(batch_size, size, num_devices)
                return self._times[num_devices].update(count, size), count * size * num_devices, -size, num_devices

            possible = [Layout(n, size) for n, sizes in self.microbatch_sizes.items() for size in sizes]
            if self._measure_noise:
                possible = [layout for layout in possible if self._is_measurable(batch_size, layout.microbatch_size)]
                if not possible:
                    self._refuse(batch_size)
            self._chosen[batch_size] = min(possible, key=cost)
        return self._chosen[batch_size]

    def fastest(self, num_devices: int) -> int:
        """The microbatch size with the most examples per second."""
        times = self._times[num_devices]
        return min(self.microbatch_sizes[num_devices], key=lambda size: (times.accumulate(size) / size, -size))

    def _is_measurable(self, batch_size: int, microbatch_size: int) -> bool:
        return self._group_size <= microbatch_size < batch_size

    def _refuse(self, batch_size: int) -> None:
        group = self._group_size
        why = "the gradient noise is measured between two microbatches"
        if batch_size < 2 * group:
            raise InvalidArgument("batch_size", batch_size, f"at least two of group size {group}: {why}", 2 * group)
        sizes = sorted({size for sizes in self.microbatch_sizes.values() for size in sizes})
        allowed = f"from the group size {group} to half of batch_size {batch_size}: {why}"
        raise InvalidArgument("microbatch_size", sizes[0], allowed, batch_size // 2 // group * group)


def num_microbatches(batch_size: int, microbatch_size: int, num_devices: int) -> int:
    """How many microbatches a batch takes on each device."""
    return -(-batch_size // (microbatch_size * num_devices))


def lay_out(indices: np.ndarray, start: int, microbatch_size: int, num_devices: int) -> np.ndarray:
    """Addresses of a batch's examples.

    Args:
      indices: int32 [B], the examples.
      start: stream position of the first.
      microbatch_size: M.
      num_devices: D.

    Returns:
      int32 [k, D, 3, M]: index (-1 for padding), and the upper and lower half of the stream position.

    >>> lay_out(np.array([7, 5, 6]), start=10, microbatch_size=2, num_devices=1)[:, 0].tolist()
    [[[7, 5], [0, 0], [10, 11]], [[6, -1], [0, 0], [12, 13]]]
    """
    count = num_microbatches(len(indices), microbatch_size, num_devices)
    padded_size = count * num_devices * microbatch_size
    addresses = np.empty((3, padded_size), np.int32)
    addresses[0, : len(indices)] = indices
    addresses[0, len(indices) :] = -1
    positions = np.arange(start, start + padded_size, dtype=">i8")
    addresses[1:] = positions.view(">i4").reshape(-1, 2).T
    return addresses.reshape(3, count, num_devices, microbatch_size).transpose(1, 2, 0, 3)


def _fits(microbatch_size: int, group_size: int, num_devices: int, may_span: bool) -> bool:
    if microbatch_size % group_size == 0:
        return True
    return may_span and group_size % microbatch_size == 0 and num_devices % (group_size // microbatch_size) == 0
