"""The noise scale of stochastic gradient descent: the quantity that a batch-size increase keeps."""

from typing import Any

import numpy as np


def sgd_noise_scale(
    learning_rate: Any,
    batch_size: Any,
    dataset_size: int,
    momentum: Any = 0.0,
    exact: bool = True,
) -> Any:
    r"""Smith's noise scale, the temperature of SGD seen as a stochastic differential equation.

    .. math:: g = \frac{\epsilon}{1 - m} \left(\frac{N}{B} - 1\right) \approx \frac{\epsilon N}{B (1 - m)}

    Not to be confused with McCandlish's *gradient noise scale* tr(Σ)/|G|², which is a batch size.

    Args:
      learning_rate: ε; a number or an array.
      batch_size: B in examples, likewise.
      dataset_size: N in examples.
      momentum: m in [0, 1), likewise.
      exact: False leaves out the -1, which matters only when B is not much smaller than N.

    Returns:
      g, in units of the learning rate, float64, of the arguments' broadcast shape.

    >>> print(round(sgd_noise_scale(0.1, 128, 50_000, momentum=0.9, exact=False), 3))
    390.625
    >>> print(round(sgd_noise_scale(0.1, 128, 50_000, momentum=0.9), 3))
    389.625

    Reference: Smith et al., 2018 (https://arxiv.org/abs/1711.00489), Sections 2 and 3.2.
    """
    batches_per_epoch = dataset_size / np.asarray(batch_size, np.float64)
    temperature = np.asarray(learning_rate, np.float64) / (1.0 - np.asarray(momentum, np.float64))
    return temperature * (batches_per_epoch - 1.0 if exact else batches_per_epoch)
