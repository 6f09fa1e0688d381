"""Shared by all scripts: flags in groups, errors in one line, and the compilation cache."""

import contextlib
import difflib
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import app, flags, logging

from bsjax.engine.devices import is_first_process
from bsjax.errors import InvalidArgument, RunError, check_choice
from bsjax.run.workdir import Interrupted
from experiments.harness import config_flags, presets, processes
from experiments.harness import help as help_texts
from experiments.harness.pool import StoppedEarly, hush_orbax


def run(
    main: Callable[[], None],
    caches: bool = False,
    multihost: bool = False,
    presets: Mapping[str, Any] = presets.PRESETS,
) -> None:
    """Runs a script's main. Bad input exits with 2 and a run that cannot continue with 1, after one line.

    Args:
      main: the script.
      caches: whether the script keeps compiled programs for its next run, and has the flags for it.
      multihost: whether many processes may be one run of the script, and it has the flags for it; it caches, too.
      presets: the choices of --preset, if there is such a flag; the help shows the defaults in their `config`.
    """
    caches |= multihost
    if caches:
        group = "Compilation"
        folder = "Folder that keeps compiled programs for the next run."
        flags.DEFINE_bool("compilation_cache", True, "Keep compiled programs.", module_name=group)
        flags.DEFINE_string("compilation_cache_dir", "~/.cache/bsjax/compilation", folder, module_name=group)
    if multihost:
        processes.define_flags()

    def parse(argv: list[str]) -> None:
        if code := _code_of(lambda: _parse(argv, presets)):
            sys.exit(code)

    def guarded(_: None) -> None:
        code = _code_of(lambda: _prepared(main, caches, multihost))
        if code and jax.distributed.is_initialized():
            time.sleep(
                jax.process_index() == 0
            )  # the end of process 0 aborts the others: let them print their lines first
            os._exit(code)  # without waiting for processes that may never come
        sys.exit(code)

    app.run(guarded, flags_parser=parse)


def say(message: str) -> None:
    """Prints, in the first of many processes."""
    if is_first_process():
        print(message, flush=True)


def _prepared(main: Callable[[], None], caches: bool, multihost: bool) -> None:
    if "workdir" in flags.FLAGS and flags.FLAGS.workdir == "":
        raise InvalidArgument("workdir", "", "a folder that has a name", "runs/example")
    if caches and flags.FLAGS.compilation_cache:
        folder = os.path.expanduser(flags.FLAGS.compilation_cache_dir)
        settings = {"jax_compilation_cache_dir": folder, "jax_persistent_cache_min_compile_time_secs": 0.1}
        for name, value in settings.items():
            jax.config.update(name, value)
            os.environ[name.upper()] = str(value)  # for the processes that this one starts
    logging.set_verbosity(logging.WARNING)  # at INFO, JAX lists the accelerators that are missing
    hush_orbax()
    with processes.joined() if multihost else contextlib.nullcontext():
        main()


def _code_of(work: Callable[[], None]) -> int:
    """Does some work and returns the exit code; prints one line if the work fails."""
    try:
        work()
        sys.stdout.flush()
    except InvalidArgument as error:
        is_flag = error.name.partition(":")[0] in flags.FLAGS
        message, code = f"--{error}" if is_flag else str(error), 2
    except BrokenPipeError:  # as after `| head`
        _let_go_of_stdout()
        return 128 + signal.SIGPIPE
    except OSError as error:  # such as a full disk
        where = error.filename or (flags.FLAGS.workdir if "workdir" in flags.FLAGS else "a file")
        message, code = f"{where}: {error.strerror or error}", 1
        _let_go_of_stdout()
    except RunError as error:
        message, code = str(error), 1
    except StoppedEarly as stopped:
        say(str(stopped))
        return 0
    except Interrupted as interrupted:
        message, code = str(interrupted), 128 + interrupted.signum
    except KeyboardInterrupt:
        message, code = "interrupted", 130
    except flags.Error as error:
        message, code = _in_a_line(error), 2
    except jax.errors.JaxRuntimeError as error:
        first = str(error).splitlines()[0][:200]
        if first.startswith("RESOURCE_EXHAUSTED"):
            smaller = "--microbatch_size=measure finds one that fits, a smaller number may fit too"
            message, code = f"a device's memory does not hold the microbatch ({first}): {smaller}", 1
        elif jax.distributed.is_initialized():
            message, code = f"another process of the run has ended, or cannot be reached ({first})", 1
        else:
            raise
    else:
        return 0
    print(f"error: {message}", file=sys.stderr, flush=True)
    return code


def _let_go_of_stdout() -> None:
    """If it takes no more, Python would print a traceback at the end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parse(argv: list[str], presets: Mapping[str, Any]) -> None:
    """Parses the command line, or prints the help with the defaults of the preset on it."""
    values = flags.FLAGS
    if asks := [argument for argument in argv[1:] if argument in (*help_texts.SHORT, *help_texts.FULL)]:
        with contextlib.suppress(flags.Error):  # such as a required flag that is missing
            values([argument for argument in argv if argument not in asks])
        if "preset" in values:
            config_flags.show_defaults(presets[check_choice("preset", str(values["preset"].value), presets)].config)
        print(help_texts.full() if set(asks) & set(help_texts.FULL) else help_texts.short(), flush=True)
        sys.exit(0)
    try:
        others = values(argv)[1:]
    except ValueError as error:  # such as --nocompilation_cache=1
        raise flags.Error(str(error)) from None
    for argument in others:
        name, *value = argument.partition("=")
        raise flags.Error(f"{argument!r} is not a flag{_nearest(name, ''.join(value))}")


def _in_a_line(error: flags.Error) -> str:
    """What absl's error says, in our words."""
    if isinstance(error, flags.UnrecognizedFlagError):
        return f"--{error.flagname} is not a flag{_nearest(error.flagname)}"
    if found := re.match(r"flag --(\w+)=(.*?): ", str(error), re.DOTALL):
        name, value = found.groups()
        if value == "None":
            return f"--{name} is missing"
        allowed = {"int": "a whole number", "float": "a number", "bool": "true or false"}
        if (kind := flags.FLAGS[name].flag_type()) in allowed:
            return str(InvalidArgument(f"--{name}", value, allowed[kind]))
    return str(error).removeprefix("flag ").replace("\n", " ")


def _nearest(name: str, value: str = "") -> str:
    near = difflib.get_close_matches(name, list(flags.FLAGS), n=1)
    return "".join(f"; nearest: --{one}{value}" for one in near)
