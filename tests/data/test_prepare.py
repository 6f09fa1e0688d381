"""Data sets in the official formats of CIFAR and MNIST: small ones, and broken ones."""

import dataclasses
import gzip
import hashlib
import io
import pickle
import re
import tarfile
import tracemalloc

import numpy as np
import pytest

from bsjax import InvalidArgument
from bsjax.data import cache, formats, load_dataset, prepare

SETS = {  # side, channels, class names
    "cifar10": (32, 3, ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]),
    "cifar100": (32, 3, [f"class_{label}" for label in range(100)]),
    "mnist": (28, 1, list("0123456789")),
    "fashion_mnist": (28, 1, formats.CLASS_NAMES["fashion_mnist"]),
}
SOURCES = [
    *(("cifar10", "cifar-10-python.tar.gz"), ("cifar10", "cifar-10-batches-py"), ("cifar10", "cifar-10-binary.tar.gz")),
    *(("cifar10", "cifar-10-batches-bin"), ("cifar100", "cifar-100-python.tar.gz"), ("cifar100", "cifar-100-python")),
    *(("cifar100", "cifar-100-binary.tar.gz"), ("cifar100", "cifar-100-binary")),
    *(("mnist", "zipped"), ("mnist", "unzipped"), ("fashion_mnist", "zipped")),
]


@pytest.fixture(scope="module")
def sets(make_dataset):
    """Small data sets with the official names, shapes and classes."""

    def make(name, side, channels, class_names):
        dataset = make_dataset(250, 60, (side, side, channels), len(class_names))
        return dataclasses.replace(dataset, name=name, class_names=tuple(class_names))

    return {name: make(name, *shape) for name, shape in SETS.items()}


