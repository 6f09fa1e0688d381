"""A plan's batches in the loaders of PyTorch and Grain. Imports neither; see also `bsjax.Plan.batches`.

Both hand out the same examples as `bsjax.engine.Engine` takes, update by update, whatever the number of workers. Where
training is depends on the number of updates that it has done, not on what a loader has fetched ahead.
"""

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from bsjax.errors import check_whole
from bsjax.plan import Plan
from bsjax.plan_batches import Batches, Stream

__all__ = ["BatchSampler", "GrainSampler"]


class BatchSampler:
    """The `batch_sampler` of a `torch.utils.data.DataLoader`: a list of indices for each update.

    Iterating begins at `start_update`, as often as one iterates, and ends with the plan. It does not count what was
    handed out, because the loader fetches batches ahead of training: set `start_update` to the number of updates that
    training has done, before a new iteration.

    Args:
      plan: the updates.
      stream: the order of the examples, a `bsjax.data.ExampleStream`.
      start_update: the first update to hand out.
      microbatch_size: hands out the batch of an update in lists of this size, for loops that accumulate gradients.

    Attributes:
      start_update: may be set.

    Raises:
      InvalidArgument: the stream has other examples, there is no such update, or a batch is no multiple of the
        microbatch.

    >>> from bsjax.data import ExampleStream
    >>> plan = Plan(10, [2, 4], [0.1, 0.1], [0.9, 0.9])
    >>> sampler = BatchSampler(plan, ExampleStream(10, seed=0))
    >>> [len(indices) for indices in sampler], len(sampler)
    ([2, 4], 2)
    >>> sampler.start_update = 1  # one update is done
    >>> [len(indices) for indices in sampler], len(sampler)
    ([4], 1)
    """

    def __init__(self, plan: Plan, stream: Stream, start_update: int = 0, microbatch_size: int | None = None):
        self._plan, self._stream, self._microbatch_size = plan, stream, microbatch_size
        self.start_update = start_update

    @property
    def start_update(self) -> int:
        return self._start_update

    @start_update.setter
    def start_update(self, start_update: int) -> None:
        self._batches = self._plan.batches(self._stream, start_update, self._microbatch_size)
        self._start_update = start_update

    def __iter__(self) -> Iterator[list[int]]:
        return (batch.indices.tolist() for batch in self._batches)

    def __len__(self) -> int:
        return len(self._batches)


class GrainSampler:
    """The `sampler` of a `grain.DataLoader`: one record for each update, whose key is the list of its indices.

    The loader's source is asked for whole batches: `source[indices]`. A record is an update, so the state of the
    loader's iterator counts updates, and stays right when the batch grows. Leave `grain.Batch` out of the operations.

    Args:
      plan: the updates.
      stream: the order of the examples, a `bsjax.data.ExampleStream`.
      microbatch_size: a record for each microbatch of this size instead.
      seed: of the random generator of each record, for random operations; None: records have none.

    Raises:
      InvalidArgument: the stream has other examples, or a batch is no multiple of the microbatch.
    """

    def __init__(self, plan: Plan, stream: Stream, microbatch_size: int | None = None, seed: int | None = None):
        self._batches: Batches = plan.batches(stream, microbatch_size=microbatch_size)
        self._seed = None if seed is None else check_whole("seed", seed, minimum=0)
        order = f"order {getattr(stream, 'seed', None)}, microbatch_size {microbatch_size}, seed {seed}"
        self._text = f"GrainSampler({plan!r} {zlib.crc32(plan.to_json().encode()):08x}, {order})"

    def __repr__(self) -> str:
        """Says which plan and order it is: Grain refuses the checkpoint of a sampler with another text."""
        return self._text

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> Any:
        """The `grain.RecordMetadata` of an update.

        Raises:
          IndexError: the plan has no such update.
        """
        import grain  # here because nothing else needs it

        if not 0 <= index < len(self):
            raise IndexError(f"the plan has {len(self):,} batches, and none of the number {index}")
        rng = None if self._seed is None else np.random.default_rng([self._seed, index])
        return grain.RecordMetadata(index=index, record_key=self._batches[index].indices, rng=rng)
