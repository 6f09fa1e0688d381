"""Reads image data sets from the files that people have: archives and folders of CIFAR and MNIST, and .npz files.

| data set | files |
|---|---|
| CIFAR-10 | `cifar-10-python.tar.gz`, `cifar-10-binary.tar.gz`, or a folder of the files in one of them |
| CIFAR-100 | likewise; the fine labels are read |
| MNIST, Fashion-MNIST, and others in their format | a folder of `train-images-idx3-ubyte.gz` and so on, or unzipped |
| any | an `.npz` with `train_images`, `train_labels`, `test_images`, `test_labels`, optionally `class_names` |
| any | an `.npz` with `images`, `fine`, `names`, of which the first five sixths are to train on |

Images are uint8 [n, height, width, channels] (or without channels), labels whole numbers from 0.
"""

import difflib
import gzip
import hashlib
import io
import pathlib
import tarfile
import zipfile
import zlib
from typing import Any, NamedTuple

import numpy as np

from bsjax.data.dataset import Dataset, Split
from bsjax.data.formats import CLASS_NAMES, KINDS, OFFICIAL_MD5, Contents, Kind
from bsjax.errors import InvalidArgument


class Prepared(NamedTuple):
    """A data set, and where it is from."""

    dataset: Dataset
    source: dict[str, Any]  # path; kind; md5 of each file; official: whether all are the official ones, None if unknown


def read_source(name: str, path: pathlib.Path, allow_other_checksum: bool = False) -> Prepared:
    """Reads a data set from an archive, a folder, or an .npz file.

    Nothing is unpickled unless its MD5 is the official one.

    Args:
      name: of the data set.
      path: of one of the sources that this module's docstring lists.
      allow_other_checksum: also read files that need no unpickling when their MD5 is not the official one.

    Raises:
      InvalidArgument: there is no such thing, or it is damaged, or another.
    """
    if not path.exists():
        near = difflib.get_close_matches(path.name, [other.name for other in path.parent.glob("*")], n=1)
        raise InvalidArgument("source", str(path), "a file or folder that exists", *near)
    try:
        if path.is_dir():
            return _read_folder(name, path, allow_other_checksum)
        if path.suffix == ".npz":
            return _read_npz(name, path)
        return _read_archive(name, path, allow_other_checksum)
    except InvalidArgument:
        raise
    except (ValueError, KeyError, EOFError, OSError, tarfile.TarError, zipfile.BadZipFile, zlib.error) as error:
        what = f"{type(error).__name__}: {error}".replace("\n", " ")
        raise InvalidArgument("source", str(path), f"whole and in a known format ({what})") from None


def make_dataset(name: str, path: str, contents: Contents) -> Dataset:
    """A checked data set.

    Raises:
      InvalidArgument: images are not uint8 of one size, or labels are not whole numbers of classes, one for each image.
    """

    def check(good: bool, allowed: str, found: str) -> None:
        if not good:
            raise InvalidArgument("source", path, f"of {allowed}; its {split} {found}")

    class_names = contents.class_names or CLASS_NAMES.get(name, [])
    splits: dict[str, Split] = {}
    for split, (images, labels) in zip(("train", "test"), contents.splits, strict=True):
        images = images[..., None] if images.ndim == 3 else images
        found = f"images are {images.dtype} {list(images.shape)}"
        good = images.ndim == 4 and images.dtype == np.uint8 and images.size > 0
        check(good, "uint8 images [n, height, width, channels]", found)
        size = splits["train"].images.shape[1:] if splits else images.shape[1:]
        check(images.shape[1:] == size, f"images of one size, as {list(size)} to train on", found)
        good = labels.shape == images.shape[:1] and np.issubdtype(labels.dtype, np.integer)
        found = f"labels are {labels.dtype} {list(labels.shape)} for {len(images)} images"
        check(good, "a whole number as the label of each image", found)
        class_names = class_names or [str(label) for label in range(labels.max() + 1)]
        good = labels.min() >= 0 and labels.max() < len(class_names)
        check(good, f"labels from 0 to {len(class_names) - 1}", f"labels are from {labels.min()} to {labels.max()}")
        splits[split] = Split(np.ascontiguousarray(images), labels.astype(np.int32))
    return Dataset(name, splits["train"], splits["test"], tuple(class_names))


