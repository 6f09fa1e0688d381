"""ImageNet's official tar files, in small: what is prepared, continued, and refused."""

import functools
import hashlib
import io
import os
import pathlib
import tarfile

import numpy as np
import pytest
import scipy.io
from PIL import Image

from bsjax import InvalidArgument
from bsjax.data import ImageFolder, ImageRecords, ImageSource, formats, prepare_imagenet, write_image_records
from bsjax.errors import RunError

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "prepare_data.py"
TRAIN, VALIDATION, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
NUMBERS = {"n03": (1, 3), "n01": (2, 2), "n02": (3, 4)}  # of each class, as the development kit counts it, and images
TRUTH = (2, 2, 3, 1)
COLOR = (200, 40, 90)


def image(number):
    """JPEGs of noise; three are as odd as some of ImageNet: CMYK, grey, and a PNG by another name."""
    file, odd = io.BytesIO(), {0: "CMYK", 1: "L"}.get(number, "RGB")
    size = (40 + number, 30)
    plain = Image.new("RGB", size, COLOR).convert(odd)
    noise = Image.fromarray(np.random.RandomState(number).randint(256, size=(*size[::-1], 3)).astype(np.uint8))
    (noise if number > 2 else plain).save(file, "PNG" if number == 2 else "JPEG")
    return file.getvalue()


def write_tar(path, files, mode="w", fileobj=None):
    with tarfile.open(path, mode, fileobj) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def in_memory(files):
    file = io.BytesIO()
    write_tar(None, files, fileobj=file)
    return file.getvalue()


def devkit_files():
    rows = [(number, name, "words", 0, count) for name, (number, count) in NUMBERS.items()]
    rows.append((4, "n00", "a group of classes", 3, 0))
    fields = ("ILSVRC2012_ID", "WNID", "words", "num_children", "num_train_images")
    synsets = np.array(rows, [(name, "O") for name in fields])
    file = io.BytesIO()
    scipy.io.savemat(file, {"synsets": synsets[:, None]})
    folder = "ILSVRC2012_devkit_t12/data"
    truth = "".join(f"{number}\n" for number in TRUTH)
    return {
        f"{folder}/meta.mat": file.getvalue(),
        f"{folder}/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
    }


def train_files():
    """The images of each class, not in the order of their names."""
    numbers = iter(range(100))
    return {
        name: {f"{name}_{9 - i}.JPEG": image(next(numbers)) for i in range(count)}
        for name, (_, count) in NUMBERS.items()
    }


VALIDATION_FILES = {f"ILSVRC2012_val_{number:08d}.JPEG": image(50 + number) for number in (3, 1, 2, 4)}


@pytest.fixture
def official(tmp_path):
    folder = tmp_path / "ILSVRC"
    folder.mkdir()
    write_tar(folder / TRAIN, {f"{name}.tar": in_memory(files) for name, files in train_files().items()})
    write_tar(folder / VALIDATION, VALIDATION_FILES)
    write_tar(folder / DEVKIT, devkit_files(), "w:gz")
    return folder


@pytest.fixture
def unpacked(tmp_path):
    """The folders of class folders that people make of the tars."""
    classes = {number: name for name, (number, _) in NUMBERS.items()}
    for name, files in train_files().items():
        for file, data in files.items():
            write(tmp_path / "unpacked" / "train" / name / file, data)
    for number, label in enumerate(TRUTH, 1):
        file = f"ILSVRC2012_val_{number:08d}.JPEG"
        write(tmp_path / "unpacked" / "validation" / classes[label] / file, VALIDATION_FILES[file])
    return tmp_path / "unpacked"


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@pytest.fixture
def call(run_python, tmp_path):
    return functools.partial(run_python, SCRIPT, "--dataset=imagenet2012", f"--data_dir={tmp_path}/data")


def refusal(folder, allow=True):
    with pytest.raises(InvalidArgument) as refused:
        prepare_imagenet.read_tars(folder, allow)
    return str(refused.value).removeprefix(f"source is '{folder}").replace("'; it must be", "")


def test_the_tars_hold_the_images_of_the_unpacked_folders(official, unpacked):
    splits = prepare_imagenet.read_tars(official, allow_other_checksum=True)
    assert list(splits) == ["train", "validation"]
    for split, files in splits.items():
        folder = ImageFolder(unpacked / split)
        assert (files.names, files.class_names) == (folder.names, ("n01", "n02", "n03"))
        np.testing.assert_array_equal(files.labels, folder.labels, strict=True)
        assert [files.read(index) for index in range(len(files.names))] == list(
            map(folder.read, range(len(files.names)))
        )
        assert files.fingerprint == folder.fingerprint
        assert files.nbytes == sum(len(files.read(index)) for index in range(len(files.names)))
    np.testing.assert_array_equal(splits["validation"].labels, [0, 0, 1, 2])


def test_cmyk_grey_and_png_images_are_kept_and_decoded_to_rgb(official, tmp_path):
    files = prepare_imagenet.read_tars(official, allow_other_checksum=True)["train"]
    write_image_records(files, tmp_path / "records")
    records = ImageRecords(tmp_path / "records")
    odd = [records.names.index(f"n03/n03_{9 - number}.JPEG") for number in range(3)]
    assert [Image.open(io.BytesIO(records.read(index))).mode for index in odd] == ["CMYK", "L", "RGB"]
    assert records.read(odd[2]).startswith(b"\x89PNG")
    images = ImageSource(records, 8, train=False, num_threads=1).gather(np.array(odd))["image"].astype(int)
    grey = np.dot(COLOR, [0.299, 0.587, 0.114])
    for found, color in zip(images, (COLOR, (grey,) * 3, COLOR), strict=True):
        np.testing.assert_allclose(found, np.broadcast_to(color, found.shape), atol=4)


