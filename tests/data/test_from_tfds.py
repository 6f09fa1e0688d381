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

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


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
        features = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(builder=self, features=features, supervised_keys=self.supervised_keys)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.splits}

    def _generate_examples(self, split):
        for i, (image, label) in enumerate(zip(*pictures(split), strict=True)):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "PNG")
            file.seek(0)
            yield i, {"id": f"{split} {i}", "image": file, "label": NAMES[label]}


class ManySizes(SmallPictures):
    shape = (None, None, 3)


class Unsupervised(SmallPictures):
    supervised_keys = ("image", "image")


class OnlyTrain(SmallPictures):
    splits = ("train",)


class Sentences(tfds.core.GeneratorBasedBuilder):
    """A text for each example, as lm1b has them; with one each, it is as tiny_shakespeare."""

    VERSION = tfds.core.Version("1.0.0")
    texts: dict = {"train": ["Ça ira.", "Ah!", "世界"], "validation": ["no", "such"], "test": ["Ö, wie", "wahr"]}  # noqa: RUF012

    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(texts) for split, texts in self.texts.items()}

    def _generate_examples(self, texts):
        yield from ((i, {"text": text}) for i, text in enumerate(texts))


class OneText(Sentences):
    texts: dict = {"train": ["To be, or not to be"]}  # noqa: RUF012


class Fails(SmallPictures):
    error = None

    def download_and_prepare(self):
        raise self.error


