"""Intervals agree with scipy's, cover what they promise, and verdicts err as rarely as they promise."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bsjax import InvalidArgument
from bsjax.analysis.statistics import compare, mean_interval, paired_difference

_NUM_EXPERIMENTS = 4000


@pytest.mark.parametrize("num_seeds", [2, 3, 10])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_intervals_are_those_of_scipys_t_tests(num_seeds, confidence):
    values, baseline = np.random.RandomState(num_seeds).normal(1.0, 0.3, (2, num_seeds))
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(confidence)
    assert mean_interval(values, confidence) == pytest.approx((values.mean(), *expected), rel=1e-12)
    expected = stats.ttest_rel(values, baseline).confidence_interval(confidence)
    difference = values.mean() - baseline.mean()
    assert paired_difference(values, baseline, confidence) == pytest.approx((difference, *expected), rel=1e-12)


def test_intervals_cover_the_truth_as_often_as_they_promise():
    random = np.random.RandomState(0)
    seeds = random.normal(0.9, 0.05, (_NUM_EXPERIMENTS, 5))  # which both runs of a pair share
    values, baseline = seeds + random.normal(0.01, 0.004, seeds.shape), seeds + random.normal(0, 0.003, seeds.shape)
    differences = [paired_difference(*pair) for pair in zip(values, baseline, strict=True)]
    means = [mean_interval(one) for one in baseline]
    assert 0.935 < np.mean([low < 0.01 < high for _, low, high in differences]) < 0.965
    assert 0.935 < np.mean([low < 0.9 < high for _, low, high in means]) < 0.965
    assert np.mean([high - low for _, low, high in differences]) < 0.02  # pairing removes the seeds' own spread, 0.05


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_difference_as_large_as_the_margin_is_rarely_called_equal(sign):
    random, margin = np.random.RandomState(1), 0.01
    for std in (0.001, 0.005):
        differences = random.normal(sign * margin, std, (_NUM_EXPERIMENTS, 5))
        equal = np.mean([compare(one, np.zeros(5), margin).verdict == "equal" for one in differences])
        sampling_error = 3 * math.sqrt(0.025 * 0.975 / _NUM_EXPERIMENTS)
        assert equal <= 0.025 + sampling_error
        assert equal >= 0.025 - sampling_error or std > 0.002  # the test is not needlessly strict, either


def test_no_difference_and_a_small_spread_is_called_equal_and_a_large_difference_different():
    random, margin = np.random.RandomState(2), 0.01

    def share(verdict, mean, std):
        differences = random.normal(mean, std, (1000, 5))
        return np.mean([compare(one, np.zeros(5), margin).verdict == verdict for one in differences])

    assert share("equal", 0.0, 0.003) > 0.99
    assert share("different", 0.03, 0.005) > 0.99
    assert share("undecided", 0.0, 0.03) > 0.9
    assert share("equal", 0.0, 0.03) < 0.01  # a lack of data proves nothing


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8), st.floats(1e-3, 1), st.floats(-10, 10))
def test_verdicts_do_not_depend_on_units_shifts_or_on_which_is_the_baseline(differences, margin, shift):
    values, baseline = np.array(differences), np.zeros(len(differences))
    first = compare(values, baseline, margin)
    swapped = compare(baseline, values, margin)
    assert swapped.verdict == first.verdict
    assert swapped.difference == pytest.approx([-first.difference[i] for i in (0, 2, 1)])
    assert compare(1024 * values, 1024 * baseline, 1024 * margin).verdict == first.verdict
    shifted = paired_difference(values + shift, baseline + shift)
    assert shifted == pytest.approx(first.difference, abs=1e-12)


def test_a_real_but_negligible_difference_is_equal():
    differences = [0.0021, 0.0019, 0.0020, 0.0020]
    (_, low, _), verdict = compare(differences, np.zeros(4), margin=0.005)
    assert low > 0 and verdict == "equal"


def test_two_seeds_that_coincide_on_a_coarse_metric_prove_nothing_but_five_do():
    values, step = np.full(5, 0.975), 1 / 360
    assert compare(values[:2], values[:2], margin=0.01).verdict == "equal"
    assert compare(values[:2], values[:2], 0.01, resolution=step).verdict == "undecided"
    assert compare(values, values, 0.01, resolution=step).verdict == "equal"


def test_the_resolution_is_the_spread_that_rounding_makes_and_no_more():
    random, step = np.random.RandomState(3), 0.25
    exact = random.uniform(0, 100, (2, 100_000))
    rounded = step * np.round(exact / step)
    errors = (rounded - exact)[0], (rounded - exact)[0] - (rounded - exact)[1]
    for found, error in zip((mean_interval, paired_difference), errors, strict=True):
        same = [np.zeros(4)] * (2 if found is paired_difference else 1)
        half = stats.t.ppf(0.975, 3) * error.std() / math.sqrt(4)
        assert found(*same, resolution=step).high == pytest.approx(half, rel=0.01)
        apart = [np.array([0.0, 5.0, -3.0, 8.0]), *same[1:]]
        assert found(*apart, resolution=step) == found(*apart)


def test_pairs_with_a_diverged_run_are_left_out():
    values, baseline = [0.5, math.nan, 0.7, 0.9, math.inf, 0.8], [0.4, 0.1, 0.5, math.nan, math.inf, 0.8]
    assert paired_difference(values, baseline) == paired_difference([0.5, 0.7, 0.8], [0.4, 0.5, 0.8])
    assert mean_interval([1.0, math.nan, 2.0]) == mean_interval([1.0, 2.0])


def test_too_few_values_decide_nothing():
    assert mean_interval([0.25]) == (0.25, -math.inf, math.inf)
    assert all(math.isnan(bound) for bound in mean_interval([math.nan]))
    for values in ([], [math.nan], [1.0], [1.0, math.nan]):
        assert compare(values, np.zeros(len(values)), margin=0.1).verdict == "undecided"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], [1.0, 2.0], 0.1), "baseline is '2 numbers'; it must be as many as the 1 values"),
        (([[1.0]], [1.0], 0.1), "values is 'of 2 dimensions'; it must be a list of numbers"),
        (([1.0], [1.0], 0.0), "margin is 0.0; it must be a positive finite number"),
        (([1.0], [1.0], 0.1, 1.0), r"confidence is 1.0; it must be in \(0, 1\); nearest: 0.95"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(InvalidArgument, match=f"^{message}$"):
        compare(*arguments)
