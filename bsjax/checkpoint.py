"""Checkpoints of a run: its state on the devices, and where it was."""

import contextlib
import itertools
import json
import logging
import pathlib
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from bsjax.errors import RunError
from bsjax.parallel import barrier, is_first_process
from bsjax.step import TrainState


class Checkpoint(NamedTuple):
    """What is needed to go on.

    Attributes:
      number: of the next update.
      state: numpy arrays, without the device axis.
      progress: anything that JSON can hold.
    """

    number: int
    state: TrainState
    progress: dict[str, Any]


class Unusable(Exception):  # noqa: N818  (reads as what it says)
    """Why a checkpoint cannot be gone on from, as a phrase."""


class Checkpoints:
    """The last checkpoints in a folder, written in the background (Orbax), with a checksum of every array.

    With many processes, each calls every method, the first one writes, and all see the same folder.

    Args:
      folder: is made where it is missing.
      keep: how many of the newest stay.
      read_only: change nothing.
    """

    def __init__(self, folder: pathlib.Path, keep: int = 2, read_only: bool = False):
        _ignore_stragglers()
        self._folder = folder.absolute()
        self._read_only = read_only
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=not read_only, cleanup_tmp_directories=not read_only
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(self, checkpoint: Checkpoint) -> None:
        """Begins to write a checkpoint.

        Raises:
          RunError: this one, or the one before, cannot be written.
        """
        contents = json.dumps({"progress": checkpoint.progress, "arrays": _describe(checkpoint.state)})
        sealed = {"contents": contents, "crc32": zlib.crc32(contents.encode())}
        args = ocp.args.Composite(state=ocp.args.StandardSave(checkpoint.state), progress=ocp.args.JsonSave(sealed))
        self._writing(lambda: self._manager.save(checkpoint.number, args=args, force=True))

    def restore(
        self, like: TrainState, check: Callable[[dict[str, Any]], None] = lambda progress: None
    ) -> Checkpoint | None:
        """The newest checkpoint that is whole; None if there is none at all.

        Newer ones that are damaged get another name, damaged-NUMBER, and a line says so.

        Args:
          like: a state of the same structure, shapes and dtypes, as in `Checkpoint`.
          check: is called with a checkpoint's progress before its state is read; raises Unusable for one that
            something else, damaged, does not go with.

        Raises:
          RunError: there are checkpoints, and none can be used.
        """
        problems: dict[int, str] = {}
        for number in sorted(self._manager.all_steps(), reverse=True):
            try:
                with _quiet():
                    checkpoint = self._read(number, like, check)
            except Unusable as problem:
                problems[number] = str(problem)
                continue
            self._set_aside(problems, f"going on from checkpoint {number}")
            return checkpoint
        if problems:
            reasons = "; ".join(f"{number}: {problem}" for number, problem in problems.items())
            raise RunError(f"no checkpoint in {self._folder} can be used ({reasons}); nothing was changed")
        return None

    def wait(self) -> None:
        """Waits until everything is written.

        Raises:
          RunError: the last checkpoint cannot be written.
        """
        self._writing(self._manager.wait_until_finished)

    def close(self) -> None:
        """Waits likewise, and lets go of the folder."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _read(self, number: int, like: TrainState, check: Callable[[dict[str, Any]], None]) -> Checkpoint:
        # Damage shows as any kind of error: of the file system, JSON, protocol buffers, TensorStore.
        try:
            sealed = self._manager.restore(number, args=ocp.args.Composite(progress=ocp.args.JsonRestore())).progress
            whole = sealed["crc32"] == zlib.crc32(sealed["contents"].encode())
            contents = json.loads(sealed["contents"]) if whole else None
        except Exception as error:
            raise Unusable(_first_line(error)) from None
        if contents is None:
            raise Unusable("the checksum of its progress is wrong")
        check(contents["progress"])
        _check_same_arrays(_describe(like, checksum=False), contents["arrays"])
        try:
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), like)
            args = ocp.args.Composite(state=ocp.args.StandardRestore(shapes))
            state = jax.tree.map(np.asarray, self._manager.restore(number, args=args).state)
        except Exception as error:
            raise Unusable(_first_line(error)) from None
        found = _describe(state)
        if damaged := [name for name in found if found[name] != contents["arrays"][name]]:
            raise Unusable(f"the checksum of {damaged[0]} is wrong")
        return Checkpoint(number, state, contents["progress"])

    def _set_aside(self, problems: dict[int, str], then: str) -> None:
        for number, problem in problems.items():
            message = f"checkpoint {number} in {self._folder} is damaged ({problem})"
            if is_first_process() and not self._read_only:
                path = self._folder / str(number)
                names = itertools.chain([f"damaged-{number}"], (f"damaged-{number}-{i}" for i in itertools.count(2)))
                renamed = path.rename(next(path.with_name(name) for name in names if not path.with_name(name).exists()))
                message += f", now {renamed.name}"
            if is_first_process():
                print(f"{message}; {then}", file=sys.stderr, flush=True)
        if problems and not self._read_only:
            barrier("damaged checkpoints are set aside")
            self._manager.reload()

    def _writing(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except Exception as error:
            raise RunError(f"a checkpoint in {self._folder} cannot be written: {_first_line(error)}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax warns of what is missing in a damaged checkpoint; one line, ours, is enough."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)


def _ignore_stragglers() -> None:
    """Where one array cannot be read or written, threads that are at the others print that nobody waits for them."""
    show = sys.unraisablehook
    if getattr(show, "ignores_stragglers", False):
        return

    def show_others(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            show(unraisable)

    show_others.ignores_stragglers = True  # type: ignore[attr-defined]
    sys.unraisablehook = show_others


def _describe(state: TrainState, checksum: bool = True) -> dict[str, list]:
    """Shape, dtype and CRC-32 of every array, by its name."""
    arrays = {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(state)}
    return {
        name: [list(x.shape), str(x.dtype), *([zlib.crc32(np.ascontiguousarray(x).data)] if checksum else [])]
        for name, x in arrays.items()
    }


def _check_same_arrays(here: dict[str, list], there: dict[str, list]) -> None:
    for name in [*here, *there]:
        ours, theirs = here.get(name), there.get(name, [])[:2] or None
        if ours != theirs:
            raise Unusable(f"{name} is {_text(theirs)} there, {_text(ours)} here")


def _text(array: list | None) -> str:
    return f"{array[1]}{array[0]}" if array else "missing"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
