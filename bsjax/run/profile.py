"""A trace of some updates of a run, by `jax.profiler`."""

import contextlib
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from bsjax.engine.devices import is_first_process
from bsjax.errors import InvalidArgument


def check_range(updates: Any, num_updates: int | None = None) -> None:
    """Refuses what is not the first update of a trace and the one after its last.

    Args:
      updates: both.
      num_updates: of the run, where it is known.

    Raises:
      InvalidArgument: with the nearest range.

    >>> check_range((10, 20), num_updates=15)
    Traceback (most recent call last):
    ...
    bsjax.errors.InvalidArgument: profile_updates is '10,20'; it must be within the run's 15 updates; nearest: 10,15
    """
    numbers = list(updates) if isinstance(updates, Iterable) else [updates]
    given = ",".join(map(str, numbers))
    if len(numbers) != 2 or not all(type(number) is int for number in numbers):
        raise InvalidArgument("profile_updates", given, "two whole numbers, FIRST,END", "10,20")
    first, end = numbers
    if not 0 <= first < end:
        least = max(0, first)
        raise InvalidArgument("profile_updates", given, "0 <= FIRST < END", f"{least},{max(least + 1, end)}")
    if num_updates is not None and end > num_updates:
        allowed = f"within the run's {num_updates} updates"
        raise InvalidArgument("profile_updates", given, allowed, f"{min(first, num_updates - 1)},{num_updates}")


class Profile:
    """Writes a trace of the updates [first, end) into a folder.

    With many processes, the first one writes a trace of its own devices. It waits for the devices before the first
    update and after the last one, so that the trace holds whole updates. A run that stops in between leaves the trace
    so far, and a run that continues there begins another.

    Args:
      updates: first and end; None for no trace.
      folder: where the trace goes, in a folder of its own by date and time.
      start: the next update of the run.
    """

    def __init__(self, updates: tuple[int, int] | None, folder: pathlib.Path, start: int):
        self._range = range(*updates) if updates and is_first_process() else range(0)
        self._folder = folder
        self._first: int | None = None  # update of the trace
        self._end = 0  # after its last one so far
        if self._range and start >= self._range.stop:
            _say(f"no trace of updates {self._range.start} to {self._range.stop}: the run continues at update {start}")
            self._range = range(0)

    @contextlib.contextmanager
    def update(self, number: int, state: Callable[[], Any]) -> Iterator[None]:
        """Traces the update inside if it is in the range; `state` returns what to wait for."""
        if number not in self._range:
            yield
            return
        if self._first is None:
            jax.block_until_ready(state())
            jax.profiler.start_trace(self._folder)
            self._first = number
        self._end = number + 1
        with jax.profiler.StepTraceAnnotation("update", step_num=number):
            yield
        if number + 1 == self._range.stop:
            jax.block_until_ready(state())
            self._finish()

    def close(self) -> None:
        """Ends a trace that the run has not come to the end of."""
        if self._first is not None:
            self._finish()
        elif self._range:
            _say(f"no trace: the run ended before update {self._range.start}")

    def _finish(self) -> None:
        jax.profiler.stop_trace()
        _say(f"a trace of updates {self._first} to {self._end} is in {self._folder}")
        self._first, self._range = None, range(0)


def _say(message: str) -> None:
    print(f"profile: {message}", file=sys.stderr, flush=True)
