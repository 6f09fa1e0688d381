"""Processes that decode images, for hosts with more cores than one process can use.

Grain's worker processes were tried, and do not fit: they read ahead along one sequence of batches of one size. The
engine asks for other positions as soon as a batch grows, each process of many wants a part of them that depends on the
batch, and an evaluation or a branch of a controller comes between. A sequence would have to be left and started again,
which takes its processes seconds each time; and on two cores they were slower than two threads, as are those here.
Here every request names its indices and positions, so that there is no state to save or to seek.
"""

import concurrent.futures
import functools
import multiprocessing
import os
import signal
import threading
import weakref
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from bsjax.data.image_reader import ImageReader, ReadImage
from bsjax.errors import RunError

_PARTS_PER_WORKER = 4  # of a request, so that a worker with small images takes more of them


class ImageWorkers:
    """Reads images in processes of its own, which start at the first request and end with this one.

    As with all of Python's processes, a script that uses them begins with `if __name__ == "__main__":`.

    Args:
      reader: of the images; each process gets a copy.
      num_workers: how many processes.
    """

    def __init__(self, reader: ImageReader, num_workers: int):
        self._reader, self._num_workers = reader, num_workers

    def read(self, indices: list[int], positions: list[int]) -> list[ReadImage]:
        """The images of some indices at some positions, in their order.

        Raises:
          RunError: an image cannot be read, or a process was killed.
        """
        size = -(-len(indices) // (_PARTS_PER_WORKER * self._num_workers))
        parts = [slice(start, start + size) for start in range(0, len(indices), size)]
        try:
            futures = [self._pool.submit(_read, indices[part], positions[part]) for part in parts]
            return [image for future in futures for image in future.result()]
        except BrokenProcessPool:
            what = "a process that decodes images was killed, perhaps for lack of memory"
            raise RunError(f"{what}; --num_workers={self._num_workers} sets their number") from None

    @functools.cached_property
    def _pool(self) -> concurrent.futures.ProcessPoolExecutor:
        multiprocessing.set_forkserver_preload([__name__])  # is imported once, and its memory is shared
        context = multiprocessing.get_context("forkserver")
        pool = concurrent.futures.ProcessPoolExecutor(self._num_workers, context, _begin, (self._reader,))
        weakref.finalize(self, pool.shutdown, wait=False)  # also at the end of this process
        return pool


class _Worker:
    reader: ImageReader  # of this process


def _begin(reader: ImageReader) -> None:
    """Prepares a process, which only its parent ends: signals to the whole group are the parent's to answer."""
    _Worker.reader = reader
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # before any thread starts, which inherits it
        threading.Thread(target=_end_if_parent_says_so, daemon=True).start()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    _parent().join()
    os._exit(1)


def _end_if_parent_says_so() -> None:
    """The pool ends its processes by SIGTERM after one of them was killed."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != _parent().pid:
        pass
    os._exit(1)


def _parent() -> Any:
    parent = multiprocessing.parent_process()
    assert parent is not None
    return parent


def _read(indices: list[int], positions: list[int]) -> list[ReadImage]:
    return list(map(_Worker.reader.read, indices, positions))
