"""Reads text data sets: own text, as bytes or characters, and files of tokens.

| source | tokens |
|---|---|
| a `.txt` file, or a folder of them, joined in the order of their names | its bytes, or its characters (UTF-8) |
| a `.bin` file of uint16 tokens, as nanoGPT, llm.c and modded-nanogpt write them | those in the file |
| a folder with `*train*.bin` and `*val*.bin` | those in the files, one after the other in the order of their names |

The end of a text is held out, to test on; of a folder of token files, the files named `val` are.
"""

import hashlib
import math
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from bsjax.data.joined_tokens import JoinedTokens
from bsjax.data.prepare import Prepared, missing
from bsjax.data.text import TextDataset
from bsjax.data.token_files import read_token_file
from bsjax.data.token_windows import TokenWindows
from bsjax.errors import InvalidArgument, check_choice, check_number, check_whole

TOKENS = ("characters", "bytes")


def is_text(path: pathlib.Path) -> bool:
    """Whether a file or a folder is a text or holds tokens, by the names of its files."""
    if not path.is_dir():
        return path.suffix in (".txt", ".bin")
    has_tokens = all(any(path.glob(f"*{part}*.bin")) for part in ("train", "val"))
    return has_tokens or (any(path.glob("*.txt")) and not any(path.glob("*.bin")))


def read_text(
    name: str,
    path: pathlib.Path,
    tokens: str | None = None,
    test_share: float | None = None,
    vocab_size: int | None = None,
) -> Prepared:
    """Reads a text or files of tokens, as this module's docstring lists them.

    Args:
      name: of the data set.
      path: a file or a folder.
      tokens: of a text: "characters", the default, whose vocabulary is those that occur, in the order of their code
        points; or "bytes", 256 of them.
      test_share: share of the tokens that is held out at the end, in (0, 1), where no file is named `val`; default,
        0.1.
      vocab_size: of token files, which do not say it; default, one more than the largest token.

    Raises:
      InvalidArgument: there is no such file, a value is out of range, a file is damaged, or a token is beyond the
        vocabulary.
    """
    share = check_test_share(test_share)
    if not path.exists():
        raise missing(path)
    if path.suffix == ".bin" or (path.is_dir() and any(path.glob("*.bin"))):
        if tokens is not None:
            raise InvalidArgument("tokens", tokens, f"left out for {path}, which holds tokens already")
        if path.is_dir() and test_share is not None:
            raise InvalidArgument("test_share", test_share, f"left out for {path}, whose *val*.bin is held out")
        return _read_token_files(name, path, share, vocab_size)
    if vocab_size is not None:
        raise InvalidArgument("vocab_size", vocab_size, "left out for a text, whose vocabulary is its own")
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    tokens = check_tokens(tokens)
    if not files:
        raise InvalidArgument("source", str(path), "a folder of .txt files, or of *train*.bin and *val*.bin")
    dataset = encode(name, path, [b"".join(file.read_bytes() for file in files)], tokens, share)
    flags = {"tokens": tokens, "test_share": share}
    return Prepared(dataset, _source(path, files, f"text, {tokens}", flags))


def check_tokens(tokens: str | None) -> str:
    """The kind of a text's tokens, one of `TOKENS`; None is the default."""
    return check_choice("tokens", TOKENS[0] if tokens is None else tokens, TOKENS)


def check_test_share(test_share: float | None) -> float:
    """The share of a text that is held out, in (0, 1); None is the default."""
    share = 0.1 if test_share is None else test_share
    check_number("test_share", share, lambda share: 0 < share < 1, "in (0, 1)", 0.1)
    return share


def encode(
    name: str, path: pathlib.Path, texts: Sequence[bytes | bytearray], tokens: str, test_share: float | None
) -> TextDataset:
    """The tokens of a text, whose end is held out, or of a text to train on and one to test on.

    Args:
      name: of the data set.
      path: where it comes from, for errors.
      texts: one or two of them; the vocabulary is that of both.
      tokens: one of `TOKENS`.
      test_share: of one text, as in `read_text`.

    Raises:
      InvalidArgument: as in `read_text`.
    """
    ids, vocabulary = _bytes_of(texts) if tokens == "bytes" else _characters_of(path, texts)
    train, test = ids if test_share is None else _split(path, ids[0], test_share)
    return TextDataset(name, train, test, len(vocabulary) or 256, vocabulary, _bytes_per_token(test, vocabulary))


