"""Data sets by name."""

import difflib
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from bsjax.data import cache
from bsjax.data.dataset import Dataset
from bsjax.data.image_datasets import has_images, image_dataset_names
from bsjax.data.signals import create_signals
from bsjax.data.sources import ArraySource
from bsjax.errors import InvalidArgument

# For the nearest name in errors. Any other data set of TensorFlow Datasets can be prepared too.
WELL_KNOWN = (
    *("cifar10", "cifar100", "mnist", "fashion_mnist", "kmnist", "emnist", "svhn_cropped", "stl10"),
    *("imagenet_resized/32x32", "imagenet_resized/64x64"),
)


def load_dataset(name: str, data_dir: cache.DataDir = None) -> Any:
    """A data set by name: one of `DATASETS`, or one that `scripts/prepare_data.py` has prepared.

    Args:
      name: of the data set.
      data_dir: the folder of prepared data sets; default, `$BSJAX_DATA_DIR`, else `~/.cache/bsjax`.

    Returns:
      A `Dataset` of images with classes, or a `TextDataset`.

    Raises:
      InvalidArgument: it has not been prepared, or is damaged; the message has the command that prepares it. Or its
        images have many sizes, see `load_images`.

    >>> digits = load_dataset("digits")
    >>> len(digits.train), len(digits.test), digits.num_classes
    (1437, 360, 10)
    >>> {name: array.shape for name, array in digits.train.gather(np.arange(5)).items()}
    {'image': (5, 8, 8, 1), 'label': (5,)}
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name]()
    if has_images(name, data_dir):
        allowed = "a data set of images of one size; bsjax.data.load_images crops those of many sizes"
        raise InvalidArgument("dataset", name, allowed)
    if cache.exists(name, data_dir):
        return cache.read(name, data_dir)
    here = list(dict.fromkeys([*DATASETS, *cache.prepared_names(data_dir), *image_dataset_names(data_dir)]))
    command = cache.prepare_command(name, data_dir)
    near = [] if name in WELL_KNOWN else difflib.get_close_matches(name.lower(), [*here, *WELL_KNOWN], n=1)
    raise InvalidArgument("dataset", name, f"one of {', '.join(here)}, or prepared first: {command}", *near)


def _digits() -> Dataset:
    """Handwritten digits of 8×8 pixels with values up to 16, in a fixed split of 1,437 and 360.

    They are those of `sklearn.datasets.load_digits`, a copy of the test set of E. Alpaydin and C. Kaynak, *Optical
    Recognition of Handwritten Digits*, UCI Machine Learning Repository, 1998 (CC BY 4.0).
    """
    with np.load(pathlib.Path(__file__).with_name("digits.npz")) as file:
        order = np.random.RandomState(0).permutation(len(file["labels"]))  # a stream that never changes
        images = file["images"][order, :, :, None]
        labels = file["labels"][order].astype(np.int32)
    parts = (slice(1437), slice(1437, None))
    train, test = (ArraySource({"image": images[part], "label": labels[part]}) for part in parts)
    return Dataset("digits", train, test, tuple("0123456789"))


def _synthetic() -> Dataset:
    """Ten noisy prototypes of 32×32×3 pixels: 2,048 to train on, 512 to test. For tests and benchmarks."""
    random = np.random.RandomState(0)
    prototypes = random.uniform(64, 192, (10, 8, 8, 3)).repeat(4, axis=1).repeat(4, axis=2)

    def split(size: int) -> ArraySource:
        labels = random.randint(10, size=size).astype(np.int32)
        noise = 64 * random.standard_normal((size, 32, 32, 3))
        return ArraySource({"image": (prototypes[labels] + noise).clip(0, 255).astype(np.uint8), "label": labels})

    return Dataset("synthetic", split(2048), split(512), tuple("0123456789"))


_BUILT_IN: dict[str, Callable[[], Dataset]] = {
    "digits": _digits,
    "synthetic": _synthetic,
    "signals": create_signals,
}
DATASETS = tuple(_BUILT_IN)
