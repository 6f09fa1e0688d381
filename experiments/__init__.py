"""Scripts that reproduce the paper's figures and go beyond them."""

import os
import signal
import sys


def _end(signum: int, frame: object) -> None:
    """Ends the process: a KeyboardInterrupt would print a traceback, or get lost in a callback of JAX."""
    del frame
    os.write(2, b"error: interrupted\n")
    os._exit(128 + signum)


# This runs before the first import of JAX, which takes a second. While a run trains, `bsjax.run.workdir` handles
# signals.
if sys.argv[0] == "-m" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)