def _bytes_of(texts: Sequence[bytes | bytearray]) -> tuple[list[np.ndarray], tuple[str, ...]]:
    return [np.frombuffer(text, np.uint8) for text in texts], ()


def _characters_of(path: pathlib.Path, texts: Sequence[bytes | bytearray]) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """The characters' numbers in the order of their code points, for each text, and the characters."""
    try:
        points = [np.frombuffer(text.decode().encode("utf-32-le"), "<u4") for text in texts]
    except UnicodeDecodeError as error:
        found = f"its byte {error.start:,} is {error.object[error.start]:#04x}; --tokens=bytes takes any bytes"
        raise InvalidArgument("source", str(path), f"text in UTF-8; {found}") from None
    occurs = np.zeros(sys.maxunicode + 1, bool)
    for part in points:
        occurs[part] = True
    characters = np.flatnonzero(occurs)
    numbers = np.zeros(len(occurs), np.min_scalar_type(max(len(characters) - 1, 0)))
    numbers[characters] = np.arange(len(characters))
    return [numbers[part] for part in points], tuple(map(chr, characters.tolist()))


def _bytes_per_token(tokens: np.ndarray, vocabulary: tuple[str, ...]) -> float:
    """Of a text of characters; of bytes, which have no vocabulary, 1."""
    lengths = np.array([len(character.encode()) for character in vocabulary] or [1] * 256)
    return float(lengths[tokens].mean())


def _read_token_files(name: str, path: pathlib.Path, test_share: float, vocab_size: int | None) -> Prepared:
    if path.is_dir():
        parts = [sorted(path.glob(f"*{part}*.bin")) for part in ("train", "val")]
        if not all(parts):
            raise InvalidArgument("source", str(path), "a folder with both *train*.bin and *val*.bin")
        files = [*parts[0], *parts[1]]
    else:
        files = [path]
    arrays = {file: _checked_tokens(file, vocab_size) for file in files}
    train: np.ndarray | JoinedTokens
    test: np.ndarray | JoinedTokens
    if path.is_dir():
        train, test = (JoinedTokens([arrays[file] for file in part]) for part in parts)
    else:
        train, test = _split(path, arrays[path], test_share)
    size = vocab_size or 1 + max(TokenWindows(array, 1).max_token for array in (train, test))
    flags = {"vocab_size": vocab_size, "test_share": None if path.is_dir() else test_share}
    return Prepared(TextDataset(name, train, test, size), _source(path, files, "uint16 tokens", flags))


def _checked_tokens(file: pathlib.Path, vocab_size: int | None) -> np.ndarray:
    """The tokens of a file, memory-mapped."""
    try:
        tokens = read_token_file(file)
    except InvalidArgument as error:
        raise error.renamed("source") from None
    if len(tokens) < 2:
        raise InvalidArgument("source", str(file), "a file of two tokens or more")
    if vocab_size is not None:
        check_whole("vocab_size", vocab_size)
        if (first := TokenWindows(tokens, 1).first_beyond(vocab_size)) is not None:
            found = f"of tokens in [0, {vocab_size}); its token {first:,} is {tokens[first]}"
            raise InvalidArgument("source", str(file), found)
    return tokens


def _split(path: pathlib.Path, tokens: np.ndarray, test_share: float) -> tuple[np.ndarray, np.ndarray]:
    """The tokens to train on and those at the end, to test on."""
    size = math.floor(len(tokens) * (1 - test_share))
    if min(size, len(tokens) - size) < 2:
        allowed = f"of more than {len(tokens):,} tokens: {test_share:g} of them are held out, and each part needs two"
        raise InvalidArgument("source", str(path), allowed)
    return tokens[:size], tokens[size:]


def _source(path: pathlib.Path, files: list[pathlib.Path], kind: str, flags: dict[str, Any]) -> dict[str, Any]:
    """The record of where a data set comes from."""
    md5 = {}
    for file in files:
        with open(file, "rb") as contents:
            md5[file.name] = hashlib.file_digest(contents, "md5").hexdigest()
    return {"path": str(path.absolute()), "kind": kind, "md5": md5, "flags": flags}
