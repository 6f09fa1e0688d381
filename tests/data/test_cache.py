"""Prepared data sets are read as they were written, or an error names the damaged file."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from bsjax import InvalidArgument
from bsjax.data import ArraySource, cache, load_dataset

FILES = ("dataset.json", "test_images.npy", "test_labels.npy", "train_images.npy", "train_labels.npy")


def test_what_is_written_is_read_without_copying_it_to_memory(small, tmp_path, assert_same_dataset):
    folder = cache.write(small, tmp_path, {"path": "/archive.npz"})
    assert folder == tmp_path / "small"
    assert sorted(os.listdir(tmp_path)) == ["small"]
    assert sorted(os.listdir(folder)) == sorted(FILES)
    dataset = cache.read("small", tmp_path)
    assert_same_dataset(dataset, small)
    images = dataset.train.examples["image"]
    assert isinstance(images.base, np.memmap)
    assert type(images) is np.ndarray  # which jax takes
    assert not images.flags.writeable
    np.testing.assert_array_equal([dataset.mean, dataset.std], [small.mean, small.std])
    record = json.loads((folder / "dataset.json").read_text())
    assert record["source"] == {"path": "/archive.npz"}
    assert record["files"]["train_images"]["shape"] == [50, 12, 6, 3]


def test_load_dataset_reads_what_is_prepared(small, tmp_path, monkeypatch, assert_same_dataset):
    cache.write(small, tmp_path)
    assert_same_dataset(load_dataset("small", tmp_path), small)
    monkeypatch.setenv("BSJAX_DATA_DIR", str(tmp_path))
    assert_same_dataset(load_dataset("small"), small)
    monkeypatch.delenv("BSJAX_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.resolve_data_dir() == tmp_path / "home" / ".cache" / "bsjax"
    assert cache.resolve_data_dir("~/data") == tmp_path / "home" / "data"


def test_training_imports_neither_tensorflow_nor_tensorflow_datasets(small, tmp_path):
    cache.write(small, tmp_path)
    code = (
        "import sys, experiments.train; from bsjax.data import load_dataset; load_dataset('small', sys.argv[1]).mean;"
        "print([name for name in ('tensorflow', 'tensorflow_datasets') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (None, "is missing"),
        (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "another checksum"),
        (lambda data: data[:-7], "bytes instead of"),
        (lambda data: data + b"0", "bytes instead of"),
    ],
    ids=["missing", "a byte", "truncated", "longer"],
)
def test_damage_is_found_with_the_command_that_mends_it(small, tmp_path, file, damage, reason, assert_same_dataset):
    path = cache.write(small, tmp_path, {"path": "/some where/archive.npz"}) / file
    if damage:
        path.write_bytes(damage(path.read_bytes()))
    else:
        path.unlink()
    with pytest.raises(InvalidArgument) as error:
        load_dataset("small", tmp_path)
    source = " '--source=/some where/archive.npz'"
    if file == "dataset.json":
        source, reason = "", "is damaged" if damage else reason
    assert f"dataset is 'small'; it must be prepared again, because {path} " in str(error.value)
    assert reason in str(error.value)
    command = f": .venv/bin/python scripts/prepare_data.py --dataset=small{source} --data_dir={tmp_path}"
    assert str(error.value).endswith(command)
    cache.write(small, tmp_path)
    assert_same_dataset(load_dataset("small", tmp_path), small)
    assert os.listdir(tmp_path) == ["small"]


def test_another_version_and_another_name_are_refused(small, tmp_path, monkeypatch):
    folder = cache.write(small, tmp_path)
    folder.rename(tmp_path / "other")
    with pytest.raises(InvalidArgument, match=r"^dataset is 'other'; .*, because .*/other holds 'small'$"):
        cache.read("other", tmp_path)
    (tmp_path / "other").rename(folder)
    monkeypatch.setattr(cache, "FORMAT_VERSION", 2)
    with pytest.raises(InvalidArgument, match=r"dataset.json has format version 1, not 2"):
        cache.read("small", tmp_path)


@pytest.mark.parametrize("file", ["train_images.npy", "test_labels.npy"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("No space left on device")])
def test_an_interrupted_preparation_leaves_nothing(small, tmp_path, monkeypatch, file, error):
    save = np.save

    def interrupted(path, array):
        if path.name == file:
            path.write_bytes(b"half")
            raise error
        save(path, array)

    monkeypatch.setattr(np, "save", interrupted)
    message = None if error is KeyboardInterrupt else "data_dir is '.*'; it must be a folder .*: No space left"
    with pytest.raises((KeyboardInterrupt, InvalidArgument), match=message):
        cache.write(small, tmp_path)
    assert not os.listdir(tmp_path)


def test_what_a_killed_preparation_leaves_is_not_read_and_the_next_one_removes_it(small, tmp_path):
    code = """if True:
        import os, signal, sys
        import numpy as np
        from bsjax.data import cache, load_dataset
        save = np.save
        np.save = lambda path, array: os.kill(os.getpid(), signal.SIGKILL) if "test" in path.name else save(path, array)
        cache.write(load_dataset("digits"), sys.argv[1])
    """
    process = subprocess.run([sys.executable, "-c", code, tmp_path])
    assert process.returncode == -signal.SIGKILL
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".digits.partial-")
    assert not cache.exists("digits", tmp_path)
    assert cache.prepared_names(tmp_path) == []
    cache.write(load_dataset("digits"), tmp_path)
    assert os.listdir(tmp_path) == ["digits"]


def test_a_preparation_under_way_is_left_alone(small, tmp_path, monkeypatch, assert_same_dataset):
    save, inner = np.save, []

    def save_and_write_again(path, array):
        save(path, array)
        if not inner:
            inner.append(path.parent)
            cache.write(small, tmp_path)  # by another process, say, while the first has begun
            assert inner[0].is_dir()

    monkeypatch.setattr(np, "save", save_and_write_again)
    cache.write(small, tmp_path)
    assert_same_dataset(cache.read("small", tmp_path), small)
    assert os.listdir(tmp_path) == ["small"]


def test_names_that_share_a_folder_do_not_overwrite_each_other(small, tmp_path, assert_same_dataset):
    first, second = (dataclasses.replace(small, name=name) for name in ("a/b", "a-b"))
    cache.write(first, tmp_path)
    message = f"dataset is 'a-b'; it must be kept in another --data_dir, because {tmp_path}/a-b holds 'a/b'"
    for use in (cache.write, lambda dataset, data_dir: load_dataset(dataset.name, data_dir)):
        with pytest.raises(InvalidArgument, match=f"^{re.escape(message)}$"):
            use(second, tmp_path)
    cache.write(first, tmp_path)
    assert_same_dataset(load_dataset("a/b", tmp_path), first)
    assert cache.prepared_names(tmp_path) == ["a/b"]


def test_the_fingerprint_is_of_all_the_data(small, tmp_path):
    def fingerprints(images):
        train = ArraySource({"image": images, "label": small.train.examples["label"]})
        cache.write(dataclasses.replace(small, train=train), tmp_path)
        dataset = cache.read("small", tmp_path)
        return dataset.train.fingerprint, dataset.test.fingerprint

    images = small.train.examples["image"].copy()
    train, test = fingerprints(images)
    assert train != test
    assert fingerprints(images) == (train, test)
    images[-1, -1, -1, -1] ^= 1
    changed, same = fingerprints(images)
    assert (changed != train, same) == (True, test)


def test_a_source_that_only_gathers_is_written_too(small, tmp_path, assert_same_dataset):
    class Decoded:
        """Examples that exist one at a time, as decoded JPEGs do."""

        nbytes, fingerprint = None, "some files"

        def __len__(self):
            return len(small.train)

        def gather(self, indices):
            return small.train.gather(indices)

    cache.write(dataclasses.replace(small, train=Decoded()), tmp_path)
    assert_same_dataset(cache.read("small", tmp_path), small)


def test_a_folder_that_cannot_be_written(small, tmp_path):
    (tmp_path / "file").touch()
    for data_dir in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InvalidArgument, match=r"data_dir is '.*'; it must be a folder that can be written: "):
            cache.write(small, data_dir)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar10", "or prepared first: .venv/bin/python scripts/prepare_data.py --dataset=cifar10 --data_dir={}$"),
        ("svhn_croped", "; nearest: svhn_cropped$"),
        ("CIFAR-100", "; nearest: cifar100$"),
        ("digit", "one of digits, synthetic, signals, small, .*; nearest: digits$"),
        ("smal", "--dataset=smal --data_dir={}; nearest: small$"),
        ("food101", "prepare_data.py --dataset=food101 --data_dir={}$"),
        ("../small", "it must be a name made of letters"),
        ("", "it must be a name made of letters"),
    ],
)
def test_a_data_set_that_is_not_there(small, tmp_path, name, message):
    cache.write(small, tmp_path)
    with pytest.raises(InvalidArgument, match=message.format(tmp_path)) as error:
        load_dataset(name, tmp_path)
    assert str(error.value).startswith(f"dataset is {name!r}; it must be ")
    assert "\n" not in str(error.value)
