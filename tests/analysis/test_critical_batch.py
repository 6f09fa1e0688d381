"""Critical batch sizes: closed forms on exact data, and how often the intervals contain the truth on noisy data."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bsjax import InvalidArgument
from bsjax.analysis.critical_batch import (
    branched_batch_size,
    fit_pareto,
    interval_over_seeds,
    steps_to_target,
    twenty_percent_batch_size,
)

_BATCH_SIZES = 2.0 ** np.arange(10)


@given(st.floats(1, 1e5), st.floats(1, 500))
def test_exact_data_give_the_exact_hyperbola(min_steps, critical):
    steps = min_steps * (1 + critical / _BATCH_SIZES)
    fit = fit_pareto(steps, _BATCH_SIZES * steps)
    values = [estimate.value for estimate in fit[:3]]
    np.testing.assert_allclose(values, [min_steps, min_steps * critical, critical], rtol=1e-4)
    np.testing.assert_allclose(fit.steps(_BATCH_SIZES), steps, rtol=1e-4)
    examples = critical * fit.steps(critical)
    assert (fit.steps(critical) / values[0] - 1) * (examples / values[1] - 1) == pytest.approx(1, rel=1e-3)
    assert fit.rms_residual < 1e-4
    assert all(math.isnan(x) for estimate in fit[:3] for x in estimate[1:])  # of one seed


def test_without_a_bend_a_limit_is_zero_or_infinite():
    linear = fit_pareto(1000 / _BATCH_SIZES, np.full(10, 1000.0))
    assert [estimate.value for estimate in linear[:3]] == [0, pytest.approx(1000), math.inf]
    flat = fit_pareto(np.full(10, 50.0), 50 * _BATCH_SIZES)
    assert [estimate.value for estimate in flat[:3]] == [pytest.approx(50), 0, 0]
    two = np.array([1000 / _BATCH_SIZES] * 2)
    assert fit_pareto(two, two * _BATCH_SIZES).critical_batch_size == (math.inf, 0, math.inf)


def test_intervals_contain_the_truth_as_often_as_their_confidence():
    """Five seeds, each with parameters of its own, and noise of each steps-to-target."""
    random = np.random.RandomState(0)
    num_trials, held = 400, np.zeros(4)
    for _ in range(num_trials):
        log_min_steps = math.log(80) + 0.1 * random.randn(5, 1)
        log_critical = math.log(40) + 0.15 * random.randn(5, 1)
        log_steps = log_min_steps + np.log1p(np.exp(log_critical) / _BATCH_SIZES) + 0.08 * random.randn(5, 10)
        steps = np.exp(log_steps)
        fit = fit_pareto(steps, steps * _BATCH_SIZES)
        twenty = interval_over_seeds(
            lambda rows: twenty_percent_batch_size(_BATCH_SIZES[:8], np.exp(np.log(rows).mean(axis=0))), steps[:, :8]
        )
        truth = (80, 3200, 40)
        held[:3] += [one.low <= true <= one.high for one, true in zip(fit[:3], truth, strict=True)]
        held[3] += twenty.low <= 9.2 <= twenty.high
        assert fit.rms_residual < 0.3
    coverage = held / num_trials
    assert (coverage[:3] >= 0.92).all() and (coverage[:3] <= 0.98).all()
    # This one is biased: the noise selects the batch size of fewest examples, and the examples are interpolated.
    assert 0.88 <= coverage[3] <= 1


@given(st.floats(4, 1000), st.floats(0.05, 0.5))
def test_twenty_percent_of_a_hyperbola(critical, excess):
    batch_sizes = np.geomspace(1, 2000, 400)
    found = twenty_percent_batch_size(batch_sizes, 7 * (1 + critical / batch_sizes), excess)
    assert found == pytest.approx(excess * critical + 1 + excess, rel=1e-3)


def test_twenty_percent_starts_from_the_fewest_examples():
    # The smallest batch wastes examples, as it does where noise, and not the learning rate, limits it.
    assert twenty_percent_batch_size([1, 2, 4, 8, 16], [150, 50, 25, 15, 15]) == pytest.approx(8)
    # With noise, they cross twice; the last crossing counts.
    assert twenty_percent_batch_size([1, 2, 4, 8, 16], [100, 61, 29, 15, 15]) == pytest.approx(8)


@given(st.floats(0.01, 0.5), st.floats(0.1, 2))
def test_branches_are_interpolated_and_end_at_the_first_that_loses(tolerance, power):
    batch_sizes = np.array([3.0, 12.0, 48.0, 192.0])
    losses = 0.3 * (batch_sizes / 3) ** power
    expected = 3 * (1 + tolerance) ** (1 / power)
    found = branched_batch_size(batch_sizes, losses, tolerance)
    assert found == (pytest.approx(expected, rel=1e-6) if expected < 192 else math.inf)
    assert branched_batch_size(batch_sizes, [1.0, math.inf, 1.0, 1.0], tolerance) == pytest.approx(3)


def test_the_crossing_is_where_the_loss_crosses_however_it_is_smoothed():
    steps = np.unique(np.round(1.05 ** np.arange(150)))
    for window in (1, 5, 9):
        assert steps_to_target(steps, 3 * steps**-0.5, 0.2, window) == pytest.approx(225, rel=1e-6)
    noisy = 3 * steps**-0.5 * np.exp(0.2 * np.random.RandomState(0).randn(len(steps)))
    first = steps[noisy <= 0.2][0]
    smoothed = steps_to_target(steps, noisy, 0.2)
    assert abs(math.log(smoothed / 225)) < abs(math.log(first / 225)) < 1
    assert steps_to_target([1, 2], [0.1, 0.05], 0.2) == 1  # from the beginning


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_pareto([1, 2], [1, 4]), "steps is 'of 2 batch sizes'; it must be of at least 3 different ones"),
        (lambda: fit_pareto([1, 2, -3], [1, 4, 9]), "steps is -3.0; it must be positive and finite"),
        (lambda: fit_pareto([1, 2, 3], [1, 4]), "examples is 'of shape (1, 2)'; it must be of the steps' shape"),
        (lambda: fit_pareto([3, 2, 1], [3, 4, 6], confidence=1), "confidence is 1; it must be a number between"),
        (lambda: twenty_percent_batch_size([2, 1], [1, 1]), "batch_sizes is [2.0, 1.0]; it must be in increasing"),
        (lambda: twenty_percent_batch_size([1, 2], [1]), "steps is 'of shape (1,)'; it must be one for each of 2"),
        (lambda: branched_batch_size([1, 2], [math.nan, 1], 0.1), "losses is inf; it must be finite at the smallest"),
        (lambda: branched_batch_size([1, 2], [1, 1], 0), "tolerance is 0.0; it must be positive"),
        (lambda: steps_to_target([1], [1], 0), "target_loss is 0; it must be positive"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InvalidArgument, match=f"^{re.escape(message)}"):
        call()
