"""Data sets from .npz files, and the script that prepares data sets."""

import dataclasses
import functools
import hashlib
import io
import pathlib
import re
import zipfile

import numpy as np
import pytest

from bsjax import InvalidArgument
from bsjax.data import load_dataset, prepare

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "prepare_data.py"


def npz_arrays(dataset):
    splits = {"train": dataset.train.examples, "test": dataset.test.examples}
    return {f"{split}_{key}s": array for split, examples in splits.items() for key, array in examples.items()}


@pytest.mark.parametrize(
    ("members", "class_names"),
    [
        ({}, tuple("0123456789")),
        ({"class_names": [*"abcdefghij"]}, tuple("abcdefghij")),
        ({"class_names": [b"a"] * 10, "not read": np.array([{}], object)}, ("a",) * 10),
    ],
)
def test_npz(small, assert_same_dataset, tmp_path, members, class_names):
    np.savez(tmp_path / "a.npz", **npz_arrays(small), **members)
    prepared = prepare.read_source("small", tmp_path / "a.npz")
    assert_same_dataset(prepared.dataset, dataclasses.replace(small, class_names=class_names))
    assert prepared.source["md5"] == {"a.npz": hashlib.md5((tmp_path / "a.npz").read_bytes()).hexdigest()}


def test_grey_images_get_a_channel(make_dataset, assert_same_dataset, tmp_path):
    grey = make_dataset(train_size=50)
    arrays = {key: array[..., 0] if "images" in key else array for key, array in npz_arrays(grey).items()}
    np.savez(tmp_path / "a.npz", **arrays)
    assert_same_dataset(prepare.read_source("small", tmp_path / "a.npz").dataset, grey)


def test_an_npz_of_pickled_objects_is_not_unpickled(small, malicious, tmp_path):
    harm, victim = malicious
    np.savez(tmp_path / "a.npz", **npz_arrays(small), class_names=np.array([harm], object))
    with pytest.raises(InvalidArgument, match=r"an .npz whose class_names can be read .*allow_pickle=False"):
        prepare.read_source("mine", tmp_path / "a.npz")
    assert not victim.exists()


@pytest.mark.parametrize(
    ("key", "array", "message"),
    [
        ("train_images", np.zeros((9, 8, 8, 3), np.float32), "uint8 images .* images are float32 [9, 8, 8, 3]"),
        ("train_images", np.zeros((9, 64), np.uint8), "uint8 images .* train images are uint8 [9, 64]"),
        ("train_images", np.zeros((0, 8, 8), np.uint8), "uint8 images .* train images are uint8 [0, 8, 8, 1]"),
        ("test_images", np.zeros((9, 8, 9, 1), np.uint8), "[8, 8, 1] in train; .* images are uint8 [9, 8, 9, 1]"),
        ("train_labels", np.zeros(8, np.int64), "one whole number .*; its train labels are int64 [8] for 9"),
        ("test_labels", np.zeros(9), "one whole number .*; its test labels are float64 [9] for 9"),
        ("train_labels", np.full(9, -1), "labels from 0 to 1; its train labels are from -1 to -1"),
        ("test_labels", np.full(9, 2, np.uint8), "labels from 0 to 1; its test labels are from 2 to 2"),
        ("test_labels", None, "an .npz with arrays train_images, .*; it has .*, and not test_labels"),
    ],
)
def test_arrays_that_are_no_image_classification(tmp_path, key, array, message):
    images, labels = np.zeros((9, 8, 8), np.uint8), np.zeros(9, np.int64)
    arrays = {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels, key: array}
    names = np.array(["cat", "dog"])
    np.savez(tmp_path / "a.npz", **{k: array for k, array in arrays.items() if array is not None}, class_names=names)
    pattern = re.escape(message).replace(r"\.\*", ".*")
    with pytest.raises(InvalidArgument, match=f"^source is '.*'; it must be .*{pattern}"):
        prepare.read_source("mine", tmp_path / "a.npz")


