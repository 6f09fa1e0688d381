"""Checkpoints of a run: its state on the devices, and where it was."""

import contextlib
import errno
import json
import logging
import os
import pathlib
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from bsjax.engine import TrainState
from bsjax.engine.devices import barrier, is_first_process
from bsjax.errors import RunError

# What an error's long text is about.
_DISK_ERRORS = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)))


class Checkpoint(NamedTuple):
    """What is needed to continue.

    Attributes:
      number: of the next update.
      state: numpy arrays, without the device axis.
      progress: anything that JSON can hold.
    """

    number: int
    state: TrainState
    progress: dict[str, Any]


class Unusable(Exception):  # noqa: N818  (reads as what it says)
    """Why no run can continue from a checkpoint, as a phrase."""


class Checkpoints:
    """The last checkpoints in a folder, written in the background (Orbax), with a checksum of every array.

    With many processes, all see the same folder, each calls every method, and the first one writes, which waits for
    none of the others.

    Args:
      folder: is made where it is missing.
      keep: how many of the newest stay.
      read_only: whether the folder stays as it is.
    """

    def __init__(self, folder: pathlib.Path, keep: int = 2, read_only: bool = False):
        self._folder = folder.absolute()
        self._writes = is_first_process() and not read_only
        self._read_only = read_only
        if not read_only:
            self._folder.mkdir(parents=True, exist_ok=True)
        process = jax.process_index()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep if self._writes else None,
            create=False,
            cleanup_tmp_directories=self._writes,
            # Each process alone: a barrier of Orbax would wait for a process that has died.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"process {process}"
            ),
        )
        with contextlib.ExitStack() as exits:
            exits.enter_context(_hushed())
            self._manager = ocp.CheckpointManager(self._folder, options=options)
            self._exits = exits.pop_all()
        barrier("all know which checkpoints there are")  # before one sets damaged ones aside

    def save(self, checkpoint: Checkpoint) -> None:
        """Begins to write a checkpoint.

        Raises:
          RunError: this one, or the one before, cannot be written.
        """
        if not self._writes:
            return
        contents = json.dumps({"progress": checkpoint.progress, "arrays": _describe(checkpoint.state)})
        sealed = {"contents": contents, "crc32": zlib.crc32(contents.encode())}
        args = ocp.args.Composite(state=ocp.args.StandardSave(checkpoint.state), progress=ocp.args.JsonSave(sealed))
        with self._writing():
            self._manager.save(checkpoint.number, args=args, force=True)

    def restore(
        self, like: TrainState, check: Callable[[dict[str, Any]], None] = lambda progress: None
    ) -> Checkpoint | None:
        """Reads the newest checkpoint that is whole; returns None if there is no checkpoint.

        Renames newer ones that are damaged to damaged-NUMBER, and prints a line about each.

        Args:
          like: a state of the same structure, shapes and dtypes, as in `Checkpoint`.
          check: is called with a checkpoint's progress before its state is read; raises Unusable if another file of
            the run does not match the checkpoint.

        Raises:
          RunError: there are checkpoints, and none can be used.
        """
        problems: dict[int, str] = {}
        for number in sorted(self._manager.all_steps(), reverse=True):
            try:
                checkpoint = self._read(number, like, check)
            except Unusable as problem:
                problems[number] = str(problem)
                continue
            self._set_aside(problems, f"continuing from checkpoint {number}")
            return checkpoint
        if problems:
            reasons = "; ".join(f"{number}: {problem}" for number, problem in problems.items())
            way_out = f"remove {self._folder.parent} to begin again, or choose another folder"
            raise RunError(f"no checkpoint in {self._folder} can be used ({reasons}); nothing was changed: {way_out}")
        return None

    def wait(self) -> None:
        """Waits until everything is written.

        Raises:
          RunError: the last checkpoint cannot be written.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until everything is written, and ends the threads."""
        with self._exits, contextlib.closing(self._manager):
            self.wait()

    def _read(self, number: int, like: TrainState, check: Callable[[dict[str, Any]], None]) -> Checkpoint:
        with _errors_as(Unusable):
            sealed = self._manager.restore(number, args=ocp.args.Composite(progress=ocp.args.JsonRestore())).progress
            crc32, contents = sealed["crc32"], json.loads(sealed["contents"])
        if crc32 != zlib.crc32(sealed["contents"].encode()):
            raise Unusable("the checksum of its progress is wrong")
        progress, saved, wanted = contents["progress"], contents["arrays"], _describe(like)
        check(progress)
        for name in [*wanted, *saved]:
            there, here = (
                "{1}{0}".format(*arrays[name]) if name in arrays else "missing" for arrays in (saved, wanted)
            )
            if there != here:
                raise Unusable(f"{name} is {there} there, {here} here")
        with _errors_as(Unusable):
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), like)
            args = ocp.args.Composite(state=ocp.args.StandardRestore(shapes))
            state = jax.tree.map(np.asarray, self._manager.restore(number, args=args).state)
        for name, found in _describe(state).items():
            if found != saved[name]:
                raise Unusable(f"the checksum of {name} is wrong")
        return Checkpoint(number, state, progress)

    def _set_aside(self, problems: dict[int, str], then: str) -> None:
        for number, problem in problems.items():
            message = f"checkpoint {number} in {self._folder} is damaged ({problem})"
            if self._writes:
                renamed = self._folder / f"damaged-{number}"
                while renamed.exists():
                    renamed = renamed.with_name(f"{renamed.name}-again")
                (self._folder / str(number)).rename(renamed)
                message += f", now {renamed.name}"
            if is_first_process():
                print(f"{message}; {then}", file=sys.stderr, flush=True)
        if problems and not self._read_only:
            barrier("damaged checkpoints are set aside")
            self._manager.reload()

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return _errors_as(RunError, f"a checkpoint in {self._folder} cannot be written: ")


@contextlib.contextmanager
def _errors_as(kind: type[Exception], prefix: str = "") -> Iterator[None]:
    """Puts any error into one line: Orbax raises those of files, JSON, protocol buffers and TensorStore."""
    try:
        yield
    except Exception as error:
        first_line = [line[:200] for line in str(error).strip().splitlines()[:1]]
        reason = next((text for text in _DISK_ERRORS if text in str(error)), None)
        raise kind(prefix + (reason or ": ".join([type(error).__name__, *first_line]))) from error


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keeps Orbax from printing what it also raises: one line is enough."""

    def is_ours(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname

    def show_others(unraisable: Any) -> None:
        # After an array that cannot be read or written, the threads of the other arrays print that nobody waits.
        if "Event loop is closed" not in str(unraisable.exc_value):
            show(unraisable)

    logger, show = logging.getLogger("absl"), sys.unraisablehook
    logger.addFilter(is_ours)
    sys.unraisablehook = show_others
    try:
        yield
    finally:
        logger.removeFilter(is_ours)
        sys.unraisablehook = show


def _describe(state: TrainState) -> dict[str, list]:
    """Shape, dtype and CRC-32 of every array, by its name."""
    arrays = {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(state)}
    return {name: [list(x.shape), str(x.dtype), zlib.crc32(np.ascontiguousarray(x).data)] for name, x in arrays.items()}
