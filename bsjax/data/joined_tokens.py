"""Several arrays of tokens as one, such as the files of a large data set."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bsjax.errors import InvalidArgument


class JoinedTokens:
    """Arrays of tokens, one after the other, which are read as one array and not copied: memory maps stay on the disk.

    It has what `TokenWindows` needs of an array: a length, a dtype, slices, and arrays of indices. What is read is a
    copy.

    Args:
      parts: arrays or memory maps [n_i] of whole numbers, of one dtype.

    Raises:
      InvalidArgument: there is no part, or they differ in their dtypes, or one is no array [n] of whole numbers.

    >>> tokens = JoinedTokens([np.arange(3), np.arange(3, 10)])
    >>> len(tokens), tokens[np.array([[2, 3], [9, 0]])].tolist(), tokens[1:5].tolist()
    (10, [[2, 3], [9, 0]], [1, 2, 3, 4])
    """

    ndim = 1

    def __init__(self, parts: Sequence[np.ndarray]):
        for part in parts:
            if part.ndim != 1 or part.dtype.kind not in "iu":
                raise InvalidArgument("parts", f"{part.dtype} {list(part.shape)}", "arrays [n] of whole numbers")
        dtypes = sorted({str(part.dtype) for part in parts})
        if len(dtypes) != 1:
            raise InvalidArgument("parts", dtypes, "arrays of one dtype")
        self.parts = tuple(map(np.asarray, parts))
        self.ends = np.cumsum([len(part) for part in parts])
        self.dtype: np.dtype = parts[0].dtype
        self.shape = (len(self),)
        self.nbytes: int = len(self) * self.dtype.itemsize

    def __len__(self) -> int:
        """The number of tokens of all parts."""
        return int(self.ends[-1])

    def __getitem__(self, index: Any) -> np.ndarray:
        """The tokens of a slice, of an index, or of an array of indices of any shape; negative ones are refused."""
        if isinstance(index, slice):
            index = np.arange(*index.indices(len(self)))
        index = np.asarray(index)
        if index.size and not 0 <= index.min() <= index.max() < len(self):
            raise IndexError(f"indices of {len(self):,} tokens are from 0 on, not {index.min()} to {index.max()}")
        tokens, part_of = np.empty(index.shape, self.dtype), np.searchsorted(self.ends, index, side="right")
        for number in np.unique(part_of):
            here, part = part_of == number, self.parts[number]
            tokens[here] = part[index[here] - (self.ends[number] - len(part))]
        return tokens
