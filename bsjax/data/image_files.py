"""Encoded images, such as JPEGs, by their number: in a folder for each class, or in ArrayRecord files.

`write_image_records` turns the first into the second, which a network disk reads much faster. The bytes of the images
stay as they are. A folder of records holds images-00000.array_record and so on, labels.npy, names.json, and index.json
with the class names, the size of each file, the fingerprint and the version of this format.
"""

import functools
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from bsjax.errors import InvalidArgument, RunError, check_whole

FORMAT_VERSION = 1
_SUFFIXES = (".jpeg", ".jpg", ".png")
_INDEX, _LABELS, _NAMES, _PROGRESS = "index.json", "labels.npy", "names.json", "progress.json"
_ANNOTATIONS, _ANNOTATED = "val_annotations.txt", "images"


class ImageFiles(Protocol):
    """Images 0 to len - 1 as the bytes of their files."""

    class_names: tuple[str, ...]
    labels: np.ndarray  # int32 [N], numbers of classes

    @property
    def names(self) -> list[str]:
        """Of the files, for people."""

    @property
    def fingerprint(self) -> str:
        """One line of text that changes with any image, name or label."""

    def read(self, index: int) -> bytes:
        """The bytes of an image; may be called from any thread."""


class ImageFolder:
    """The images of a folder of class folders.

    The classes are the folders right below the root, in the order of their names. Each holds .jpeg, .jpg and .png
    files, itself or in folders below it. The validation images of Tiny ImageNet are read as well: they are in one
    folder, images, and val_annotations.txt beside it has a line for each, which begins with its name and its class.

    Args:
      root: the folder.

    Raises:
      InvalidArgument: there is no such folder, it has no folders of images, or one of them is empty.
    """

    def __init__(self, root: str | os.PathLike[str]):
        self._root = pathlib.Path(root)
        if not self._root.is_dir():
            raise InvalidArgument("root", str(root), "a folder that exists")
        by_class = self._annotated() if (self._root / _ANNOTATIONS).is_file() else self._of_class_folders()
        self.class_names = tuple(by_class)
        self.names = [name for names in by_class.values() for name in names]
        self.labels = np.repeat(np.arange(len(by_class), dtype=np.int32), [len(names) for names in by_class.values()])

    def read(self, index: int) -> bytes:
        """The bytes of an image."""
        return (self._root / self.names[index]).read_bytes()

    @functools.cached_property
    def fingerprint(self) -> str:
        """Number and CRC-32 of all names, labels and images, which are read for it: a minute per 10 GB or so."""
        return fingerprint_of(self)

    def _of_class_folders(self) -> dict[str, list[str]]:
        """The images of each class, in order."""
        classes = sorted(path.name for path in self._root.iterdir() if path.is_dir())
        if not classes:
            raise InvalidArgument("root", str(self._root), "a folder with a folder of images for each class")
        by_class = {name: sorted(self._images_in(name)) for name in classes}
        if empty := [name for name, found in by_class.items() if not found]:
            allowed = f"a folder whose class folders hold {', '.join(_SUFFIXES)} files; {empty[0]} holds none"
            raise InvalidArgument("root", str(self._root), allowed)
        return by_class

    def _annotated(self) -> dict[str, list[str]]:
        """The images that the annotations name, of each class, in order."""
        by_class: dict[str, list[str]] = {}
        for line in (self._root / _ANNOTATIONS).read_text(encoding="utf-8").splitlines():
            if len(parts := line.split()) < 2:
                allowed = f"a folder whose {_ANNOTATIONS} has an image and its class in each line, not {line!r}"
                raise InvalidArgument("root", str(self._root), allowed)
            by_class.setdefault(parts[1], []).append(f"{_ANNOTATED}/{parts[0]}")
        return {name: sorted(by_class[name]) for name in sorted(by_class)}

    def _images_in(self, name: str) -> Iterator[str]:
        for folder, _, files in os.walk(self._root / name):
            for file in files:
                if file.lower().endswith(_SUFFIXES):
                    yield pathlib.Path(folder, file).relative_to(self._root).as_posix()