def test_broken_npz_files(small, tmp_path):
    np.savez(tmp_path / "good.npz", **npz_arrays(small))
    good = (tmp_path / "good.npz").read_bytes()
    for data, message in (
        (good[: len(good) // 2], r"complete and in a known format \(BadZipFile"),
        (good[:5000] + bytes([good[5000] ^ 1]) + good[5001:], r"an .npz whose train_images .*\(BadZipFile: Bad CRC-32"),
        (b"no zip", r"complete and in a known format \(BadZipFile"),
        (b"", r"complete and in a known format \(BadZipFile"),
    ):
        (tmp_path / "bad.npz").write_bytes(data)
        with pytest.raises(InvalidArgument, match=rf"bad\.npz'; it must be {message}"):
            prepare.read_source("small", tmp_path / "bad.npz")


def npy(array, **changes):
    """A .npy file whose header says something else."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array) | changes)
    return file.getvalue() + array.tobytes()


GARBAGE = b"\x93NUMPY\x01\x00\x08\x00{'x': (\n" + bytes(64)


@pytest.mark.parametrize(
    ("member", "data", "message"),
    [
        ("train_images", b"some text", "train_images is an array"),
        ("train_images.npy", b"some text", "train_images is an array"),
        ("train_images.npy", GARBAGE, "train_images can be read"),
        ("train_images.npy", npy(np.zeros(9, np.uint8), shape=(10**13,)), "train_images can be read"),
        ("test_labels.npy", npy(np.zeros(9, np.int64), shape=(-9,)), "test_labels can be read"),
        ("test_labels.npy", npy(np.zeros(9, np.int64), descr="no such type"), "test_labels can be read"),
        ("class_names.npy", GARBAGE, "class_names can be read"),
        ("class_names.npy", npy(np.array("abc")), r"class_names are an array .*; they are <U3 \[\]"),
        ("class_names.npy", npy(np.array([["a", "b"]])), r"class_names are an array .*; they are <U1 \[1, 2\]"),
        ("class_names.npy", npy(np.arange(10)), r"class_names are an array .*; they are int64 \[10\]"),
    ],
)
def test_members_of_an_npz_that_are_no_arrays_as_they_should_be(small, tmp_path, member, data, message):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        for key, array in npz_arrays(small).items():
            if key != member.removesuffix(".npy"):
                file.writestr(f"{key}.npy", npy(array))
        file.writestr(member, data)
    with pytest.raises(InvalidArgument, match=f"^source is '.*'; it must be an .npz whose {message}") as error:
        prepare.read_source("small", tmp_path / "a.npz")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("dtype", "label"), [(np.int64, 10**15), (np.int64, -1), (np.uint64, 2**64 - 1)])
def test_a_class_for_each_label_only_up_to_a_limit(small, tmp_path, dtype, label):
    labels = np.zeros(50, dtype)
    labels[7] = label
    np.savez(tmp_path / "a.npz", **npz_arrays(small) | {"train_labels": labels})
    found = f"labels from 0 to 99999; its train labels are from {min(label, 0)} to {max(label, 0)}"
    with pytest.raises(InvalidArgument, match=f"it must be a data set with {found}$"):
        prepare.read_source("small", tmp_path / "a.npz")


# The script.


@pytest.fixture
def call(run_python):
    return functools.partial(run_python, SCRIPT)


def test_the_script_prepares_once_and_mends(call, small, assert_same_dataset, tmp_path):
    source, data_dir = tmp_path / "mine.npz", tmp_path / "data"
    np.savez(source, **npz_arrays(small))
    arguments = ["--dataset=small", f"--source={source}", f"--data_dir={data_dir}"]
    first = call(*arguments)
    assert (first.returncode, first.stderr) == (0, "")
    pixels = small.train.examples["image"] / 255
    mean, std = (" ".join(f"{x:.6f}" for x in moment) for moment in (pixels.mean((0, 1, 2)), pixels.std((0, 1, 2))))
    lines = [
        f"Reading {source}",
        "No official md5 of it is known.",
        f"Writing {data_dir / 'small'}",
        f"small in {data_dir / 'small'}",
        "  50 images to train on, 10 to test on",
        "  height 12, width 6, channels 3",
        "  10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9",
        f"  mean by channel, of 1: {mean}",
        f"  standard deviation by channel, of 1: {std}",
    ]
    assert first.stdout.splitlines()[:-1] == lines
    assert_same_dataset(load_dataset("small", data_dir), small)

    train_images, test_images = (data_dir / "small" / f"{split}_images.npy" for split in ("train", "test"))
    written = train_images.stat().st_mtime_ns
    again = call(*arguments)
    assert again.stdout.splitlines() == [*lines[3:], "It is intact; remove that folder to prepare it again."]
    assert train_images.stat().st_mtime_ns == written

    test_images.unlink()
    refusal, *mended = call(*arguments).stdout.splitlines()
    assert "test_images.npy is missing" in refusal
    assert mended[:-1] == ["Preparing it again.", *lines]
    assert_same_dataset(load_dataset("small", data_dir), small)


def test_errors_of_the_script_are_one_line(call, small, tmp_path):
    np.savez(tmp_path / "mine.npz", **npz_arrays(small))
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"no archive")
    (tmp_path / "file").touch()
    for arguments, message in [
        (["--source={}/min.npz"], "--source is '.*'; it must be a file or folder that exists; nearest: mine.npz"),
        (["--source={}/cifar-10-python.tar.gz"], "--source is '.*'; it must be an archive or folder of CIFAR-10 .*"),
        (["--source={}/mine.npz", "--data_dir={}/file"], "--data_dir is '.*'; it must be a folder that can be .*"),
        (["mine"], "--argument is 'mine'; it must be a flag.*"),
        (["--dataset=../mine"], "--dataset is '../mine'; it must be a name made of letters.*"),
    ]:
        result = call("--dataset=mine", f"--data_dir={tmp_path}/data", *(part.format(tmp_path) for part in arguments))
        assert result.returncode == 2
        assert re.fullmatch(f"error: {message}\n", result.stderr), result.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("flag", ["--help", "--helpshort"])
def test_help_shows_the_flags_of_the_script_alone(call, flag):
    shown = re.findall(r"^ +--(?:\[no\])?(\w+):", call(flag).stdout, re.MULTILINE)
    of_text = ["test_share", "tokens", "vocab_size"]
    assert shown == ["allow_other_checksum", "class_folders", "data_dir", "dataset", "source", *of_text]


def test_nothing_to_prepare(call):
    assert call("--dataset=digits").stdout == "digits comes with bsjax; there is nothing to prepare.\n"
