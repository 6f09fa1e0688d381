"""A plan: the concrete list of updates that a recipe comes to, and its optax schedules.

Update k takes the positions [e_k, e_k + B_k) of the endless example stream, where e_0 = 0 and
e_{k+1} = e_k + B_k. The plan ends with the first update that reaches the recipe's number of
examples, so the last one may overshoot by less than a batch; there are no partial batches.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from bsjax.noise import sgd_noise_scale

# Updates whose batch sizes are guessed, checked and corrected together.
_BLOCK = 4096
_CORRECTIONS = 16


class Update(NamedTuple):
    """One optimizer step."""

    update: int  # its number, from 0
    examples_seen: int  # before it: where its batch starts in the stream
    batch_size: int
    learning_rate: float
    momentum: float


class Phase(NamedTuple):
    """A stretch of consecutive updates with one batch size."""

    start_update: int
    num_updates: int
    examples_seen: int  # at its start
    batch_size: int
    learning_rate: tuple[float, float]  # of its first and its last update
    momentum: tuple[float, float]


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Batch size, learning rate and momentum of every update.

    Usually made by `bsjax.Recipe.plan`. `learning_rate`, `batch_size` and `momentum` are optax
    schedules over the update count: functions of an int or a traced integer that can be used in
    any optax training loop. Iterating over a plan yields its `Update`s.

    Attributes:
      dataset_size: N, the number of examples in an epoch.
      batch_sizes: int64[num_updates], in examples.
      learning_rates: float64[num_updates].
      momentums: float64[num_updates].
      start: where in the example stream the first update begins; not 0 where a run goes on from another's.

    >>> plan = Plan(10, batch_sizes=[2, 2, 4], learning_rates=[0.1, 0.1, 0.1], momentums=[0, 0, 0])
    >>> plan.num_updates, plan.num_examples
    (3, 8)
    >>> [update.examples_seen for update in plan]
    [0, 2, 4]
    >>> int(plan.batch_size(2)), int(plan.batch_size(99))  # the last one holds
    (4, 4)
    >>> Plan.from_json(plan.to_json()) == plan
    True
    """

    dataset_size: int
    batch_sizes: np.ndarray
    learning_rates: np.ndarray
    momentums: np.ndarray
    start: int = 0

    def __post_init__(self):
        for name, dtype in (
            ("batch_sizes", np.int64),
            ("learning_rates", np.float64),
            ("momentums", np.float64),
        ):
            values = np.array(getattr(self, name), dtype)
            values.setflags(write=False)
            object.__setattr__(self, name, values)
        if not len(self.batch_sizes) == len(self.learning_rates) == len(self.momentums) > 0:
            raise ValueError("a plan needs as many learning rates and momentums as batch sizes, and at least one")

    @functools.cached_property
    def examples_seen(self) -> np.ndarray:
        """int64[num_updates]: examples seen before each update."""
        return self.start + np.concatenate([[0], np.cumsum(self.batch_sizes)[:-1]])

    @property
    def num_updates(self) -> int:
        return len(self.batch_sizes)

    @property
    def num_examples(self) -> int:
        """Position in the example stream after the last update."""
        return int(self.examples_seen[-1] + self.batch_sizes[-1])

    @functools.cached_property
    def learning_rate(self) -> optax.Schedule:
        """The learning rate as an optax schedule over the update count (float32, or float64 under x64)."""
        return _table_schedule(self.learning_rates)

    @functools.cached_property
    def batch_size(self) -> optax.Schedule:
        """The batch size in examples as an optax schedule over the update count (int32)."""
        return _table_schedule(self.batch_sizes)

    @functools.cached_property
    def momentum(self) -> optax.Schedule:
        """The momentum as an optax schedule over the update count (float32, or float64 under x64)."""
        return _table_schedule(self.momentums)

    @functools.cached_property
    def phases(self) -> tuple[Phase, ...]:
        """The plan cut wherever the batch size changes."""
        starts = _run_starts(self.batch_sizes)
        stops = [*starts[1:], self.num_updates]
        return tuple(
            Phase(
                start_update=int(start),
                num_updates=int(stop - start),
                examples_seen=int(self.examples_seen[start]),
                batch_size=int(self.batch_sizes[start]),
                learning_rate=(
                    float(self.learning_rates[start]),
                    float(self.learning_rates[stop - 1]),
                ),
                momentum=(float(self.momentums[start]), float(self.momentums[stop - 1])),
            )
            for start, stop in zip(starts, stops, strict=True)
        )

    def __len__(self) -> int:
        return self.num_updates

    def __getitem__(self, update: int) -> Update:
        update = range(self.num_updates)[update]
        return Update(
            update,
            int(self.examples_seen[update]),
            int(self.batch_sizes[update]),
            float(self.learning_rates[update]),
            float(self.momentums[update]),
        )

    def __iter__(self) -> Iterator[Update]:
        return map(self.__getitem__, range(self.num_updates))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and (
            self.dataset_size == other.dataset_size
            and np.array_equal(self.batch_sizes, other.batch_sizes)
            and np.array_equal(self.learning_rates, other.learning_rates)
            and np.array_equal(self.momentums, other.momentums)
            and self.start == other.start
        )

    __hash__ = None  # type: ignore[assignment]

    def to_json(self) -> str:
        """The plan as JSON: lists of [number of updates, value], exact to the last bit."""
        columns = {name: _encode_runs(getattr(self, name)) for name in ("batch_sizes", "learning_rates", "momentums")}
        return json.dumps({"dataset_size": self.dataset_size, "start": self.start, **columns})

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """The plan that `to_json` wrote."""
        fields = json.loads(text)
        return cls(
            fields.pop("dataset_size"),
            start=fields.pop("start", 0),
            **{name: _decode_runs(runs) for name, runs in fields.items()},
        )

    def table(self, max_rows: int = 16, more: Mapping[str, Callable[[Phase], str]] | None = None) -> str:
        """A table of the phases for people to read; the middle of a long one is left out.

        Args:
          max_rows: more phases than these are left out.
          more: further columns, by their headers.
        """
        more = more or {}
        header = ("updates", "from epoch", "batch size", "learning rate", "momentum", "noise scale", *more)
        rows = [header]
        for phase in self.phases:
            # The second value of a pair that does not change is left out.
            noise = [
                sgd_noise_scale(phase.learning_rate[i], phase.batch_size, self.dataset_size, phase.momentum[i])
                for i in (0, 1)
            ]
            rows.append(
                (
                    f"{phase.num_updates:,}",
                    f"{phase.examples_seen / self.dataset_size:.2f}",
                    f"{phase.batch_size:,}",
                    _format_pair(phase.learning_rate),
                    _format_pair(phase.momentum),
                    _format_pair(noise),
                    *(text_of(phase) for text_of in more.values()),
                )
            )
        left_out = len(rows) - 1 - max_rows
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        if left_out > 0:
            head = max_rows // 2
            lines[1 + head : 1 + head + left_out] = [f"... {left_out:,} more phases ...".center(len(lines[0])).rstrip()]
        examples = self.num_examples - self.start
        total = f"{self.num_updates:,} updates, {examples:,} examples, {examples / self.dataset_size:.2f} epochs"
        return "\n".join([*lines, total])

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        return f"<Plan: {self.num_updates:,} updates in {len(self.phases):,} phases>"