def pictures(split):
    images, labels = load_dataset("digits").train.examples.values()
    part = slice(100) if split == "train" else slice(100, 130)
    return np.concatenate([images, images // 2, 15 - images], axis=-1)[part], labels[part]


def in_one_order(image, label):
    """TensorFlow Datasets shuffles when it writes."""
    rows = np.concatenate([label[:, None], image.reshape(len(image), -1)], axis=1)
    return rows[np.lexsort(rows.T[::-1])]


@pytest.fixture
def prepared(tmp_path):
    """A function that prepares one of these data sets in a folder."""

    def prepare(builder_class):
        builder = builder_class(data_dir=tmp_path / "tfds", file_format="array_record")
        builder.download_and_prepare()
        return builder

    return prepare


def test_a_prepared_folder(prepared, tmp_path, assert_same_dataset):
    prepared(SmallPictures)
    folder = tmp_path / "tfds" / "small_pictures"
    dataset, source = from_tfds.read_folder("mine", folder)
    assert source["kind"] == "TensorFlow Datasets, small_pictures/1.0.0"
    assert source["splits"] == ["train", "validation"]
    assert dataset.class_names == NAMES
    for split, read in (("train", dataset.train), ("validation", dataset.test)):
        np.testing.assert_array_equal(in_one_order(**read.examples), in_one_order(*pictures(split)))
    assert_same_dataset(from_tfds.read_folder("mine", folder / "1.0.0").dataset, dataset)  # also in the same order
    cache.write(dataset, tmp_path / "data", source)
    assert_same_dataset(load_dataset("mine", tmp_path / "data"), dataset)
    assert "tensorflow" not in sys.modules


def test_by_name(tmp_path, monkeypatch):
    build = tfds.builder
    where = {"data_dir": tmp_path / "tfds", "file_format": "array_record", "try_gcs": False}
    monkeypatch.setattr(tfds, "builder", lambda name: build(name, **where))
    for _ in range(2):  # prepared the first time, found the second
        dataset, source = from_tfds.download("small_pictures")
        assert source["path"] == str(tmp_path / "tfds" / "small_pictures" / "1.0.0")
        np.testing.assert_array_equal(in_one_order(**dataset.train.examples), in_one_order(*pictures("train")))
    for name, message in (
        ("small_picture", "in TensorFlow Datasets; nearest: small_pictures"),
        ("small_pictures:7.0.0", "one that TensorFlow Datasets can"),
    ):
        with pytest.raises(InvalidArgument, match=f"dataset is '{name}'; it must be {message}"):
            from_tfds.download(name)


@pytest.mark.parametrize(
    ("builder_class", "message"),
    [
        (ManySizes, r"a data set with a feature text, or of uint8 images of one size, .*shape=\(None, None, 3\)"),
        (Unsupervised, "a data set with a feature text, or of uint8 images of one size, each with a class; it has "),
        (OnlyTrain, r"a data set with the split train, and test or validation; it has \['train'\]"),
    ],
)
def test_what_is_no_image_classification_of_one_size(prepared, builder_class, message):
    folder = pathlib.Path(prepared(builder_class).data_dir)
    with pytest.raises(InvalidArgument, match=f"dataset is 'mine'; it must be {message}") as error:
        from_tfds.read_folder("mine", folder)
    assert "\n" not in str(error.value)


def text_of(dataset, tokens):
    vocabulary = dataset.vocabulary or [bytes([i]) for i in range(256)]
    return type(vocabulary[0])().join(vocabulary[token] for token in np.asarray(tokens))


@pytest.mark.parametrize("tokens", [None, "bytes"])
def test_sentences_become_a_text_whose_test_split_is_held_out(prepared, tmp_path, tokens):
    prepared(Sentences)
    folder = tmp_path / "tfds" / "sentences"
    dataset, source = from_tfds.read_folder("mine", folder, tokens)
    for split, found in (("train", dataset.train_tokens), ("test", dataset.test_tokens)):
        text = text_of(dataset, found)
        text = text if tokens is None else text.decode()
        assert sorted(text.split("\n")) == sorted(Sentences.texts[split])  # TensorFlow Datasets shuffles them
    everything = set("\n".join(Sentences.texts["train"] + Sentences.texts["test"]))
    assert dataset.vocabulary == (tuple(sorted(everything)) if tokens is None else ())
    assert source["splits"] == ["train", "test"]
    cache.write(dataset, tmp_path / "data", source)
    found = load_dataset("mine", tmp_path / "data")
    np.testing.assert_array_equal(found.train_tokens, dataset.train_tokens)
    (tmp_path / "data" / "mine" / "test_tokens.npy").unlink()
    command = f"--source={folder / '1.0.0'} --tokens={tokens or 'characters'} --data_dir="
    with pytest.raises(InvalidArgument, match=f"prepared again, because .*{re.escape(command)}"):
        load_dataset("mine", tmp_path / "data")
    assert "tensorflow" not in sys.modules


def test_the_end_of_a_text_without_a_test_split_is_held_out(prepared):
    folder = pathlib.Path(prepared(OneText).data_dir)
    dataset, source = from_tfds.read_folder("mine", folder, test_share=0.5)
    assert text_of(dataset, dataset.train_tokens) == "To be, or"
    assert text_of(dataset, dataset.test_tokens) == " not to be"
    assert source["flags"] == {"tokens": "characters", "test_share": 0.5}


@pytest.mark.parametrize(
    ("builder_class", "options", "message"),
    [
        (Sentences, {"tokens": "byte"}, "tokens is 'byte'; it must be one of characters, bytes; nearest: bytes"),
        (
            Sentences,
            {"test_share": 0.5},
            "test_share is 0.5; it must be left out for mine, whose split test is held out",
        ),
        (OneText, {"test_share": 1.5}, r"test_share is 1.5; it must be in \(0, 1\); nearest: 0.1"),
        (SmallPictures, {"tokens": "bytes"}, "tokens is 'bytes'; it must be left out for mine, which is no text"),
    ],
)
def test_options_that_do_not_fit(prepared, builder_class, options, message):
    folder = pathlib.Path(prepared(builder_class).data_dir)
    with pytest.raises(InvalidArgument, match=f"^{message}$"):
        from_tfds.read_folder("mine", folder, **options)


def test_a_damaged_folder(prepared):
    folder = pathlib.Path(prepared(SmallPictures).data_dir)
    (record,) = folder.glob("*train*array_record*")
    message = re.escape(f"source is '{folder}'; it must be an intact folder of TensorFlow Datasets (")
    for damage in (lambda: record.write_bytes(record.read_bytes()[:1000]), record.unlink):
        damage()
        with pytest.raises(InvalidArgument, match=message):
            from_tfds.read_folder("mine", folder)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("no route\nto host"), r"one that .* can prepare, or comes with --source \(.*: no route\)$"),
        (ModuleNotFoundError("No module named 'tensorflow'"), r"scripts/setup_venv.sh tfds installs it; .* named"),
    ],
)
def test_a_download_that_fails(tmp_path, monkeypatch, error, message):
    monkeypatch.setattr(Fails, "error", error)
    monkeypatch.setattr(tfds, "builder", lambda name: Fails(data_dir=tmp_path))
    with pytest.raises(InvalidArgument, match=f"dataset is 'cifar10'; it must be .*{message}"):
        from_tfds.download("cifar10")


def test_nothing_is_downloaded_that_cannot_be_used(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds, "builder", lambda name: ManySizes(data_dir=tmp_path, file_format="array_record"))
    with pytest.raises(
        InvalidArgument, match="dataset is 'many_sizes'; it must be a data set with a feature text, or of"
    ):
        from_tfds.download("many_sizes")
    assert not list(tmp_path.iterdir())


def test_without_tensorflow_datasets(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    for read in (lambda: from_tfds.download("svhn_cropped"), lambda: from_tfds.read_folder("svhn_cropped", tmp_path)):
        with pytest.raises(InvalidArgument, match=r"'svhn_cropped'; .* scripts/setup_venv.sh tfds .* --source \("):
            read()
