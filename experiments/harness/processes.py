"""Many processes as one run: how they find each other, and which settings must be equal."""

import collections
import contextlib
import faulthandler
import os
import pathlib
import signal
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import bsjax
from bsjax.engine.devices import all_devices, check_same_everywhere, first_of_each_process, place
from bsjax.errors import InvalidArgument, RunError

# The others end if a process is silent for this long.
_HEARTBEAT_TIMEOUT_S = 30
# These may differ between the processes of a run.
_OF_A_PROCESS = ("process_id", "data_dir", "compilation_cache", "compilation_cache_dir")
_ELSEWHERE = ("coordinator_address", "num_processes", "process_id")
_GROUP = "Many processes"
_LAST_WORDS = (
    "error: this process ended abruptly, most likely because another process of the run has died or cannot be "
    "reached (see above); the same command, for all of them, continues from the last checkpoint\n"
)


def define_flags() -> None:
    """Defines --multihost, and how the processes find each other."""
    text = "Be one of many processes. On Cloud TPU, Slurm and Kubernetes, they find each other."
    flags.DEFINE_bool("multihost", False, text, module_name=_GROUP)
    flags.DEFINE_string("coordinator_address", None, "Elsewhere: HOST:PORT of process 0.", module_name=_GROUP)
    flags.DEFINE_integer("num_processes", None, "Elsewhere: the number of processes.", module_name=_GROUP)
    flags.DEFINE_integer("process_id", None, "Elsewhere: the number of this process, from 0.", module_name=_GROUP)


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Joins the other processes, with --multihost.

    Raises:
      InvalidArgument: a flag is missing or differs between the processes, or their numbers of devices differ.
      RunError: the processes cannot find each other.
    """
    elsewhere: dict[str, Any] = {name: flags.FLAGS[name].value for name in _ELSEWHERE}
    given = [name for name, value in elsewhere.items() if value is not None]
    if not flags.FLAGS.multihost:
        if given:
            raise InvalidArgument("multihost", False, f"set where {given[0]} is", "--multihost")
        yield
        return
    if given and len(given) < len(elsewhere):
        missing = next(name for name, value in elsewhere.items() if value is None)
        raise InvalidArgument(missing, None, f"set where {given[0]} is")
    if given and elsewhere["process_id"] not in range(elsewhere["num_processes"]):
        last = elsewhere["num_processes"] - 1
        raise InvalidArgument("process_id", elsewhere["process_id"], f"from 0 to {last}", max(last, 0))
    jax.config.update("jax_enable_preemption_service", False)  # bsjax.run.workdir catches SIGTERM
    with _last_words():
        try:
            jax.distributed.initialize(**elsewhere, heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT_S)
        except (RuntimeError, ValueError) as error:
            if given:
                raise RunError(f"the processes cannot find each other: {error}") from None
            allowed = f"on Cloud TPU, Slurm or Kubernetes, or with --coordinator_address and the others ({error})"
            raise InvalidArgument("multihost", True, allowed) from None
        _check_alike()
        yield


def _check_alike() -> None:
    """Raises in all processes if they differ."""
    first_of_each = first_of_each_process(all_devices(), jax.process_count())
    # This sum exists only when all processes have started and know all devices.
    jax.block_until_ready(jax.jit(jnp.sum)(place(np.ones(1, np.float32), first_of_each)))
    counts = collections.Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        numbers = ", ".join(f"process {process} has {counts[process]}" for process in sorted(counts))
        raise InvalidArgument("multihost", True, f"of processes with as many devices as each other; {numbers}")
    about = {name: value for name, value in flags.FLAGS.flag_values_dict().items() if name not in _OF_A_PROCESS}
    about |= {"version": f"bsjax {bsjax.__version__}, jax {jax.__version__}, sources {_sources()}"}
    check_same_everywhere({name: repr(value) for name, value in about.items()})


@contextlib.contextmanager
def _last_words() -> Iterator[None]:
    """Prints one clear line after the traces of JAX's runtime, which aborts when another process has died.

    No Python runs in a process that aborts. So this forks, before there are threads, a process that waits for the end
    of a pipe and then prints.
    """
    end, begin = os.pipe()
    if os.fork() == 0:
        os.close(begin)
        os.setsid()  # the parent answers signals
        if not os.read(end, 1):
            os.write(2, _LAST_WORDS.encode())
        os._exit(0)
    os.close(end)
    faulthandler.disable()  # absl enables it; it prints another page

    def dismiss() -> None:
        with contextlib.suppress(OSError):
            os.write(begin, b"\n")

    def interrupted(signum: int, frame: Any) -> None:
        dismiss()
        if callable(before):
            before(signum, frame)

    if (before := signal.getsignal(signal.SIGINT)) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, interrupted)
    try:
        yield
    finally:
        dismiss()


def _sources() -> str:
    """A checksum of the source code."""
    crc32 = 0
    for package in (pathlib.Path(bsjax.__file__).parent, pathlib.Path(__file__).parents[1]):
        for path in sorted(package.rglob("*.py")):
            crc32 = zlib.crc32(path.read_bytes(), crc32)
    return f"{crc32:08x}"
