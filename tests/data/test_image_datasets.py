"""Data sets of images of many sizes by name: from class folders, records and TensorFlow Datasets; what is refused."""

import io
import json
import pathlib
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from bsjax import InvalidArgument
from bsjax.data import ImageFolder, ImageRecords, has_images, load_dataset, load_images, write_image_records
from bsjax.data.image_datasets import image_dataset_names, write_moments
from bsjax.errors import RunError

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "prepare_data.py"
CLASSES = ("ant", "bee")


def picture(number):
    random = np.random.RandomState(number)
    file = io.BytesIO()
    noise = random.randint(256, size=(4, 4, 3)).astype(np.uint8)
    Image.fromarray(noise).resize((20 + number, 30 - number)).save(file, "JPEG", quality=95)
    return file.getvalue()


def write_folders(root, splits=("train", "val"), num_images=6):
    for number in range(num_images * len(splits)):
        path = root / splits[number // num_images] / CLASSES[number % 2] / f"{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    return root


@pytest.fixture
def folders(tmp_path):
    """A data directory with the class folders of "pets"."""
    write_folders(tmp_path / "pets")
    return tmp_path


def test_class_folders_and_records_are_the_same_data_set(folders, tmp_path):
    for split, folder in (("train", "train"), ("validation", "val")):
        write_image_records(ImageFolder(folders / "pets" / folder), tmp_path / "data" / f"pets-{split}", 4)
    write_moments(ImageRecords(tmp_path / "data" / "pets-train"), tmp_path / "data" / "pets-train")
    one, other = (load_images("pets", 12, folder, seed=3) for folder in (folders, tmp_path / "data"))
    assert one.class_names == other.class_names == CLASSES
    for split in ("train", "test"):
        sources = getattr(one, split), getattr(other, split)
        found = [source.gather(np.arange(6), np.arange(40, 46)) for source in sources]
        for name, array in found[0].items():
            np.testing.assert_array_equal(array, found[1][name], strict=True)
        assert sources[0].fingerprint == sources[1].fingerprint
        assert sources[0].takes_positions == (split == "train")
    for name in ("mean", "std"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), strict=True)
    assert image_dataset_names(folders) == image_dataset_names(tmp_path / "data") == ["pets"]


def test_mean_and_deviation_give_each_image_the_same_weight(tmp_path):
    small, large = (np.full((size, size, 3), level, np.uint8) for size, level in ((4, 40), (40, 200)))
    for split in ("train", "test"):
        for name, pixels in (("ant", small), ("bee", large)):
            (tmp_path / "two" / split / name).mkdir(parents=True)
            Image.fromarray(pixels).save(tmp_path / "two" / split / name / "0.png")
    dataset = load_images("two", 4, tmp_path)
    np.testing.assert_allclose([dataset.mean, dataset.std], [[120.0] * 3, [80.0] * 3])
    assert dataset.mean.dtype == dataset.std.dtype == np.float32


def test_imagenet_has_the_published_mean_and_deviation(tmp_path):
    write_folders(tmp_path / "imagenet2012", ("train", "validation"))
    dataset = load_images("imagenet2012", 8, tmp_path)
    np.testing.assert_allclose(dataset.mean, [123.675, 116.28, 103.53])
    np.testing.assert_allclose(dataset.std, [58.395, 57.12, 57.375])


