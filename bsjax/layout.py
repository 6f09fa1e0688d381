"""How a batch is laid out over microbatches and devices.

An update of B examples runs as k microbatches of M examples on each of D devices. Microbatch i of
device d takes the examples [(i·D + d)·M, (i·D + d + 1)·M) of the batch; what lies beyond B is padding with
weight 0. So any batch size runs with any microbatch size, and the order of examples, and with it
every ghost, is the same in all layouts.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from bsjax.errors import InvalidArgument

# Each shape is compiled: with more batch sizes than this, microbatches come in powers of two.
_FEW_BATCH_SIZES = 8


def check_batch_sizes(batch_sizes: Iterable[int], ghost_batch_size: int) -> None:
    """Refuses a batch that does not hold whole ghosts.

    >>> check_batch_sizes([32, 100], ghost_batch_size=32)
    Traceback (most recent call last):
    ...
    bsjax.errors.InvalidArgument: batch_size is 100; it must be a multiple of ghost_batch_size 32; nearest: 96 or 128
    """
    for size in batch_sizes:
        if size < 1 or size % ghost_batch_size:
            below = max(size, 0) // ghost_batch_size * ghost_batch_size
            nearest = f"{below} or {below + ghost_batch_size}" if below else str(ghost_batch_size)
            raise InvalidArgument("batch_size", size, f"a multiple of ghost_batch_size {ghost_batch_size}", nearest)


def check_microbatch_size(microbatch_size: int, ghost_batch_size: int, num_devices: int) -> None:
    """Refuses a microbatch that neither holds whole ghosts nor shares them evenly with neighbouring devices."""
    if microbatch_size < 1 or not _fits(microbatch_size, ghost_batch_size, num_devices):
        valid = candidate_microbatch_sizes(ghost_batch_size, num_devices, 2 * microbatch_size)
        nearest = min(valid, key=lambda size: abs(size - microbatch_size))
        allowed = f"a multiple of ghost_batch_size {ghost_batch_size}, or a share of it for {num_devices} devices"
        raise InvalidArgument("microbatch_size", microbatch_size, allowed, nearest)


def candidate_microbatch_sizes(
    ghost_batch_size: int, num_devices: int, max_microbatch_size: int, powers_of_two: bool = False
) -> list[int]:
    """The microbatch sizes per device that are possible.

    Args:
      ghost_batch_size: 1 without batch norm.
      num_devices: D.
      max_microbatch_size: the largest that fits; one ghost is always allowed.
      powers_of_two: only these, times the ghost: few shapes to compile however many batch sizes there are.

    >>> candidate_microbatch_sizes(8, num_devices=2, max_microbatch_size=40)
    [4, 8, 16, 24, 32, 40]
    >>> candidate_microbatch_sizes(8, num_devices=2, max_microbatch_size=40, powers_of_two=True)
    [4, 8, 16, 32]
    """
    largest = max(max_microbatch_size, ghost_batch_size)
    sizes = [size for size in range(1, largest + 1) if _fits(size, ghost_batch_size, num_devices)]
    if powers_of_two:
        sizes = [size for size in sizes if size < ghost_batch_size or (size // ghost_batch_size).bit_count() == 1]
    return sizes


class Layout(NamedTuple):
    """How a batch size runs."""

    num_devices: int
    microbatch_size: int  # per device


class Layouts:
    """Chooses how each batch size runs: with microbatches of few shapes, on one of several numbers of devices.

    The fastest layout is taken; of equal ones that with the largest microbatch, on the fewest devices. A microbatch
    costs its examples, padding included, plus a fixed cost as of 1/16 of the largest that is possible.

    Args:
      batch_sizes: those that are to come. If they are many, microbatches come in powers of two.
      ghost_batch_size: 1 without batch norm.
      numbers_of_devices: the possible ones, in increasing order.
      max_microbatch_size: per device.
      microbatch_size: per device, for all batch sizes; None chooses one for each.
      measure_noise: only layouts in which the gradient noise can be measured: two microbatches at least, on one device
        or many, of whole ghosts.

    Raises:
      InvalidArgument: a batch or microbatch size that does not hold whole ghosts, or no two microbatches.

    >>> layouts = Layouts((128, 640, 3200, 5120), 128, numbers_of_devices=[1], max_microbatch_size=1024)
    >>> [layouts(size).microbatch_size for size in (128, 640, 3200, 5120)]
    [128, 640, 640, 1024]
    >>> Layouts([40], 8, numbers_of_devices=range(1, 9), max_microbatch_size=64)(40)
    Layout(num_devices=5, microbatch_size=8)
    """

    def __init__(
        self,
        batch_sizes: Iterable[int],
        ghost_batch_size: int,
        numbers_of_devices: Iterable[int],
        max_microbatch_size: int,
        microbatch_size: int | None = None,
        measure_noise: bool = False,
    ):
        batch_sizes = sorted(set(batch_sizes))
        check_batch_sizes(batch_sizes, ghost_batch_size)
        self._ghost_batch_size = ghost_batch_size
        self._measure_noise = measure_noise
        self._chosen: dict[int, Layout] = {}
        numbers_of_devices = list(numbers_of_devices)
        if microbatch_size is None:
            many = not 0 < len(batch_sizes) <= _FEW_BATCH_SIZES
            self.microbatch_sizes = {
                n: candidate_microbatch_sizes(ghost_batch_size, n, max_microbatch_size, many)
                for n in numbers_of_devices
            }
        else:
            check_microbatch_size(microbatch_size, ghost_batch_size, numbers_of_devices[-1])
            self.microbatch_sizes = {
                n: [microbatch_size] for n in numbers_of_devices if _fits(microbatch_size, ghost_batch_size, n)
            }
        for smallest in batch_sizes[:1]:  # if it can be measured, all can
            self(smallest)

    def __call__(self, batch_size: int) -> Layout:
        """The layout for a batch size, which need not be one of those that were announced."""
        if batch_size not in self._chosen:
            check_batch_sizes([batch_size], self._ghost_batch_size)

            def cost(layout: Layout) -> tuple[float, int, int]:
                num_devices, size = layout
                fixed = self.microbatch_sizes[num_devices][-1] / 16
                return num_microbatches(batch_size, size, num_devices) * (size + fixed), -size, num_devices

            possible = [Layout(n, size) for n, sizes in self.microbatch_sizes.items() for size in sizes]
            if self._measure_noise:
                possible = [layout for layout in possible if self._is_measurable(batch_size, layout.microbatch_size)]
                if not possible:
                    self._refuse(batch_size)
            self._chosen[batch_size] = min(possible, key=cost)
        return self._chosen[batch_size]

    def _is_measurable(self, batch_size: int, microbatch_size: int) -> bool:
        return self._ghost_batch_size <= microbatch_size < batch_size

    def _refuse(self, batch_size: int) -> None:
        ghost = self._ghost_batch_size
        why = "the gradient noise is measured between two microbatches"
        if batch_size < 2 * ghost:
            raise InvalidArgument(
                "batch_size", batch_size, f"at least two of ghost_batch_size {ghost}: {why}", 2 * ghost
            )
        sizes = sorted({size for sizes in self.microbatch_sizes.values() for size in sizes})
        allowed = f"from ghost_batch_size {ghost} to half of batch_size {batch_size}: {why}"
        raise InvalidArgument("microbatch_size", sizes[0], allowed, batch_size // 2 // ghost * ghost)


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


def _fits(microbatch_size: int, ghost_batch_size: int, num_devices: int) -> bool:
    if microbatch_size % ghost_batch_size == 0:
        return True
    return ghost_batch_size % microbatch_size == 0 and num_devices % (ghost_batch_size // microbatch_size) == 0
