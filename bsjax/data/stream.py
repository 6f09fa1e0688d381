"""The order of the training examples: a function of the seed and the position, not of the batch size."""

import functools
from typing import Any

import numpy as np

from bsjax.errors import InvalidArgument


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

    With `classes`, an epoch is still a permutation, but one that spreads each class evenly: of C classes, one with n of
    the N examples has kn/N of the first k positions of an epoch, to within 1 + Cn/N. So small batches hold rare classes
    at regular intervals, not by chance, and no example comes more often than any other.

    >>> stream = ExampleStream(dataset_size=6, seed=0, classes=[0, 0, 0, 1, 1, 1])
    >>> (stream.indices(0, 6) >= 3).tolist()  # the classes take turns
    [False, True, False, True, False, True]

    Args:
      dataset_size: N.
      seed: of the order; with the epoch, it determines the permutation.
      classes: int [N], the class of each example; None, they do not matter.

    Raises:
      InvalidArgument: there are not N classes, or they are not whole numbers.
    """

    def __init__(self, dataset_size: int, seed: int, classes: Any = None):
        self.dataset_size = dataset_size
        self.seed = seed
        self._classes = None if classes is None else np.unique(np.asarray(classes), return_inverse=True)[1]
        if classes is not None and (np.shape(classes) != (dataset_size,) or np.asarray(classes).dtype.kind not in "iu"):
            found = f"{np.asarray(classes).dtype}{list(np.shape(classes))}"
            raise InvalidArgument("classes", found, f"int[{dataset_size}], the class of each example")
        self._permutation = functools.lru_cache(maxsize=2)(self._compute_permutation)

    def __reduce__(self) -> Any:  # for the processes of a loader, without the permutations
        return ExampleStream, (self.dataset_size, self.seed, self._classes)

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
        random = np.random.default_rng([self.seed, epoch])
        permutation = random.permutation(self.dataset_size).astype(np.int32)
        if self._classes is not None:
            permutation = permutation[_evenly(self._classes[permutation], random)]
        permutation.setflags(write=False)  # batches are views of it
        return permutation


def _evenly(classes: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """An order that spreads each class evenly: number r of the n examples of class c comes at time (r + u_c) / n."""
    counts = np.bincount(classes)
    by_class = np.argsort(classes, kind="stable")
    rank = np.empty(len(classes))
    rank[by_class] = np.arange(len(classes)) - np.repeat(np.cumsum(counts) - counts, counts)
    offsets = random.random(len(counts))
    return np.argsort((rank + offsets[classes]) / counts[classes], kind="stable")