def test_tiny_imagenets_validation_has_its_classes_in_a_file(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(4):
        (tmp_path / "images" / f"val_{number}.JPEG").write_bytes(picture(number))
    lines = ["val_2.JPEG\tbee\t0\t0\t9\t9", "val_0.JPEG\tbee\t1\t0\t9\t9", "val_3.JPEG\tant\t0\t2\t9\t9"]
    (tmp_path / "val_annotations.txt").write_text("\n".join(lines))
    folder = ImageFolder(tmp_path)
    assert (folder.class_names, folder.labels.tolist()) == (CLASSES, [0, 1, 1])
    assert [folder.read(index) for index in range(3)] == [picture(number) for number in (3, 0, 2)]
    (tmp_path / "val_annotations.txt").write_text("\n".join([*lines, "val_1.JPEG"]))
    with pytest.raises(InvalidArgument, match=r"has an image and its class in each line, not 'val_1.JPEG'$"):
        ImageFolder(tmp_path)


def test_what_is_incomplete_or_undecodable_is_refused(folders, tmp_path):
    data = tmp_path / "data"
    write_image_records(ImageFolder(folders / "pets" / "train"), data / "pets-train")
    with pytest.raises(
        InvalidArgument, match=r"^dataset is 'pets'; it must be complete; .*/pets-validation must be a "
    ):
        load_images("pets", 8, data)
    (folders / "pets" / "val" / "cat").mkdir()
    with pytest.raises(InvalidArgument, match=r"complete; .*/pets/val must be a folder whose .*; cat holds none$"):
        load_images("pets", 8, folders)
    (folders / "pets" / "val" / "cat" / "0.jpg").write_bytes(picture(0))
    with pytest.raises(InvalidArgument, match=r"one whose splits have the same classes; only one has cat$"):
        load_images("pets", 8, folders)
    with pytest.raises(InvalidArgument, match=r"^image_size is 0; it must be a whole number >= 1; nearest: 1$"):
        load_images("pets", 0, write_folders(tmp_path / "whole" / "pets").parent)
    for path in (tmp_path / "whole" / "pets" / "train").rglob("*.JPEG"):
        path.write_bytes(b"no image")
    with pytest.raises(RunError, match=r"^no training image of pets can be decoded; the first one is ant/0.JPEG$"):
        load_images("pets", 8, tmp_path / "whole")


def test_it_is_another_function_that_loads_images_of_many_sizes(folders):
    assert has_images("pets", folders) and not has_images("digits", folders)
    with pytest.raises(InvalidArgument, match=r"^dataset is 'pets'; .* bsjax.data.load_images crops those "):
        load_dataset("pets", folders)
    with pytest.raises(InvalidArgument, match=r"one of digits, synthetic, signals, pets, or .*; nearest: pets$"):
        load_dataset("pet", folders)


class JpegsOfManySizes(tfds.core.GeneratorBasedBuilder):
    """A stand-in for TensorFlow Datasets' imagenet2012: JPEGs of many sizes with the names of their files."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "file_name": tfds.features.Text(),
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=CLASSES),
        }
        features = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=("image", "label"))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(range(6)), "validation": self._generate_examples(range(6, 9))}

    def _generate_examples(self, numbers):
        for number in numbers:
            image = io.BytesIO(picture(number))
            yield number, {"file_name": f"{number}.JPEG", "image": image, "label": CLASSES[number % 2]}


def test_tensorflow_datasets_folder_is_copied_as_it_is(run_python, tmp_path):
    JpegsOfManySizes(data_dir=tmp_path / "tfds", file_format="array_record").download_and_prepare()
    source = tmp_path / "tfds" / "jpegs_of_many_sizes"
    result = run_python(SCRIPT, "--dataset=mine", f"--source={source}", f"--data_dir={tmp_path}/data")
    assert result.returncode == 0, result.stderr
    for split, numbers in (("train", range(6)), ("validation", range(6, 9))):
        records = ImageRecords(tmp_path / "data" / f"mine-{split}")
        found = {name: (records.read(index), records.labels[index]) for index, name in enumerate(records.names)}
        assert found == {f"{number}.JPEG": (picture(number), number % 2) for number in numbers}
        assert records.class_names == CLASSES
    assert load_images("mine", 8, tmp_path / "data").train.gather(np.arange(2))["image"].shape == (2, 8, 8, 3)
    assert "tensorflow" not in sys.modules
    info = source / "1.0.0" / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"fileFormat": "tfrecord"}))
    result = run_python(SCRIPT, "--dataset=mine", f"--source={source}", f"--data_dir={tmp_path}/data")
    assert result.stderr == (
        f"error: --source is '{source}'; it must be a folder that TensorFlow Datasets has prepared with "
        "file_format=array_record, not tfrecord\n"
    )