def cifar_files(dataset, binary):
    fine = len(dataset.class_names) == 100
    train, test = (source.examples.values() for source in (dataset.train, dataset.test))
    fifths = zip(*(np.split(array, 5) for array in train), strict=True)
    ten = {f"data_batch_{number}": batch for number, batch in enumerate(fifths, 1)} | {"test_batch": test}
    files = {}
    for name, (images, labels) in ({"train": train, "test": test} if fine else ten).items():
        planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)
        if binary:
            coarse = [labels[:, None] // 5] if fine else []
            records = np.concatenate([*coarse, labels[:, None], planes], axis=1)
            files[f"{name}.bin"] = records.astype(np.uint8).tobytes()
        else:
            key = b"fine_labels" if fine else b"labels"
            batch = {b"data": planes, key: labels.tolist(), b"batch_label": b"some"}
            files[name] = pickle.dumps(batch, protocol=2)
    names = [name.encode() for name in dataset.class_names]
    if binary:
        files["fine_label_names.txt" if fine else "batches.meta.txt"] = b"\n".join(names) + b"\n" * (1 if fine else 2)
    else:
        key = b"fine_label_names" if fine else b"label_names"
        files["meta" if fine else "batches.meta"] = pickle.dumps({key: names}, protocol=2)
    return files


def mnist_files(dataset, zipped=True):
    files = {}
    for prefix, source in (("train", dataset.train), ("t10k", dataset.test)):
        images, labels = source.examples["image"][..., 0], source.examples["label"].astype(np.uint8)
        for suffix, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
            data = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
            files[f"{prefix}-{suffix}{'.gz' * zipped}"] = gzip.compress(data) if zipped else data
    return files


def write_folder(path, files):
    path.mkdir()
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


def make_source(folder, dataset, kind):
    """Writes a source; returns its path and its MD5s."""
    if "mnist" in dataset.name:
        files = mnist_files(dataset, kind == "zipped")
    else:
        files = cifar_files(dataset, "bin" in kind)
    if kind.endswith(".tar.gz"):
        path = write_archive(folder / kind, files)
        return path, {kind: md5(path.read_bytes())}
    return write_folder(folder / kind, files), {file: md5(data) for file, data in files.items() if ".txt" not in file}


@pytest.mark.parametrize(("name", "kind"), SOURCES)
def test_official_files_are_read_exactly_and_other_checksums_only_where_nothing_is_unpickled(
    tmp_path, monkeypatch, sets, name, kind, assert_same_dataset
):
    path, md5s = make_source(tmp_path, sets[name], kind)
    file, pickled = next(iter(md5s)), "py" in kind
    message = f"; it must be the official {file}, with md5 {formats.OFFICIAL_MD5[name][file]}; its md5 is {md5s[file]}"
    for allow in (False, True) if pickled else (False,):
        with pytest.raises(InvalidArgument, match=re.escape(message)) as error:
            prepare.read_source(name, path, allow)
        assert ("--allow_other_checksum" in str(error.value)) == (not pickled)
    if not pickled:
        prepared = prepare.read_source(name, path, allow_other_checksum=True)
        assert prepared.source["official"] is False
        assert_same_dataset(prepared.dataset, sets[name])

    monkeypatch.setitem(formats.OFFICIAL_MD5, name, md5s)
    prepared = prepare.read_source(name, path)
    assert_same_dataset(prepared.dataset, sets[name])
    assert prepared.source["official"] is True
    assert prepared.source["path"] == str(path)
    assert md5s.items() <= prepared.source["md5"].items()
    cache.write(prepared.dataset, tmp_path / "data", prepared.source)
    assert_same_dataset(load_dataset(name, tmp_path / "data"), sets[name])


@pytest.mark.parametrize("allow", [False, True])
@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mine"])
@pytest.mark.parametrize("write", [write_archive, write_folder])
def test_a_pickle_of_another_checksum_is_never_unpickled(tmp_path, monkeypatch, sets, malicious, name, write, allow):
    real_name = "cifar10" if name == "mine" else name
    files = cifar_files(sets[real_name], binary=False)
    # All the other files are official ones, and so is every file by name but for its contents.
    monkeypatch.setitem(formats.OFFICIAL_MD5, real_name, {file: md5(data) for file, data in files.items()})
    harm, victim = malicious
    files[list(files)[-1]] = pickle.dumps(harm, protocol=2)
    with pytest.raises(InvalidArgument, match=r"it must be the official"):
        prepare.read_source(name, write(tmp_path / "source.tar.gz", files), allow)
    assert not victim.exists()
    pickle.loads(pickle.dumps(harm))
    assert victim.exists()


def test_official_checksums_are_there_for_each_file_and_all_differ():
    for name, sums in formats.OFFICIAL_MD5.items():
        kinds = [kind for kind in formats.KINDS if name in kind.datasets]
        needed = {file for kind in kinds for file in (*kind.files, kind.archive) if file}
        assert needed - sums.keys() <= {"batches.meta.txt", "fine_label_names.txt"}
    every = [value for sums in formats.OFFICIAL_MD5.values() for value in sums.values()]
    assert all(re.fullmatch("[0-9a-f]{32}", value) for value in every)
    assert len(set(every)) == len(every)


def test_another_set_in_mnists_format_has_no_official_checksum(tmp_path, sets, assert_same_dataset):
    prepared = prepare.read_source("letters", write_folder(tmp_path / "letters", mnist_files(sets["mnist"])))
    assert prepared.source["official"] is None
    assert_same_dataset(prepared.dataset, dataclasses.replace(sets["mnist"], name="letters"))


def test_fashion_mnist_under_the_name_of_mnist(tmp_path, monkeypatch, sets):
    path, md5s = make_source(tmp_path, sets["fashion_mnist"], "zipped")
    monkeypatch.setitem(formats.OFFICIAL_MD5, "fashion_mnist", md5s)
    with pytest.raises(InvalidArgument, match=r"; nearest: --dataset=fashion_mnist$"):
        prepare.read_source("mnist", path)


def broken_sources(folder, sets):
    """(name, path, message) of each."""
    archive, _ = make_source(folder, sets["cifar10"], "cifar-10-binary.tar.gz")
    (folder / "half.tar.gz").write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    (folder / "text").write_text("no archive")
    (folder / "gz.tar.gz").write_bytes(gzip.compress(b"no archive" * 100))
    write_folder(folder / "empty", {})
    write_archive(folder / "other.tar.gz", {"a": b""})
    files = cifar_files(sets["cifar10"], binary=True)
    third = files["data_batch_3.bin"]
    write_folder(folder / "cut", files | {"data_batch_3.bin": third[:-1]})
    del files["data_batch_3.bin"]
    write_folder(folder / "missing", files)
    for name, file, message in [
        ("cifar10", "half.tar.gz", "complete and in a known format (EOFError"),
        ("cifar10", "cifar-10-binary.tar", "a file or folder that exists; nearest: cifar-10-binary.tar.gz"),
        ("cifar10", "no such folder/a", "a file or folder that exists"),
        ("cifar10", "text", "an archive or folder of CIFAR-10"),
        ("cifar10", "gz.tar.gz", "complete and in a known format (ReadError"),
        ("cifar10", "empty", "an archive or folder of CIFAR-10"),
        ("cifar10", "other.tar.gz", "an archive or folder of CIFAR-10"),
        ("cifar100", archive.name, "a source of cifar100; this is CIFAR-10, binary"),
        ("mnist", archive.name, "a source of mnist; this is CIFAR-10, binary"),
        ("cifar10", "missing", "complete; data_batch_3.bin of CIFAR-10, binary is missing"),
        ("cifar10", "cut", "complete and in a known format (ValueError: cannot reshape"),
    ]:
        yield name, folder / file, message
    files = mnist_files(sets["mnist"])
    images = "train-images-idx3-ubyte.gz"
    data = gzip.decompress(files[images])
    too_large = data[:4] + b"\xff" * 12 + data[16:]
    for number, (wrong, message) in enumerate(
        [
            (files[images][:-20], "complete and in a known format (EOFError"),
            (files[images][:-20] + bytes(20), "complete and in a known format ("),
            (b"no gzip", "complete and in a known format (BadGzipFile"),
            (gzip.compress(data[:-1]), f"{images} holds 195,999 bytes, and its header says 196,000"),
            (gzip.compress(data + b"0"), f"{images} holds more bytes, and its header says 196,000"),
            (gzip.compress(too_large), f"{images} holds 196,000 bytes, and"),
            (gzip.compress(data[:9]), "complete and in a known format (ValueError"),
            (files["t10k-labels-idx1-ubyte.gz"], f"(ValueError: {images} does not begin as an idx3-ubyte file"),
        ]
    ):
        yield "mnist", write_folder(folder / f"mnist{number}", files | {images: wrong}), message


def test_broken_sources(tmp_path, sets):
    for name, path, message in broken_sources(tmp_path, sets):
        with pytest.raises(InvalidArgument) as error:
            prepare.read_source(name, path, allow_other_checksum=True)
        assert str(error.value).startswith(f"source is {str(path)!r}; it must be ")
        assert message in str(error.value), str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_a_gzip_is_not_unpacked_beyond_what_it_should_hold(tmp_path, sets, name):
    bomb = gzip.compress(bytes(1 << 20)) * 1024
    path = tmp_path / "bomb.tar.gz"
    if name == "cifar10":
        path.write_bytes(bomb)
        message = "an archive of at most 256 MiB when unpacked"
    else:
        labels = "t10k-labels-idx1-ubyte.gz"
        files = mnist_files(sets["mnist"])
        write_folder(path, files | {labels: files[labels] + bomb})
        message = f"{labels} holds more bytes"
    tracemalloc.start()
    with pytest.raises(InvalidArgument, match=message):
        prepare.read_source(name, path, allow_other_checksum=True)
    assert tracemalloc.get_traced_memory()[1] < 640 << 20
    tracemalloc.stop()
