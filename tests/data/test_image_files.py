"""Images of a folder and of ArrayRecord files: the same bytes; what is resumed, and what is refused."""

import json
import pickle
import shutil
import sys

import numpy as np
import pytest

from bsjax import InvalidArgument
from bsjax.data import ImageFolder, ImageRecords, write_image_records
from bsjax.errors import RunError

CLASSES = {"cat": 5, "ant": 3, "bee": 4}


@pytest.fixture
def root(tmp_path):
    """A folder of three classes; what is in the files does not matter here."""
    root, random = tmp_path / "images", np.random.RandomState(0)
    for name, count in CLASSES.items():
        for i in range(count):
            path = root / name / ("more" if i == 2 else "") / f"{i}.{'JPEG' if i else 'png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(random.bytes(random.randint(1, 3000)))
    (root / "cat" / "notes.txt").write_text("not an image")
    (root / "readme.txt").write_text("not a class")
    return root


def assert_same_images(files, expected):
    assert (files.class_names, files.names) == (expected.class_names, expected.names)
    np.testing.assert_array_equal(files.labels, expected.labels, strict=True)
    for index in (3, 11, 0, *range(12)):
        assert files.read(index) == expected.read(index)
    assert files.fingerprint == expected.fingerprint


def test_a_folder_has_its_classes_and_files_in_order(root):
    folder = ImageFolder(root)
    assert folder.class_names == ("ant", "bee", "cat")
    np.testing.assert_array_equal(folder.labels, np.repeat(np.arange(3, dtype=np.int32), [3, 4, 5]), strict=True)
    assert folder.names[:3] == ["ant/0.png", "ant/1.JPEG", "ant/more/2.JPEG"]
    for index, name in enumerate(folder.names):
        assert folder.read(index) == (root / name).read_bytes()


def test_the_fingerprint_is_of_all_images_names_and_labels(root, tmp_path):
    fingerprints = {ImageFolder(root).fingerprint}
    shutil.copytree(root, tmp_path / "copy")
    assert ImageFolder(tmp_path / "copy").fingerprint in fingerprints
    for change in (
        lambda: (root / "cat/4.JPEG").write_bytes((root / "cat/4.JPEG").read_bytes()[:-1] + b"?"),
        lambda: (root / "cat/4.JPEG").rename(root / "cat/5.JPEG"),
        lambda: (root / "cat").rename(root / "dog"),
        lambda: (root / "dog/5.JPEG").unlink(),
    ):
        change()
        fingerprints.add(ImageFolder(root).fingerprint)
    assert len(fingerprints) == 5
    assert all("\n" not in fingerprint for fingerprint in fingerprints)


@pytest.mark.parametrize("images_per_file", [1, 5, 12, 10_000])
def test_records_hold_the_same_images(root, tmp_path, images_per_file):
    folder = ImageFolder(root)
    for _ in range(2):  # the second call finds everything done
        write_image_records(folder, tmp_path / "records", images_per_file)
    assert_same_images(ImageRecords(tmp_path / "records"), folder)
    num_files = len(list((tmp_path / "records").glob("images-*.array_record")))
    assert num_files == -(-12 // images_per_file)
    assert not list((tmp_path / "records").glob("*.partial"))


class Interrupted(ImageFolder):
    """Fails at an image, and counts those that it has read."""

    fails_at, num_read = 8, 0

    def read(self, index):
        if index == self.fails_at:
            raise OSError("no space left on device")
        self.num_read += 1
        return super().read(index)


def test_an_interrupted_preparation_continues_to_the_same_files(root, tmp_path):
    with pytest.raises(OSError, match="no space left"):
        write_image_records(Interrupted(root), tmp_path / "records", images_per_file=3)
    with pytest.raises(InvalidArgument, match="it must be a folder that write_image_records has completed"):
        ImageRecords(tmp_path / "records")
    again = Interrupted(root)
    again.fails_at = None
    write_image_records(again, tmp_path / "records", images_per_file=3)
    assert again.num_read == 6  # those of the first two files have been kept
    assert_same_images(ImageRecords(tmp_path / "records"), ImageFolder(root))
    write_image_records(ImageFolder(root), tmp_path / "at_once", images_per_file=3)
    for path in (tmp_path / "at_once").iterdir():
        assert (tmp_path / "records" / path.name).read_bytes() == path.read_bytes(), path.name


def test_records_of_other_images_are_not_mixed(root, tmp_path):
    with pytest.raises(OSError, match="no space left"):
        write_image_records(Interrupted(root), tmp_path / "begun", images_per_file=3)
    write_image_records(ImageFolder(root), tmp_path / "done")
    (root / "bee/0.png").unlink()
    for name in ("begun", "done"):
        with pytest.raises(InvalidArgument, match="it must be a folder without records of other images"):
            write_image_records(ImageFolder(root), tmp_path / name, images_per_file=3)


def test_damaged_records_are_refused(root, tmp_path):
    folder = tmp_path / "records"
    write_image_records(ImageFolder(root), folder, images_per_file=5)
    path = folder / "images-00001.array_record"
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    with pytest.raises(InvalidArgument) as refusal:
        ImageRecords(folder)
    assert str(refusal.value) == (
        f"folder is '{folder}'; it must be written again: images-00001.array_record has {len(data) - 100:,} of "
        f"{len(data):,} bytes"
    )
    path.unlink()
    with pytest.raises(InvalidArgument, match=r"images-00001.array_record has 0 of [\d,]+ bytes"):
        ImageRecords(folder)
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index | {"format_version": 0}))
    with pytest.raises(InvalidArgument, match="written again: its format version is 0, not 1"):
        ImageRecords(folder)


def test_records_are_sent_to_another_process_without_their_names(root, tmp_path):
    write_image_records(ImageFolder(root), tmp_path / "records", images_per_file=5)
    records = ImageRecords(tmp_path / "records")
    sent = pickle.dumps(records)
    assert len(sent) < 1000
    assert_same_images(pickle.loads(sent), records)


def test_an_image_that_is_damaged_on_the_disk_is_an_error_and_no_example(root, tmp_path):
    """The file has its size, so that only reading tells."""
    write_image_records(ImageFolder(root), tmp_path / "records", images_per_file=5)
    path = tmp_path / "records" / "images-00001.array_record"
    data = path.read_bytes()
    image = ImageFolder(root).read(7)
    path.write_bytes(data.replace(image, bytes(len(image))))
    records = ImageRecords(tmp_path / "records")
    with pytest.raises(RunError, match=rf"^image 7 of {tmp_path}/records cannot be read: .*hash mismatch"):
        records.read(7)
    assert records.read(6) == ImageFolder(root).read(6)


def test_what_is_no_folder_of_classes(root, tmp_path):
    for path, message in (
        (tmp_path / "nowhere", "a folder that exists"),
        (root / "ant" / "more", "a folder with a folder of images for each class"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            ImageFolder(path)
    (root / "dog").mkdir()
    with pytest.raises(InvalidArgument, match=r"class folders hold .jpeg, .jpg, .png files; dog holds none$"):
        ImageFolder(root)


def test_without_array_record_it_names_the_extra(root, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "array_record", None)
    with pytest.raises(RunError, match=r"^ArrayRecord files need array_record: pip install bsjax\[imagenet\]$"):
        write_image_records(ImageFolder(root), tmp_path / "records")
