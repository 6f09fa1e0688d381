"""Image classification data sets as arrays."""

import dataclasses
import functools
import pathlib
from typing import NamedTuple

import numpy as np

from bsjax.errors import check_choice


class Split(NamedTuple):
    """Examples in a fixed order."""

    images: np.ndarray  # uint8 [n, height, width, channels]
    labels: np.ndarray  # int32 [n]


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split. A source of data is a function that returns one."""

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @functools.cached_property
    def mean(self) -> np.ndarray:
        """float32 [channels]: of the training images' pixels."""
        return self.train.images.mean(axis=(0, 1, 2), dtype=np.float64).astype(np.float32)

    @functools.cached_property
    def std(self) -> np.ndarray:
        """float32 [channels]: of the training images' pixels."""
        return np.maximum(self.train.images.std(axis=(0, 1, 2), dtype=np.float64), 1e-3).astype(np.float32)


def load_dataset(name: str) -> Dataset:
    """A data set by name.

    Raises:
      InvalidArgument: no such data set.

    >>> digits = load_dataset("digits")
    >>> digits.train.images.shape, len(digits.test.labels), digits.num_classes
    ((1437, 8, 8, 1), 360, 10)
    """
    return _SOURCES[check_choice("dataset", name, DATASETS)]()


def _digits() -> Dataset:
    """Handwritten digits of 8×8 pixels with values up to 16, in a fixed split of 1,437 and 360.

    Those of `sklearn.datasets.load_digits`, kept here so that they load at once: the test set of E. Alpaydin and
    C. Kaynak, *Optical Recognition of Handwritten Digits*, UCI Machine Learning Repository, 1998 (CC BY 4.0).
    """
    with np.load(pathlib.Path(__file__).with_name("digits.npz")) as file:
        order = np.random.RandomState(0).permutation(len(file["labels"]))  # a stream that never changes
        images = file["images"][order, :, :, None]
        labels = file["labels"][order].astype(np.int32)
    train, test = (Split(images[part], labels[part]) for part in (slice(1437), slice(1437, None)))
    return Dataset("digits", train, test, tuple("0123456789"))


def _synthetic() -> Dataset:
    """Ten noisy prototypes of 32×32×3 pixels: 2,048 to train on, 512 to test. For tests and benchmarks."""
    random = np.random.RandomState(0)
    prototypes = random.uniform(64, 192, (10, 8, 8, 3)).repeat(4, axis=1).repeat(4, axis=2)

    def split(size: int) -> Split:
        labels = random.randint(10, size=size).astype(np.int32)
        noise = 64 * random.standard_normal((size, 32, 32, 3))
        return Split((prototypes[labels] + noise).clip(0, 255).astype(np.uint8), labels)

    return Dataset("synthetic", split(2048), split(512), tuple("0123456789"))


_SOURCES = {"digits": _digits, "synthetic": _synthetic}
DATASETS = tuple(_SOURCES)
