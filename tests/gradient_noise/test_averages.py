"""Averages of estimates over updates, the gradient noise scale, and its confidence interval."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from bsjax import InvalidArgument
from bsjax.gradient_noise import (
    Averages,
    Estimate,
    confidence_interval,
    estimate,
    gradient_noise_scale,
    reason,
    update_averages,
    zero_averages,
)

NOISES = (
    Estimate(1.0, 8.0, 100, 4),
    Estimate(math.nan, math.nan, 50, 1),
    Estimate(-0.5, 6.0, 300, 12),
    Estimate(math.inf, math.inf, 300, 12),
    Estimate(2.0, 7.0, 200, 8),
    Estimate(0.3, 9.0, 400, 16),
)


def test_one_shard_is_nan_with_a_reason():
    for noise in (estimate(3.0, 0.5, 6, 1), jax.jit(estimate)(3.0, 0.5, 6, 1)):
        assert math.isnan(noise.trace) and math.isnan(noise.grad_sq) and math.isnan(gradient_noise_scale(noise))
        assert reason(noise) == "one microbatch on one device: at least two are needed"
    averages = update_averages(zero_averages(), noise, 100.0)
    assert math.isnan(gradient_noise_scale(averages)) and np.isnan(confidence_interval(averages)).all()
    assert reason(averages) == "no update so far had two microbatches or devices, and finite gradients"


@pytest.mark.parametrize(
    ("noise", "scale", "why"),
    [
        (Estimate(2.0, 8.0, 4, 2), 4.0, None),
        (Estimate(2.0, 0.0, 4, 2), 0.0, None),
        (Estimate(2.0, -1e-9, 4, 2), 0.0, None),  # rounding
        (Estimate(-1.0, 8.0, 4, 2), math.inf, "lost in the noise"),
        (Estimate(0.0, 0.0, 4, 2), math.nan, "the gradients are zero"),
        (Estimate(math.nan, math.inf, 4, 2), math.nan, "not finite"),
        (Estimate(math.nan, math.nan, 0, 0), math.nan, "no examples"),
    ],
)
def test_scale_and_reason(noise, scale, why):
    for values in (noise, Estimate(*map(jnp.asarray, noise))):
        assert gradient_noise_scale(values) == pytest.approx(scale, nan_ok=True)
        assert why is None if reason(values) is None else why in reason(values)


def averaged(noises, half_life_examples=500.0, averages=None):
    averages = averages or zero_averages()
    for noise in noises:
        averages = update_averages(averages, noise, half_life_examples)
    return averages


def weights_and_values():
    """The weights of the finite estimates in NOISES with a half-life of 500 examples, and these estimates."""
    seen = np.cumsum([noise.num_examples for noise in NOISES])
    kept = [i for i, noise in enumerate(NOISES) if math.isfinite(noise.trace)]
    weights = np.array([NOISES[i].num_examples * 0.5 ** ((seen[-1] - seen[i]) / 500) for i in kept])
    return weights, np.array([NOISES[i][:2] for i in kept])


class TestAverages:
    def test_weighted_means_and_variances_by_definition(self):
        averages, (weights, values) = averaged(NOISES), weights_and_values()
        means = weights @ values / weights.sum()
        centers = weights**2 @ values / (weights**2).sum()
        scatter = np.einsum("t,ti,tj->ij", weights**2, values - centers, values - centers)
        expected = [weights.sum(), *means, (weights**2).sum(), *centers, scatter[0, 0], scatter[1, 1], scatter[0, 1]]
        np.testing.assert_allclose(averages, expected, rtol=1e-12)
        assert gradient_noise_scale(averages) == pytest.approx(means[1] / means[0], rel=1e-12)

    def test_the_same_through_json(self):
        averages = averaged(NOISES[:3])
        restored = Averages(**json.loads(json.dumps(averages._asdict())))
        assert restored == averages
        assert averaged(NOISES[3:], averages=restored) == averaged(NOISES)

    def test_float64_from_float32_on_the_host(self):
        noise = estimate(np.float32(5.1), np.float32(0.3), np.int32(4), np.int32(3))
        averages = update_averages(zero_averages(), noise, 10.0)
        assert {type(value) for value in (*noise, *averages)} == {np.float64}

    def test_under_jit(self, float64):
        update = jax.jit(update_averages)
        averages = Averages(*map(jnp.asarray, zero_averages()))
        for noise in NOISES:
            averages = update(averages, noise, 500.0)
        np.testing.assert_allclose(averages, averaged(NOISES), rtol=1e-12)


def simulated_averages(gradients, batch_sizes, shard_size=16, repeats=2000, half_life_examples=20_000.0, seed=7):
    """Averages [repeats] after updates whose gradients ([dim] or [updates, dim]) are normal with Σ = I."""
    random = np.random.RandomState(seed)
    gradients = np.broadcast_to(gradients, (len(batch_sizes), np.shape(gradients)[-1]))
    averages = zero_averages()
    for gradient, batch_size in zip(gradients, batch_sizes, strict=True):
        k = batch_size // shard_size
        sums = shard_size * gradient + np.sqrt(shard_size) * random.standard_normal((repeats, k, len(gradient)))
        weighted_sq = (sums**2).sum(axis=(1, 2)) / shard_size
        mean_sq = ((sums.sum(axis=1) / batch_size) ** 2).sum(axis=-1)
        averages = update_averages(averages, estimate(weighted_sq, mean_sq, batch_size, k), half_life_examples)
    return averages


def coverage(interval, value):
    low, high = interval
    return ((low <= value) & (value <= high)).mean()


class TestConfidenceInterval:
    CONSTANT = (64,) * 40
    GROWING = (32,) * 20 + (64,) * 20 + (256,) * 10

    @pytest.mark.parametrize("confidence", [0.8, 0.95])
    @pytest.mark.parametrize("norm", [0.3, 1.0], ids=["noise", "signal"])
    @pytest.mark.parametrize("batch_sizes", [CONSTANT, GROWING], ids=["constant", "growing"])
    def test_coverage(self, batch_sizes, norm, confidence):
        gradient = np.full(6, norm / np.sqrt(6))
        interval = confidence_interval(simulated_averages(gradient, batch_sizes), confidence)
        assert coverage(interval, 6 / norm**2) == pytest.approx(confidence, abs=0.03)

    def test_barely_any_signal(self):
        """|G|² 0.6 and 1.9 standard errors from zero: often no upper end; the coverage holds."""
        for norm, unbounded in ((0.08, 0.93), (0.15, 0.51)):
            averages = simulated_averages(np.full(6, norm / np.sqrt(6)), self.CONSTANT)
            low, high = confidence_interval(averages)
            assert coverage((low, high), 6 / norm**2) == pytest.approx(0.95, abs=0.02)
            assert np.isinf(high).mean() == pytest.approx(unbounded, abs=0.03)
            assert np.isfinite(low).mean() > 0.95

    def test_no_signal_at_all(self):
        low, high = confidence_interval(simulated_averages(np.zeros(6), self.CONSTANT))
        assert np.isinf(high).mean() == pytest.approx(0.975, abs=0.015)
        assert np.isfinite(low).mean() > 0.95

    def test_drift_only_widens(self):
        """|G|² falls to a quarter on the way: the interval contains the ratio of the averages."""
        decay = np.linspace(1.0, 0.5, len(self.CONSTANT))
        averages = simulated_averages(np.outer(decay, np.full(6, 1 / np.sqrt(6))), self.CONSTANT)
        weights = 0.5 ** (64 * np.arange(len(decay))[::-1] / 20_000.0)
        value = 6 / np.average(decay**2, weights=weights)
        assert coverage(confidence_interval(averages), value) > 0.95

    def test_by_definition(self):
        """Unequal updates: the roots of Fieller's parabola, with the sandwich variance of weighted means."""
        weights, values = weights_and_values()
        weights /= weights.sum()
        q, t = weights @ values
        effective_updates = 1 / (weights**2).sum()
        covariance = np.einsum("t,ti,tj->ij", weights**2, values - [q, t], values - [q, t])
        covariance /= 1 - 1 / effective_updates
        v_qq, v_tt, v_tq = scipy.stats.t.ppf(0.7, effective_updates - 1) ** 2 * covariance[[0, 1, 0], [0, 1, 1]]
        expected = np.sort(np.roots([q**2 - v_qq, -2 * (q * t - v_tq), t**2 - v_tt]))
        assert expected[0] > 0
        assert confidence_interval(averaged(NOISES), 0.4) == pytest.approx(tuple(expected), rel=1e-9)

    def test_one_update_has_none(self):
        averages = update_averages(zero_averages(), Estimate(1.0, 2.0, 10, 2), 100.0)
        assert np.isnan(confidence_interval(averages)).all()
        aged = update_averages(averages, Estimate(math.nan, math.nan, 10, 1), 100.0)
        assert np.isnan(confidence_interval(aged)).all()

    @given(
        st.lists(st.tuples(st.floats(-5, 5), st.floats(0, 5), st.integers(1, 100)), min_size=3, max_size=8),
        st.floats(0.5, 0.99),
    )
    def test_ordered_and_around_the_estimate(self, noises, confidence):
        averages = averaged([Estimate(*noise, 2) for noise in noises], 1e3)
        low, high = confidence_interval(averages, confidence)
        if not math.isnan(low):
            assert 0 <= low <= high
            if averages.grad_sq > 1e-6 and averages.trace > 1e-6:
                scale = gradient_noise_scale(averages)
                assert low <= scale * (1 + 1e-6) and scale * (1 - 1e-6) <= high

    def test_confidence_is_a_probability(self):
        with pytest.raises(InvalidArgument, match=r"confidence is 95; it must be a number between 0 and 1"):
            confidence_interval(zero_averages(), 95)


def test_groups_are_estimated_apart():
    """Arrays of one entry per group give each group's estimates, and their sum the whole's."""
    random = np.random.RandomState(1)
    sums, counts = random.standard_normal((3, 4)), np.array([2, 1, 3])
    weighted_sq = (sums**2 / counts[:, None]).sum(axis=0)
    mean_sq = (sums.sum(axis=0) / 6) ** 2
    apart = estimate(weighted_sq, mean_sq, 6, 3)
    whole = estimate(weighted_sq.sum(), mean_sq.sum(), 6, 3)
    assert apart.trace.sum() == pytest.approx(whole.trace) and apart.grad_sq.sum() == pytest.approx(whole.grad_sq)
    averages = update_averages(update_averages(zero_averages(), apart, 50.0), apart, 50.0)
    assert gradient_noise_scale(averages).shape == confidence_interval(averages)[0].shape == (4,)
