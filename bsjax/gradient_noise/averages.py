"""Averages of |G|² and tr(Σ) over updates; their ratio with a confidence interval, or why there is none."""

import math
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from bsjax.errors import InvalidArgument
from bsjax.gradient_noise.estimates import Estimate, as_arrays, unwrapped

# Below this many updates' worth of weight the spread between updates says nothing.
_MIN_EFFECTIVE_UPDATES = 1.5


class Averages(NamedTuple):
    """Exponential moving averages over updates, and their spread; on the host floats, so `_asdict()` is JSON."""

    weight: Any  # Σ w of the updates so far, in examples; 0 before the first
    grad_sq: Any  # Σ w |G|² / Σ w
    trace: Any  # Σ w tr(Σ) / Σ w
    weight_sq: Any  # Σ w²
    # For the variance of the averages: means with weights w², and the sums of w² (x - mean)(y - mean).
    center_grad_sq: Any
    center_trace: Any
    scatter_grad_sq: Any
    scatter_trace: Any
    scatter_product: Any


def zero_averages() -> Averages:
    """The averages before the first update.

    >>> import json
    >>> Averages(**json.loads(json.dumps(zero_averages()._asdict()))) == zero_averages()
    True
    """
    return Averages(*(0.0 for _ in Averages._fields))


def update_averages(averages: Averages, noise: Estimate, half_life_examples: float) -> Averages:
    """Adds an update's estimates.

    An update of n examples weighs :math:`n 2^{-age / half-life}`, age and half-life counted in examples: the averages
    cover the same stretch of training at every batch size. While the batch grows, n is close to the precision
    of both estimates: with shards of one size the variance of tr(Σ) falls like 1/(k - 1), that of |G|² between 1/n
    (signal dominates) and 1/n² (noise dominates). The two share their weights, or the ratio would mix different times.
    Dividing by the sum of weights leaves no bias from the start. Estimates that are not finite have no weight; the
    others still age.

    Args:
      averages: so far; floats on the host, or JAX arrays.
      noise: the update's; the host converts it to float64.
      half_life_examples: the number of examples after which an update's weight has halved.

    Returns:
      The new averages.

    >>> averages = update_averages(zero_averages(), Estimate(1.0, 8.0, 100, 4), half_life_examples=200)
    >>> averages = update_averages(averages, Estimate(2.0, 4.0, 200, 8), half_life_examples=200)
    >>> print(averages.grad_sq, averages.trace, gradient_noise_scale(averages))  # weights 50 and 200
    1.8 4.8 2.6667
    """
    xp, (grad_sq, trace, n, *old) = as_arrays(noise.grad_sq, noise.trace, noise.num_examples, *averages)
    weight, mean_grad_sq, mean_trace, weight_sq, center_grad_sq, center_trace, *scatters = old
    kept = 0.5 ** (n / half_life_examples)
    measured = xp.isfinite(grad_sq) & xp.isfinite(trace)
    w = xp.where(measured, n, 0.0)
    grad_sq, trace = xp.where(measured, grad_sq, 0.0), xp.where(measured, trace, 0.0)
    weight, weight_sq = kept * weight + w, kept**2 * weight_sq + w**2
    share = w / xp.where(weight > 0, weight, 1.0)
    share_sq = w**2 / xp.where(weight_sq > 0, weight_sq, 1.0)
    from_grad_sq, from_trace = grad_sq - center_grad_sq, trace - center_trace
    # West's update of a weighted scatter: differences only, so that nothing cancels.
    kept_sq, new_sq = kept**2, w**2 * (1 - share_sq)
    scatter_grad_sq, scatter_trace, scatter_product = scatters
    new = (
        weight,
        mean_grad_sq + share * (grad_sq - mean_grad_sq),
        mean_trace + share * (trace - mean_trace),
        weight_sq,
        center_grad_sq + share_sq * from_grad_sq,
        center_trace + share_sq * from_trace,
        kept_sq * scatter_grad_sq + new_sq * from_grad_sq**2,
        kept_sq * scatter_trace + new_sq * from_trace**2,
        kept_sq * scatter_product + new_sq * from_grad_sq * from_trace,
    )
    return Averages(*map(unwrapped, new))