def test_the_script_prepares_both_splits_and_continues(call, official, unpacked, tmp_path):
    arguments = (f"--source={official}", "--allow_other_checksum")
    for _ in range(2):
        result = call(*arguments)
        assert (result.returncode, result.stderr) == (0, "")
    for split in ("train", "validation"):
        records = ImageRecords(tmp_path / "data" / f"imagenet2012-{split}")
        assert records.fingerprint == ImageFolder(unpacked / split).fingerprint
        assert f"It holds {records.fingerprint}: their number and CRC-32." in result.stdout
    (official / VALIDATION).unlink()
    result = call(*arguments)
    assert (result.returncode, result.stderr) == (
        2,
        f"error: --source is '{official}'; it must be complete; {VALIDATION} of ImageNet is missing\n",
    )


def test_md5s_and_numbers_are_the_official_ones(call, official, monkeypatch):
    md5s = {name: hashlib.md5((official / name).read_bytes()).hexdigest() for name in (TRAIN, VALIDATION, DEVKIT)}
    result = call(f"--source={official}")
    assert result.stderr == (
        f"error: --source is '{official / DEVKIT}'; it must be the official one, with md5 "
        f"fa75699e90414af021442c21a62c3abf; its md5 is {md5s[DEVKIT]}; --allow_other_checksum takes it anyway\n"
    )
    assert formats.NUM_IMAGES["imagenet2012"] == {"train": 1_281_167, "validation": 50_000}
    assert refusal(official, allow=False) == f"/{TRAIN} complete, with 1,281,167 images; it has 9"
    monkeypatch.setitem(formats.OFFICIAL_MD5, "imagenet2012", md5s)
    monkeypatch.setitem(formats.NUM_IMAGES, "imagenet2012", {"train": 9, "validation": 4})
    assert list(prepare_imagenet.check_files(official)) == [DEVKIT, VALIDATION, TRAIN]
    assert len(prepare_imagenet.read_tars(official)["train"].names) == 9
    md5s[TRAIN] = "0" * 32
    with pytest.raises(
        InvalidArgument, match=f"{TRAIN}'; it must be the official one, with md5 {'0' * 32}; its md5 is"
    ):
        list(prepare_imagenet.check_files(official))


def test_what_is_missing_is_named(official):
    classes = {f"{name}.tar": in_memory(files) for name, files in train_files().items()}
    fewer = in_memory(dict(list(train_files()["n02"].items())[1:]))
    for files, message in (
        ({name: data for name, data in classes.items() if name != "n02.tar"}, "complete; it lacks n02.tar"),
        (classes | {"n05.tar": classes["n01.tar"]}, "complete; it also has n05.tar"),
        (classes | {"n02.tar": fewer}, "complete; n02.tar in it has 3 of 4 images"),
        (classes | {"n02.tar": classes["n02.tar"][:2000]}, "an intact archive; n02.tar in it (ReadError: unexpected"),
    ):
        write_tar(official / TRAIN, files)
        assert refusal(official).startswith(f"/{TRAIN} {message}")
    write_tar(official / TRAIN, classes)
    path = write_tar(official / VALIDATION, dict(list(VALIDATION_FILES.items())[:3]))
    assert refusal(official) == f"/{VALIDATION} complete; it lacks ILSVRC2012_val_00000004.JPEG"
    path.write_bytes(path.read_bytes()[:2000])
    assert refusal(official).startswith(f"/{VALIDATION} an intact archive; (ReadError: unexpected end of data)")
    write_tar(official / DEVKIT, dict(list(devkit_files().items())[:1]), "w:gz")
    assert refusal(official) == f"/{DEVKIT} complete; ILSVRC2012_validation_ground_truth.txt is missing"
    (official / DEVKIT).write_bytes(b"no archive")
    assert refusal(official).startswith(f"/{DEVKIT} an intact archive; (ReadError: ")


def test_a_tar_that_is_cut_off_meanwhile_is_named(official):
    files = prepare_imagenet.read_tars(official, allow_other_checksum=True)["validation"]
    os.truncate(official / VALIDATION, 1000)
    with pytest.raises(RunError, match=r"ILSVRC2012_img_val.tar ends before n0./ILSVRC2012_val_0000000..JPEG does"):
        files.read(3)


@pytest.fixture
def call_with(run_python, official, tmp_path):
    """A function that runs the script after some lines of Python."""

    def call_with(lines):
        arguments = [f"--source={official}", f"--data_dir={tmp_path}/data", "--allow_other_checksum"]
        argv = f"import runpy, sys; sys.argv = {[SCRIPT.name, '--dataset=imagenet2012', *arguments]}"
        program = tmp_path / "program.py"
        program.write_text(f"{argv}\n{lines}\nrunpy.run_path({str(SCRIPT)!r}, run_name='__main__')")
        return run_python(program)

    return call_with


def test_a_full_disk_is_one_line_and_leaves_no_half_a_file(call_with, tmp_path):
    """A limit on the size of files stands for a full disk."""
    result = call_with("import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, 4_000))")
    folder = tmp_path / "data" / "imagenet2012-train"
    message = f"error: {folder}/images-00000.partial cannot be written: write() failed: File too large\n"
    assert (result.returncode, result.stderr) == (1, message)
    assert list(folder.iterdir()) == []


def test_what_the_disk_cannot_hold_is_not_begun(call_with, tmp_path):
    result = call_with("import shutil, types; shutil.disk_usage = lambda path: types.SimpleNamespace(free=1000)")
    message = f"error: {tmp_path}/data needs 0.0 GB more, and its disk has 0.0 GB free\n"
    assert (result.returncode, result.stderr) == (1, message)
    assert not (tmp_path / "data").exists()
