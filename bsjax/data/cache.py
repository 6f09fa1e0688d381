"""Prepared data sets: a folder of arrays, which are verified and then memory-mapped.

`DATA_DIR/NAME` holds train_images.npy, train_labels.npy, test_images.npy, test_labels.npy, and dataset.json with the
data set's name, class names and source, the shape, dtype, size and CRC-32 of each file, and the version of this format.
A text has train_tokens.npy and test_tokens.npy instead, and in dataset.json its vocabulary.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import re
import shlex
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from bsjax.data.dataset import Dataset
from bsjax.data.image_files import holds_image_records
from bsjax.data.joined_tokens import JoinedTokens
from bsjax.data.sources import ArraySource, describe
from bsjax.data.text import TextDataset
from bsjax.errors import InvalidArgument

FORMAT_VERSION = 1
_SPLITS = ("train", "test")
_DTYPES = {"image": "uint8", "label": "int32"}

DataDir = str | os.PathLike[str] | None


def resolve_data_dir(data_dir: DataDir = None) -> pathlib.Path:
    """The folder of prepared data sets: data_dir, else `$BSJAX_DATA_DIR`, else `~/.cache/bsjax`.

    >>> resolve_data_dir("/data").as_posix()
    '/data'
    """
    return pathlib.Path(data_dir or os.environ.get("BSJAX_DATA_DIR") or "~/.cache/bsjax").expanduser()


def dataset_dir(name: str, data_dir: DataDir = None) -> pathlib.Path:
    """The folder of one data set.

    Raises:
      InvalidArgument: the name cannot be a folder's, or the folder holds a data set of another name.

    >>> dataset_dir("imagenet_resized/32x32", "/data").as_posix()
    '/data/imagenet_resized-32x32'
    """
    if not re.fullmatch(r"\w[\w.+-]*([/:]\w[\w.+-]*)*", name):
        raise InvalidArgument("dataset", name, "a name made of letters, digits and _ . + - / :")
    folder = resolve_data_dir(data_dir) / re.sub("[/:]", "-", name)
    other = _read_record(folder).get("name", name)  # a/b and a-b have the same folder
    if other != name:
        raise InvalidArgument("dataset", name, f"kept in another --data_dir, because {folder} holds {other!r}")
    return folder


def exists(name: str, data_dir: DataDir = None) -> bool:
    """Whether the data set has been prepared, intact or not."""
    return dataset_dir(name, data_dir).is_dir()


def prepared_names(data_dir: DataDir = None) -> list[str]:
    """The names of the data sets in the folder."""
    records = (_read_record(folder) for folder in sorted(resolve_data_dir(data_dir).glob("[!.]*")))
    return [record["name"] for record in records if record]


def prepare_command(
    name: str, data_dir: DataDir = None, source: str | None = None, flags: Mapping[str, Any] | None = None
) -> str:
    """The command that prepares a data set, for the root of the repository.

    Args:
      name: of the data set.
      data_dir: as in `resolve_data_dir`.
      source: the file or folder that it comes from.
      flags: further ones, by name.

    >>> prepare_command("cifar10")
    '.venv/bin/python scripts/prepare_data.py --dataset=cifar10'
    """
    given = {"dataset": name, "source": source, **(flags or {}), "data_dir": data_dir and os.fspath(data_dir)}
    texts = (f"--{key}={value}" for key, value in given.items() if value)
    return shlex.join([".venv/bin/python", "scripts/prepare_data.py", *texts])


def write(
    dataset: Dataset | TextDataset, data_dir: DataDir = None, source: dict[str, Any] | None = None
) -> pathlib.Path:
    """Writes a data set as a whole or not at all, and replaces one of the same name.

    The files are written to a hidden folder, which is renamed at the end. If a preparation is killed, the next one of
    the same data set removes its hidden folder.

    Args:
      dataset: uint8 images [n, height, width, channels] and int32 labels [n], or a text.
      data_dir: as in `resolve_data_dir`.
      source: where the data come from, as JSON; errors show `source["path"]` in the command that prepares them again.

    Returns:
      The data set's folder.

    Raises:
      InvalidArgument: the folder cannot be written, or holds a data set of another name.
    """
    folder = dataset_dir(dataset.name, data_dir)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for leftover in folder.parent.glob(f".{folder.name}.partial-*"):
            if _is_abandoned(leftover):
                shutil.rmtree(leftover, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.partial-", dir=folder.parent) as temporary:
            new, old = pathlib.Path(temporary, "new"), pathlib.Path(temporary, "old")
            with open(pathlib.Path(temporary, "lock"), "w") as lock:
                _lock(lock.fileno())
                new.mkdir()
                record = {
                    "name": dataset.name,
                    **_about(dataset),
                    "files": {name: _write_array(new / f"{name}.npy", array) for name, array in _arrays(dataset)},
                    "source": source or {},
                    "format_version": FORMAT_VERSION,
                }
                text = json.dumps(record | {"sha256": _record_checksum(record)}, indent=1)
                (new / "dataset.json").write_text(text + "\n", encoding="utf-8")
                if folder.exists():  # a rename cannot overwrite a folder
                    os.rename(folder, old)
                os.rename(new, folder)
    except OSError as error:
        raise InvalidArgument("data_dir", str(folder.parent), f"a folder that can be written: {error}") from None
    return folder


def read(name: str, data_dir: DataDir = None) -> Dataset | TextDataset:
    """Verifies the files of a prepared data set and maps them to memory; images and tokens stay on the disk.

    Raises:
      InvalidArgument: a file is missing or damaged; the message has the command that prepares it again.
    """
    folder = dataset_dir(name, data_dir)
    record = _read_record(folder)
    source = record.get("source", {})

    def check(good: bool, path: pathlib.Path, what: str) -> None:
        if not good:
            command = prepare_command(name, data_dir, source.get("path"), source.get("flags"))
            raise InvalidArgument("dataset", name, f"prepared again, because {path} {what}: {command}")

    if holds_image_records(folder):
        allowed = f"one with images of one size; {folder} holds images of many sizes, for bsjax.data.ImageRecords"
        raise InvalidArgument("dataset", name, allowed)
    path = folder / "dataset.json"
    check(path.is_file(), path, "is missing")
    check(bool(record), path, "is damaged")
    version = record["format_version"]
    check(version == FORMAT_VERSION, path, f"has format version {version}, not {FORMAT_VERSION}")
    arrays, fingerprints = {}, {}
    for file, expected in record["files"].items():
        path = folder / f"{file}.npy"
        check(path.is_file(), path, "is missing")
        size = path.stat().st_size
        check(size == expected["size"], path, f"has {size:,} bytes instead of {expected['size']:,}")
        try:
            checksum = _checksum(path)
        except OSError as error:
            check(False, path, f"cannot be read ({error})")
        check(checksum == expected["crc32"], path, "has another checksum than when it was written")
        arrays[file] = np.load(path, mmap_mode="r")
        fingerprints[file] = describe(file.split("_")[1].removesuffix("s"), arrays[file], checksum)
    return _read_text(record, arrays, fingerprints) if "text" in record else _read_images(record, arrays, fingerprints)


def _read_images(record: dict[str, Any], arrays: dict[str, np.ndarray], fingerprints: dict[str, str]) -> Dataset:
    sources = []
    for split in _SPLITS:
        examples = {key: arrays[f"{split}_{key}s"] for key in _DTYPES}
        fingerprint = ", ".join(fingerprints[f"{split}_{key}s"] for key in _DTYPES)
        sources.append(ArraySource(examples, fingerprint))  # no array is read twice
    train, test = sources
    return Dataset(record["name"], train, test, tuple(record["class_names"]))


def _read_text(record: dict[str, Any], arrays: dict[str, np.ndarray], fingerprints: dict[str, str]) -> TextDataset:
    train, test = (f"{split}_tokens" for split in _SPLITS)
    about = record["text"] | {"vocabulary": tuple(record["text"]["vocabulary"])}
    both = fingerprints[train], fingerprints[test]
    return TextDataset(record["name"], np.asarray(arrays[train]), np.asarray(arrays[test]), **about, fingerprints=both)


def _about(dataset: Dataset | TextDataset) -> dict[str, Any]:
    """What dataset.json says of a data set, beside its name and files."""
    if isinstance(dataset, TextDataset):
        return {"text": {name: getattr(dataset, name) for name in ("vocab_size", "vocabulary", "bytes_per_token")}}
    return {"class_names": list(dataset.class_names)}


def _arrays(dataset: Dataset | TextDataset) -> Iterator[tuple[str, np.ndarray | JoinedTokens]]:
    if isinstance(dataset, TextDataset):
        yield from {"train_tokens": dataset.train_tokens, "test_tokens": dataset.test_tokens}.items()
        return
    for split in _SPLITS:
        source = getattr(dataset, split)
        examples = source.examples if isinstance(source, ArraySource) else source.gather(np.arange(len(source)))
        for key, dtype in _DTYPES.items():
            yield f"{split}_{key}s", examples[key].astype(dtype, copy=False)


def _write_array(path: pathlib.Path, array: np.ndarray | JoinedTokens) -> dict[str, Any]:
    if isinstance(array, JoinedTokens):  # one part after the other, because all may be more than the memory
        file = np.lib.format.open_memmap(path, "w+", array.dtype, array.shape)
        for part, end in zip(array.parts, array.ends, strict=True):
            file[end - len(part) : end] = part
        file.flush()
    else:
        np.save(path, array)
    shape, dtype = list(array.shape), str(array.dtype)
    return {"shape": shape, "dtype": dtype, "size": path.stat().st_size, "crc32": _checksum(path)}


def _checksum(path: pathlib.Path) -> str:
    """CRC-32: every run computes it, and it is several times faster than a SHA."""
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return f"{checksum:08x}"


def _read_record(folder: pathlib.Path) -> dict[str, Any]:
    """The contents of dataset.json; empty if it is missing or damaged."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        record = json.loads((folder / "dataset.json").read_bytes())
        if record.pop("sha256") == _record_checksum(record):
            return record
    return {}


def _record_checksum(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _lock(descriptor: int) -> None:
    """Locks a file for as long as this process lives; BlockingIOError if another process has locked it."""
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_abandoned(partial: pathlib.Path) -> bool:
    """Whether no process holds the lock of a hidden folder."""
    with contextlib.suppress(FileNotFoundError), open(partial / "lock", "r+b") as file:
        try:
            _lock(file.fileno())
        except BlockingIOError:
            return False
    return True
