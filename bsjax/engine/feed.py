"""How examples get to the devices: they live there, or are gathered on the host ahead of time.

Both hand out the microbatches of a batch as (pool, address) pairs, from which the engine's programs read
the same numbers: `pool` is (examples, key), `address` int32 [local devices, 3, M], see `bsjax.engine.layout`.
"""

import concurrent.futures
import itertools
import math
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bsjax.data import ExampleStream, Source
from bsjax.engine import layout
from bsjax.engine.devices import local_part, place, replicate, shapes_of
from bsjax.errors import InvalidArgument, check_choice

EXAMPLES_ON = ("auto", "device", "host")
_SHARE_OF_MEMORY = 0.25  # of a device's memory that examples may take
_NUM_AHEAD = 4  # microbatches that are gathered before they are needed


class DeviceFeed:
    """All examples live on every device, and an update moves indices."""

    wait_s: float | None = None  # there is nothing to wait for

    def __init__(self, source: Source, stream: ExampleStream | None, key: jax.Array, devices: Sequence[jax.Device]):
        """Copies a source to the devices; without a stream, its examples come in their own order."""
        self._pool = replicate((source.gather(np.arange(len(source))), key), devices)
        self._stream = stream
        self._devices = devices
        self._local = local_part(devices)

    def microbatches(self, start: int, batch_size: int, microbatch_size: int) -> Iterator[tuple[Any, Any]]:
        """The microbatches of the batch at stream positions [start, start + batch_size)."""
        indices = _indices(self._stream, start, batch_size)
        for address in layout.lay_out(indices, start, microbatch_size, len(self._devices)):
            yield self._pool, address[self._local]

    def shapes(self, microbatch_size: int) -> Any:
        """Of a microbatch, for compiling ahead of time."""
        return shapes_of(self._pool), _address_shape(len(self._devices), microbatch_size)


class _Request(NamedTuple):
    """A microbatch: the stream positions [start, end), on each device `microbatch_size` of them."""

    start: int
    end: int
    microbatch_size: int


class HostFeed:
    """Examples stay on the host; a thread gathers and sends a few microbatches before they are needed.

    A microbatch is known by its positions in the stream, so those at the beginning of the next update can be
    gathered before anyone asks for it: the last one excepted, they are the same whatever its batch size.

    Attributes:
      wait_s: seconds that microbatches have been waited for.
    """

    def __init__(self, source: Source, stream: ExampleStream | None, key: jax.Array, devices: Sequence[jax.Device]):
        """Takes the same arguments as DeviceFeed."""
        self._source = source
        self._stream = stream
        self._key = replicate(key, devices)
        self._devices = devices
        self._local = local_part(devices)
        self._gatherer = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="gather")
        self._coming: dict[_Request, concurrent.futures.Future] = {}
        self.wait_s: float | None = 0.0

    def microbatches(self, start: int, batch_size: int, microbatch_size: int) -> Iterator[tuple[Any, Any]]:
        """The microbatches of the batch at stream positions [start, start + batch_size)."""
        size = microbatch_size * len(self._devices)
        # Without end in training: after this batch, one as large.
        starts = [start] if self._stream is None else itertools.count(start, batch_size)
        expected = (
            _Request(first, min(first + size, end), microbatch_size)
            for end in (first + batch_size for first in starts)
            for first in range(end - batch_size, end, size)
        )
        window = list(itertools.islice(expected, _NUM_AHEAD))
        for request in self._coming.keys() - set(window):
            self._coming.pop(request).cancel()
        for request in window:
            self._gather(request)
        for _ in range(layout.num_microbatches(batch_size, microbatch_size, len(self._devices))):
            examples, address = self._waited_for(self._coming.pop(window.pop(0)))
            for request in itertools.islice(expected, 1):
                self._gather(request)
                window.append(request)
            yield (examples, self._key), address

    def shapes(self, microbatch_size: int) -> Any:
        """Of a microbatch, for compiling ahead of time."""
        examples = jax.tree.map(
            lambda array: jax.ShapeDtypeStruct(
                (len(self._devices), microbatch_size, *array.shape[1:]), jax.dtypes.canonicalize_dtype(array.dtype)
            ),
            self._source.gather(np.zeros(1, np.int32)),
        )
        return (examples, shapes_of(self._key)), _address_shape(len(self._devices), microbatch_size)

    def _waited_for(self, coming: concurrent.futures.Future) -> Any:
        start = time.perf_counter()
        try:
            return coming.result()
        finally:
            self.wait_s = (self.wait_s or 0.0) + time.perf_counter() - start

    def _gather(self, request: _Request) -> None:
        if request not in self._coming:
            self._coming[request] = self._gatherer.submit(self._gathered, request)

    def _gathered(self, request: _Request) -> Any:
        indices = _indices(self._stream, request.start, request.end - request.start)
        [address] = layout.lay_out(indices, request.start, request.microbatch_size, len(self._devices))
        address = address[self._local]
        index = address[:, 0]
        examples = place(self._examples(np.maximum(index, 0), address), self._devices)
        address[:, 0] = np.where(index >= 0, np.arange(request.microbatch_size), -1)  # where they are now
        return examples, address

    def _examples(self, index: np.ndarray, address: np.ndarray) -> Any:
        if not takes_positions(self._source):
            return self._source.gather(index)
        upper, lower = address[:, 1].astype(np.int64), address[:, 2].astype(np.uint32)
        return self._source.gather(index, (upper << 32) | lower)  # type: ignore[call-arg]


