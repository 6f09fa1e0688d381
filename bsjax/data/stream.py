"""The order of the training examples: a function of the seed and the position, not of the batch size."""

import functools

import numpy as np


class ExampleStream:
    """The permutation of epoch 0, then the permutation of epoch 1, and so on without end.

    Position p is in epoch p // dataset_size. Whatever the batch sizes, consecutive batches take
    consecutive positions, so every plan of a recipe sees the same examples in the same order.

    >>> stream = ExampleStream(dataset_size=4, seed=0)
    >>> both = stream.indices(start=2, count=6)
    >>> bool((both[2:] == stream.indices(start=4, count=4)).all())
    True
    >>> sorted(both[2:].tolist())
    [0, 1, 2, 3]
    """

    def __init__(self, dataset_size: int, seed: int):
        self.dataset_size = dataset_size
        self.seed = seed
        self._permutation = functools.lru_cache(maxsize=2)(self._compute_permutation)

    def indices(self, start: int, count: int) -> np.ndarray:
        """int32 [count]: the training examples at stream positions [start, start + count)."""
        epoch, offset = divmod(start, self.dataset_size)
        if offset + count <= self.dataset_size:
            return self._permutation(epoch)[offset : offset + count]
        parts = []
        while count:
            parts.append(self._permutation(epoch)[offset : offset + count])
            count -= len(parts[-1])
            epoch, offset = epoch + 1, 0
        return np.concatenate(parts)

    def _compute_permutation(self, epoch: int) -> np.ndarray:
        permutation = np.random.default_rng([self.seed, epoch]).permutation(self.dataset_size).astype(np.int32)
        permutation.setflags(write=False)  # batches are views of it
        return permutation