def _read_npz(name: str, path: pathlib.Path) -> Prepared:
    data = path.read_bytes()
    with np.lib.npyio.NpzFile(io.BytesIO(data), allow_pickle=False) as file:
        arrays = dict(file)
    if "images" in arrays and "fine" in arrays:
        end = len(arrays["images"]) * 5 // 6
        for key, whole in (("images", arrays.pop("images")), ("labels", arrays.pop("fine"))):
            arrays |= {f"train_{key}": whole[:end], f"test_{key}": whole[end:]}
    needed = ("train_images", "train_labels", "test_images", "test_labels")
    if missing := [key for key in needed if key not in arrays]:
        what = f"an .npz with arrays {', '.join(needed)}; {', '.join(missing)} is missing"
        raise InvalidArgument("source", str(path), what)
    splits = [(arrays[f"{split}_images"], arrays[f"{split}_labels"]) for split in ("train", "test")]
    class_names = arrays.get("class_names", arrays.get("names", np.array([]))).tolist()
    dataset = make_dataset(name, str(path), Contents(splits, [str(class_name) for class_name in class_names]))
    return Prepared(dataset, _source(path, "npz", {path.name: hashlib.md5(data).hexdigest()}, None))


def _read_folder(name: str, path: pathlib.Path, allow: bool) -> Prepared:
    there = {child.name for child in path.iterdir() if child.is_file()}
    kind = _kind_of(name, path, there)
    files = {file: (path / file).read_bytes() for file in kind.files}
    md5 = {file: hashlib.md5(data).hexdigest() for file, data in files.items()}
    official = _check_md5(name, path, kind, md5, allow)
    return Prepared(make_dataset(name, str(path), kind.read(files)), _source(path, kind.name, md5, official))


def _read_archive(name: str, path: pathlib.Path, allow: bool) -> Prepared:
    archive = path.read_bytes()  # so that what is read is what has been checked
    if not archive.startswith(b"\x1f\x8b"):
        raise InvalidArgument("source", str(path), _KINDS_OF_SOURCE)
    wanted = {file for kind in KINDS for file in kind.files}
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(archive)), mode="r:") as tar:
        members = {pathlib.PurePosixPath(member.name).name: member for member in tar if member.isfile()}
        kind = _kind_of(name, path, wanted & members.keys())
        md5 = {kind.archive or path.name: hashlib.md5(archive).hexdigest()}
        official = _check_md5(name, path, kind, md5, allow)
        files = {file: tar.extractfile(members[file]).read() for file in kind.files}  # type: ignore[union-attr]
    return Prepared(make_dataset(name, str(path), kind.read(files)), _source(path, kind.name, md5, official))


def _source(path: pathlib.Path, kind: str, md5: dict[str, str], official: bool | None) -> dict[str, Any]:
    return {"path": str(path.absolute()), "kind": kind, "md5": md5, "official": official}


def _kind_of(name: str, path: pathlib.Path, there: set[str]) -> Kind:
    """The kind most of whose files are there; of kinds that share files, the first."""
    kind = max(KINDS, key=lambda kind: len(there.intersection(kind.files)) / len(kind.files))
    missing = [file for file in kind.files if file not in there]
    if len(missing) == len(kind.files):
        raise InvalidArgument("source", str(path), _KINDS_OF_SOURCE)
    if missing:
        raise InvalidArgument("source", str(path), f"whole; {', '.join(missing)} of {kind.name} is not in it")
    if name in OFFICIAL_MD5 and name not in kind.datasets:
        raise InvalidArgument("source", str(path), f"of {name}, and this is {kind.name}")
    return kind


def _check_md5(name: str, path: pathlib.Path, kind: Kind, found: dict[str, str], allow: bool) -> bool | None:
    """Whether all files that have an official MD5 have it; None if there is none. Raises if that is not allowed."""
    official = OFFICIAL_MD5.get(name if name in kind.datasets or len(kind.datasets) > 1 else kind.datasets[0], {})
    for file, md5 in found.items():
        if official.get(file) == md5 or (file not in official and not kind.pickled):
            continue
        if allow and not kind.pickled:
            return False
        way_out = "" if kind.pickled else "; --allow_other_checksum takes it nevertheless"
        others = [f"--dataset={other}" for other in OFFICIAL_MD5 if OFFICIAL_MD5[other].get(file) == md5]
        what = f"the official {file} with md5 {official.get(file)}; its md5 is {md5}{way_out}"
        raise InvalidArgument("source", str(path), what, *others)
    return True if official.keys() & found.keys() else None


_KINDS_OF_SOURCE = (
    "an archive or folder of CIFAR-10 or CIFAR-100 (python or binary), a folder of MNIST's *-ubyte.gz, an .npz file, "
    "or a prepared folder of TensorFlow Datasets"
)
