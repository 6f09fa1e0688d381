r"""Do two schedules differ? Confidence intervals over seeds, paired differences, and a test of equivalence.

Runs of one seed share their initial parameters and the order of their examples, so differences are taken seed by seed:
what a seed adds to both runs cancels. The mean of n values has the interval of Student's t,

.. math:: \bar{x} \pm t_{n-1,\,(1+c)/2} \, \frac{s}{\sqrt{n}}

where s is the standard deviation of the sample and c the confidence. A coarse metric, such as an accuracy on few test
images, repeats by chance, and two seeds whose differences are the same would have an interval without any width. So a
metric's `resolution` r, the step between its neighbouring values, is a lower bound of s: rounding alone makes the
standard deviation of a value r / √12, and that of a difference r / √6.

A value that is not finite is that of a run that diverged. It is left out, with its partner, so a result also needs the
number of those.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from bsjax.errors import InvalidArgument, check_number, check_positive


class Interval(NamedTuple):
    """An estimate and its confidence interval.

    One value alone has the interval (-inf, inf), because it tells nothing of the spread; none at all has NaN only.
    """

    estimate: float
    low: float
    high: float


class Comparison(NamedTuple):
    """The difference of two schedules, and what it means; see `compare`."""

    difference: Interval
    verdict: str


def mean_interval(values: Any, confidence: float = 0.95, resolution: float = 0.0) -> Interval:
    """The mean of values, and its confidence interval by Student's t.

    Args:
      values: [n], one per seed; those that are not finite are left out.
      confidence: of the interval, in (0, 1).
      resolution: the step between neighbouring values, such as 1/360 for an accuracy on 360 images; 0, none.

    Raises:
      InvalidArgument: `values` has more than one dimension, or `confidence` is out of range.

    >>> mean_interval([1, 2, 3, 4, 5])
    Interval(estimate=3.0, low=1.0367, high=4.9632)
    >>> mean_interval([7.0])
    Interval(estimate=7.0, low=-inf, high=inf)
    >>> mean_interval([0.9, 0.9, 0.9], resolution=0.01)  # not a width of 0
    Interval(estimate=0.9, low=0.893, high=0.907)
    """
    check_number("confidence", confidence, lambda c: 0 < c < 1, "in (0, 1)", 0.95)
    check_number("resolution", resolution, lambda r: r >= 0, "0 or positive", 0)
    values = _of_one_dimension("values", values)
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return Interval(float(values[0]), -math.inf, math.inf) if len(values) else Interval(*[math.nan] * 3)
    mean, deviation = float(values.mean()), max(float(values.std(ddof=1)), resolution / math.sqrt(12))
    half = float(special.stdtrit(len(values) - 1, (1 + confidence) / 2)) * deviation / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def paired_difference(values: Any, baseline: Any, confidence: float = 0.95, resolution: float = 0.0) -> Interval:
    r"""The mean difference of pairs, :math:`\bar{d}` with :math:`d_i = x_i - y_i`, and its confidence interval.

    Args:
      values: x [n], one per seed.
      baseline: y [n], of the same seeds in the same order. Pairs where either is not finite are left out.
      confidence: of the interval, in (0, 1).
      resolution: the step between neighbouring values of x and of y; 0, none.

    Raises:
      InvalidArgument: the numbers of values differ, or an argument is out of range.

    >>> paired_difference([0.91, 0.95, 0.93], [0.90, 0.93, 0.93])
    Interval(estimate=0.01, low=-0.0148, high=0.0348)
    """
    values, baseline = _of_one_dimension("values", values), _of_one_dimension("baseline", baseline)
    if len(values) != len(baseline):
        raise InvalidArgument("baseline", f"{len(baseline)} numbers", f"as many as the {len(values)} values")
    with np.errstate(invalid="ignore"):  # inf - inf
        return mean_interval(values - baseline, confidence, math.sqrt(2) * resolution)


def compare(values: Any, baseline: Any, margin: float, confidence: float = 0.95, resolution: float = 0.0) -> Comparison:
    r"""Whether two schedules are equal to within a margin, different, or undecided with so few seeds.

    The verdict follows from the interval [low, high] of the paired difference:

    * "equal" if -margin < low and high < margin. These are two one-sided tests: each rejects a difference beyond one
      end of the margin at the level (1 - confidence) / 2, which bounds the probability of "equal" where the true
      difference is as large as the margin: 2.5 % for a confidence of 95 %. A small difference may be real and "equal".
    * "different" if it is not "equal" and the interval excludes 0. The sign of the estimate says in which direction.
    * "undecided" otherwise. More seeds would decide.

    Args:
      values: [n], one per seed.
      baseline: [n], of the same seeds in the same order.
      margin: the largest difference that does not matter, positive, in the unit of the values. Choose it before the
        runs: a margin that was chosen to fit the results tests nothing.
      confidence: of the interval, in (0, 1).
      resolution: the step between neighbouring values of x and of y; 0, none.

    Raises:
      InvalidArgument: the numbers of values differ, or an argument is out of range.

    >>> compare([0.931, 0.929, 0.930], [0.930, 0.930, 0.930], margin=0.005).verdict
    'equal'
    >>> compare([0.911, 0.909, 0.910], [0.930, 0.930, 0.930], margin=0.005)
    Comparison(difference=Interval(estimate=-0.02, low=-0.0225, high=-0.0175), verdict='different')
    >>> compare([0.931], [0.930], margin=0.005).verdict
    'undecided'

    Reference: Schuirmann, 1987, A comparison of the two one-sided tests procedure and the power approach for assessing
    the equivalence of average bioavailability (https://doi.org/10.1007/BF01068419).
    """
    check_positive("margin", margin)
    difference = paired_difference(values, baseline, confidence, resolution)
    if -margin < difference.low and difference.high < margin:
        return Comparison(difference, "equal")
    return Comparison(difference, "different" if difference.low > 0 or difference.high < 0 else "undecided")


def _of_one_dimension(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != 1:
        raise InvalidArgument(name, f"of {array.ndim} dimensions", "a list of numbers")
    return array
