"""Data sets from .npz files, and the script that prepares data sets."""

import dataclasses
import hashlib
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from bsjax import InvalidArgument
from bsjax.data import load_dataset, prepare

SCRIPT = pathlib.Path(__file__).parents[1] / "scripts" / "prepare_data.py"


def npz_arrays(dataset):
    return {
        f"{split}_{what}": getattr(getattr(dataset, split), what)
        for split in ("train", "test")
        for what in ("images", "labels")
    }


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


@pytest.fixture
def small(make_dataset):
    return make_dataset(train_size=50, test_size=10, image_shape=(12, 6, 3))


@pytest.mark.parametrize("class_names", [None, tuple("abcdefghij")])
def test_npz(small, assert_same_dataset, tmp_path, class_names):
    np.savez(tmp_path / "a.npz", **npz_arrays(small), **({"class_names": class_names} if class_names else {}))
    prepared = prepare.read_source("small", tmp_path / "a.npz")
    assert_same_dataset(prepared.dataset, dataclasses.replace(small, class_names=class_names or small.class_names))
    assert prepared.source["md5"] == {"a.npz": hashlib.md5((tmp_path / "a.npz").read_bytes()).hexdigest()}


def test_grey_images_get_a_channel(make_dataset, assert_same_dataset, tmp_path):
    grey = make_dataset(train_size=50)
    arrays = {key: array[..., 0] if "images" in key else array for key, array in npz_arrays(grey).items()}
    np.savez(tmp_path / "a.npz", **arrays)
    assert_same_dataset(prepare.read_source("small", tmp_path / "a.npz").dataset, grey)


def test_npz_of_images_and_fine_labels(small, assert_same_dataset, tmp_path):
    images, labels = (np.concatenate(parts) for parts in zip(small.train, small.test, strict=True))
    np.savez(tmp_path / "a.npz", images=images, fine=labels.astype(np.uint8), coarse=labels, names=small.class_names)
    assert_same_dataset(prepare.read_source("small", tmp_path / "a.npz").dataset, small)


def test_an_npz_of_pickled_objects_is_not_unpickled(small, tmp_path):
    victim = tmp_path / "made by a pickle"
    np.savez(tmp_path / "a.npz", **npz_arrays(small), class_names=np.array([Malicious(victim)], object))
    with pytest.raises(InvalidArgument, match=r"whole and in a known format .*allow_pickle=False"):
        prepare.read_source("mine", tmp_path / "a.npz")
    assert not victim.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_images": np.zeros((9, 8, 8, 3), np.float32)}, "uint8 images .* train images are float32 [9, 8, 8, 3]"),
        ({"train_images": np.zeros((9, 64), np.uint8)}, "uint8 images .* train images are uint8 [9, 64]"),
        ({"train_images": np.zeros((0, 8, 8), np.uint8)}, "uint8 images .* train images are uint8 [0, 8, 8, 1]"),
        ({"test_images": np.zeros((9, 8, 9, 1), np.uint8)}, "one size, as [8, 8, 1] .* images are uint8 [9, 8, 9, 1]"),
        ({"train_labels": np.zeros(8, np.int64)}, "the label of each image; its train labels are int64 [8] for 9"),
        ({"test_labels": np.zeros(9)}, "the label of each image; its test labels are float64 [9] for 9"),
        ({"train_labels": np.full(9, -1)}, "labels from 0 to 1; its train labels are from -1 to -1"),
        ({"test_labels": np.full(9, 2, np.uint8)}, "labels from 0 to 1; its test labels are from 2 to 2"),
        ({"test_labels": None}, "an .npz with arrays train_images, .*; test_labels is missing"),
    ],
)
def test_arrays_that_are_no_image_classification(tmp_path, change, message):
    images, labels = np.zeros((9, 8, 8), np.uint8), np.zeros(9, np.int64)
    arrays = {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels} | change
    names = np.array(["cat", "dog"])
    np.savez(tmp_path / "a.npz", **{k: array for k, array in arrays.items() if array is not None}, class_names=names)
    pattern = re.escape(message).replace(r"\.\*", ".*").replace(r"\ ", " ")
    with pytest.raises(InvalidArgument, match=f"^source is '.*'; it must be .*{pattern}"):
        prepare.read_source("mine", tmp_path / "a.npz")


