"""What a data set is: uint8 images and int32 labels, to train on and to test on."""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np


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

    @property
    def mean(self) -> np.ndarray:
        """float32 [channels]: of the training images' pixels."""
        return self._mean_and_std[0]

    @property
    def std(self) -> np.ndarray:
        """float32 [channels]: of the training images' pixels."""
        return self._mean_and_std[1]

    @functools.cached_property
    def _mean_and_std(self) -> tuple[np.ndarray, np.ndarray]:
        """From the number of pixels of each value, which is exact, and no copy of the images in float64."""
        images, values = self.train.images, np.arange(256.0)
        count = np.zeros((images.shape[-1], 256), np.int64)
        for start in range(0, len(images), 256):
            pixels = images[start : start + 256].reshape(-1, images.shape[-1])
            for channel in range(images.shape[-1]):
                count[channel] += np.bincount(pixels[:, channel], minlength=256)
        share = count / count.sum(axis=1, keepdims=True)
        mean = share @ values
        std = np.sqrt((share * (values - mean[:, None]) ** 2).sum(axis=1))
        return mean.astype(np.float32), np.maximum(std, 1e-3).astype(np.float32)
