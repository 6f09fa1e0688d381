"""Data sets in the official formats of CIFAR and MNIST: small ones, made of the digits, and broken ones."""

import gzip
import hashlib
import io
import pathlib
import pickle
import re
import tarfile

import numpy as np
import pytest

from bsjax import InvalidArgument
from bsjax.data import Dataset, Split, cache, formats, load_dataset, prepare

BATCHES = [f"data_batch_{number}" for number in range(1, 6)]
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100_CLASSES = tuple(f"class_{label}" for label in range(100))


def digits(name, side, channels, class_names=tuple("0123456789")):
    """250 digits to train on and 60 to test on, in images as large as asked for, whose channels and sides differ."""
    whole = load_dataset("digits")

    def split(part, size):
        images = np.zeros((size, side, side, channels), np.uint8)
        for channel in range(channels):
            images[:, 2 : 10 + 8 * (side == 32) : 1 + (side == 32), channel : channel + 8, channel] = 1 + (
                part.images[:size, ..., 0] * (15 - channel)
            )
        return Split(images, part.labels[:size] * (len(class_names) // 10))

    return Dataset(name, split(whole.train, 250), split(whole.test, 60), class_names)


def planes(images):
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)


def cifar_pickles(dataset):
    fine = "fine_" * (len(dataset.class_names) == 100)

    def batch(images, labels):
        return {b"data": planes(images), f"{fine}labels".encode(): labels.tolist(), b"batch_label": b"some"}

    meta = {f"{fine}label_names".encode(): [name.encode() for name in dataset.class_names]}
    if fine:
        files = {"train": batch(*dataset.train), "test": batch(*dataset.test), "meta": meta}
    else:
        parts = zip(BATCHES, *(np.split(array, 5) for array in dataset.train), strict=True)
        files = {name: batch(images, labels) for name, images, labels in parts}
        files |= {"test_batch": batch(*dataset.test), "batches.meta": meta}
    return {name: pickle.dumps(value, protocol=2) for name, value in files.items()}


def cifar_binary(dataset):
    fine = len(dataset.class_names) == 100
    names = "".join(f"{name}\n" for name in dataset.class_names).encode()

    def records(images, labels):
        coarse = [labels[:, None] // 5] if fine else []
        return np.concatenate([*coarse, labels[:, None], planes(images)], axis=1).astype(np.uint8).tobytes()

    if fine:
        return {"train.bin": records(*dataset.train), "test.bin": records(*dataset.test), "fine_label_names.txt": names}
    parts = zip(BATCHES, *(np.split(array, 5) for array in dataset.train), strict=True)
    files = {f"{name}.bin": records(images, labels) for name, images, labels in parts}
    return files | {"test_batch.bin": records(*dataset.test), "batches.meta.txt": names + b"\n"}


def mnist_files(dataset, zipped=True):
    files = {}
    for prefix, (images, labels) in (("train", dataset.train), ("t10k", dataset.test)):
        for suffix, array in (("images-idx3-ubyte", images[..., 0]), ("labels-idx1-ubyte", labels)):
            data = (
                bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.astype(np.uint8).tobytes()
            )
            name = f"{prefix}-{suffix}{'.gz' * zipped}"
            files[name] = gzip.compress(data) if zipped else data
    return files


def write_folder(path, files):
    path.mkdir(exist_ok=True)
    for name, data in files.items():
        (path / name).write_bytes(data)
    return path


def write_archive(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in {"readme.html": b"<html>", **files}.items():
            member = tarfile.TarInfo(f"cifar/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def md5(data):
    return hashlib.md5(data).hexdigest()


SETS = {
    "cifar10": digits("cifar10", 32, 3, CIFAR10_CLASSES),
    "cifar100": digits("cifar100", 32, 3, CIFAR100_CLASSES),
    "mnist": digits("mnist", 28, 1),
    "fashion_mnist": digits("fashion_mnist", 28, 1, tuple(formats.CLASS_NAMES["fashion_mnist"])),
}
SOURCES = [
    *(("cifar10", "cifar-10-python.tar.gz"), ("cifar10", "cifar-10-batches-py"), ("cifar10", "cifar-10-binary.tar.gz")),
    *(("cifar10", "cifar-10-batches-bin"), ("cifar100", "cifar-100-python.tar.gz"), ("cifar100", "cifar-100-python")),
    *(("cifar100", "cifar-100-binary.tar.gz"), ("cifar100", "cifar-100-binary")),
    *(("mnist", "zipped"), ("mnist", "unzipped"), ("fashion_mnist", "zipped")),
]


def make_source(folder, name, kind):
    """Writes a source; returns its path and its MD5s."""
    dataset = SETS[name]
    if "mnist" in name:
        files = mnist_files(dataset, kind == "zipped")
    else:
        files = cifar_binary(dataset) if "bin" in kind else cifar_pickles(dataset)
    if kind.endswith(".tar.gz"):
        path = write_archive(folder / kind, files)
        return path, {kind: md5(path.read_bytes())}
    return write_folder(folder / kind, files), {file: md5(data) for file, data in files.items() if ".txt" not in file}


@pytest.fixture
def official(monkeypatch):
    """Makes some MD5s the official ones of a data set."""

    def declare(name, md5s):
        monkeypatch.setitem(formats.OFFICIAL_MD5, name, md5s)

    return declare


@pytest.mark.parametrize(("name", "kind"), SOURCES)
def test_official_files_are_read_exactly_and_from_the_cache_again(tmp_path, official, name, kind, assert_same_dataset):
    path, md5s = make_source(tmp_path, name, kind)
    official(name, md5s)
    prepared = prepare.read_source(name, path)
    assert_same_dataset(prepared.dataset, SETS[name])
    assert prepared.source["official"] is True
    assert prepared.source["path"] == str(path)
    assert md5s.items() <= prepared.source["md5"].items()
    cache.write(prepared.dataset, tmp_path / "data", prepared.source)
    assert_same_dataset(load_dataset(name, tmp_path / "data"), SETS[name])


@pytest.mark.parametrize(("name", "kind"), SOURCES)
def test_other_checksums_are_refused_and_allowed_only_where_nothing_is_unpickled(
    tmp_path, name, kind, assert_same_dataset
):
    path, md5s = make_source(tmp_path, name, kind)
    file = next(iter(md5s))
    message = f"; it must be the official {file} with md5 {formats.OFFICIAL_MD5[name][file]}; its md5 is {md5s[file]}"
    with pytest.raises(InvalidArgument, match=re.escape(message)) as error:
        prepare.read_source(name, path)
    pickled = "py" in kind
    assert ("--allow_other_checksum" in str(error.value)) == (not pickled)
    if pickled:
        with pytest.raises(InvalidArgument, match=re.escape(message)):
            prepare.read_source(name, path, allow_other_checksum=True)
    else:
        prepared = prepare.read_source(name, path, allow_other_checksum=True)
        assert prepared.source["official"] is False
        assert_same_dataset(prepared.dataset, SETS[name])


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


@pytest.mark.parametrize("allow", [False, True])
@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mine"])
@pytest.mark.parametrize("archived", [False, True])
def test_a_pickle_of_another_checksum_is_never_unpickled(tmp_path, official, name, archived, allow):
    victim = tmp_path / "made by a pickle"
    files = cifar_pickles(SETS["cifar100" if name == "cifar100" else "cifar10"])
    last = list(files)[-1]
    # All the other files are official ones, and so is every file by name but for its contents.
    official("cifar100" if name == "cifar100" else "cifar10", {file: md5(data) for file, data in files.items()})
    files[last] = pickle.dumps(Malicious(victim), protocol=2)
    write = write_archive if archived else write_folder
    with pytest.raises(InvalidArgument, match=r"it must be the official"):
        prepare.read_source(name, write(tmp_path / ("source.tar.gz" * archived or "source"), files), allow)
    assert not victim.exists()
    pickle.loads(files[last])
    assert victim.exists()


def test_official_checksums_by_their_length_and_of_each_file():
    for name, sums in formats.OFFICIAL_MD5.items():
        assert all(re.fullmatch("[0-9a-f]{32}", value) for value in sums.values())
        needed = {
            file for kind in formats.KINDS if name in kind.datasets for file in (*kind.files, kind.archive) if file
        }
        assert needed - sums.keys() <= {"batches.meta.txt", "fine_label_names.txt"}
    every = [value for sums in formats.OFFICIAL_MD5.values() for value in sums.values()]
    assert len(set(every)) == len(every)


def test_another_set_in_mnists_format_has_no_official_checksum(tmp_path, assert_same_dataset):
    expected = digits("letters", 28, 1)
    prepared = prepare.read_source("letters", write_folder(tmp_path / "letters", mnist_files(expected)))
    assert prepared.source["official"] is None
    assert_same_dataset(prepared.dataset, expected)


def test_fashion_mnist_under_the_name_of_mnist(tmp_path, official):
    path, md5s = make_source(tmp_path, "fashion_mnist", "zipped")
    official("fashion_mnist", md5s)
    with pytest.raises(InvalidArgument, match=r"; nearest: --dataset=fashion_mnist$"):
        prepare.read_source("mnist", path)


def broken_sources(folder):
    """(name, path, message) of each."""
    archive, _ = make_source(folder, "cifar10", "cifar-10-binary.tar.gz")
    half = folder / "half.tar.gz"
    half.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    yield "cifar10", half, "whole and in a known format (EOFError"
    yield "cifar10", folder / "cifar-10-binary.tar", "a file or folder that exists; nearest: cifar-10-binary.tar.gz"
    yield "cifar10", folder / "no such folder" / "a", "a file or folder that exists"
    (folder / "text").write_text("no archive")
    yield "cifar10", folder / "text", "an archive or folder of CIFAR-10"
    (folder / "gz.tar.gz").write_bytes(gzip.compress(b"no archive" * 100))
    yield "cifar10", folder / "gz.tar.gz", "whole and in a known format (ReadError"
    yield "cifar10", write_folder(folder / "empty", {}), "an archive or folder of CIFAR-10"
    yield "cifar10", write_archive(folder / "other.tar.gz", {"a": b""}), "an archive or folder of CIFAR-10"
    yield "cifar100", archive, "of cifar100, and this is CIFAR-10, binary"
    yield "mnist", archive, "of mnist, and this is CIFAR-10, binary"
    files = cifar_binary(SETS["cifar10"])
    missing = {file: data for file, data in files.items() if file != "data_batch_3.bin"}
    yield "cifar10", write_folder(folder / "missing", missing), "whole; data_batch_3.bin of CIFAR-10, binary is not in"
    cut = files | {"data_batch_3.bin": files["data_batch_3.bin"][:-1]}
    yield "cifar10", write_folder(folder / "cut", cut), "whole and in a known format (ValueError: cannot reshape"
    files = mnist_files(SETS["mnist"])
    images = "train-images-idx3-ubyte.gz"
    data = gzip.decompress(files[images])
    for number, (wrong, message) in enumerate(
        [
            (files[images][:-20], "whole and in a known format (EOFError"),
            (files[images][:-20] + bytes(20), "whole and in a known format ("),
            (b"no gzip", "whole and in a known format (BadGzipFile"),
            (gzip.compress(data[:-1]), "whole and in a known format (ValueError: cannot reshape"),
            (gzip.compress(data[:9]), "whole and in a known format (ValueError"),
            (files["t10k-labels-idx1-ubyte.gz"], f"(ValueError: {images} does not begin as an idx3-ubyte file"),
        ]
    ):
        yield "mnist", write_folder(folder / f"mnist{number}", files | {images: wrong}), message


def test_broken_sources(tmp_path):
    for name, path, message in broken_sources(tmp_path):
        with pytest.raises(InvalidArgument) as error:
            prepare.read_source(name, path, allow_other_checksum=True)
        assert str(error.value).startswith(f"source is {str(path)!r}; it must be ")
        assert message in str(error.value), str(error.value)
        assert "\n" not in str(error.value)
