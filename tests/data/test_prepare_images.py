"""The script writes class folders to records, as they are."""

import functools
import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from bsjax import InvalidArgument
from bsjax.data import ImageFolder, ImageRecords, load_dataset

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "prepare_data.py"


@pytest.fixture
def call(run_python):
    return functools.partial(run_python, SCRIPT)


@pytest.fixture
def source(tmp_path):
    random = np.random.RandomState(0)
    for index, name in enumerate(["ant", "ant", "bee"]):
        (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name / f"{index}.jpg").write_bytes(random.bytes(100))
    return tmp_path / "images"


def test_class_folders_are_prepared_once(call, source, tmp_path):
    arguments = ["--dataset=mine/train", f"--source={source}", f"--data_dir={tmp_path}/data", "--class_folders"]
    folder, fingerprint = tmp_path / "data" / "mine-train", ImageFolder(source).fingerprint
    lines = [f"3 images of 2 classes in {source}", f"Writing {folder}", "  3 of 3 images"]
    for expected in (lines, lines[:2]):  # the second call has nothing to write
        result = call(*arguments)
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.splitlines()[:-1] == [*expected, f"It holds {fingerprint}: their number and CRC-32."]
    assert ImageRecords(folder).fingerprint == fingerprint
    result = call(*arguments[:-1])
    assert result.stderr == (
        f"error: --dataset is 'mine/train'; it must be another name: {folder} holds class folders' images\n"
    )
    with pytest.raises(InvalidArgument, match=r"^dataset is 'mine'; .* bsjax.data.load_images crops those "):
        load_dataset("mine", tmp_path / "data")


def test_both_splits_are_prepared_at_once(call, source, tmp_path):
    shutil.copytree(source, tmp_path / "pets" / "train")
    shutil.copytree(source, tmp_path / "pets" / "val")
    picture = np.random.RandomState(0).randint(256, size=(9, 9, 3)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "pets" / "train" / "bee" / "2.jpg")
    result = call("--dataset=pets", f"--source={tmp_path}/pets", f"--data_dir={tmp_path}/data", "--class_folders")
    assert (result.returncode, result.stderr) == (0, "")
    for split, folder in (("train", "train"), ("validation", "val")):
        expected = ImageFolder(tmp_path / "pets" / folder)
        assert ImageRecords(tmp_path / "data" / f"pets-{split}").fingerprint == expected.fingerprint
    mean, std = json.loads((tmp_path / "data" / "pets-train" / "moments.json").read_text())  # of what is intact
    decoded = np.asarray(Image.open(tmp_path / "pets" / "train" / "bee" / "2.jpg"))
    np.testing.assert_allclose([mean, std], [decoded.mean((0, 1)), decoded.std((0, 1))])


def test_errors_are_one_line(call, source, tmp_path):
    (tmp_path / "data" / "other").mkdir(parents=True)
    (tmp_path / "data" / "other" / "dataset.json").write_text("{}")
    for arguments, message in (
        ([], "--source is None; it must be a folder with --class_folders"),
        ([f"--source={tmp_path}/none"], f"--source is '{tmp_path}/none'; it must be a folder that exists"),
        (
            ["--dataset=other", f"--source={source}"],
            f"--dataset is 'other'; it must be another name: {tmp_path}/data/other holds images of one size",
        ),
    ):
        result = call("--dataset=mine", f"--data_dir={tmp_path}/data", "--class_folders", *arguments)
        assert (result.returncode, result.stderr) == (2, f"error: {message}\n")