def takes_positions(source: Source) -> bool:
    """Whether the source's examples depend on their position in the stream too; see `Source`."""
    return getattr(source, "takes_positions", False)


def create_feeds(
    examples_on: str,
    train: Source,
    test: Source,
    stream: ExampleStream,
    key: jax.Array,
    devices: Sequence[jax.Device],
) -> list[DeviceFeed | HostFeed]:
    """A feed of the training examples in the order of the stream, and one of the test examples.

    Args:
      examples_on: "device", "host", or "auto": on the devices where they take a quarter of the memory at most, and
        there is one process; of many, each reads its own devices' examples on the host.
      train: the training examples.
      test: the test examples.
      stream: the order of the training examples.
      key: of the randomness of examples.
      devices: where they go.
    """
    check_choice("examples_on", examples_on, EXAMPLES_ON)
    if examples_on == "auto":
        sizes = [math.inf if (size := _nbytes(source)) is None else size for source in (train, test)]
        fits = jax.process_count() == 1 and sum(sizes) <= _SHARE_OF_MEMORY * memory_bytes(devices)
        examples_on = "device" if fits else "host"
    for source in (train, test):
        if examples_on == "device" and _nbytes(source) is None:
            allowed = f"auto or host for a {type(source).__name__}, which cannot live on a device"
            raise InvalidArgument("examples_on", examples_on, allowed, "host")
    feed = DeviceFeed if examples_on == "device" else HostFeed
    return [feed(train, stream, key, devices), feed(test, None, key, devices)]


def _nbytes(source: Source) -> int | None:
    """Bytes of all examples; None if they cannot live on a device."""
    return None if takes_positions(source) else source.nbytes


def _indices(stream: ExampleStream | None, start: int, count: int) -> np.ndarray:
    return np.arange(start, start + count, dtype=np.int32) if stream is None else stream.indices(start, count)


def _address_shape(num_devices: int, microbatch_size: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((num_devices, 3, microbatch_size), np.int32)


def memory_bytes(devices: Sequence[jax.Device]) -> float:
    """Bytes that each device of this process may use; devices of a CPU share the machine's."""
    mine = devices[local_part(devices)]
    if (stats := mine[0].memory_stats()) and "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / len(mine)
