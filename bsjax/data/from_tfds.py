"""Reads data sets with TensorFlow Datasets, the extra `tfds`. Nothing that trains imports it."""

import difflib
import importlib
import pathlib
from typing import Any

import numpy as np
import tqdm

from bsjax.data.formats import Contents
from bsjax.data.prepare import Prepared, make_dataset
from bsjax.errors import InvalidArgument


def download(name: str) -> Prepared:
    """A data set by its name there, such as "svhn_cropped": downloaded and prepared unless it has been before.

    Raises:
      InvalidArgument: no such data set, no network, TensorFlow Datasets is not installed, or not images of one size.
    """
    tfds = _tfds(name)
    try:
        builder = tfds.builder(name)
        _image_and_label(name, builder)  # before gigabytes are downloaded
        builder.download_and_prepare()
        return _read(name, builder)
    except InvalidArgument:
        raise
    except ImportError as error:
        raise _not_installed(name, error) from None
    except tfds.core.DatasetNotFoundError:
        near = difflib.get_close_matches(name, tfds.list_builders(with_community_datasets=False), n=3)
        raise InvalidArgument("dataset", name, "in TensorFlow Datasets", *filter(None, [", ".join(near)])) from None
    except Exception as error:  # of any library that downloads or unpacks
        what = f"one that TensorFlow Datasets can prepare; with its files on disk, give --source ({_line(error)})"
        raise InvalidArgument("dataset", name, what) from None


def read_folder(name: str, path: pathlib.Path) -> Prepared:
    """A data set that TensorFlow Datasets has prepared, from the folder of it, or from the one above.

    Raises:
      InvalidArgument: as in `download`, or the folder is damaged.
    """
    tfds = _tfds(name)
    try:
        return _read(name, tfds.builder_from_directory(find_folder(path)))
    except InvalidArgument:
        raise
    except ImportError as error:
        raise _not_installed(name, error) from None
    except Exception as error:  # of any library that reads its files
        raise InvalidArgument(
            "source", str(path), f"an intact folder of TensorFlow Datasets ({_line(error)})"
        ) from None


def find_folder(path: pathlib.Path) -> pathlib.Path | None:
    """The folder that has dataset_info.json: path, or the last version in it; or None."""
    infos = [path / "dataset_info.json", *sorted(path.glob("*/dataset_info.json"), reverse=True)]
    return next((info.parent for info in infos if info.is_file()), None)


def _read(name: str, builder: Any) -> Prepared:
    tfds, info = _tfds(name), builder.info
    image_key, label_key = _image_and_label(name, builder)
    test = next((split for split in ("test", "validation") if split in info.splits), None)
    if "train" not in info.splits or test is None:
        raise InvalidArgument("dataset", name, f"in splits train and test or validation; it has {list(info.splits)}")
    splits: list[tuple[np.ndarray, np.ndarray]] = []
    for split in ("train", test):
        if info.file_format.value == "array_record":  # is read without TensorFlow
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
    """The keys of its image and its label, which are checked to be uint8 of one size and a class."""
    features, of = builder.info.features, _tfds(name).features
    image, label = (builder.info.supervised_keys or ("image", "label"))[:2]
    if all(isinstance(key, str) and key in features for key in (image, label)):
        is_image = isinstance(features[image], of.Image) and features[image].np_dtype == np.uint8
        if is_image and None not in features[image].shape and isinstance(features[label], of.ClassLabel):
            return image, label
    found = " ".join(repr(features).split())
    raise InvalidArgument("dataset", name, f"of uint8 images of one size, each with a class; it is {found}")


def _tfds(name: str) -> Any:
    try:
        return importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise _not_installed(name, error) from None


def _not_installed(name: str, error: ImportError) -> InvalidArgument:
    what = 'read with TensorFlow Datasets, so install it: pip install "bsjax[tfds]", or give its files with --source'
    return InvalidArgument("dataset", name, f"{what} ({_line(error)})")


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
