"""The official files of image data sets: their names, their MD5s, and how to read them."""

import functools
import gzip
import io
import json
import math
import pathlib
import pickle
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

_OFFICIAL = json.loads(pathlib.Path(__file__).with_name("official.json").read_text(encoding="utf-8"))
# As published for the archives and the files in them; the MD5s of MNIST's unzipped files are computed.
OFFICIAL_MD5 = {name: about["md5"] for name, about in _OFFICIAL.items()}
# Of data sets that are prepared image by image, by split.
NUM_IMAGES = {name: about["num_images"] for name, about in _OFFICIAL.items() if "num_images" in about}
# Of data sets whose files have no class names.
CLASS_NAMES = {name: about["class_names"] for name, about in _OFFICIAL.items() if "class_names" in about}

Files = Mapping[str, bytes]


class Contents(NamedTuple):
    """The contents of files, not yet checked."""

    splits: list[tuple[np.ndarray, np.ndarray]]  # images and labels to train on, and to test on
    class_names: list[str]  # empty: the files have none


class Kind(NamedTuple):
    """A format in which a data set comes as several files."""

    name: str
    datasets: tuple[str, ...]  # whose official files are of this kind
    archive: str | None
    files: tuple[str, ...]
    pickled: bool
    read: Callable[[Files], Contents]  # given exactly these files, in this order


def _read_cifar_pickles(files: Files, label: str) -> Contents:
    *batches, meta = (pickle.loads(data, encoding="bytes") for data in files.values())
    parts = [(batch[b"data"], np.asarray(batch[f"{label}s".encode()])) for batch in batches]
    return _cifar_contents(parts, [name.decode() for name in meta[f"{label}_names".encode()]])


def _read_cifar_binary(files: Files, num_labels: int) -> Contents:
    """Each record has num_labels bytes of labels, of which the last is the class, and then the pixels."""
    *batches, names = files.values()
    records = [np.frombuffer(data, np.uint8).reshape(-1, num_labels + 3072) for data in batches]
    parts = [(batch[:, num_labels:], batch[:, num_labels - 1]) for batch in records]
    return _cifar_contents(parts, names.decode().split("\n\n")[0].split())


def _cifar_contents(batches: list[tuple[np.ndarray, np.ndarray]], class_names: list[str]) -> Contents:
    """Of batches, the last of which is the test set, with pixels [n, 3072] in planes of red, green, blue."""
    splits: list[tuple[np.ndarray, np.ndarray]] = []
    for part in (batches[:-1], batches[-1:]):
        planes, labels = (np.concatenate(arrays) for arrays in zip(*part, strict=True))
        splits.append((planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels))
    return Contents(splits, class_names)


def _read_mnist(files: Files) -> Contents:
    arrays = [_read_idx(name, data, 1 if number % 2 else 3) for number, (name, data) in enumerate(files.items())]
    return Contents([(arrays[0], arrays[1]), (arrays[2], arrays[3])], [])


def _read_idx(name: str, data: bytes, num_dimensions: int) -> np.ndarray:
    with gzip.open(io.BytesIO(data)) if name.endswith(".gz") else io.BytesIO(data) as file:
        header = file.read(4 + 4 * num_dimensions)
        if header[:4] != bytes([0, 0, 8, num_dimensions]):
            raise ValueError(f"{name} does not begin as an idx{num_dimensions}-ubyte file")
        shape = np.frombuffer(header[4:], ">u4", num_dimensions).tolist()
        size = math.prod(shape)
        values = read_at_most(file, size + 1)
    if len(values) != size:
        found = f"{len(values):,}" if len(values) < size else "more"
        raise ValueError(f"{name} holds {found} bytes, and its header says {size:,}")
    return np.frombuffer(values, np.uint8).reshape(shape)


def read_at_most(file: io.BufferedIOBase, size: int) -> bytes:
    """The first bytes of a file, read in blocks, so that memory grows only with what the file holds."""
    blocks, left = [], size
    while block := file.read(min(left, 1 << 20)):
        blocks.append(block)
        left -= len(block)
    return b"".join(blocks)


def _cifar(name: str, batches: list[str], meta: str, text_meta: str, label: str, num_labels: int) -> tuple[Kind, Kind]:
    """The two kinds of CIFAR-10 or CIFAR-100."""
    dataset, archive = (name.replace("-", "").lower(),), f"{name.lower()}-{{}}.tar.gz".format
    pickles = functools.partial(_read_cifar_pickles, label=label)
    binary = functools.partial(_read_cifar_binary, num_labels=num_labels)
    binary_files = (*(f"{batch}.bin" for batch in batches), text_meta)
    return (
        Kind(f"{name}, python", dataset, archive("python"), (*batches, meta), True, pickles),
        Kind(f"{name}, binary", dataset, archive("binary"), binary_files, False, binary),
    )


_MNIST = tuple(f"{split}-{part}-ubyte" for split in ("train", "t10k") for part in ("images-idx3", "labels-idx1"))
_TEN = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
KINDS = (
    *_cifar("CIFAR-10", _TEN, "batches.meta", "batches.meta.txt", "label", 1),
    *_cifar("CIFAR-100", ["train", "test"], "meta", "fine_label_names.txt", "fine_label", 2),
    Kind("MNIST, zipped", ("mnist", "fashion_mnist"), None, tuple(f"{file}.gz" for file in _MNIST), False, _read_mnist),
    Kind("MNIST, unzipped", ("mnist", "fashion_mnist"), None, _MNIST, False, _read_mnist),
)
