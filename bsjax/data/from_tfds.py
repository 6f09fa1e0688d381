"""Reads data sets with TensorFlow Datasets, the extra `tfds`. Nothing that trains imports it.

It reads images of one size with classes, such as "svhn_cropped", and texts, such as "tiny_shakespeare" and "lm1b":
data sets with a feature "text". The texts of a split are joined by newlines, in the order of TensorFlow Datasets'
files. The split test is held out, or else validation, or else the end of a text.
"""

import contextlib
import difflib
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tqdm

from bsjax.data import prepare_text
from bsjax.data.formats import Contents
from bsjax.data.prepare import Prepared, make_dataset, one_line
from bsjax.errors import InvalidArgument


def download(name: str, tokens: str | None = None, test_share: float | None = None) -> Prepared:
    """A data set of TensorFlow Datasets by its name, such as "svhn_cropped"; downloads it unless it is there.

    Args:
      name: of the data set.
      tokens: of a text, see `bsjax.data.prepare_text.read_text`.
      test_share: of a text with neither the split test nor validation, see there.

    Raises:
      InvalidArgument: no such data set, no network, TensorFlow Datasets is not installed, or the data set is neither a
        text nor images of one size, or an argument does not fit it.
    """
    with read_errors(name, "dataset", name, "one that TensorFlow Datasets can prepare, or comes with --source"):
        import tensorflow_datasets as tfds

        try:
            builder = tfds.builder(name)
        except tfds.core.DatasetNotFoundError:
            near = difflib.get_close_matches(name, tfds.list_builders(with_community_datasets=False), n=3)
            raise InvalidArgument("dataset", name, "in TensorFlow Datasets", ", ".join(near) or None) from None
        _check(name, builder, tokens, test_share)  # before it downloads gigabytes
        builder.download_and_prepare()
        return _read(name, builder, tokens, test_share)


def read_folder(name: str, path: pathlib.Path, tokens: str | None = None, test_share: float | None = None) -> Prepared:
    """A data set that TensorFlow Datasets has prepared, from its folder or the one above.

    Args:
      name: of the data set.
      path: the folder.
      tokens: as in `download`.
      test_share: as in `download`.

    Raises:
      InvalidArgument: as in `download`, or the folder is damaged.
    """
    with read_errors(name, "source", str(path), "an intact folder of TensorFlow Datasets"):
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(find_folder(path))
        _check(name, builder, tokens, test_share)
        return _read(name, builder, tokens, test_share)


@contextlib.contextmanager
def read_errors(name: str, argument: str, value: str, allowed: str) -> Iterator[None]:
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


def _check(name: str, builder: Any, tokens: str | None, test_share: float | None) -> None:
    """Refuses a data set that is neither a text nor images of one size, and arguments that do not fit it."""
    if _is_text(builder):
        prepare_text.check_tokens(tokens)
        prepare_text.check_test_share(test_share)
        return
    for argument, value in (("tokens", tokens), ("test_share", test_share)):
        if value is not None:
            raise InvalidArgument(argument, value, f"left out for {name}, which is no text")
    _image_and_label(name, builder)


def _read(name: str, builder: Any, tokens: str | None, test_share: float | None) -> Prepared:
    splits, path, is_text = builder.info.splits, str(builder.data_dir), _is_text(builder)
    used = [split for split in ("train", "test", "validation") if split in splits][:2]
    if "train" not in splits or len(used) < 2 - is_text:
        what = f"a data set with the split train, and test or validation; it has {list(splits)}"
        raise InvalidArgument("dataset", name, what)
    source = {"path": path, "kind": f"TensorFlow Datasets, {builder.info.full_name}", "splits": used}
    if not is_text:
        image, label = _image_and_label(name, builder)
        contents = Contents(
            [_images(builder, split, image, label) for split in used], builder.info.features[label].names
        )
        return Prepared(make_dataset(name, path, contents), source)
    if len(used) == 2 and test_share is not None:
        raise InvalidArgument("test_share", test_share, f"left out for {name}, whose split {used[1]} is held out")
    tokens, texts = prepare_text.check_tokens(tokens), [_text(builder, split) for split in used]
    share = prepare_text.check_test_share(test_share) if len(used) == 1 else None
    dataset = prepare_text.encode(name, pathlib.Path(path), texts, tokens, share)
    return Prepared(dataset, source | {"flags": {"tokens": tokens, "test_share": share}})


def _images(builder: Any, split: str, image_key: str, label_key: str) -> tuple[np.ndarray, np.ndarray]:
    size = builder.info.splits[split].num_examples
    images = np.empty((size, *builder.info.features[image_key].shape), np.uint8)
    labels = np.empty(size, np.int32)
    for i, example in enumerate(_examples(builder, split)):
        images[i], labels[i] = example[image_key], example[label_key]
    return images, labels


def _text(builder: Any, split: str) -> bytearray:
    text = bytearray()
    for i, example in enumerate(_examples(builder, split)):
        text += b"\n" * (i > 0) + example["text"]
    return text


def _examples(builder: Any, split: str) -> Iterator[Any]:
    import tensorflow_datasets as tfds

    if builder.info.file_format.value == "array_record":  # needs no TensorFlow
        examples = builder.as_data_source(split)
    else:
        examples = tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False))
    yield from tqdm.tqdm(examples, f"reading {split}", builder.info.splits[split].num_examples, disable=None)


def _is_text(builder: Any) -> bool:
    import tensorflow_datasets as tfds

    features = builder.info.features
    return "text" in features and isinstance(features["text"], tfds.features.Text)


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
    allowed = "a data set with a feature text, or of uint8 images of one size, each with a class"
    raise InvalidArgument("dataset", name, f"{allowed}; it has {found}")
