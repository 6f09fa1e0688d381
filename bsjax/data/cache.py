"""Prepared data sets: a folder of arrays that are verified, and then memory-mapped.

`DATA_DIR/NAME` holds train_images.npy, train_labels.npy, test_images.npy, test_labels.npy, and dataset.json, which says
what they are: name, shapes, dtypes, CRC-32 checksums, class names, source, and the version of this format.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import secrets
import shlex
import shutil
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from bsjax.data.dataset import Dataset, Split
from bsjax.errors import InvalidArgument

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

FORMAT_VERSION = 1
_DTYPES = {"train_images": "uint8", "train_labels": "int32", "test_images": "uint8", "test_labels": "int32"}

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
      InvalidArgument: the name cannot be a folder's.

    >>> dataset_dir("imagenet_resized/32x32", "/data").as_posix()
    '/data/imagenet_resized-32x32'
    """
    if not re.fullmatch(r"\w[\w.+-]*([/:]\w[\w.+-]*)*", name):
        raise InvalidArgument("dataset", name, "a name, of letters, digits and _ . + - / :")
    return resolve_data_dir(data_dir) / re.sub("[/:]", "-", name)


def exists(name: str, data_dir: DataDir = None) -> bool:
    """Whether the data set has been prepared, intact or not."""
    return dataset_dir(name, data_dir).is_dir()


def prepared_names(data_dir: DataDir = None) -> list[str]:
    """The names of the data sets in the folder."""
    names = []
    for path in sorted(resolve_data_dir(data_dir).glob("*/dataset.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            names += [json.loads(path.read_bytes())["name"]] if not path.parent.name.startswith(".") else []
    return names


def prepare_command(name: str, data_dir: DataDir = None, source: str | None = None) -> str:
    """What to type to prepare a data set.

    >>> prepare_command("cifar10")
    'python scripts/prepare_data.py --dataset=cifar10'
    """
    flags = {"dataset": name, "source": source, "data_dir": data_dir and os.fspath(data_dir)}
    return shlex.join(
        ["python", "scripts/prepare_data.py", *(f"--{key}={value}" for key, value in flags.items() if value)]
    )


def write(dataset: Dataset, data_dir: DataDir = None, source: dict[str, Any] | None = None) -> pathlib.Path:
    """Writes a data set as a whole or not at all, in the place of one that is there.

    The files are written to a hidden folder next to it, which is renamed at the end. What a preparation that was
    killed has left of its hidden folder goes when the same data set is next written.

    Args:
      dataset: of uint8 images [n, height, width, channels] and int32 labels [n].
      data_dir: as in `resolve_data_dir`.
      source: where it is from, as JSON takes it; `source["path"]`, if any, is shown in the command that repeats this.

    Returns:
      The data set's folder.

    Raises:
      InvalidArgument: the folder cannot be written.
    """
    folder = dataset_dir(dataset.name, data_dir)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for leftover in folder.parent.glob(f".{folder.name}.partial-*"):
            if _is_abandoned(leftover):
                shutil.rmtree(leftover, ignore_errors=True)
        with _hidden_folder(folder) as partial, open(partial / "dataset.json", "w", encoding="utf-8") as file:
            _lock(file.fileno())
            record = {
                "name": dataset.name,
                "class_names": list(dataset.class_names),
                "files": {name: _write_array(partial / f"{name}.npy", array) for name, array in _arrays(dataset)},
                "source": source or {},
                "format_version": FORMAT_VERSION,
            }
            json.dump(record | {"sha256": _record_checksum(record)}, file, indent=1)
            file.write("\n")
            file.flush()
            with _hidden_folder(folder) as replaced:  # of a damaged one, which a rename cannot overwrite
                if folder.exists():
                    os.rename(folder, replaced / folder.name)
                os.rename(partial, folder)
    except OSError as error:
        raise InvalidArgument("data_dir", str(folder.parent), f"a folder that can be written: {error}") from None
    return folder


def read(name: str, data_dir: DataDir = None) -> Dataset:
    """A prepared data set, once its files are verified to be as they were written; its images stay on the disk.

    Raises:
      InvalidArgument: it is not there, or damaged, with the file and the command that makes it again.
    """
    folder = dataset_dir(name, data_dir)
    source = None

    def check(good: bool, path: pathlib.Path, what: str) -> None:
        if not good:
            command = prepare_command(name, data_dir, source)
            raise InvalidArgument("dataset", name, f"prepared again, because {path} {what}: {command}")

    path = folder / "dataset.json"
    check(path.is_file(), path, "is missing")
    try:
        record = json.loads(path.read_bytes())
        checksum = record.pop("sha256")
        version = record["format_version"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        record, checksum, version = {}, "", FORMAT_VERSION
    check(version == FORMAT_VERSION, path, f"has format version {version}, not {FORMAT_VERSION}")
    check(_record_checksum(record) == checksum, path, "is damaged")
    check(record["name"] == name, path, f"is of {record['name']!r}")
    source = record["source"].get("path")
    arrays = {}
    for key, dtype in _DTYPES.items():
        path, expected = folder / f"{key}.npy", record["files"][key]
        check(path.is_file(), path, "is missing")
        size = path.stat().st_size
        check(size == expected["size"], path, f"has {size:,} bytes instead of {expected['size']:,}")
        try:
            checksum = _checksum(path)
        except OSError as error:
            check(False, path, f"cannot be read ({error})")
        check(checksum == expected["crc32"], path, "has another checksum than when it was written")
        array = np.asarray(np.load(path, mmap_mode="r"))
        check(array.dtype == dtype == expected["dtype"], path, f"holds {array.dtype}")
        check(list(array.shape) == expected["shape"], path, f"has shape {array.shape}")
        arrays[key] = array
    train, test = (Split(arrays[f"{split}_images"], arrays[f"{split}_labels"]) for split in ("train", "test"))
    return Dataset(name, train, test, tuple(record["class_names"]))


def _arrays(dataset: Dataset) -> Iterator[tuple[str, np.ndarray]]:
    arrays = (*dataset.train, *dataset.test)
    return (
        (name, array.astype(dtype, copy=False)) for (name, dtype), array in zip(_DTYPES.items(), arrays, strict=True)
    )


def _write_array(path: pathlib.Path, array: np.ndarray) -> dict[str, Any]:
    np.save(path, array)
    shape, dtype = list(array.shape), str(array.dtype)
    return {"shape": shape, "dtype": dtype, "size": path.stat().st_size, "crc32": _checksum(path)}


def _checksum(path: pathlib.Path) -> str:
    """CRC-32: it is read before every run, and finds damage several times faster than a SHA."""
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return f"{checksum:08x}"


def _record_checksum(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def _hidden_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A new folder next to one, of which nothing is left."""
    path = folder.with_name(f".{folder.name}.partial-{secrets.token_hex(4)}")
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _lock(descriptor: int) -> None:
    """Locks a file for as long as this process lives; BlockingIOError if another has."""
    if fcntl:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_abandoned(partial: pathlib.Path) -> bool:
    """Whether no process holds the lock on a hidden folder's dataset.json."""
    try:
        with open(partial / "dataset.json", "r+b") as file:
            _lock(file.fileno())
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass
    return True
