"""How a batch is laid out over microbatches and devices.

An update of B examples runs as k microbatches of M examples on each of D devices. Microbatch i of
device d takes the examples [(i·D + d)·M, (i·D + d + 1)·M) of the batch; what lies beyond B is padding with
weight 0. So any batch size runs with any microbatch size, and the order of examples, and with it
every ghost, is the same in all layouts.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bsjax.errors import InvalidArgument

# Each shape is compiled: with more batch sizes than this, microbatches come in powers of two.
FEW_BATCH_SIZES = 8


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
    if microbatch_size < 1 or not fits(microbatch_size, ghost_batch_size, num_devices):
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
    sizes = [size for size in range(1, largest + 1) if fits(size, ghost_batch_size, num_devices)]
    if powers_of_two:
        sizes = [size for size in sizes if size < ghost_batch_size or (size // ghost_batch_size).bit_count() == 1]
    return sizes


class Layout(NamedTuple):
    """How a batch size runs."""

    num_devices: int
    microbatch_size: int  # per device


def choose(batch_size: int, candidates: Mapping[int, Sequence[int]]) -> Layout:
    """The fastest layout for a batch size; of equal ones that with the largest microbatch, on the fewest devices.

    A microbatch costs its examples, padding included, plus a fixed cost as of 1/16 of the largest candidate.

    Args:
      batch_size: in examples.
      candidates: for each possible number of devices, the possible microbatch sizes in increasing order.

    >>> sizes = candidate_microbatch_sizes(128, num_devices=1, max_microbatch_size=1024)
    >>> [choose(size, {1: sizes}).microbatch_size for size in (128, 640, 3200, 5120)]
    [128, 640, 640, 1024]
    >>> choose(40, {n: candidate_microbatch_sizes(8, n, max_microbatch_size=64) for n in range(1, 9)})
    Layout(num_devices=5, microbatch_size=8)
    """

    def cost(layout: Layout) -> tuple[float, int, int]:
        num_devices, size = layout
        fixed = candidates[num_devices][-1] / 16
        return num_microbatches(batch_size, size, num_devices) * (size + fixed), -size, num_devices

    return min((Layout(n, size) for n, sizes in candidates.items() for size in sizes), key=cost)


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
    positions = np.arange(start, start + padded_size, dtype=np.uint64)
    addresses[1] = (positions >> np.uint64(32)).astype(np.uint32).view(np.int32)
    addresses[2] = positions.astype(np.uint32).view(np.int32)
    return np.moveaxis(addresses.reshape(3, count, num_devices, microbatch_size), 0, 2)


def fits(microbatch_size: int, ghost_batch_size: int, num_devices: int) -> bool:
    """Whether a microbatch holds whole ghosts, or shares them evenly with neighbouring devices."""
    if microbatch_size % ghost_batch_size == 0:
        return True
    return ghost_batch_size % microbatch_size == 0 and num_devices % (ghost_batch_size // microbatch_size) == 0
