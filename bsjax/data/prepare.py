"""Reads image data sets from the files that people have: archives and folders of CIFAR and MNIST, and .npz files.

| data set | files |
|---|---|
| CIFAR-10 | `cifar-10-python.tar.gz`, `cifar-10-binary.tar.gz`, or a folder of the files in one of them |
| CIFAR-100 | the same with `cifar-100`; its fine labels are read |
| MNIST, Fashion-MNIST, and others in their format | a folder of `train-images-idx3-ubyte.gz` and so on, or unzipped |
| any | an `.npz` with `train_images`, `train_labels`, `test_images`, `test_labels`, optionally `class_names` |

Images are uint8 [n, height, width, channels] or [n, height, width], labels whole numbers from 0, class names text.
"""

import difflib
import gzip
import hashlib
import io
import pathlib
import tarfile
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from bsjax.data.dataset import Dataset
from bsjax.data.formats import CLASS_NAMES, KINDS, OFFICIAL_MD5, Contents, Files, Kind, read_at_most
from bsjax.data.sources import ArraySource
from bsjax.data.text import TextDataset
from bsjax.errors import InvalidArgument

_MAX_CLASSES = 100_000  # without class names, each whole number up to the largest label is a class
_MAX_ARCHIVE = 1 << 28  # unpacked bytes; CIFAR's archives have 70 % of this


class Prepared(NamedTuple):
    """A data set, and a record of its files."""

    dataset: Dataset | TextDataset
    source: dict[str, Any]  # path; kind; md5 of each file; official: whether all are official, None if unknown


def read_source(name: str, path: pathlib.Path, allow_other_checksum: bool = False) -> Prepared:
    """Reads a data set from an archive, a folder, or an .npz file.

    Nothing is unpickled unless its MD5 is the official one.

    Args:
      name: of the data set.
      path: one of the sources that this module's docstring lists.
      allow_other_checksum: whether to read files whose MD5 is not the official one; never pickles.

    Raises:
      InvalidArgument: there is no such file or folder, or it is damaged, or holds something else.
    """
    if not path.exists():
        raise missing(path)
    try:
        if path.suffix == ".npz" and not path.is_dir():
            return _read_npz(name, path)
        kind, files, checked = (_open_folder if path.is_dir() else _open_archive)(name, path)
        md5 = {file: hashlib.md5(data).hexdigest() for file, data in checked.items()}
        official = _check_md5(name, path, kind, md5, allow_other_checksum)
        source = {"path": str(path.absolute()), "kind": kind.name, "md5": md5, "official": official}
        return Prepared(make_dataset(name, str(path), kind.read(files)), source)
    except InvalidArgument:
        raise
    except Exception as error:  # a damaged archive can raise nearly any error
        raise InvalidArgument("source", str(path), f"complete and in a known format ({one_line(error)})") from None


def make_dataset(name: str, path: str, contents: Contents) -> Dataset:
    """A checked data set.

    Raises:
      InvalidArgument: images are not uint8 of one size, or labels are not whole numbers of classes, one for each image.
    """

    def check(good: bool, allowed: str, found: str) -> None:
        if not good:
            raise InvalidArgument("source", path, f"a data set with {allowed}; its {found}")

    class_names = contents.class_names or CLASS_NAMES.get(name, [])
    sources: list[ArraySource] = []
    size: tuple[int, ...] = ()
    for split, (images, labels) in zip(("train", "test"), contents.splits, strict=True):
        images = images[..., None] if images.ndim == 3 else images
        found = f"{split} images are {images.dtype} {list(images.shape)}"
        good = images.ndim == 4 and images.dtype == np.uint8 and images.size > 0
        check(good, "uint8 images [n, height, width, channels]", found)
        size = size or images.shape[1:]
        check(images.shape[1:] == size, f"images of one size, which is {list(size)} in train", found)
        good = labels.shape == images.shape[:1] and np.issubdtype(labels.dtype, np.integer)
        found = f"{split} labels are {labels.dtype} {list(labels.shape)} for {len(images)} images"
        check(good, "one whole number for each image as its label", found)
        smallest, largest = int(labels.min()), int(labels.max())
        found = f"{split} labels are from {smallest} to {largest}"
        limit = len(class_names) or _MAX_CLASSES
        check(smallest >= 0 and largest < limit, f"labels from 0 to {limit - 1}", found)
        class_names = class_names or [str(label) for label in range(largest + 1)]
        sources.append(ArraySource({"image": np.ascontiguousarray(images), "label": labels.astype(np.int32)}))
    train, test = sources
    return Dataset(name, train, test, tuple(class_names))


