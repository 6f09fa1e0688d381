"""The batches of a plan: which examples each update takes, for loaders and loops that are not bsjax's."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, overload

import numpy as np
import optax

from bsjax import plan_columns
from bsjax.errors import InvalidArgument, check_whole

if TYPE_CHECKING:
    from bsjax.plan import Plan, Update


class Stream(Protocol):
    """The order of the examples, as `bsjax.data.ExampleStream` gives it."""

    dataset_size: int

    def indices(self, start: int, count: int) -> np.ndarray:
        """int32[count]: the examples at stream positions [start, start + count)."""
        ...


class Batch(NamedTuple):
    """The examples of an update, or of one of its microbatches."""

    update: "Update"
    indices: np.ndarray  # int32 [batch size, or microbatch size]: examples of the data set


class Batches(Sequence[Batch]):
    """The batches of a plan, which `bsjax.Plan.batches` returns: a sequence that computes an element when it is asked.

    Any element can be asked for at any time, and has the same indices in every process, so a loader that resumes needs
    nothing but the number of the update.
    """

    def __init__(self, plan: "Plan", stream: Stream, start_update: int = 0, microbatch_size: int | None = None):
        """Takes the arguments of `bsjax.Plan.batches`."""
        if stream.dataset_size != plan.dataset_size:
            allowed = f"of {plan.dataset_size} examples, the plan's dataset_size"
            raise InvalidArgument("stream", f"of {stream.dataset_size} examples", allowed, plan.dataset_size)
        start = check_whole("start_update", start_update, minimum=0)
        if start > plan.num_updates:
            raise InvalidArgument("start_update", start, f"at most num_updates {plan.num_updates}", plan.num_updates)
        self._plan, self._stream, self._size = plan, stream, microbatch_size
        counts = np.ones(plan.num_updates, np.int64) if microbatch_size is None else _counts(plan, microbatch_size)
        self._start, self._ends = start, np.cumsum(counts[start:])  # number of elements up to each update's end

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Batch]: ...
    def __getitem__(self, index: int | slice) -> Batch | Sequence[Batch]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        number = range(len(self))[index]
        after = int(np.searchsorted(self._ends, number, side="right"))
        update = self._plan[self._start + after]
        if self._size is None:
            return Batch(update, self._stream.indices(update.examples_seen, update.batch_size))
        piece = number - (int(self._ends[after - 1]) if after else 0)
        return Batch(update, self._stream.indices(update.examples_seen + piece * self._size, self._size))

    def __iter__(self) -> Iterator[Batch]:
        return map(self.__getitem__, range(len(self)))


def microsteps(plan: "Plan", microbatch_size: int) -> optax.Schedule:
    """What `bsjax.Plan.microsteps` returns."""
    return plan_columns.table_schedule(_counts(plan, microbatch_size))


def _counts(plan: "Plan", microbatch_size: int) -> np.ndarray:
    """int64[num_updates]: the microbatches of each update."""
    size = check_whole("microbatch_size", microbatch_size)
    common = math.gcd(*map(int, np.unique(plan.batch_sizes)))
    if common % size:
        divisors = [one for one in range(1, common + 1) if common % one == 0]
        allowed = f"a divisor of {common}, which divides every batch size of the plan; see multiple_of"
        nearest = min(divisors, key=lambda one: abs(one - size))
        raise InvalidArgument("microbatch_size", size, f"{allowed} of increase_batch_size", nearest)
    return plan.batch_sizes // size
