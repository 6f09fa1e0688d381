"""The files that a run writes: JSON lines and JSON objects."""

import contextlib
import errno
import json
import math
import os
import pathlib
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from bsjax.errors import RunError


class Position(NamedTuple):
    """The part of a metrics file that is on the disk: its size in bytes, and their CRC-32."""

    size: int = 0
    crc32: int = 0


class MetricWriter:
    """Writes a JSON object per line, each immediately: whatever ends the run, no line is lost.

    Args:
      path: of the file.
      position: where to continue, default at its beginning; the writer cuts off the rest.

    Raises:
      RunError: the file cannot be written. Its methods raise this too.
    """

    def __init__(self, path: pathlib.Path, position: Position | None = None):
        self._path, self._position = path, position or Position()
        with _writing(path):
            self._file = open(path, "r+b" if self._position.size else "wb", buffering=0)  # noqa: SIM115  (see close)
            if self._position.size:
                self._file.truncate(self._position.size)
                self._file.seek(self._position.size)

    def write(self, **values: Any) -> None:
        line = (json.dumps({name: _rounded(value) for name, value in values.items()}) + "\n").encode()
        with _writing(self._path):
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._position = Position(self._position.size + len(line), zlib.crc32(line, self._position.crc32))

    def flush(self) -> Position:
        """Waits until everything is on the disk, and returns the end."""
        with contextlib.suppress(OSError):  # not every kind of file has fsync
            os.fsync(self._file.fileno())
        return self._position

    def close(self) -> None:
        self._file.close()


def holds(path: pathlib.Path, position: Position) -> bool:
    """Whether a metrics file begins with the bytes up to a position that `flush` returned."""
    try:
        with open(path, "rb") as file:
            contents = file.read(position.size)
    except OSError:
        contents = b""
    return (len(contents), zlib.crc32(contents)) == position


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl.

    Raises:
      RunError: it is missing or damaged.
    """
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}") from None


def read_json(
    path: pathlib.Path, keys: Sequence[str] = (), way_out: str = "remove its folder, or choose another"
) -> Any:
    """The value of a JSON file.

    Args:
      path: of the file.
      keys: that the value must have.
      way_out: the end of the error about a damaged file, which says what to do.

    Raises:
      RunError: it is missing or damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}; {way_out}") from None
    if missing := [key for key in keys if not isinstance(value, dict) or key not in value]:
        raise RunError(f"{path} is damaged: it has no {missing[0]!r}; {way_out}")
    return value


def read_summary(workdir: str | pathlib.Path) -> dict[str, Any] | None:
    """The summary of a run that is complete or diverged; None for other runs.

    An empty file, which a crash of the machine can leave, counts as missing.

    Raises:
      RunError: the file is damaged.
    """
    path = pathlib.Path(workdir) / "summary.json"
    if not path.exists() or not path.stat().st_size:
        return None
    return read_json(path, ("completed", "num_updates"), "remove it, and the run continues from its last checkpoint")


def write_json(path: pathlib.Path, value: Any) -> None:
    """Writes a JSON file whole or not at all: it is on the disk before it gets its name.

    Raises:
      RunError: it cannot be written.
    """
    write_whole(path, (json.dumps(value, indent=1) + "\n").encode())


def write_whole(path: pathlib.Path, contents: bytes) -> None:
    """Writes a file whole or not at all, as `write_json` does."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with _writing(path):
            with open(temporary, "wb") as file:
                file.write(contents)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}") from None


def _rounded(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.7g}") if math.isfinite(value) else None  # JSON has neither NaN nor infinity
