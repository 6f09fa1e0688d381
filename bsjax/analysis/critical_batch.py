r"""The critical batch size: from steps to a target loss at many batch sizes, and from branches of one run.

Far below it, batches of twice the size need half the steps; far above it, larger batches need as many steps. There
are three definitions, and only the first describes a whole training without a threshold:

* `fit_pareto`: :math:`B_{crit} = E_{min} / S_{min}` of a hyperbola through steps S and examples E = B·S to the target;
* `twenty_percent_batch_size`: where the steps exceed linear scaling by 20 %;
* `branched_batch_size`: at one moment of a run, the largest batch whose loss is no higher than that of a small batch.

None of them needs the noise of the gradient: `bsjax.gradient_noise` measures that, and can predict the first at best.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, special

from bsjax.errors import InvalidArgument

# The search for the critical batch size goes this factor beyond the measured batch sizes.
_RANGE = 1e3
_GRID = 400
_ROUNDING = 1e-12  # of logarithms


class Interval(NamedTuple):
    """An estimate and its confidence interval."""

    value: float
    low: float
    high: float


class ParetoFit(NamedTuple):
    """The hyperbola of steps and examples to a target loss, see `fit_pareto`."""

    min_steps: Interval  # S_min: with batches of any size
    min_examples: Interval  # E_min: with any number of steps
    critical_batch_size: Interval  # E_min / S_min, examples
    rms_residual: float  # of log steps from the hyperbola, over batch sizes and seeds

    def steps(self, batch_size: Any) -> Any:
        """S_min + E_min / B: the steps to the target with batches of B examples."""
        return self.min_steps.value + self.min_examples.value / np.asarray(batch_size, np.float64)


def steps_to_target(steps: Any, losses: Any, target_loss: float, window: int = 5) -> float | None:
    """The step at which a noisy, falling loss crosses a target.

    It averages the log loss and the log step over `window` neighbouring evaluations, so that smoothing does not delay
    the crossing, and interpolates the first crossing on these two logarithmic axes.

    Args:
      steps: [n] of the evaluations, increasing, at least 1; best with about even spaces between their logarithms.
      losses: [n] positive.
      target_loss: positive.
      window: number of evaluations; the first averages have fewer.

    Returns:
      The step, not rounded; None if the target is not reached.

    >>> steps = np.arange(1, 50)
    >>> round(steps_to_target(steps, 10 / steps, target_loss=0.5, window=1), 6)
    20.0
    >>> steps_to_target(steps, 10 / steps, target_loss=0.1) is None
    True
    """
    if not target_loss > 0:
        raise InvalidArgument("target_loss", target_loss, "positive")
    logs = np.log(np.array([steps, losses], np.float64))
    sums = np.cumsum(np.pad(logs, ((0, 0), (1, 0))), axis=1)
    stop = np.arange(1, logs.shape[1] + 1)
    start = np.maximum(stop - window, 0)
    log_step, log_loss = (sums[:, stop] - sums[:, start]) / (stop - start)
    below = np.flatnonzero(log_loss <= math.log(target_loss))
    if not len(below):
        return None
    near = slice(max(below[0] - 1, 0), below[0] + 1)
    return float(np.exp(np.interp(-math.log(target_loss), -log_loss[near], log_step[near])))


def fit_pareto(steps: Any, examples: Any, confidence: float = 0.95) -> ParetoFit:
    r"""Fits the trade-off between steps S and examples E to a target loss.

    .. math:: \left(\frac{S}{S_{min}} - 1\right) \left(\frac{E}{E_{min}} - 1\right) = 1, \qquad E = B S
       \quad\Longleftrightarrow\quad S = S_{min} \left(1 + \frac{B_{crit}}{B}\right)

    The fit is least squares of log S at the given B: the batch size has no error, so an error of S is the same factor
    in E, on either axis. Intervals are over seeds (`interval_over_seeds`): the batch sizes of one seed share their
    initial parameters and the order of their examples, so the residuals are no independent sample. Only `rms_residual`
    shows a curve that is not a hyperbola.

    Args:
      steps: [num_seeds, num_batch_sizes] steps to the target; or [num_batch_sizes], of one seed.
      examples: examples to the target, of the same shape.
      confidence: of the intervals, in (0, 1).

    Returns:
      The fit. Where the steps show no bend within a factor 1000 of the batch sizes, S_min is 0 and B_crit infinite
      (linear scaling throughout), or E_min and B_crit are 0 (no scaling at all). Intervals of one seed are NaN.

    Raises:
      InvalidArgument: there are fewer than three batch sizes, the shapes differ, or a number is not positive.

    >>> batch_sizes = np.array([1, 4, 16, 64, 256])
    >>> steps = 100 * (1 + 20 / batch_sizes)
    >>> fit = fit_pareto(steps, batch_sizes * steps)
    >>> [round(estimate.value, 3) for estimate in fit[:3]]
    [100.0, 2000.0, 20.0]
    >>> print(round(float(fit.steps(20)), 3))  # at the critical batch size, twice the minimum of both
    200.0

    Reference: McCandlish et al., 2018 (https://arxiv.org/abs/1812.06162), Equation 2.11.
    """
    steps, examples = np.atleast_2d(_positive("steps", steps)), np.atleast_2d(_positive("examples", examples))
    if steps.shape != examples.shape:
        raise InvalidArgument("examples", f"of shape {examples.shape}", f"of the steps' shape, {steps.shape}")
    log_steps, log_batch_sizes = np.log(steps), np.log(examples) - np.log(steps)
    if len(np.unique(np.round(log_batch_sizes[0], 6))) < 3:
        raise InvalidArgument("steps", f"of {steps.shape[1]} batch sizes", "of at least 3 different ones")
    if not 0 < confidence < 1:
        raise InvalidArgument("confidence", confidence, "a number between 0 and 1", nearest=0.95)
    both = np.stack([log_steps, log_batch_sizes], axis=1)

    @functools.cache
    def fit(*rows: int) -> tuple[float, float, float, float]:
        return _fit(both[list(rows), 0], both[list(rows), 1])

    def estimate(i: int) -> Interval:
        return interval_over_seeds(lambda rows: fit(*rows)[i], rows, confidence)

    rows = np.arange(len(both))
    return ParetoFit(estimate(0), estimate(1), estimate(2), rms_residual=fit(*rows)[3])


def twenty_percent_batch_size(batch_sizes: Any, steps: Any, excess: float = 0.2) -> float:
    r"""The batch size at which steps exceed linear scaling by 20 %.

    .. math:: B \, S(B) = (1 + 0.2) \min_b b \, S(b), \qquad b' \, S(b') > B \, S(B) \text{ for all } b' > B

    Linear scaling starts from the batch size that needs the fewest examples. Between batch sizes, examples are
    interpolated on logarithmic axes; if noise makes several crossings, the last one counts. On the hyperbola of
    `fit_pareto` with the smallest batch b, the result is 0.2 B_crit + 1.2 b: b should be far below B_crit.

    Args:
      batch_sizes: [n], increasing.
      steps: [n] to the target.
      excess: 0.2.

    Returns:
      The batch size; infinite if all measured batch sizes scale better.

    Raises:
      InvalidArgument: the batch sizes do not increase, or a number is not positive.

    >>> batch_sizes = np.geomspace(1, 16, 50)
    >>> print(f"{twenty_percent_batch_size(batch_sizes, 100 * (1 + 20 / batch_sizes)):.2f}")  # 0.2 × 20 + 1.2 × 1
    5.20
    >>> twenty_percent_batch_size(batch_sizes, 1000 / batch_sizes)
    inf

    Reference: H. Zhang et al., 2024 (https://arxiv.org/abs/2410.21676), Section 2.
    """
    batch_sizes, steps = _batch_sizes_and("steps", batch_sizes, steps)
    examples = batch_sizes * steps
    excesses = np.log(examples / examples.min()) - math.log1p(_positive("excess", excess))
    return _crossing(batch_sizes, excesses, int(np.flatnonzero(excesses <= _ROUNDING)[-1]))


def branched_batch_size(batch_sizes: Any, losses: Any, tolerance: float) -> float:
    r"""The local critical batch size: the largest at which a branch of a run loses nothing against the smallest batch.

    The branches begin with the same parameters and see the same examples, with learning rates that scale with the
    batch. The result is the largest B with

    .. math:: L(b) \le (1 + \text{tolerance}) \, L(b_{smallest}) \quad \text{for all } b \le B,

    interpolated between the last batch size that is within and the first that is not, on logarithmic axes. The paper's
    tolerance is a difference of losses; a ratio means the same at a large and a small loss.

    Args:
      batch_sizes: [n], increasing.
      losses: [n], positive: smoothed, at the end of each branch; NaN or infinite for a branch that diverged.
      tolerance: a ratio, positive.

    Returns:
      The batch size; infinite if all branches are within.

    Raises:
      InvalidArgument: the batch sizes do not increase, or a number is not positive.

    >>> branched_batch_size([2, 4, 8, 16], [0.5, 0.5, 0.5 * 1.1, 0.5 * 1.21], tolerance=0.1)
    8.0
    >>> round(branched_batch_size([2, 4, 8, 16], [0.5, 0.49, float("nan"), 0.4], tolerance=0.1), 6)
    4.0

    Reference: Merrill et al., 2025 (https://arxiv.org/abs/2505.23971), Section 3.
    """
    losses = np.where(np.isnan(losses), math.inf, losses)
    batch_sizes, losses = _batch_sizes_and("losses", batch_sizes, losses, finite=False)
    if not math.isfinite(losses[0]):
        raise InvalidArgument("losses", float(losses[0]), "finite at the smallest batch size")
    excesses = np.log(losses / losses[0]) - math.log1p(_positive("tolerance", tolerance))
    beyond = np.flatnonzero(excesses > _ROUNDING)
    return _crossing(batch_sizes, excesses, int(beyond[0]) - 1 if len(beyond) else len(losses) - 1)


def interval_over_seeds(
    statistic: Callable[[np.ndarray], float], seeds: np.ndarray, confidence: float = 0.95
) -> Interval:
    r"""A positive statistic of all seeds, and its interval from leaving out one seed at a time.

    .. math:: x \pm t_{n-1} \sqrt{\frac{n-1}{n} \sum_i \left(x_{(i)} - \bar x_{(\cdot)}\right)^2}, \qquad x = \log\theta

    This is the jackknife with Student's quantile. For the mean of a logarithm it is the usual interval, exact for
    normal noise; a bootstrap of five seeds is too short by a third, because it uses neither n - 1 nor t.

    Args:
      statistic: a function of some of the rows; positive, or 0 or infinite where the rows do not determine it.
      seeds: [num_seeds, ...].
      confidence: in (0, 1).

    Returns:
      The interval; NaN with one seed, and [0, ∞] where some of the rows do not determine the statistic.

    >>> steps = np.array([[90.0], [100.0], [110.0]])
    >>> print(*(f"{x:.1f}" for x in interval_over_seeds(lambda rows: float(np.exp(np.log(rows).mean())), steps)))
    99.7 77.7 127.9
    """
    value, n = float(statistic(seeds)), len(seeds)
    if n < 2:
        return Interval(value, math.nan, math.nan)
    left_out = np.array([statistic(np.delete(seeds, i, axis=0)) for i in range(n)], np.float64)
    if not (np.isfinite([value, *left_out]).all() and min(value, *left_out) > 0):
        return Interval(value, 0.0, math.inf)
    half = special.stdtrit(n - 1, (1 + confidence) / 2) * math.sqrt(n - 1) * np.log(left_out).std()
    return Interval(value, float(value * np.exp(-half)), float(value * np.exp(half)))


def _fit(log_steps: np.ndarray, log_batch_sizes: np.ndarray) -> tuple[float, float, float, float]:
    """S_min, E_min, B_crit, and the root mean square of the residuals."""

    def residuals(log_critical: np.ndarray) -> np.ndarray:
        """[n], of each candidate, to [n, num_seeds, num_batch_sizes]."""
        rest = log_steps - np.logaddexp(0.0, log_critical[:, None, None] - log_batch_sizes)
        return rest - rest.mean(axis=(1, 2), keepdims=True)

    def error(log_critical: np.ndarray) -> np.ndarray:
        return (residuals(log_critical) ** 2).mean(axis=(1, 2))

    margin = math.log(_RANGE)
    grid = np.linspace(log_batch_sizes.min() - margin, log_batch_sizes.max() + margin, _GRID)
    best = int(error(grid).argmin())
    if best == 0:
        return float(np.exp(log_steps.mean())), 0.0, 0.0, float(log_steps.std())
    if best == _GRID - 1:
        log_examples = log_steps + log_batch_sizes
        return 0.0, float(np.exp(log_examples.mean())), math.inf, float(log_examples.std())
    bounds = (grid[best - 1], grid[best + 1])
    found = optimize.minimize_scalar(
        lambda x: error(np.array([x]))[0], bounds=bounds, method="bounded", options={"xatol": 1e-9}
    )
    log_critical = float(found.x)
    log_min_steps = float((log_steps - np.logaddexp(0.0, log_critical - log_batch_sizes)).mean())
    rms = math.sqrt(max(found.fun, 0.0))
    return math.exp(log_min_steps), math.exp(log_min_steps + log_critical), math.exp(log_critical), rms


def _crossing(batch_sizes: np.ndarray, excesses: np.ndarray, last_within: int) -> float:
    """The point between two batch sizes at which the excess is 0."""
    near = slice(last_within, last_within + 2)
    if last_within == len(batch_sizes) - 1:
        return math.inf
    if not np.isfinite(excesses[last_within + 1]):
        return float(batch_sizes[last_within])
    return float(np.exp(np.interp(0.0, excesses[near], np.log(batch_sizes[near]))))


def _batch_sizes_and(name: str, batch_sizes: Any, values: Any, finite: bool = True) -> tuple[np.ndarray, np.ndarray]:
    batch_sizes, values = _positive("batch_sizes", batch_sizes), _positive(name, values, finite)
    if batch_sizes.ndim != 1 or not (np.diff(batch_sizes) > 0).all():
        raise InvalidArgument("batch_sizes", batch_sizes.tolist(), "in increasing order")
    if values.shape != batch_sizes.shape:
        raise InvalidArgument(name, f"of shape {values.shape}", f"one for each of {len(batch_sizes)} batch sizes")
    return batch_sizes, values


def _positive(name: str, values: Any, finite: bool = True) -> np.ndarray:
    array = np.asarray(values, np.float64)
    wrong = array[~((array > 0) & (np.isfinite(array) | (not finite)))]
    if wrong.size:
        raise InvalidArgument(name, float(wrong.flat[0]), "positive and finite" if finite else "positive")
    return array
