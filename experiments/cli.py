"""What all scripts share: errors in one line, many processes, and the compilation cache."""

import atexit
import faulthandler
import functools
import os
import pathlib
import subprocess
import sys
import zlib
from collections.abc import Callable
from typing import Any, NoReturn

import jax
from absl import app, flags, logging

import bsjax
from bsjax import InvalidArgument
from bsjax.errors import RunError
from bsjax.parallel import check_same_everywhere, is_first_process
from bsjax.workdir import Interrupted
from experiments.runs import StoppedEarly

_CACHE_DIR = flags.DEFINE_string(
    "compilation_cache_dir", "~/.cache/bsjax/compilation", "Folder that keeps compiled programs for the next run."
)
_CACHE = flags.DEFINE_bool("compilation_cache", True, "Keep compiled programs.")
_MULTIHOST = flags.DEFINE_bool(
    "multihost", False, "Be one of many processes. On Cloud TPU, Slurm and Kubernetes, they find each other."
)
_COORDINATOR = flags.DEFINE_string("coordinator_address", None, "Elsewhere: HOST:PORT of process 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Elsewhere: how many processes there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Elsewhere: which of them this is, from 0.")

# A process that is silent for so long is taken for dead, and the others end.
_HEARTBEAT_TIMEOUT_S = 30
_dismiss_watcher: Callable[[], Any] = bool  # see _announce_abrupt_end
# These may differ between the processes of a run.
_OF_A_PROCESS = ("process_id", "data_dir", "compilation_cache", "compilation_cache_dir")


def run(main: Callable[[], None]) -> None:
    """Runs a script's main: bad input exits with 2, a run that cannot go on with 1, each with one line."""

    def guarded(argv: list[str]) -> None:
        try:
            if len(argv) > 1:
                raise InvalidArgument("argument", argv[1], "a flag, such as --seed=1", f"--{argv[1].lstrip('-')}")
            if _CACHE.value:
                use_compilation_cache(_CACHE_DIR.value)
            logging.set_verbosity(logging.WARNING)  # jax tells at INFO which accelerators there are not
            # Orbax prints the traceback of what it also raises, and which ends the run with a line.
            logging.get_absl_logger().addFilter(lambda record: "orbax" not in record.pathname)
            _join_processes()
            main()
        except InvalidArgument as error:
            _exit(f"--{error}", 2)
        except (RunError, OSError) as error:  # the latter: a full disk
            _exit(str(error), 1)
        except StoppedEarly as stopped:
            say(str(stopped))
        except Interrupted as interrupted:
            _exit(str(interrupted), 128 + interrupted.signum)
        except KeyboardInterrupt:
            _exit("interrupted", 130)
        except jax.errors.JaxRuntimeError as error:
            if not _MULTIHOST.value:
                raise
            _exit(f"another process of the run has ended, or cannot be reached ({str(error).splitlines()[0][:200]})", 1)

    for module, flags_there in flags.FLAGS.flags_by_module_dict().items():
        if module.startswith("experiments."):
            for flag in flags_there:
                flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)  # for --helpshort
    app.run(guarded)


def say(message: str) -> None:
    """Prints, in the first of many processes."""
    if is_first_process():
        print(message, flush=True)


def use_compilation_cache(folder: str) -> None:
    """Keeps compiled programs in a folder, for this process and those it starts."""
    for name, value in (
        ("jax_compilation_cache_dir", os.path.expanduser(folder)),
        ("jax_persistent_cache_min_compile_time_secs", 0.1),
    ):
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


def _join_processes() -> None:
    elsewhere: dict[str, Any] = {flag.name: flag.value for flag in (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID)}
    given = [name for name, value in elsewhere.items() if value is not None]
    if given and not _MULTIHOST.value:
        raise InvalidArgument("multihost", False, f"set where {given[0]} is", "--multihost")
    if not _MULTIHOST.value:
        return
    if given and len(given) < len(elsewhere):
        missing = next(name for name, value in elsewhere.items() if value is None)
        raise InvalidArgument(missing, None, f"set where {given[0]} is")
    if given and elsewhere["process_id"] not in range(elsewhere["num_processes"]):
        raise InvalidArgument("process_id", _PROCESS_ID.value, f"from 0 to {elsewhere['num_processes'] - 1}")
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is bsjax.workdir's to catch
    _announce_abrupt_end()
    try:
        jax.distributed.initialize(**elsewhere, heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT_S)
    except (RuntimeError, ValueError) as error:
        if given:
            raise RunError(f"the processes cannot find each other: {error}") from None
        allowed = f"on Cloud TPU, Slurm or Kubernetes, or with --coordinator_address and the others ({error})"
        raise InvalidArgument("multihost", True, allowed) from None
    about = {name: value for name, value in flags.FLAGS.flag_values_dict().items() if name not in _OF_A_PROCESS}
    about |= {"version": f"bsjax {bsjax.__version__}, jax {jax.__version__}, sources {_sources()}"}
    check_same_everywhere({name: repr(value) for name, value in about.items()})


def _announce_abrupt_end() -> None:
    """Where another process dies, JAX's runtime aborts this one with a page of traces; puts it in words below them."""
    message = (
        "error: this process ended abruptly, most likely because another process of the run has died or cannot be "
        "reached (see above); the same command, for all of them, goes on from the last checkpoint"
    )
    command = ["sh", "-c", 'read -r _ || echo "$0" >&2', message]  # reads a line, or the end of a process
    watcher = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    faulthandler.disable()

    global _dismiss_watcher
    _dismiss_watcher = functools.partial(watcher.communicate, b"ended in order\n")
    atexit.register(_dismiss_watcher)


def _sources() -> str:
    """A checksum of the code that runs."""
    crc32 = 0
    for package in (pathlib.Path(bsjax.__file__).parent, pathlib.Path(__file__).parent):
        for path in sorted(package.rglob("*.py")):
            crc32 = zlib.crc32(path.read_bytes(), crc32)
    return f"{crc32:08x}"


def _exit(message: str, code: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr, flush=True)
    if jax.distributed.is_initialized():
        _dismiss_watcher()
        os._exit(code)  # not waiting for processes that may never come
    sys.exit(code)