class ImageRecords:
    """The images that `write_image_records` has written.

    Args:
      folder: what it wrote to.

    Raises:
      InvalidArgument: a file is missing or damaged, or the writing has not ended.
      RunError: array_record is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self._folder = pathlib.Path(folder)
        if not (self._folder / _INDEX).is_file():
            allowed = f"a folder that write_image_records has completed; it has no {_INDEX}"
            raise InvalidArgument("folder", str(folder), allowed)
        index = json.loads((self._folder / _INDEX).read_text(encoding="utf-8"))
        if index["format_version"] != FORMAT_VERSION:
            allowed = f"written again: its format version is {index['format_version']}, not {FORMAT_VERSION}"
            raise InvalidArgument("folder", str(folder), allowed)
        for name, size in index["sizes"].items():
            path = self._folder / name
            found = path.stat().st_size if path.exists() else 0
            if found != size:
                raise InvalidArgument("folder", str(folder), f"written again: {name} has {found:,} of {size:,} bytes")
        self.class_names = tuple(index["class_names"])
        self.fingerprint: str = index["fingerprint"]
        self.labels = np.load(self._folder / _LABELS)
        shards = [str(self._folder / name) for name in index["sizes"] if name.endswith(".array_record")]
        self._records = _array_record().array_record_data_source.ArrayRecordDataSource(shards)

    def __reduce__(self):  # so that another process opens the files itself
        return ImageRecords, (self._folder,)

    @functools.cached_property
    def names(self) -> list[str]:
        """Of the files, for people; read when somebody asks, because a million names take 100 MB."""
        return json.loads((self._folder / _NAMES).read_text(encoding="utf-8"))

    def read(self, index: int) -> bytes:
        """The bytes of an image.

        Raises:
          RunError: the file is damaged there.
        """
        try:
            return self._records[index]
        except Exception as error:  # of whatever kind array_record has for a damaged chunk
            what = str(error).splitlines()[0][:200]
            raise RunError(f"image {index} of {self._folder} cannot be read: {what}") from None


def fingerprint_of(files: ImageFiles) -> str:
    """Number and CRC-32 of all names, labels and images, which are read for it."""
    checksum = 0
    for index in range(len(files.names)):
        checksum = _add(checksum, files, index, files.read(index))
    return _fingerprint(files, checksum)


def holds_image_records(folder: str | os.PathLike[str]) -> bool:
    """Whether `write_image_records` has written to a folder, to its end or not."""
    return any((pathlib.Path(folder) / name).exists() for name in (_INDEX, _PROGRESS))


def write_image_records(
    files: ImageFiles,
    folder: str | os.PathLike[str],
    images_per_file: int = 10_000,
    report: Callable[[int], None] = lambda num_images: None,
) -> None:
    """Writes images to ArrayRecord files, each as a whole or not at all; the same call again continues.

    Args:
      files: the images, such as an `ImageFolder`.
      folder: to write to; it is made if it is not there.
      images_per_file: a file of ImageNet's images then has 1.1 GB.
      report: is called after each file with the number of images that have been written so far.

    Raises:
      InvalidArgument: the folder holds records of other images, or the number is not a whole one.
      RunError: array_record is not installed.
    """
    folder, number = pathlib.Path(folder), check_whole("images_per_file", images_per_file)
    folder.mkdir(parents=True, exist_ok=True)
    listing = f"{zlib.crc32(json.dumps([files.names, files.class_names, number]).encode()):08x}"
    if (folder / _INDEX).exists():
        if json.loads((folder / _INDEX).read_text(encoding="utf-8"))["listing"] == listing:
            return
        raise InvalidArgument("folder", str(folder), "a folder without records of other images")
    progress: dict[str, Any] = {"listing": listing, "sizes": {}, "checksum": 0}
    if (folder / _PROGRESS).exists():
        found = json.loads((folder / _PROGRESS).read_text(encoding="utf-8"))
        if found["listing"] != listing:
            raise InvalidArgument("folder", str(folder), "a folder without records of other images")
        progress = found
    for start in range(len(progress["sizes"]) * number, len(files.names), number):
        name = f"images-{start // number:05d}.array_record"
        end = min(start + number, len(files.names))
        progress["checksum"] = _write_records(files, range(start, end), folder / name, progress["checksum"])
        progress["sizes"][name] = (folder / name).stat().st_size
        _write_text(folder / _PROGRESS, json.dumps(progress))
        report(end)
    np.save(folder / _LABELS, files.labels)
    _write_text(folder / _NAMES, json.dumps(files.names))
    index = {
        "format_version": FORMAT_VERSION,
        "listing": listing,
        "num_images": len(files.names),
        "class_names": files.class_names,
        "fingerprint": _fingerprint(files, progress["checksum"]),
        "sizes": progress["sizes"] | {name: (folder / name).stat().st_size for name in (_LABELS, _NAMES)},
    }
    _write_text(folder / _INDEX, json.dumps(index, indent=1))
    (folder / _PROGRESS).unlink(missing_ok=True)


def _write_records(files: ImageFiles, indices: range, path: pathlib.Path, checksum: int) -> int:
    """Writes one file as a whole or not at all, and returns the checksum of all images up to its end."""
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    try:
        checksum = _write_partial(files, indices, partial, checksum)
    except BaseException:
        partial.unlink(missing_ok=True)  # what fills a full disk is of no use
        raise
    os.replace(partial, path)
    return checksum


def _write_partial(files: ImageFiles, indices: range, partial: pathlib.Path, checksum: int) -> int:
    module = _array_record().array_record_module
    writer = module.ArrayRecordWriter(str(partial), "group_size:1")
    try:
        for index in indices:
            data = files.read(index)
            writer.write(data)
            checksum = _add(checksum, files, index, data)
    finally:
        try:
            writer.close()
        except RuntimeError as error:  # a full disk is told here
            what = str(error).split("; ")[0]
            raise OSError(f"{partial} cannot be written: {what}") from None
    reader = module.ArrayRecordReader(str(partial))
    num_records = reader.num_records()
    reader.close()
    if num_records != len(indices):
        raise OSError(f"{partial} has {num_records} of {len(indices)} images; is the disk full?")
    return checksum


def _write_text(path: pathlib.Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _add(checksum: int, files: ImageFiles, index: int, data: bytes) -> int:
    about = f"{files.names[index]} {files.labels[index]} {len(data)} ".encode()
    return zlib.crc32(data, zlib.crc32(about, checksum))


def _fingerprint(files: ImageFiles, checksum: int) -> str:
    classes = zlib.crc32("\0".join(files.class_names).encode())
    return f"{len(files.names)} images {checksum:08x}, {len(files.class_names)} classes {classes:08x}"


def _array_record() -> Any:
    try:
        from array_record import python
        from array_record.python import array_record_data_source, array_record_module  # noqa: F401
    except ImportError:
        raise RunError("ArrayRecord files need array_record: pip install bsjax[imagenet]") from None
    return python
