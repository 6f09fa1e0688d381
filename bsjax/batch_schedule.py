"""Batch schedules as other libraries write them: sizes, and when each begins."""

import dataclasses
import decimal
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bsjax.errors import InvalidArgument, check_choice

_SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_NUMBER = re.compile(r"(\d+(?:\.\d*)?(?:E\d+)?)([KMBT]?)", re.IGNORECASE)
_UNITS = ("updates", "examples", "tokens")
_EXAMPLE = "0:768 250B:1536"


@dataclasses.dataclass(frozen=True)
class BatchSchedule:
    """A batch size in steps, as a schedule on one clock: for the `batch_size` of a `bsjax.Recipe` with this clock.

    Args:
      starts: where each size begins to hold, whole and increasing, from 0.
      sizes: in examples (sequences of a language model).
      unit: of the starts and of the schedule's argument: "updates", "examples" or "tokens".

    >>> schedule = BatchSchedule((0, 100), (32, 64), unit="updates")
    >>> int(schedule(99)), int(schedule(100))
    (32, 64)
    """

    starts: tuple[int, ...]
    sizes: tuple[int, ...]
    unit: str = "examples"

    def __call__(self, count: Any) -> Any:
        """The size at a count: an int, or an array or tracer of integers."""
        if not isinstance(count, jax.Array):
            return np.asarray(self.sizes)[np.maximum(np.searchsorted(self.starts, count, side="right") - 1, 0)]
        # A start that the count's type cannot hold is never reached.
        largest = jnp.iinfo(count.dtype).max if jnp.issubdtype(count.dtype, jnp.integer) else np.inf
        starts = jnp.asarray([start for start in self.starts if start <= largest], count.dtype)
        return jnp.asarray(self.sizes)[jnp.maximum(jnp.searchsorted(starts, count, side="right") - 1, 0)]

    def __str__(self) -> str:
        """As Megatron-LM writes it.

        >>> str(BatchSchedule((0, 100), (32, 64)))
        '0:32 100:64'
        """
        return " ".join(f"{start}:{size}" for start, size in zip(self.starts, self.sizes, strict=True))

    def check_reached(self, end: float) -> None:
        """Refuses a schedule with a size that begins only when a training has ended.

        Args:
          end: of the training, in the schedule's unit.

        Raises:
          InvalidArgument: a threshold is not below it.
        """
        if self.starts[-1] >= end:
            count = sum(start < end for start in self.starts)
            nearest = repr(str(BatchSchedule(self.starts[:count], self.sizes[:count], self.unit)))
            allowed = f"a schedule whose last threshold is below the training's {end:,.0f} {self.unit}"
            raise InvalidArgument("batch_schedule", str(self), allowed, nearest)


def from_batch_schedule(schedule: str | Iterable[Any], unit: str = "examples") -> BatchSchedule:
    """Reads Megatron-LM's and levanter's batch schedules.

    Megatron-LM's `--step-batch-size-schedule` is a text "THRESHOLD:SIZE THRESHOLD:SIZE ...". A size holds from its
    threshold on. Numbers may end in K, M, B or T, for 10³ to 10¹². levanter's schedule has a "start" in updates and a
    "value" for each size. Sizes are examples, which are sequences of a language model.

    Args:
      schedule: such a text; or pairs (start, size); or mappings {"start": ..., "value": ...}, or objects with these
        attributes.
      unit: what thresholds count: "updates" (levanter), "examples" or "tokens" (Megatron-LM with a sequence length).

    Returns:
      A schedule for the `batch_size` of a `bsjax.Recipe` whose clock is this unit.

    Raises:
      InvalidArgument: the schedule cannot be read, does not begin at 0, or does not increase.

    >>> from_batch_schedule("0:768 250B:1536", unit="tokens")
    BatchSchedule(starts=(0, 250000000000), sizes=(768, 1536), unit='tokens')
    >>> from_batch_schedule([{"start": 0, "value": 32}, {"start": 1000, "value": 64}], unit="updates").sizes
    (32, 64)
    >>> from_batch_schedule("0=768")
    Traceback (most recent call last):
    ...
    bsjax.errors.InvalidArgument: batch_schedule is '0=768'; it must be THRESHOLD:SIZE pairs of whole numbers, such as \
'0:768 250B:1536'

    References: Megatron-LM, megatron/core/num_microbatches_calculator.py; levanter, schedule.py.
    """
    check_choice("unit", unit, _UNITS)
    pairs = _parse(schedule) if isinstance(schedule, str) else _pairs(schedule)
    starts, sizes = zip(*pairs, strict=True)
    for refused, allowed in (
        (starts[0] != 0, "a schedule whose first size begins at 0"),
        (list(starts) != sorted(set(starts)), "a schedule whose thresholds increase"),
        (min(sizes) < 1, "a schedule whose sizes are 1 or more"),
    ):
        if refused:
            raise InvalidArgument("batch_schedule", schedule, f"{allowed}, such as {_EXAMPLE!r}")
    return BatchSchedule(starts, sizes, unit)


def _parse(text: str) -> list[tuple[int, int]]:
    entries = [entry.split(":") for entry in text.replace(",", " ").split()]
    pairs = [[number for number in map(_whole, entry) if number is not None] for entry in entries]
    if not pairs or any(len(entry) != 2 or len(pair) != 2 for entry, pair in zip(entries, pairs, strict=True)):
        allowed = f"THRESHOLD:SIZE pairs of whole numbers, such as {_EXAMPLE!r}"
        raise InvalidArgument("batch_schedule", text, allowed)
    return [(start, size) for start, size in pairs]


def _whole(text: str) -> int | None:
    """A whole number with its suffix, such as 1.5K; None if it is none."""
    match = _NUMBER.fullmatch(text)
    value = decimal.Decimal(match[1]) * _SUFFIXES[match[2].upper()] if match else None
    return None if value is None or value != value.to_integral_value() else int(value)


def _pairs(segments: Any) -> list[tuple[int, int]]:
    try:
        pairs = [_pair(segment) for segment in segments]
        whole = all(not isinstance(number, bool) and number == int(number) for pair in pairs for number in pair)
    except (TypeError, ValueError, KeyError, AttributeError):
        whole = False
    if not whole or not pairs:
        raise InvalidArgument("batch_schedule", segments, "pairs of whole numbers, such as [(0, 32), (1000, 64)]")
    return [(int(start), int(size)) for start, size in pairs]


def _pair(segment: Any) -> tuple[Any, Any]:
    if isinstance(segment, Mapping):
        return segment["start"], segment["value"]
    if hasattr(segment, "start"):
        return segment.start, segment.value
    start, size = segment
    return start, size
