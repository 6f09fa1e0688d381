"""One-dimensional signals whose classes differ in their spectra: a data set that needs no files."""

import numpy as np

from bsjax.data.dataset import Dataset
from bsjax.data.sources import ArraySource

_NUM_HARMONICS = 8
_FREQUENCY = 3 / 64  # of the first harmonic, in periods per sample
_BITS = 32.0  # steps of 8-bit samples in an amplitude of 1


def create_signals(
    seed: int = 0, train_size: int = 1440, test_size: int = 360, length: int = 64, num_classes: int = 10
) -> Dataset:
    r"""Sums of harmonics with random phases in noise, as 8-bit samples; a class is a spectrum.

    .. math:: x_t = \frac{1}{r} \sum_{k=1}^{8} a_k \cos(2 \pi k f t + \varphi_k) + \tfrac{1}{2} n_t,
       \quad \log a_k = A_{ck} + \tfrac{1}{2} z_k

    r makes the power of the sum 1. The spectrum A of each of the classes c is normal, z and n are standard normal, the
    phases φ are uniform, and the pitch f is within 5 % of 3/64. So the mean over a class is zero at every sample: no
    linear function of the samples tells the classes apart, but the power at each frequency does.

    Args:
      seed: of everything.
      train_size: the number of training examples.
      test_size: of test examples.
      length: samples of a signal.
      num_classes: of equal probability.

    Returns:
      A `Dataset` whose images have a height of one pixel and one channel: uint8 [1, length, 1], in which 128 is zero.

    >>> signals = create_signals(train_size=8, test_size=4)
    >>> signals.train.gather(np.arange(3))["image"].shape, signals.num_classes
    ((3, 1, 64, 1), 10)
    """
    random = np.random.RandomState(seed)  # a stream that never changes
    spectra = random.standard_normal((num_classes, _NUM_HARMONICS))

    def split(size: int) -> ArraySource:
        labels = random.randint(num_classes, size=size).astype(np.int32)
        amplitudes = np.exp(spectra[labels] + 0.5 * random.standard_normal((size, _NUM_HARMONICS)))
        amplitudes *= np.sqrt(2) / np.linalg.norm(amplitudes, axis=1, keepdims=True)
        pitch = _FREQUENCY * random.uniform(0.95, 1.05, (size, 1, 1))
        phases = random.uniform(0, 2 * np.pi, (size, 1, _NUM_HARMONICS))
        angles = 2 * np.pi * pitch * np.arange(length)[:, None] * np.arange(1, _NUM_HARMONICS + 1) + phases
        samples = (amplitudes[:, None] * np.cos(angles)).sum(axis=2) + 0.5 * random.standard_normal((size, length))
        stored = (128 + _BITS * samples).round().clip(0, 255).astype(np.uint8)
        return ArraySource({"image": stored[:, None, :, None], "label": labels})

    return Dataset("signals", split(train_size), split(test_size), tuple(map(str, range(num_classes))))
