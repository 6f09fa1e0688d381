"""Files of tokens: those of nanoGPT and of modded-nanogpt and llm.c, uint16 without and with a header."""

import os
import pathlib

import numpy as np

from bsjax.errors import InvalidArgument

MAGIC, VERSION = 20240520, 1
_HEADER = 256 * 4  # bytes: int32 magic, version, number of tokens, and zeros
_ITEM = np.dtype("<u2")


def read_token_file(path: str | os.PathLike[str]) -> np.ndarray:
    """The tokens of a file, uint16 [n], memory-mapped.

    A file either holds nothing but tokens, as nanoGPT's `train.bin`, or begins with 256 int32: 20240520, the version 1,
    and the number of tokens. No file of GPT-2's tokens begins with these bytes, because the first two would be the
    token 55,432.

    Raises:
      InvalidArgument: the file is missing, empty, cut short, longer than its header says, or of another version.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile(suffix=".bin") as file:
    ...     np.array([5, 2, 7], np.uint16).tofile(file.name)
    ...     read_token_file(file.name).tolist()
    [5, 2, 7]
    """
    path = pathlib.Path(path)

    def check(good: bool, allowed: str) -> None:
        if not good:
            raise InvalidArgument("path", str(path), allowed)

    check(path.is_file(), "a file that exists")
    size = path.stat().st_size
    check(size > 0, "a file of tokens; it is empty")
    check(size % 2 == 0, f"a file of whole uint16 numbers; its {size:,} bytes are an odd number, so it is cut short")
    with open(path, "rb") as file:
        header = file.read(_HEADER)
    if len(header) < 4 or int.from_bytes(header[:4], "little") != MAGIC:
        return np.memmap(path, _ITEM, mode="r")
    check(len(header) == _HEADER, f"complete: its header has {len(header):,} of {_HEADER:,} bytes")
    _, version, count = np.frombuffer(header, "<i4", 3).tolist()
    check(version == VERSION, f"of version {VERSION}, uint16; its header says version {version}")
    found = (size - _HEADER) // 2
    check(found == count, f"complete: it holds {found:,} tokens, and its header says {count:,}")
    check(count > 0, "a file of tokens; it has none")
    return np.memmap(path, _ITEM, mode="r", offset=_HEADER)
