"""Worker processes, each with its own cores, that stop in an orderly way."""

import concurrent.futures
import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import jax

from bsjax.errors import RunError
from bsjax.run import workdir as workdirs

# Why workers are to stop.
_ERROR, _SIGNAL = 1, 2

Submit = Callable[..., concurrent.futures.Future]
# Calls work(*arguments) for each of some arguments, side by side or not.
SideBySide = Callable[[Callable[..., Any], Sequence[tuple]], list[Any]]


class StoppedEarly(Exception):  # noqa: N818  (all is well)
    """It is time to stop; the same command continues."""


class _Worker:
    """The state of a process of `worker_pool`; in any other process, `shared` is None."""

    # Integers: why to stop, or 0; and each worker's process while that trains. Without a lock, which a process that is
    # killed might hold.
    shared: Any = None
    number = 0  # of its own entry
    board: Any = None  # see `Board`
    working = threading.Lock()  # held while it trains


class Board:
    """Where each process of a pool is: numbers that it writes and that the process with the pool reads.

    Args:
      jobs: processes.
    """

    def __init__(self, jobs: int):
        self._rows = multiprocessing.get_context("spawn").RawArray("d", [-1.0, 0.0, 0.0] * jobs)

    def write(self, row: int, run: int, epoch: float, batch_size: int) -> None:
        """Says where a process is; run -1: nowhere."""
        self._rows[3 * row : 3 * row + 3] = [run, epoch, batch_size]

    def read(self) -> dict[int, tuple[float, int]]:
        """The epoch and the batch size of each run at work."""
        rows = [self._rows[i : i + 3] for i in range(0, len(self._rows), 3)]
        return {int(run): (epoch, int(batch_size)) for run, epoch, batch_size in rows if run >= 0}


@contextlib.contextmanager
def worker_pool(jobs: int, board: Board | None = None) -> Iterator[Submit]:
    """Processes with their own cores. After a signal or an error inside, `is_worker_to_stop` is true in them.

    A signal kills those that do not train yet, such as those that compile: they have nothing to save.

    Args:
      jobs: processes.
      board: takes what they write with `write_where`.

    Yields:
      A function that calls a function with some arguments in one of the processes, and returns a future.

    Raises:
      Interrupted: a signal came.
      RunError: a process was killed.
    """
    context = multiprocessing.get_context("spawn")
    cores, shared = context.Queue(), context.RawArray("i", 1 + jobs)
    available = available_cores()
    for job in range(jobs):
        cores.put((1 + job, available[job::jobs] or available))

    def stop_workers() -> None:
        shared[0] = _SIGNAL
        kill_workers(but=shared[1:])

    def kill_workers(but: Collection[int] = ()) -> None:
        for process in multiprocessing.active_children():
            if process.pid not in but:
                process.kill()

    with (
        workdirs.catch_signals(at_first=stop_workers, at_second=kill_workers) as caught,
        concurrent.futures.ProcessPoolExecutor(jobs, context, _begin, (cores, shared, board)) as pool,
    ):

        def submit(work: Callable, *arguments: Any) -> concurrent.futures.Future:
            if (signum := caught()) is not None:
                raise workdirs.Interrupted(signum)
            # A new process inherits the blocked signals, until it ignores them itself.
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
            try:
                return pool.submit(_work, work, *arguments)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

        try:
            yield submit
        except BaseException as error:
            shared[0] = shared[0] or _ERROR
            pool.shutdown(wait=True, cancel_futures=True)
            is_broken = isinstance(error, BrokenProcessPool)
            if (is_broken or isinstance(error, StoppedEarly)) and (signum := caught()) is not None:
                raise workdirs.Interrupted(signum) from None
            if is_broken:
                raise RunError("a run's process was killed, perhaps for lack of memory") from None
            raise
        if (signum := caught()) is not None:
            raise workdirs.Interrupted(signum)


@contextlib.contextmanager
def side_by_side(jobs: int) -> Iterator[SideBySide]:
    """A function that does some work for each of some arguments, in as many processes as `jobs`; with one, in this."""
    if jobs <= 1:
        yield lambda work, tasks: [work(*arguments) for arguments in tasks]
        return
    with worker_pool(jobs) as submit:
        yield lambda work, tasks: [one.result() for one in [submit(work, *arguments) for arguments in tasks]]


@contextlib.contextmanager
def writing_to(board: Board) -> Iterator[None]:
    """Lets `write_where` write on a board's first row in this process, as if it were the only one of a pool."""
    before = _Worker.number, _Worker.board
    _Worker.number, _Worker.board = 1, board
    try:
        yield
    finally:
        _Worker.number, _Worker.board = before


def is_worker_to_stop(trains: bool = False) -> bool:
    """Whether this is a process of `worker_pool` that must stop; `trains` if its run has begun to train."""
    if _Worker.shared is None:
        return False
    if trains:
        _Worker.shared[_Worker.number] = os.getpid()
    return _Worker.shared[0] != 0


def write_where(run: int, epoch: float = 0.0, batch_size: int = 0) -> None:
    """Writes on the pool's board, if it has one, in which run this process is; run -1: in none."""
    if _Worker.board is not None:
        _Worker.board.write(_Worker.number - 1, run, epoch, batch_size)


def hush_orbax() -> None:
    """Keeps Orbax's threads from printing the errors that Orbax also raises, as long as this process lives."""
    show = sys.unraisablehook
    sys.unraisablehook = lambda one: None if "Event loop is closed" in str(one.exc_value) else show(one)
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL + 1)


def default_jobs() -> int:
    """One process per core, or a single one with an accelerator or in one of many processes."""
    return len(available_cores()) if jax.default_backend() == "cpu" and jax.process_count() == 1 else 1


def available_cores() -> list[int]:
    """The numbers of the cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def _begin(cores: Any, shared: Any, board: Board | None) -> None:
    """Gives a process its own cores: runs that share all cores take longer."""
    _Worker.shared, _Worker.board = shared, board
    hush_orbax()
    # The parent answers a signal to the whole group. If the parent dies, its workers stop as well.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def stop_with_parent() -> None:
        parent.join()
        shared[0] = _ERROR
        with _Worker.working:
            os._exit(1)

    threading.Thread(target=stop_with_parent, daemon=True).start()
    _Worker.number, own = cores.get()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, own)


def _work(work: Callable, *arguments: Any) -> Any:
    with _Worker.working:
        try:
            return work(*arguments)
        except Exception as error:
            if _Worker.shared[0] == _SIGNAL:
                print(f"error: {error}", file=sys.stderr, flush=True)
            raise
        finally:
            _Worker.shared[_Worker.number] = 0
            if _Worker.shared[0] == _SIGNAL:  # the pool may wait for a lock of a process that was killed
                os._exit(0)
