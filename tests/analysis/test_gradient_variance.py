"""Gradient statistics agree with dense per-example gradients, with all possible batches, and with random ones."""

import itertools
import re

import jax
import numpy as np
import pytest

from bsjax import InvalidArgument
from bsjax.analysis.gradient_variance import (
    GradientStatistics,
    gradient_statistics,
    sampling_weights,
    weighted_gradients,
)
from bsjax.data import ArraySource
from bsjax.gradient_noise import estimate
from bsjax.tasks import from_loss


def test_statistics_and_sums_are_those_of_the_examples_gradients_whatever_the_microbatch(net):
    grads = np.asarray(jax.jit(jax.jacobian(net.losses))(net.flat))  # [N, P]
    mean, size = grads.mean(axis=0), len(grads)
    expected = (mean @ mean, grads.var(axis=0, ddof=1).sum(), size)
    weights = np.random.RandomState(0).uniform(size=(3, size))
    for microbatch_size in (5, 1000):
        found = gradient_statistics(net.task, net.source, microbatch_size)(net.params, net.batch_stats)
        assert found == pytest.approx(expected, rel=1e-10)
        sums = weighted_gradients(net.task, net.source, microbatch_size)(net.params, net.batch_stats, weights)
        np.testing.assert_allclose(sums, weights @ grads, rtol=1e-9, atol=1e-12)
    # The same as the estimator that training uses, of one epoch in shards of one example.
    whole = estimate((grads**2).sum(), mean @ mean, size, size, dataset_size=size)
    assert (whole.grad_sq, whole.trace) == pytest.approx(expected[:2], rel=1e-10)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
@pytest.mark.parametrize("replacement", [False, True])
def test_the_variance_is_the_mean_over_all_possible_batches(batch_size, replacement):
    grads = np.random.RandomState(1).normal(1.0, 2.0, (5, 3))
    mean = grads.mean(axis=0)
    statistics = GradientStatistics(mean @ mean, grads.var(axis=0, ddof=1).sum(), 5)
    draws = (
        itertools.product(range(5), repeat=batch_size) if replacement else itertools.combinations(range(5), batch_size)
    )
    batches = np.array([grads[list(draw)].mean(axis=0) for draw in draws])
    variance, square = np.square(batches - mean).sum(axis=1).mean(), np.square(batches).sum(axis=1).mean()
    assert statistics.variance(batch_size, replacement) == pytest.approx(variance, rel=1e-12, abs=1e-15)
    assert statistics.expected_square(batch_size, replacement) == pytest.approx(square, rel=1e-12)


@pytest.mark.parametrize("replacement", [False, True])
def test_random_batches_have_the_variance_of_their_kind(replacement):
    size, values = 40, np.random.RandomState(2).normal(size=(40, 1))
    statistics = GradientStatistics(values.mean() ** 2, values.var(ddof=1), size)
    random = np.random.default_rng(0)
    for batch_size in (1, 8, 30):
        weights = sampling_weights(batch_size, 4000, size, random, replacement)
        np.testing.assert_allclose(weights.sum(axis=1), 1)
        assert replacement or set(weights.ravel().round(12)) <= {0.0, round(1 / batch_size, 12)}
        found = np.square(weights @ values - values.mean()).mean()
        assert found == pytest.approx(statistics.variance(batch_size, replacement), rel=0.1)


def test_a_little_noise_beside_a_large_gradient_does_not_cancel():
    """Gradients of 1,000 ± 0.01 in float32: their squares agree to the last digits."""
    x = (1000 + 0.01 * np.random.RandomState(0).choice([-1, 1], 64)).astype(np.float32)
    task = from_loss(lambda params, x, keys, train: params * x, lambda key: None)
    found = gradient_statistics(task, ArraySource(x), microbatch_size=16)(np.float32(1), {})
    assert found.trace == pytest.approx(x.astype(np.float64).var(ddof=1), rel=0.02)


class _Groups:
    group_size, groups_may_span_devices = 4, False


_TASK = from_loss(lambda params, x, keys, train: params * x, lambda key: None)
_THREE = ArraySource(np.arange(3.0))
_STATISTICS = GradientStatistics(1.0, 1.0, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gradient_statistics(_Groups(), _THREE), "task is '_Groups with group_size 4'; it must be one whose"),
        (lambda: gradient_statistics(_TASK, ArraySource(np.ones(1))), "source is 'one example'; it must be of two"),
        (lambda: gradient_statistics(_TASK, _THREE, 0), "microbatch_size is 0; it must be a whole number >= 1"),
        (lambda: weighted_gradients(_TASK, _THREE)(1.0, {}, np.ones((2, 2))), "weights is 'of shape [2, 2]'; it must"),
        (lambda: _STATISTICS.variance(4), "batch_size is 4; it must be at most 3 examples without replacement; near"),
        (lambda: _STATISTICS.variance(0), "batch_size is 0; it must be a whole number >= 1; nearest: 1"),
        (lambda: sampling_weights(4, 1, 3, np.random.default_rng(0)), "batch_size is 4; it must be at most 3 without"),
        (lambda: sampling_weights(4, 0, 3, np.random.default_rng(0)), "num_batches is 0; it must be a whole number"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InvalidArgument, match=f"^{re.escape(message)}"):
        call()