def gradient_noise_scale(noise: Estimate | Averages) -> Any:
    """B_simple = tr(Σ) / |G|², in examples.

    Args:
      noise: of one update (noisy, and biased as a ratio), or averages.

    Returns:
      Infinite where |G|² is estimated as zero or less; NaN where nothing is known. `reason` says why.

    >>> print(gradient_noise_scale(Estimate(grad_sq=-0.5, trace=8.0, num_examples=4, num_shards=2)))
    inf
    >>> print(gradient_noise_scale(zero_averages()))
    nan
    """
    xp, (grad_sq, trace) = as_arrays(noise.grad_sq, noise.trace)
    ratio = xp.maximum(trace, 0.0) / xp.where(grad_sq > 0, grad_sq, 1.0)
    return unwrapped(xp.where(grad_sq > 0, ratio, xp.where((grad_sq <= 0) & (trace > 0), xp.inf, xp.nan)))


def confidence_interval(averages: Averages, confidence: float = 0.95) -> tuple[Any, Any]:
    r"""Fieller's interval for B_simple: all B that agree with the averages T of tr(Σ) and Q of |G|².

    .. math:: (T - B Q)^2 \le t^2 \left(V_{TT} - 2 B V_{TQ} + B^2 V_{QQ}\right)

    V is the covariance of T and Q, from the spread of the updates (with weights w²/(Σw)², whatever
    the noise of each), and t Student's quantile for (Σw)²/Σw² - 1 degrees of freedom. The delta method on log B would
    not do: Q is often barely distinguishable from zero, or negative, and then no method with bounded intervals has any
    confidence (Gleser and Hwang, 1987). Fieller's intervals are unbounded there.

    It is an interval for the ratio of what T and Q average. Where they drift, the drift counts as spread and
    the interval is longer than it need be.

    Args:
      averages: on the host.
      confidence: probability, in (0, 1), that the interval holds B_simple.

    Returns:
      low and high, in [0, ∞]; high is infinite where |G|² is not distinguishable from zero; both are
      NaN with less than two updates.

    Raises:
      InvalidArgument: `confidence` is not inside (0, 1).

    Reference: Fieller, 1954, Some Problems in Interval Estimation, JRSS B 16(2).
    """
    if not 0 < confidence < 1:
        raise InvalidArgument("confidence", confidence, "a number between 0 and 1", nearest=0.95)
    weight, q, t, weight_sq, center_q, center_t, *scatters = (np.asarray(x, np.float64) for x in averages)
    known = weight**2 > _MIN_EFFECTIVE_UPDATES * weight_sq
    effective_updates = np.where(known, weight**2 / np.where(known, weight_sq, 1.0), 2.0)
    off_q, off_t = center_q - q, center_t - t
    offsets = (off_q**2, off_t**2, off_q * off_t)
    quantile = special.stdtrit(effective_updates - 1, (1 + confidence) / 2)
    # The last factor corrects for a mean of the same updates; with equal weights, (1 / k) s².
    scale = quantile**2 / np.where(known, weight, 1.0) ** 2 / (1 - 1 / effective_updates)
    v_qq, v_tt, v_tq = (scale * (s + weight_sq * o) for s, o in zip(scatters, offsets, strict=True))
    # The roots of a B² - 2 b B + c, written without cancellation; what is negative is cut off.
    a, b, c = q**2 - v_qq, q * t - v_tq, t**2 - v_tt
    root = b + np.sqrt(np.maximum(b**2 - a * c, 0.0))
    divisor = np.where(root > 0, root, 1.0)
    low = np.where(c > 0, np.where(root > 0, c / divisor, np.inf), 0.0)
    bounded = (a > 0) & (root > 0)
    high = np.where(bounded, root / np.where(bounded, a, 1.0), np.inf)
    low = np.minimum(low, high)  # rounding may swap them where there is no spread
    return np.where(known, low, np.nan)[()], np.where(known, high, np.nan)[()]


def reason(noise: Estimate | Averages) -> str | None:
    """Why B_simple is not a finite number; None where it is.

    Args:
      noise: scalars, on the host.

    >>> reason(Estimate(grad_sq=math.nan, trace=math.nan, num_examples=32, num_shards=1))
    'one microbatch on one device: at least two are needed'
    >>> reason(zero_averages())
    'no update so far had two microbatches or devices, and finite gradients'
    """
    if isinstance(noise, Averages):
        if noise.weight == 0:
            return "no update so far had two microbatches or devices, and finite gradients"
    elif noise.num_shards == 0:
        return "no examples"
    elif noise.num_shards == 1:
        return "one microbatch on one device: at least two are needed"
    if not (math.isfinite(noise.trace) and math.isfinite(noise.grad_sq)):
        return "the gradients are not finite"
    if noise.grad_sq > 0:
        return None
    if noise.trace > 0:
        return "|G|² is lost in the noise, its estimate is not positive: average over more examples"
    return "the gradients are zero"
