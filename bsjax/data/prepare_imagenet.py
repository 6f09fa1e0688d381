"""Reads ImageNet's official tar files, the images as they are.

A folder with these three files is needed:

    ILSVRC2012_img_train.tar        a tar of 1,000 tars, one for each class
    ILSVRC2012_img_val.tar          50,000 images
    ILSVRC2012_devkit_t12.tar.gz    the classes, their numbers of images, and the classes of the validation's images

The images get the names and the order of a folder of class folders, so that what is prepared is the same as that of an
`ImageFolder` of the unpacked tars.
"""

import contextlib
import hashlib
import io
import pathlib
import tarfile
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from bsjax.data.formats import NUM_IMAGES, OFFICIAL_MD5
from bsjax.data.image_files import fingerprint_of
from bsjax.data.prepare import one_line
from bsjax.errors import InvalidArgument, RunError

_NAME = "imagenet2012"
_TRAIN, _VALIDATION, _DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
_META, _TRUTH = "meta.mat", "ILSVRC2012_validation_ground_truth.txt"
_FILES = (_DEVKIT, _VALIDATION, _TRAIN)  # in order of size
SPLITS = {"train": _TRAIN, "validation": _VALIDATION}


class Member(NamedTuple):
    """An image in a tar."""

    name: str
    label: int
    offset: int  # of its first byte
    size: int


class Devkit(NamedTuple):
    """What the development kit says."""

    num_images: dict[str, int]  # to train on, of each class, in order of the classes' names (WordNet's, "n01440764")
    validation: list[str]  # the class of each image of the validation


class TarImages:
    """Images in a tar, or in the tars in it: an `ImageFiles`.

    Args:
      path: the outer tar, not compressed.
      class_names: the classes.
      members: the images.
    """

    def __init__(self, path: pathlib.Path, class_names: Iterable[str], members: Iterable[Member]):
        self._members = sorted(members)
        self._path = path
        self.class_names = tuple(class_names)
        self.names = [member.name for member in self._members]
        self.labels = np.array([member.label for member in self._members], np.int32)
        self.nbytes = sum(member.size for member in self._members)

    @property
    def fingerprint(self) -> str:
        """That of an `ImageFolder` of the same images; reads all of them."""
        return fingerprint_of(self)

    def read(self, index: int) -> bytes:
        """The bytes of an image.

        Raises:
          RunError: the tar has been cut off since.
        """
        member = self._members[index]
        with open(self._path, "rb") as file:
            file.seek(member.offset)
            data = file.read(member.size)
        if len(data) != member.size:
            raise RunError(f"{self._path} ends before {member.name} does; has it changed?")
        return data


def is_official(folder: pathlib.Path) -> bool:
    """Whether a folder holds one of the official files."""
    return any((folder / name).is_file() for name in _FILES)


