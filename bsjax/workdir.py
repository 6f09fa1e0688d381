"""A run's folder: who may write in it, and what asks its run to stop."""

import contextlib
import errno
import fcntl
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from bsjax.errors import InvalidArgument, RunError

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):  # noqa: N818  (all is well)
    """A signal ended a run, which has left a checkpoint.

    Args:
      signum: of the signal.
    """

    def __init__(self, signum: int):
        self.signum = signum
        super().__init__(f"stopped by {signal.Signals(signum).name}; the same command goes on")

    def __reduce__(self):
        return Interrupted, (self.signum,)


def make(workdir: pathlib.Path) -> None:
    """Makes a run's folder.

    Raises:
      InvalidArgument: it cannot be made or written to.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink(missing_ok=True)  # another host's may have the same name
    except OSError as error:
        allowed = f"a folder that can be made and written to ({error.strerror})"
        raise InvalidArgument("workdir", str(workdir), allowed) from None


@contextlib.contextmanager
def lock(workdir: pathlib.Path) -> Iterator[None]:
    """Holds a folder for this process; the system lets go of it when the process ends, however it ends.

    Raises:
      RunError: another process holds it.
    """
    with open(workdir / ".lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):  # a file system without locks
                yield
                return
            file.seek(0)
            raise RunError(f"{workdir} is in use by {file.read().strip() or 'another process'}") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        yield


@contextlib.contextmanager
def catch_signals(
    at_first: Callable[[], None] = lambda: None, at_second: Callable[[], None] = lambda: None
) -> Iterator[Callable[[], int | None]]:
    """Lets SIGTERM and SIGINT ask for an orderly end; a second one ends the process at once.

    A signal that the process ignores stays ignored. Outside of the main thread, which alone gets them, does nothing.

    Args:
      at_first: is called when the first comes.
      at_second: is called before the process ends at once.

    Yields:
      A function that returns the signal, or None if there was none.
    """
    received: list[int] = []

    def handle(signum: int, frame: object) -> None:
        del frame
        received.append(signum)
        if len(received) == 1:
            message = f"{signal.Signals(signum).name}: stopping; a second one ends at once\n"
            os.write(sys.stderr.fileno(), message.encode())  # print may be what was interrupted
            at_first()
        else:
            at_second()
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    caught = [signum for signum in _SIGNALS if signal.getsignal(signum) != signal.SIG_IGN]
    before = {signum: signal.signal(signum, handle) for signum in caught}
    try:
        yield lambda: received[0] if received else None
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