def _read_npz(name: str, path: pathlib.Path) -> Prepared:
    data = path.read_bytes()
    with np.lib.npyio.NpzFile(io.BytesIO(data), allow_pickle=False) as file:
        needed = [f"{split}_{what}" for split in ("train", "test") for what in ("images", "labels")]
        if missing := [key for key in needed if key not in file]:
            found = f"it has {list(file)}, and not {', '.join(missing)}"
            raise InvalidArgument("source", str(path), f"an .npz with arrays {', '.join(needed)}; {found}")
        train_images, train_labels, test_images, test_labels = (_read_member(path, file, key) for key in needed)
        class_names = _read_member(path, file, "class_names") if "class_names" in file else np.array([], str)
    if class_names.ndim != 1 or class_names.dtype.kind not in "US":
        found = f"they are {class_names.dtype} {list(class_names.shape)}"
        raise InvalidArgument("source", str(path), f"an .npz whose class_names are an array [classes] of text; {found}")
    splits = [(train_images, train_labels), (test_images, test_labels)]
    dataset = make_dataset(name, str(path), Contents(splits, class_names.astype(str).tolist()))
    md5 = {path.name: hashlib.md5(data).hexdigest()}
    return Prepared(dataset, {"path": str(path.absolute()), "kind": "npz", "md5": md5, "official": None})


def _read_member(path: pathlib.Path, file: np.lib.npyio.NpzFile, key: str) -> np.ndarray:
    try:
        array = file[key]
    except Exception as error:  # a malformed header can raise nearly any error
        raise InvalidArgument("source", str(path), f"an .npz whose {key} can be read ({one_line(error)})") from None
    if not isinstance(array, np.ndarray):
        raise InvalidArgument("source", str(path), f"an .npz whose {key} is an array, a .npy file")
    return array


def _open_folder(name: str, path: pathlib.Path) -> tuple[Kind, Files, Files]:
    """The kind, its files, and the files whose MD5s are to be checked."""
    kind = _kind_of(name, path, {child.name for child in path.iterdir() if child.is_file()})
    files = {file: (path / file).read_bytes() for file in kind.files}
    return kind, files, files


def _open_archive(name: str, path: pathlib.Path) -> tuple[Kind, Files, Files]:
    """The kind, its files, and the archive, whose MD5 is to be checked."""
    archive = path.read_bytes()  # once, so that the checked bytes are the bytes that are unpickled
    if not archive.startswith(b"\x1f\x8b"):
        raise InvalidArgument("source", str(path), _KINDS_OF_SOURCE)
    with gzip.open(io.BytesIO(archive)) as file:
        unpacked = read_at_most(file, _MAX_ARCHIVE + 1)
    if len(unpacked) > _MAX_ARCHIVE:
        raise InvalidArgument("source", str(path), f"an archive of at most {_MAX_ARCHIVE >> 20} MiB when unpacked")
    with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as tar:
        members = {pathlib.PurePosixPath(member.name).name: member for member in tar if member.isfile()}
        kind = _kind_of(name, path, members.keys())
        files = {file: tar.extractfile(members[file]).read() for file in kind.files}  # type: ignore[union-attr]
    return kind, files, {kind.archive or path.name: archive}


def _kind_of(name: str, path: pathlib.Path, there: Collection[str]) -> Kind:
    """The kind of which the largest share of files is there; the first of several."""
    kind = max(KINDS, key=lambda kind: sum(file in there for file in kind.files) / len(kind.files))
    missing = [file for file in kind.files if file not in there]
    if len(missing) == len(kind.files):
        raise InvalidArgument("source", str(path), _KINDS_OF_SOURCE)
    if missing:
        raise InvalidArgument("source", str(path), f"complete; {', '.join(missing)} of {kind.name} is missing")
    if name in OFFICIAL_MD5 and name not in kind.datasets:
        raise InvalidArgument("source", str(path), f"a source of {name}; this is {kind.name}")
    return kind


def _check_md5(name: str, path: pathlib.Path, kind: Kind, found: dict[str, str], allow: bool) -> bool | None:
    """Whether all files with an official MD5 have that MD5; None without any. Raises unless `allow` lets it differ."""
    official = OFFICIAL_MD5.get(name if name in kind.datasets or len(kind.datasets) > 1 else kind.datasets[0], {})
    for file, md5 in found.items():
        if official.get(file) == md5 or (file not in official and not kind.pickled):
            continue
        if allow and not kind.pickled:
            return False
        way_out = "" if kind.pickled else "; --allow_other_checksum takes it anyway"
        others = [f"--dataset={other}" for other in OFFICIAL_MD5 if OFFICIAL_MD5[other].get(file) == md5]
        what = f"the official {file}, with md5 {official.get(file)}; its md5 is {md5}{way_out}"
        raise InvalidArgument("source", str(path), what, *others)
    return True if official.keys() & found.keys() else None


def missing(path: pathlib.Path) -> InvalidArgument:
    """The error for a source that is not there."""
    near = difflib.get_close_matches(path.name, [other.name for other in path.parent.glob("*")], n=1)
    return InvalidArgument("source", str(path), "a file or folder that exists", *near)


def one_line(error: Exception) -> str:
    """The type of an error and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


_KINDS_OF_SOURCE = (
    "an archive or folder of CIFAR-10 or CIFAR-100 (python or binary), a folder of MNIST's *-ubyte.gz, an .npz file, "
    "a prepared folder of TensorFlow Datasets, or a text: .txt, or tokens in .bin"
)
