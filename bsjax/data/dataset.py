"""A data set of image classification: uint8 images and int32 labels, for training and testing."""

import dataclasses
import functools

import numpy as np

from bsjax.data.sources import Source


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Images with classes, for training and testing.

    Args:
      name: name of the data set.
      train: the training examples, each {"image": uint8 [height, width, channels], "label": int32 []}.
      test: the test examples.
      class_names: the name of the class of each label, from 0.
      moments: float32 [channels] each, mean and standard deviation of the training images' pixels; default, computed.
    """

    name: str
    train: Source
    test: Source
    class_names: tuple[str, ...]
    moments: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def mean(self) -> np.ndarray:
        """float32 [channels]: mean of the training images' pixels."""
        return self._mean_and_std[0]

    @property
    def std(self) -> np.ndarray:
        """float32 [channels]: standard deviation of the training images' pixels."""
        return self._mean_and_std[1]

    @functools.cached_property
    def _mean_and_std(self) -> tuple[np.ndarray, np.ndarray]:
        """Computed from the number of pixels of each value: exact, without a float64 copy of the images."""
        if self.moments is not None:
            return self.moments
        count, values = np.zeros((1, 256), np.int64), np.arange(256.0)
        for start in range(0, len(self.train), 256):
            images = self.train.gather(np.arange(start, min(start + 256, len(self.train))))["image"]
            channels = images.reshape(-1, images.shape[-1]).T
            count = count + np.array([np.bincount(pixels, minlength=256) for pixels in channels])
        share = count / count.sum(axis=1, keepdims=True)
        mean = share @ values
        std = np.sqrt((share * (values - mean[:, None]) ** 2).sum(axis=1))
        return mean.astype(np.float32), np.maximum(std, 1e-3).astype(np.float32)
