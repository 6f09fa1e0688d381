"""The folder of a run, which one process at a time writes, and the signals that stop the run."""

import contextlib
import errno
import fcntl
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator

from bsjax.errors import InvalidArgument, RunError

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):  # noqa: N818  (all is well)
    """A signal stopped a run, which has saved a checkpoint.

    Args:
      signum: the signal's number.
    """

    def __init__(self, signum: int):
        self.signum = signum
        super().__init__(f"stopped by {signal.Signals(signum).name}; the same command continues")

    def __reduce__(self):
        return Interrupted, (self.signum,)


def make(workdir: str | pathlib.Path) -> pathlib.Path:
    """Makes a run's folder, and returns its path.

    Raises:
      InvalidArgument: the process cannot make it or write to it.
    """
    workdir = pathlib.Path(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink(missing_ok=True)  # a process on another host may have removed a file of the same name
    except OSError as error:
        allowed = f"a folder that can be made and written to ({error.strerror})"
        raise InvalidArgument("workdir", str(workdir), allowed) from None
    return workdir


@contextlib.contextmanager
def lock(workdir: pathlib.Path) -> Iterator[None]:
    """Locks a folder for this process; the system unlocks it when the process ends, however it ends.

    Raises:
      RunError: another process has locked it.
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
        with contextlib.suppress(OSError):  # the lock works on a full disk too
            os.write(file.fileno(), f"process {os.getpid()} on {os.uname().nodename}\n".encode())
        yield


class _Catcher:
    """A signal handler: notes the first signal, ends the process at the second."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self.calls: list[tuple[Callable[[], None], Callable[[], None]]] = []  # at the first and at the second signal

    def __call__(self, signum: int, frame: object) -> None:
        is_first = self.signum is None
        if is_first:
            self.signum = signum
            message = f"{signal.Signals(signum).name}: stopping; a second signal ends the process at once\n"
            os.write(2, message.encode())  # the signal may have interrupted a print
        else:
            signal.signal(signum, signal.SIG_DFL)
        try:
            for at_first, at_second in self.calls:
                at_first() if is_first else at_second()
        finally:
            if not is_first:  # even if a call fails, such as a print that the signal has interrupted in another one
                os.kill(os.getpid(), signum)


@contextlib.contextmanager
def catch_signals(
    at_first: Callable[[], None] = lambda: None, at_second: Callable[[], None] = lambda: None
) -> Iterator[Callable[[], int | None]]:
    """Lets SIGTERM and SIGINT ask for an orderly end; a second signal ends the process at once.

    The handler only notes the signal and interrupts nothing. Inside another `catch_signals`, such as one around a
    whole script, it shares the signal that the outer one has noted, even before. A signal that the process ignores
    stays ignored. Outside of the main thread, the only one that receives signals, it does nothing.

    Args:
      at_first: is called at the first signal, or immediately if that has come already.
      at_second: is called at the second signal, before the process ends.

    Yields:
      A function that returns the signal, or None if there was none.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    caught = [signum for signum in _SIGNALS if signal.getsignal(signum) != signal.SIG_IGN]
    catcher = _installed() or _Catcher()
    before = {signum: signal.signal(signum, catcher) for signum in caught}
    catcher.calls.append((at_first, at_second))
    if catcher.signum is not None:
        at_first()
    try:
        yield lambda: catcher.signum
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        catcher.calls.remove((at_first, at_second))


def caught_signal() -> int | None:
    """The signal that the `catch_signals` around this call has noted; None if there was none."""
    catcher = _installed()
    return None if catcher is None else catcher.signum


def _installed() -> _Catcher | None:
    handlers = map(signal.getsignal, _SIGNALS)
    return next((handler for handler in handlers if isinstance(handler, _Catcher)), None)
