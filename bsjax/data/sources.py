"""Sources of examples: a source returns any of its examples by their indices."""

import functools
import zlib
from typing import Any, Protocol

import jax
import numpy as np

from bsjax.errors import InvalidArgument

_BLOCK = 1 << 20  # bytes that a checksum reads at a time


class Source(Protocol):
    """Examples 0 to len - 1, each a pytree of arrays of fixed shapes and dtypes.

    The engine reads examples by `gather` alone. It calls `gather` ahead of time, from any thread, and expects the same
    examples for the same indices each time, on every host. `ExampleStream` decides the order, so a source neither
    shuffles nor repeats. Other sources than arrays need nothing else:

    * windows of tokens, as `bsjax.data.TokenWindows`: `len` is the number of windows, `gather` reads
      `tokens[i * length : (i + 1) * length + 1]` of a memory map for each index, `nbytes` counts the windows,
      `fingerprint` is a checksum of the file and the length;
    * JPEGs: `ImageSource`, or one through a Grain reader: `gather` decodes `reader[i]` for each index, in threads if it
      likes, to one size; `nbytes` is None, `fingerprint` is a checksum of the files' names, sizes and checksums and of
      the decoded size.

    Examples may also depend on their position in the stream, as random crops on the host do. Such a source has an
    attribute `takes_positions`, which is True, and its examples stay on the host. Training calls
    `gather(indices, positions)`, with positions int64 of the shape of indices; `gather(indices)` must work too.
    """

    @property
    def fingerprint(self) -> str:
        """One line of text that changes with any of the examples; computing it may read all of them."""

    @property
    def nbytes(self) -> int | None:
        """Bytes of all examples; None if they must not be gathered all at once."""

    def __len__(self) -> int:
        """The number of examples."""

    def gather(self, indices: np.ndarray) -> Any:
        """The examples of integer indices of any shape: a pytree of new numpy arrays [*indices.shape, ...]."""


class ArraySource:
    """Examples in memory, or in memory-mapped files.

    Args:
      examples: any pytree of numpy arrays or memory maps of numbers, [N, ...] with one N.
      fingerprint: of all the data, if it is known; default, computed on first use.

    Raises:
      InvalidArgument: there is no example, the lengths differ, or a leaf is not an array of numbers.

    >>> source = ArraySource({"x": np.arange(6.0).reshape(3, 2), "y": np.array([0, 1, 1])})
    >>> len(source), source.nbytes
    (3, 72)
    >>> source.gather(np.array([2, 0]))
    {'x': array([[4., 5.],
           [0., 1.]]), 'y': array([1, 0])}
    >>> source.fingerprint
    'x float64 [3, 2] f12b0119, y int64 [3] c1035b2f'
    """

    def __init__(self, examples: Any, fingerprint: str | None = None):
        named, _ = jax.tree_util.tree_flatten_with_path(examples)
        leaves = {f"examples{jax.tree_util.keystr(path)}": leaf for path, leaf in named}
        if not leaves:
            raise InvalidArgument("examples", examples, "a pytree of at least one array")
        for name, leaf in leaves.items():
            _check_leaf(name, leaf)
        lengths = {name: len(leaf) for name, leaf in leaves.items()}
        if len(set(lengths.values())) > 1:
            raise InvalidArgument("the arrays' lengths", lengths, "equal: one row for each example")
        self.examples = jax.tree.map(np.asarray, examples)  # JAX takes no np.memmap
        self.nbytes: int | None = sum(leaf.nbytes for leaf in leaves.values())
        self._length = next(iter(lengths.values()))
        if fingerprint is not None:
            self.fingerprint = fingerprint

    def __len__(self) -> int:
        """The number of examples."""
        return self._length

    def gather(self, indices: np.ndarray) -> Any:
        """The examples of integer indices of any shape: copies, [*indices.shape, ...]."""
        return jax.tree.map(lambda array: array[indices], self.examples)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Name, dtype, shape and CRC-32 of every array."""
        named, _ = jax.tree_util.tree_flatten_with_path(self.examples)
        names = (jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in named)
        return ", ".join(describe(name, array, crc32(array)) for name, (_, array) in zip(names, named, strict=True))


def describe(name: str, array: Any, checksum: str) -> str:
    """The part of a fingerprint for one array."""
    return f"{name} {array.dtype} {list(array.shape)} {checksum}".lstrip()


def _check_leaf(name: str, leaf: Any) -> None:
    if not isinstance(leaf, np.ndarray):
        raise InvalidArgument(name, type(leaf).__name__, "a numpy array [N, ...]", "numpy.asarray of it")
    found = f"{leaf.dtype} {list(leaf.shape)}"
    if leaf.dtype.kind in "OUSMm" or leaf.dtype.names or not leaf.dtype.isnative:
        raise InvalidArgument(name, found, "an array of numbers in this machine's byte order")
    if not leaf.ndim or not leaf.size:
        raise InvalidArgument(name, found, "an array [N, ...] of at least one example")


def crc32(array: Any) -> str:
    """Of an array [n, ...]; reads a memory map in blocks, not as a whole."""
    rows = max(1, _BLOCK * len(array) // array.nbytes)
    checksum = 0
    for start in range(0, len(array), rows):
        block = np.ascontiguousarray(array[start : start + rows]).reshape(-1)
        checksum = zlib.crc32(block.view(np.uint8).data, checksum)
    return f"{checksum:08x}"
