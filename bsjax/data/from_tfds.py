"""Reads data sets with TensorFlow Datasets, the extra `tfds`. Nothing that trains imports it."""

import contextlib
import difflib
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tqdm

from bsjax.data.formats import Contents
from bsjax.data.prepare import Prepared, make_dataset, one_line
from bsjax.errors import InvalidArgument


def download(name: str) -> Prepared:
    """A data set of TensorFlow Datasets by its name, such as "svhn_cropped"; downloads it unless it is there.

    Raises:
      InvalidArgument: no such data set, no network, TensorFlow Datasets is not installed, or not images of one size.
    """
    with _errors(name, "dataset", name, "one that TensorFlow Datasets can prepare, or comes with --source"):
        import tensorflow_datasets as tfds

        try:
            builder = tfds.builder(name)
        except tfds.core.DatasetNotFoundError:
            near = difflib.get_close_matches(name, tfds.list_builders(with_community_datasets=False), n=3)
            raise InvalidArgument("dataset", name, "in TensorFlow Datasets", ", ".join(near) or None) from None
        _image_and_label(name, builder)  # before it downloads gigabytes
        builder.download_and_prepare()
        return _read(name, builder)


def read_folder(name: str, path: pathlib.Path) -> Prepared:
    """A data set that TensorFlow Datasets has prepared, from its folder or the one above.

    Raises:
      InvalidArgument: as in `download`, or the folder is damaged.
    """
    with _errors(name, "source", str(path), "an intact folder of TensorFlow Datasets"):
        import tensorflow_datasets as tfds

        return _read(name, tfds.builder_from_directory(find_folder(path)))


@contextlib.contextmanager
def _errors(name: str, argument: str, value: str, allowed: str) -> Iterator[None]:
    """Turns any error of any library that downloads, unpacks or reads into an InvalidArgument."""
    try:
        yield
    except InvalidArgument:
        raise
    except ImportError as error:
        what = "read with TensorFlow Datasets: scripts/setup_venv.sh tfds installs it; or give its files as --source"
        raise InvalidArgument("dataset", name, f"{what} ({one_line(error)})") from None
    except Exception as error:
        raise InvalidArgument(argument, value, f"{allowed} ({one_line(error)})") from None


def find_folder(path: pathlib.Path) -> pathlib.Path | None:
    """The folder that has dataset_info.json: path, or the last version in it; or None."""
    infos = [path / "dataset_info.json", *sorted(path.glob("*/dataset_info.json"), reverse=True)]
    return next((info.parent for info in infos if info.is_file()), None)


def _read(name: str, builder: Any) -> Prepared:
    import tensorflow_datasets as tfds

    info = builder.info
    image_key, label_key = _image_and_label(name, builder)
    test = next((split for split in ("test", "validation") if split in info.splits), None)
    if "train" not in info.splits or test is None:
        what = f"a data set with the split train, and test or validation; it has {list(info.splits)}"
        raise InvalidArgument("dataset", name, what)
    splits: list[tuple[np.ndarray, np.ndarray]] = []
    for split in ("train", test):
        if info.file_format.value == "array_record":  # needs no TensorFlow
            examples = builder.as_data_source(split)
        else:
            examples = tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False))
        size = info.splits[split].num_examples
        images, labels = np.empty((size, *info.features[image_key].shape), np.uint8), np.empty(size, np.int32)
        for i, example in enumerate(tqdm.tqdm(examples, f"reading {split}", size, disable=None)):
            images[i], labels[i] = example[image_key], example[label_key]
        splits.append((images, labels))
    path = str(builder.data_dir)
    source = {"path": path, "kind": f"TensorFlow Datasets, {info.full_name}", "splits": ["train", test]}
    return Prepared(make_dataset(name, path, Contents(splits, info.features[label_key].names)), source)


def _image_and_label(name: str, builder: Any) -> tuple[str, str]:
    """The names of the features that are the image, uint8 of one size, and its class."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    image, label = (builder.info.supervised_keys or ("image", "label"))[:2]
    if all(isinstance(key, str) and key in features for key in (image, label)):
        is_image = isinstance(features[image], tfds.features.Image) and features[image].np_dtype == np.uint8
        has_class = isinstance(features[label], tfds.features.ClassLabel)
        if is_image and has_class and None not in features[image].shape:
            return image, label
    found = " ".join(repr(features).split())
    raise InvalidArgument("dataset", name, f"a data set of uint8 images of one size, each with a class; it has {found}")
