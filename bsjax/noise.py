"""The noise of stochastic gradient descent: the quantity that a batch-size increase keeps."""

import difflib
from typing import Any

import numpy as np

from bsjax.errors import InvalidArgument, is_finite

_EXPONENTS = {"linear": 1.0, "sqrt": 0.5}


def scaling_exponent(scaling: str | float) -> float:
    """The exponent ρ of a scaling rule: the learning rate follows the batch as B^ρ.

    Args:
      scaling: "linear" (ρ = 1) for SGD and momentum, "sqrt" (ρ = 1/2) for Adam, or ρ itself, in (0, 1].

    Raises:
      InvalidArgument: it is none of these.

    >>> scaling_exponent("linear"), scaling_exponent("sqrt"), scaling_exponent(0.6)
    (1.0, 0.5, 0.6)
    >>> scaling_exponent(1.5)
    Traceback (most recent call last):
    ...
    bsjax.errors.InvalidArgument: scaling is 1.5; it must be linear, sqrt or an exponent in (0, 1]; nearest: 1
    """
    if isinstance(scaling, str):
        if scaling in _EXPONENTS:
            return _EXPONENTS[scaling]
        (nearest,) = difflib.get_close_matches(scaling, _EXPONENTS, n=1, cutoff=0.0)
    elif is_finite(scaling):
        if 0 < scaling <= 1:
            return float(scaling)
        nearest = "1" if scaling > 1 else "sqrt"
    else:
        nearest = "linear"
    raise InvalidArgument("scaling", scaling, "linear, sqrt or an exponent in (0, 1]", nearest)


def kept_noise(
    learning_rate: Any, batch_size: Any, dataset_size: int, momentum: Any = 0.0, scaling: str | float = "linear"
) -> Any:
    r"""The quantity that a conversion keeps at every instant.

    .. math:: \frac{\epsilon}{1 - m} \left(\frac{N}{B}\right)^\rho

    For ρ = 1 this is Smith's noise scale without its -1 (`sgd_noise_scale` with `exact=False`).

    Args:
      learning_rate: ε; a number or an array.
      batch_size: B in examples; a number or an array.
      dataset_size: N in examples.
      momentum: m in [0, 1); a number or an array.
      scaling: the rule or its exponent ρ, as `scaling_exponent` takes it.

    Returns:
      float64, of the arguments' broadcast shape, in units of the learning rate.

    >>> kept_noise(0.1, 100, 40_000, scaling="sqrt").item(), kept_noise(0.2, 400, 40_000, scaling="sqrt").item()
    (2.0, 2.0)
    """
    batches_per_epoch = dataset_size / np.asarray(batch_size, np.float64)
    temperature = np.asarray(learning_rate, np.float64) / (1.0 - np.asarray(momentum, np.float64))
    return temperature * batches_per_epoch ** scaling_exponent(scaling)


def sgd_noise_scale(
    learning_rate: Any, batch_size: Any, dataset_size: int, momentum: Any = 0.0, exact: bool = True
) -> Any:
    r"""Smith's noise scale, the temperature of SGD seen as a stochastic differential equation.

    .. math:: g = \frac{\epsilon}{1 - m} \left(\frac{N}{B} - 1\right) \approx \frac{\epsilon N}{B (1 - m)}

    Not to be confused with McCandlish's *gradient noise scale* tr(Σ)/|G|², which is a batch size.

    Args:
      learning_rate: ε; a number or an array.
      batch_size: B in examples; a number or an array.
      dataset_size: N in examples.
      momentum: m in [0, 1); a number or an array.
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
