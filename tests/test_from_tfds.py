"""Small data sets of TensorFlow Datasets, written and read as ArrayRecord files, which needs no TensorFlow."""

import io
import pathlib
import re
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from bsjax import InvalidArgument
from bsjax.data import cache, from_tfds, load_dataset

NAMES = tuple(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])


class SmallPictures(tfds.core.GeneratorBasedBuilder):
    """The digits, 100 to train on and 30 to validate, with more features than an image and a class."""

    VERSION = tfds.core.Version("1.0.0")
    shape, supervised_keys, splits = (8, 8, 3), ("image", "label"), ("train", "validation")

    def _info(self):
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=self.shape),
            "label": tfds.features.ClassLabel(names=NAMES),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=self.supervised_keys
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.splits}

    def _generate_examples(self, split):
        for i, (image, label) in enumerate(zip(*pictures(split), strict=True)):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "PNG")
            file.seek(0)
            yield i, {"id": f"{split} {i}", "image": file, "label": NAMES[label]}


class ManySizes(SmallPictures):
    """Pictures whose size is not fixed."""

    shape = (None, None, 3)


class Unsupervised(SmallPictures):
    """The label is not what is to be told from the image."""

    supervised_keys = ("image", "image")


class OnlyTrain(SmallPictures):
    """Nothing to test on."""

    splits = ("train",)


def pictures(split):
    images, labels = load_dataset("digits").train
    part = slice(100) if split == "train" else slice(100, 130)
    return np.concatenate([images, images // 2, 15 - images], axis=-1)[part], labels[part]


def in_one_order(images, labels):
    """TensorFlow Datasets shuffles when it writes."""
    rows = np.concatenate([labels[:, None], images.reshape(len(images), -1)], axis=1)
    return rows[np.lexsort(rows.T[::-1])]


@pytest.fixture
def prepared(tmp_path):
    """A function that prepares one of the data sets above in a folder."""

    def prepare(builder_class):
        builder = builder_class(data_dir=tmp_path / "tfds", file_format="array_record")
        builder.download_and_prepare()
        return builder

    return prepare


def test_a_prepared_folder(prepared, tmp_path, assert_same_dataset):
    builder = prepared(SmallPictures)
    folder = tmp_path / "tfds" / "small_pictures"
    dataset, source = from_tfds.read_folder("mine", folder)
    assert source["kind"] == "TensorFlow Datasets, small_pictures/1.0.0"
    assert source["splits"] == ["train", "validation"]
    assert dataset.class_names == NAMES
    for split, read in (("train", dataset.train), ("validation", dataset.test)):
        np.testing.assert_array_equal(in_one_order(*read), in_one_order(*pictures(split)))
    assert_same_dataset(from_tfds.read_folder("mine", folder / "1.0.0").dataset, dataset)  # also in the same order
    cache.write(dataset, tmp_path / "data", source)
    assert_same_dataset(load_dataset("mine", tmp_path / "data"), dataset)
    assert "tensorflow" not in sys.modules
    assert builder.info.splits["train"].num_examples == len(dataset.train.labels)


def test_by_name(tmp_path, monkeypatch):
    build = tfds.builder
    monkeypatch.setattr(
        tfds, "builder", lambda name: build(name, data_dir=tmp_path / "tfds", file_format="array_record", try_gcs=False)
    )
    for _ in range(2):  # prepared the first time, found the second
        dataset, source = from_tfds.download("small_pictures")
        assert source["path"] == str(tmp_path / "tfds" / "small_pictures" / "1.0.0")
        np.testing.assert_array_equal(in_one_order(*dataset.train), in_one_order(*pictures("train")))
    with pytest.raises(
        InvalidArgument, match=r"dataset is 'small_picture'; .* in TensorFlow Datasets; nearest: small_pictures"
    ):
        from_tfds.download("small_picture")
    with pytest.raises(
        InvalidArgument, match=r"dataset is 'small_pictures:7.0.0'; it must be one that TensorFlow Datasets can"
    ):
        from_tfds.download("small_pictures:7.0.0")


@pytest.mark.parametrize(
    ("builder_class", "message"),
    [
        (ManySizes, r"of uint8 images of one size, each with a class; it is .*shape=\(None, None, 3\)"),
        (Unsupervised, "of uint8 images of one size, each with a class; it is "),
        (OnlyTrain, r"in splits train and test or validation; it has \['train'\]"),
    ],
)
def test_what_is_no_image_classification_of_one_size(prepared, builder_class, message):
    folder = pathlib.Path(prepared(builder_class).data_dir)
    with pytest.raises(InvalidArgument, match=f"dataset is 'mine'; it must be {message}") as error:
        from_tfds.read_folder("mine", folder)
    assert "\n" not in str(error.value)


def test_a_damaged_folder(prepared, tmp_path):
    folder = tmp_path / "tfds" / "small_pictures" / "1.0.0"
    prepared(SmallPictures)
    (record,) = folder.glob("*train*array_record*")
    record.write_bytes(record.read_bytes()[:1000])
    with pytest.raises(
        InvalidArgument, match=f"source is '{re.escape(str(folder))}'; it must be an intact folder of Ten"
    ):
        from_tfds.read_folder("mine", folder)
    record.unlink()
    with pytest.raises(InvalidArgument, match=r"it must be an intact folder of TensorFlow Datasets \("):
        from_tfds.read_folder("mine", folder)


def test_without_a_network(tmp_path, monkeypatch):
    class Offline(SmallPictures):
        def download_and_prepare(self):
            raise ConnectionError("no route\nto host")

    monkeypatch.setattr(tfds, "builder", lambda name: Offline(data_dir=tmp_path))
    message = r"one that TensorFlow Datasets can prepare; .*, give --source \(ConnectionError: no route\)$"
    with pytest.raises(InvalidArgument, match=f"dataset is 'cifar10'; it must be {message}"):
        from_tfds.download("cifar10")


def test_nothing_is_downloaded_that_cannot_be_used(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds, "builder", lambda name: ManySizes(data_dir=tmp_path, file_format="array_record"))
    with pytest.raises(InvalidArgument, match="dataset is 'many_sizes'; it must be of uint8 images of one size"):
        from_tfds.download("many_sizes")
    assert not list(tmp_path.iterdir())


def test_tensorflow_is_asked_for_where_it_is_needed(tmp_path, monkeypatch):
    class NeedsTensorFlow(SmallPictures):
        def download_and_prepare(self):
            raise ModuleNotFoundError("No module named 'tensorflow'")

    monkeypatch.setattr(tfds, "builder", lambda name: NeedsTensorFlow(data_dir=tmp_path))
    with pytest.raises(InvalidArgument, match=r'install it: pip install "bsjax\[tfds\]".* named'):
        from_tfds.download("cifar10")


def test_without_tensorflow_datasets(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    (tmp_path / "dataset_info.json").touch()
    message = r'so install it: pip install "bsjax\[tfds\]", or give its files with --source \('
    for read in (lambda: from_tfds.download("svhn_cropped"), lambda: from_tfds.read_folder("svhn_cropped", tmp_path)):
        with pytest.raises(InvalidArgument, match=f"dataset is 'svhn_cropped'; .*{message}"):
            read()
