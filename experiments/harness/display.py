"""The display of many runs: all of them together with the time left, and a line for each that is at work."""

import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TextIO

from bsjax.run.progress import clock

_REDRAW_S = 0.5
_LINE_S = 60.0
_LEAST_SHARE = 0.001  # of the examples, before which there is no time left


class Task(NamedTuple):
    """A run of a study."""

    name: str
    num_epochs: float


class AtWork(Protocol):
    """What `Display` reads."""

    def read(self) -> Mapping[int, tuple[float, int]]:
        """The epoch and the batch size of each run at work, by its number."""


class Status:
    """How far some runs are, in text. Their speed and the time left come from the examples of all of them.

    A run counts from the epoch in which it is first seen, since one that continues was not trained here.

    Args:
      tasks: the runs that are to be trained.
      num_complete: runs that were complete before.

    >>> status = Status([Task("seed=0", 10), Task("seed=1", 10)], num_complete=2)
    >>> print(*status.lines({}, seconds=0, width=60), sep="\\n")
      0 %  2 of 4 runs  starting
    >>> print(*status.lines({0: (0.0, 8)}, seconds=1, width=60), sep="\\n")
      0 %  2 of 4 runs  starting
      seed=0  epoch 0.0/10  B 8
    >>> print(*status.lines({0: (5.0, 8)}, seconds=11, width=60), sep="\\n")
     25 %  2 of 4 runs  0:33 left
      seed=0  epoch 5.0/10  B 8
    """

    def __init__(self, tasks: Sequence[Task], num_complete: int = 0):
        self._tasks, self._num_before = tasks, num_complete
        self._begun: dict[int, float] = {}  # the epoch in which a run was first seen
        self._ended: set[int] = set()

    def end(self, number: int) -> None:
        """Notes that a run has ended, whether it has diverged or not."""
        self._ended.add(number)

    def lines(self, at_work: Mapping[int, tuple[float, int]], seconds: float, width: int | None = None) -> list[str]:
        """A line for all runs, and one for each that is at work.

        Args:
          at_work: the epoch and the batch size of each of them.
          seconds: since the first run began.
          width: of a line at most.
        """
        at_work = {number: where for number, where in at_work.items() if number not in self._ended}
        for number, (epoch, _) in at_work.items():
            self._begun.setdefault(number, epoch)
        total = sum(task.num_epochs for task in self._tasks)
        left = total - sum(self._tasks[number].num_epochs for number in self._ended)
        left -= sum(epoch for epoch, _ in at_work.values())
        here = sum(epoch - self._begun[number] for number, (epoch, _) in at_work.items())
        here += sum(self._tasks[number].num_epochs - self._begun.get(number, 0.0) for number in self._ended)
        time_left = f"{clock(seconds * left / here)} left" if here > _LEAST_SHARE * total else "starting"
        num_ended, num_runs = self._num_before + len(self._ended), self._num_before + len(self._tasks)
        first = f"{100 * (total - left) / max(total, 1e-9):3.0f} %  {num_ended} of {num_runs} runs  {time_left}"
        return [first, *(self._line(number, *where, width) for number, where in sorted(at_work.items()))]

    def _line(self, number: int, epoch: float, batch_size: int, width: int | None) -> str:
        name, num_epochs = self._tasks[number]
        where = f"  epoch {epoch:.1f}/{num_epochs:.4g}" + f"  B {batch_size:,}" * (batch_size > 0)
        return f"  {shortened(name, None if width is None else width - 2 - len(where))}{where}"


class Display:
    """Shows the status on a terminal, again and again in the same lines; elsewhere, in one line each minute.

    Args:
      status: what it shows.
      at_work: the runs at work.
      is_quiet: shows nothing.
      file: default, stderr.
    """

    def __init__(self, status: Status, at_work: AtWork, is_quiet: bool = False, file: TextIO | None = None):
        self._status, self._at_work, self._file = status, at_work, file or sys.stderr
        self._since, self._over = time.perf_counter(), threading.Event()
        self._bars: list[Any] = []
        self._lock = threading.Lock()
        self._is_terminal = self._file.isatty()
        self._thread = None if is_quiet else threading.Thread(target=self._show_again, daemon=True)

    def __enter__(self) -> "Display":
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        for bar in reversed(self._bars):
            bar.close()

    def end(self, number: int, text: str) -> None:
        """Notes that a run has ended, and prints a line about it to stdout, above the status."""
        with self._lock:
            self._status.end(number)
            if text and self._bars:
                self._bars[0].write(text, file=sys.stdout)
            elif text:
                print(text, flush=True)

    def _show_again(self) -> None:
        show: Callable[[], None] = self._draw if self._is_terminal else self._print
        while not self._over.wait(_REDRAW_S if self._is_terminal else _LINE_S):
            with self._lock:
                show()

    def _print(self) -> None:
        first, *others = self._lines()
        print("; ".join([first.lstrip(), *map(str.strip, others)]), file=self._file, flush=True)

    def _draw(self) -> None:
        import tqdm  # here because only terminals need it

        lines = self._lines(shutil.get_terminal_size().columns - 1)
        while len(self._bars) < len(lines):
            options = {"file": self._file, "position": len(self._bars), "leave": False, "dynamic_ncols": True}
            self._bars.append(tqdm.tqdm(bar_format="{desc}", **options))
        for bar, line in zip(self._bars, lines + [""] * (len(self._bars) - len(lines)), strict=True):
            bar.set_description_str(line)

    def _lines(self, width: int | None = None) -> list[str]:
        return self._status.lines(self._at_work.read(), time.perf_counter() - self._since, width)


def shortened(name: str, width: int | None) -> str:
    """A name without its beginning, where it is longer than a width: the end of a run's name tells it from others.

    >>> shortened("batch_size=48,seed=1", 10)
    '...,seed=1'
    """
    return name if width is None or len(name) <= width else "..." + name[len(name) - max(width - 3, 0) :]