def check_files(folder: pathlib.Path, allow_other_checksum: bool = False) -> Iterator[str]:
    """Checks that the official files are there, and then their MD5s; yields the name of each before it is read.

    Args:
      folder: with the files.
      allow_other_checksum: whether files with other MD5s will do.

    Raises:
      InvalidArgument: a file is missing, or it is another one.
    """
    if missing := [name for name in _FILES if not (folder / name).is_file()]:
        raise InvalidArgument("source", str(folder), f"complete; {', '.join(missing)} of ImageNet is missing")
    for name in () if allow_other_checksum else _FILES:
        yield name
        with open(folder / name, "rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        if found != (official := OFFICIAL_MD5[_NAME][name]):
            what = f"the official one, with md5 {official}; its md5 is {found}; --allow_other_checksum takes it anyway"
            raise InvalidArgument("source", str(folder / name), what)


def read_tars(folder: pathlib.Path, allow_other_checksum: bool = False) -> dict[str, TarImages]:
    """The images of each split, "train" and "validation". Reads where they are, and none of them.

    Args:
      folder: with the official files.
      allow_other_checksum: whether there may be other numbers of images than 1,281,167 and 50,000. They must still be
        those of the development kit.

    Raises:
      InvalidArgument: a file is damaged, an image or a class is missing, or one is too many.
    """
    devkit = read_devkit(folder / _DEVKIT)
    found = {}
    for split, members in {"train": _read_train, "validation": _read_validation}.items():
        path = folder / SPLITS[split]
        found[split] = TarImages(path, devkit.num_images, members(path, devkit))
        official, number = NUM_IMAGES[_NAME][split], len(found[split].names)
        if number != official and not allow_other_checksum:
            raise InvalidArgument("source", str(path), f"complete, with {official:,} images; it has {number:,}")
    return found


def read_devkit(path: pathlib.Path) -> Devkit:
    """The classes, their numbers of images, and the classes of the validation's images.

    Raises:
      InvalidArgument: the archive is damaged or incomplete.
    """
    from scipy.io import loadmat  # takes a third of a second, which other data sets need not wait for

    with _intact(path), tarfile.open(path, "r:gz") as tar:
        there = {_file(member): member for member in tar if member.isfile()}
        for name in (_META, _TRUTH):
            if name not in there:
                raise InvalidArgument("source", str(path), f"complete; {name} is missing")
        meta, truth = (tar.extractfile(there[name]).read() for name in (_META, _TRUTH))  # type: ignore[union-attr]
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        leaves = synsets[synsets["num_children"] == 0]  # the others are groups of classes
        classes = {int(one["ILSVRC2012_ID"]): str(one["WNID"]) for one in leaves}
        num_images = {str(one["WNID"]): int(one["num_train_images"]) for one in leaves}
        return Devkit(dict(sorted(num_images.items())), [classes[int(number)] for number in truth.split()])


def _read_train(path: pathlib.Path, devkit: Devkit) -> list[Member]:
    found: list[Member] = []
    with _intact(path), tarfile.open(path, "r:") as outer:
        tars = {_file(member): member for member in outer if member.isfile()}
        _check_names(path, tars, [f"{name}.tar" for name in devkit.num_images])
        for label, (name, number) in enumerate(devkit.num_images.items()):
            with _intact(path, f"{name}.tar in it "):
                images = _images_of(outer, tars[f"{name}.tar"], name, label)
            if len(images) != number:
                what = f"complete; {name}.tar in it has {len(images):,} of {number:,} images"
                raise InvalidArgument("source", str(path), what)
            found += images
    return found


def _images_of(outer: tarfile.TarFile, inner: tarfile.TarInfo, name: str, label: int) -> list[Member]:
    start = inner.offset_data
    with tarfile.open(fileobj=outer.extractfile(inner), mode="r:") as tar:
        images = [member for member in tar if member.isfile()]
    return [Member(f"{name}/{_file(one)}", label, start + one.offset_data, one.size) for one in images]


def _read_validation(path: pathlib.Path, devkit: Devkit) -> list[Member]:
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, len(devkit.validation) + 1)]
    labels = {name: label for label, name in enumerate(devkit.num_images)}
    with _intact(path), tarfile.open(path, "r:") as tar:
        there = {_file(member): member for member in tar if member.isfile()}
    _check_names(path, there, names)
    return [
        Member(f"{name}/{file}", labels[name], there[file].offset_data, there[file].size)
        for file, name in zip(names, devkit.validation, strict=True)
    ]


def _file(member: tarfile.TarInfo) -> str:
    return pathlib.PurePosixPath(member.name).name


def _check_names(path: pathlib.Path, there: Iterable[str], wanted: list[str]) -> None:
    """Raises unless there is what is wanted, and nothing else; names three that differ."""
    there = set(there)
    for what, names in (("lacks", sorted(set(wanted) - there)), ("also has", sorted(there - set(wanted)))):
        if names:
            more = f" and {len(names) - 3:,} others" if len(names) > 3 else ""
            raise InvalidArgument("source", str(path), f"complete; it {what} {', '.join(names[:3])}{more}")


@contextlib.contextmanager
def _intact(path: pathlib.Path, what: str = "") -> Iterator[None]:
    """Turns the errors of a damaged file into one of a line."""
    try:
        yield
    except InvalidArgument:
        raise
    except Exception as error:  # a damaged archive can raise nearly any error
        raise InvalidArgument("source", str(path), f"an intact archive; {what}({one_line(error)})") from None