def test_broken_npz_files(small, tmp_path):
    np.savez(tmp_path / "good.npz", **npz_arrays(small))
    good = (tmp_path / "good.npz").read_bytes()
    for data, message in (
        (good[: len(good) // 2], "BadZipFile"),
        (good[:5000] + bytes([good[5000] ^ 1]) + good[5001:], "BadZipFile: Bad CRC-32"),
        (b"no zip", "BadZipFile"),
        (b"", "BadZipFile"),
    ):
        (tmp_path / "bad.npz").write_bytes(data)
        with pytest.raises(InvalidArgument, match=rf"bad\.npz'; it must be whole and in a known format \({message}"):
            prepare.read_source("small", tmp_path / "bad.npz")


# The script.


def call(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_script_prepares_once_and_mends(small, assert_same_dataset, tmp_path):
    np.savez(tmp_path / "mine.npz", **npz_arrays(small))
    arguments = ["--dataset=small", f"--source={tmp_path / 'mine.npz'}", f"--data_dir={tmp_path / 'data'}"]
    first = call(*arguments)
    assert (first.returncode, first.stderr) == (0, "")
    means = " ".join(f"{x / 255:.6f}" for x in small.train.images.mean(axis=(0, 1, 2)))
    stds = " ".join(f"{x / 255:.6f}" for x in small.train.images.std(axis=(0, 1, 2)))
    lines = [
        f"Reading {tmp_path / 'mine.npz'}",
        "No official md5 of it is known.",
        f"Writing {tmp_path / 'data' / 'small'}",
        f"small in {tmp_path / 'data' / 'small'}",
        "  50 images to train on, 10 to test on",
        "  height 12, width 6, channels 3",
        "  10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
        f"  mean by channel, of 1: {means}",
        f"  standard deviation by channel, of 1: {stds}",
    ]
    assert first.stdout.splitlines()[:-1] == lines
    assert_same_dataset(load_dataset("small", tmp_path / "data"), small)

    written = (tmp_path / "data" / "small" / "train_images.npy").stat().st_mtime_ns
    again = call(*arguments)
    assert again.stdout.splitlines() == [*lines[3:], "It is there and intact; remove that folder to make it again."]
    assert (tmp_path / "data" / "small" / "train_images.npy").stat().st_mtime_ns == written

    (tmp_path / "data" / "small" / "test_images.npy").unlink()
    mended = call(*arguments)
    assert mended.returncode == 0
    assert "test_images.npy is missing" in mended.stdout.splitlines()[0]
    assert mended.stdout.splitlines()[1:-1] == ["Making it again.", *lines]
    assert_same_dataset(load_dataset("small", tmp_path / "data"), small)


def test_errors_of_the_script_are_one_line(small, tmp_path):
    np.savez(tmp_path / "mine.npz", **npz_arrays(small))
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"no archive")
    (tmp_path / "file").touch()
    for arguments, message in [
        (["--source={}/min.npz"], "--source is '.*'; it must be a file or folder that exists; nearest: mine.npz"),
        (["--source={}/cifar-10-python.tar.gz"], "--source is '.*'; it must be an archive or folder of CIFAR-10 .*"),
        (
            ["--source={}/mine.npz", "--data_dir={}/file"],
            "--data_dir is '.*'; it must be a folder that can be written.*",
        ),
        (["mine"], "--argument is 'mine'; it must be a flag.*"),
        (["--dataset=../mine"], "--dataset is '../mine'; it must be a name, .*"),
    ]:
        result = call("--dataset=mine", f"--data_dir={tmp_path}/data", *(part.format(tmp_path) for part in arguments))
        assert result.returncode == 2
        assert re.fullmatch(f"error: {message}\n", result.stderr), result.stderr
    assert not (tmp_path / "data").exists()


def test_nothing_to_prepare():
    assert call("--dataset=digits").stdout == "digits comes with bsjax; there is nothing to prepare.\n"
