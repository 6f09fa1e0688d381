"""Worker processes, each with its own cores, that stop in an orderly way."""

import concurrent.futures
import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax

from bsjax.run import workdir as workdirs

Submit = Callable[..., concurrent.futures.Future]


class StoppedEarly(Exception):  # noqa: N818  (all is well)
    """It is time to stop; the same command continues."""


class _Worker:
    """The state of a process of `worker_pool`; in any other process, `stop` is None."""

    stop: Any = None  # the event that ends its run
    working = threading.Lock()  # held while it trains


@contextlib.contextmanager
def worker_pool(jobs: int) -> Iterator[Submit]:
    """Processes with their own cores. After a signal or an error inside, `is_worker_to_stop` is true in them.

    Yields:
      A function that calls a function with some arguments in one of the processes, and returns a future.

    Raises:
      Interrupted: a signal came.
    """
    context = multiprocessing.get_context("spawn")
    cores, stop = context.Queue(), context.Event()
    available = available_cores()
    for job in range(jobs):
        cores.put(available[job::jobs] or available)

    def kill_workers() -> None:
        for process in multiprocessing.active_children():
            process.kill()

    with (
        workdirs.catch_signals(at_first=stop.set, at_second=kill_workers) as caught,
        concurrent.futures.ProcessPoolExecutor(jobs, context, _begin, (cores, stop)) as pool,
    ):

        def submit(work: Callable, *arguments: Any) -> concurrent.futures.Future:
            # A new process inherits the blocked signals, until it ignores them itself.
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
            try:
                return pool.submit(_work, work, *arguments)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

        try:
            yield submit
        except BaseException as error:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            if isinstance(error, StoppedEarly) and (signum := caught()) is not None:
                raise workdirs.Interrupted(signum) from None
            raise
        if (signum := caught()) is not None:
            raise workdirs.Interrupted(signum)


def is_worker_to_stop() -> bool:
    """Whether this is a process of `worker_pool` that must stop."""
    return _Worker.stop is not None and _Worker.stop.is_set()


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


def _begin(cores: Any, stop: Any) -> None:
    """Gives a process its own cores: runs that share all cores take longer."""
    _Worker.stop = stop
    hush_orbax()
    # The parent answers a signal to the whole group. If the parent dies, its workers stop as well.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def stop_with_parent() -> None:
        parent.join()
        stop.set()
        with _Worker.working:
            os._exit(1)

    threading.Thread(target=stop_with_parent, daemon=True).start()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores.get())


def _work(work: Callable, *arguments: Any) -> Any:
    with _Worker.working:
        return work(*arguments)