def take_batches(batch_size_at: Callable[[np.ndarray], np.ndarray], num_examples: int, start: int = 0) -> np.ndarray:
    """The sizes of the batches that a stream is cut into when the size depends on the position.

    Solves e_{k+1} = e_k + B(e_k), e_0 = start, for the whole stream, a block of updates at a time: guess the
    positions, look up their batch sizes, sum these up to better positions, and again, until they
    agree. Each correction extends the part that is exact, so the result is that of the plain loop.

    Args:
      batch_size_at: maps int64 positions [n] in [0, num_examples) to batch sizes [n] >= 1.
      num_examples: no batch starts at or after this position.
      start: where the first batch starts.

    Returns:
      int64[num_updates].

    >>> take_batches(lambda position: np.where(position < 5, 2, 4), 12).tolist()
    [2, 2, 2, 4, 4]
    """
    blocks = []
    size = int(batch_size_at(np.array([start]))[0])
    while start < num_examples:
        positions = start + size * np.arange(_BLOCK)
        for _ in range(_CORRECTIONS):
            sizes = batch_size_at(np.minimum(positions, num_examples - 1))
            corrected = start + np.concatenate([[0], np.cumsum(sizes)[:-1]])
            differs = np.flatnonzero(corrected != positions)
            if not len(differs) or positions[differs[0] - 1] >= num_examples:
                exact = _BLOCK
                break
            exact = int(differs[0])
            positions = corrected
        sizes = sizes[:exact][corrected[:exact] < num_examples]
        blocks.append(sizes)
        start += int(sizes.sum())
        size = int(sizes[-1])
    return np.concatenate(blocks)


def _table_schedule(values: np.ndarray) -> optax.Schedule:
    """A schedule that looks values up by update count, holding the last; constant runs cost one entry each."""
    starts = _run_starts(values)
    run_values = values[starts]

    def schedule(count):
        run = jnp.searchsorted(jnp.asarray(starts, jnp.int32), count, side="right") - 1
        dtype = jnp.int32 if values.dtype == np.int64 else jnp.result_type(float)
        return jnp.asarray(run_values, dtype)[jnp.maximum(run, 0)]

    return schedule


def _run_starts(values: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.flatnonzero(values[1:] != values[:-1]) + 1])


def _encode_runs(values: np.ndarray) -> list[list[float]]:
    starts = _run_starts(values)
    counts = np.diff([*starts, len(values)])
    return [[int(count), value] for count, value in zip(counts, values[starts].tolist(), strict=True)]


def _decode_runs(runs: list[list[float]]) -> np.ndarray:
    counts, values = zip(*runs, strict=True)
    return np.repeat(values, counts)


def _format_pair(pair: Sequence[float]) -> str:
    first, last = (f"{value:.4g}" for value in pair)
    return first if first == last else f"{first} -> {last}"
