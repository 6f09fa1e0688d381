"""The gradient noise scale against exact expectations, over every possible draw, and closed forms."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
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
    shard_term,
    squared_norm,
    update_averages,
    zero_averages,
)
from bsjax.normalization import GhostBatchNorm

RANDOM = np.random.RandomState(0)
GRADS = RANDOM.standard_normal((5, 3)) + np.array([1.0, 0.0, -0.5])  # those of a data set of five examples
G = GRADS.mean(axis=0)
GRAD_SQ = (G**2).sum()
TRACE = GRADS.var(axis=0).sum()  # Σ of independent draws
TRACE_WITHOUT = GRADS.var(axis=0, ddof=1).sum()  # Σ of draws without replacement
SPLITS = [(2, 2), (1, 3), (1, 1, 2), (3, 0, 1), (1, 1, 1, 1), (0, 2, 1, 1, 0)]


def estimate_of(grads, counts, dataset_size=None):
    """Estimates from gradients [..., n, dim] in shards of `counts` consecutive examples."""
    parts = np.split(grads, np.cumsum(counts)[:-1], axis=-2)
    sums = np.stack([part.sum(axis=-2) for part in parts], axis=-2)
    weighted_sq = sum((sums[..., i, :] ** 2).sum(axis=-1) / count for i, count in enumerate(counts) if count)
    mean_sq = (grads.mean(axis=-2) ** 2).sum(axis=-1)
    return estimate(weighted_sq, mean_sq, grads.shape[-2], sum(count > 0 for count in counts), dataset_size)


def every_draw(n):
    return GRADS[np.array(list(itertools.product(range(5), repeat=n)))]


def every_draw_without_replacement(n):
    return GRADS[np.array(list(itertools.permutations(range(5), n)))]


@pytest.mark.parametrize("counts", SPLITS)
def test_expectation_over_every_draw(counts):
    noise = estimate_of(every_draw(4), counts)
    assert noise.trace.mean() == pytest.approx(TRACE, rel=1e-12)
    assert noise.grad_sq.mean() == pytest.approx(GRAD_SQ, rel=1e-12)


@pytest.mark.parametrize("counts", [*SPLITS, (1, 1), (1, 2, 2)])
def test_expectation_over_every_draw_without_replacement(counts):
    """Up to the whole data set, where the mean gradient is exact and nothing is to be taken off."""
    noise = estimate_of(every_draw_without_replacement(sum(counts)), counts, dataset_size=5)
    assert noise.trace.mean() == pytest.approx(TRACE_WITHOUT, rel=1e-12)
    assert noise.grad_sq.mean() == pytest.approx(GRAD_SQ, rel=1e-12)


@pytest.mark.parametrize("tail", [0, 1, 2])
def test_a_batch_over_the_end_of_an_epoch_shifts_little(tail):
    """Of data sets of four: all pairs of permutations, one's last examples and the other's first."""
    orders = GRADS[np.array(list(itertools.permutations(range(4))))]
    count = len(orders)
    batches = [np.concatenate(pair) for pair in itertools.product(orders[:, 4 - tail :], orders[:, : 4 - tail])]
    assert len(batches) == count**2
    noise = estimate_of(np.array(batches), (2, 2), dataset_size=4)
    exact = (GRADS[:4].mean(axis=0) ** 2).sum()
    bound = GRADS[:4].var(axis=0, ddof=1).sum() / 4
    shift = noise.grad_sq.mean() - exact
    assert shift == pytest.approx(0, abs=1e-12) if tail == 0 else 0 < shift < bound


def test_a_batch_of_whole_epochs_takes_nothing_off():
    noise = estimate_of(np.concatenate([GRADS, GRADS]), (3, 7), dataset_size=5)
    assert noise.trace > 1e-3
    assert noise.grad_sq == pytest.approx(GRAD_SQ, rel=1e-12)


@pytest.mark.parametrize("replacement", [True, False])
def test_average_of_many_draws_of_a_logistic_regression(replacement):
    """Through the functions as a loop calls them, in float32: within the standard error."""
    images, labels = RANDOM.standard_normal((12, 4)), np.arange(12) % 2
    params = {"kernel": jnp.asarray(RANDOM.standard_normal(4) / 2), "bias": jnp.asarray(0.2)}

    def loss(params, image, label):
        return optax.sigmoid_binary_cross_entropy(image @ params["kernel"] + params["bias"], label)

    grads = jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(params, images, labels)
    counts = (1, 4, 3)

    @jax.jit
    @jax.vmap
    def one_draw(key):
        drawn = jax.random.choice(key, 12, (8,), replace=replacement)
        ends = np.cumsum(counts)
        sums = [
            jax.tree.map(lambda g, start=end - n, end=end: g[drawn[start:end]].sum(axis=0), grads)
            for n, end in zip(counts, ends, strict=True)
        ]
        weighted_sq = sum(shard_term(s, n) for s, n in zip(sums, counts, strict=True))
        mean = jax.tree.map(lambda *parts: sum(parts) / 8, *sums)
        return estimate(weighted_sq, squared_norm(mean), 8, 3, None if replacement else 12)

    noise = one_draw(jax.random.split(jax.random.key(3), 20_000))
    stacked = np.concatenate([np.asarray(g, np.float64).reshape(12, -1) for g in jax.tree.leaves(grads)], axis=1)
    exact = {
        "grad_sq": (stacked.mean(axis=0) ** 2).sum(),
        "trace": stacked.var(axis=0, ddof=0 if replacement else 1).sum(),
    }
    for name, value in exact.items():
        draws = np.asarray(getattr(noise, name), np.float64)
        standard_error = draws.std() / np.sqrt(len(draws))
        assert abs(draws.mean() - value) < 3 * standard_error
        assert standard_error < 0.02 * value


def test_noisy_quadratic_in_closed_form():
    """Of a loss θᵀHθ/2 - xᵀθ with x ~ N(0, Σ): means, and the variances that the weighting rests on."""
    curvatures, theta = np.array([4.0, 1.0, 0.25, 0.1]), np.array([0.3, 1.0, -1.0, 2.0])
    sigma = np.array([2.0, 1.0, 0.5, 0.5])  # Σ's diagonal
    gradient, n, k = curvatures * theta, 12, 4
    draws = np.random.RandomState(5).standard_normal((50_000, n, 4)) * np.sqrt(sigma)
    noise = estimate_of(gradient - draws, (2, 3, 3, 4))
    trace_sq = (sigma**2).sum()
    variances = {
        "trace": 2 * trace_sq / (k - 1),
        "grad_sq": 4 * (gradient**2 * sigma).sum() / n + 2 * trace_sq / n**2 * k / (k - 1),
    }
    means = {"trace": sigma.sum(), "grad_sq": (gradient**2).sum()}
    for name, variance in variances.items():
        values = getattr(noise, name)
        assert abs(values.mean() - means[name]) < 3 * np.sqrt(variance / len(values))
        assert values.var() == pytest.approx(variance, rel=0.03)
    assert noise.trace.mean() / noise.grad_sq.mean() == pytest.approx(4 / (gradient**2).sum(), rel=0.01)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=7), st.randoms(use_true_random=False))
def test_the_split_does_not_matter(weights, random):
    """Averaged over the order of the same examples, every split gives the same: their sample variance."""
    counts = np.bincount([random.randrange(len(weights)) for _ in range(5)], minlength=len(weights))
    orders = every_draw_without_replacement(5)
    noise = estimate_of(orders, counts)
    if (counts > 0).sum() < 2:
        assert np.isnan(noise.trace).all() and np.isnan(noise.grad_sq).all()
    else:
        assert noise.trace.mean() == pytest.approx(TRACE_WITHOUT, rel=1e-12)
        assert (noise.trace > -1e-12).all()
        np.testing.assert_allclose(noise.grad_sq + noise.trace / 5, GRAD_SQ, rtol=1e-12)  # |ḡ|²


class TestPublishedFormulasAreBiased:
    """Exactly, over every draw; ours is not, by the tests above."""

    def test_square_of_the_mean_norm(self):
        """mesh-transformer-jax: (mean of |g_i|)² in place of the mean of |g_i|²."""
        draws = every_draw(4)
        norms = np.sqrt((draws.reshape(-1, 2, 2, 3).mean(axis=2) ** 2).sum(axis=-1))
        big = (draws.mean(axis=1) ** 2).sum(axis=-1)
        trace = (norms.mean(axis=1) ** 2 - big) / (1 / 2 - 1 / 4)
        right = ((norms**2).mean(axis=1) - big) / (1 / 2 - 1 / 4)
        assert right.mean() == pytest.approx(TRACE, rel=1e-12)
        assert trace.mean() < 0.85 * TRACE

    def test_average_of_ratios(self):
        """B of each update, averaged: too large even where every estimate of |G|² is well above zero."""
        grads = np.linspace(1.0, 3.0, 5)[:, None]
        noise = estimate_of(grads[np.array(list(itertools.product(range(5), repeat=4)))], (1, 1, 1, 1))
        right = noise.trace.mean() / noise.grad_sq.mean()
        assert right == pytest.approx(grads.var() / 4, rel=1e-12)
        assert noise.grad_sq.min() == pytest.approx(1.0)
        assert (noise.trace / noise.grad_sq).mean() > 1.1 * right

    def test_norm_of_the_batch_gradient(self):
        """|ḡ|² in place of |G|²: too large by tr(Σ)/n, so that B seems to grow with the batch."""
        noise = estimate_of(every_draw(4), (2, 2))
        assert (noise.grad_sq + noise.trace / 4).mean() == pytest.approx(GRAD_SQ + TRACE / 4, rel=1e-12)

    def test_unequal_shards_as_if_equal(self):
        draws = every_draw(4)
        squares = ((draws[:, :1].mean(axis=1) ** 2).sum(axis=-1) + (draws[:, 1:].mean(axis=1) ** 2).sum(axis=-1)) / 2
        big = (draws.mean(axis=1) ** 2).sum(axis=-1)
        trace = (squares - big) / (1 / 2 - 1 / 4)
        assert trace.mean() > 1.3 * TRACE

    def test_epochs_as_if_draws_were_independent(self):
        noise = estimate_of(every_draw_without_replacement(4), (2, 2))
        assert noise.grad_sq.mean() == pytest.approx(GRAD_SQ - TRACE_WITHOUT / 5, rel=1e-12)


class TestGhostBatchNorm:
    """Two draws of a ghost of three, from four examples, each in every possible way."""

    @pytest.fixture
    def ghosts(self, float64):
        """Per ghost: its summed gradient, and each example's part of it."""
        norm = GhostBatchNorm(3, dtype=jnp.float64)
        images = jnp.array([[-1.0, 0.3], [0.2, 2.0], [0.5, -0.7], [2.0, 0.1]])
        targets = jnp.array([1.0, -1.0, 0.5, 0.0])
        params = {"scale": jnp.array([1.0, 0.5]), "bias": jnp.array([0.2, -0.1])}
        batch_stats = {"mean": jnp.zeros(2), "var": jnp.ones(2)}

        def losses(params, drawn):
            variables = {"params": params, "batch_stats": batch_stats}
            y, _ = norm.apply(variables, images[drawn], train=True, mutable=["ghost_stats"])
            return (y.sum(axis=-1) - targets[drawn]) ** 2

        drawn = jnp.array(list(itertools.product(range(4), repeat=3)))
        parts = jax.jit(jax.vmap(jax.jacobian(losses), in_axes=(None, 0)))(params, drawn)
        return np.concatenate([parts["scale"], parts["bias"]], axis=-1)  # [64, 3, 4]

    def test_whole_ghosts_are_unbiased(self, ghosts):
        means = ghosts.mean(axis=1)
        pairs = ghosts[np.array(list(itertools.product(range(64), repeat=2)))].reshape(-1, 6, 4)
        noise = estimate_of(pairs, (3, 3))
        assert noise.trace.mean() == pytest.approx(3 * means.var(axis=0).sum(), rel=1e-12)
        assert noise.grad_sq.mean() == pytest.approx((means.mean(axis=0) ** 2).sum(), rel=1e-12)

    def test_parts_of_ghosts_are_biased(self, ghosts):
        means = ghosts.mean(axis=1)
        noise = estimate_of(ghosts, (1, 1, 1))
        assert noise.trace.mean() != pytest.approx(3 * means.var(axis=0).sum(), rel=0.2)
        assert noise.grad_sq.mean() != pytest.approx((means.mean(axis=0) ** 2).sum(), rel=0.2)


@pytest.mark.parametrize("signal", [0.0, 1.0, 10.0, 100.0])
def test_float32_loses_digits_only_in_shards_far_above_the_noise_scale(signal):
    random = np.random.RandomState(2)
    grads = random.standard_normal((8, 64, 1000)) + signal
    shards = grads.mean(axis=1)
    exact = 64 * shards.var(axis=0, ddof=1).sum()
    sums = [jnp.asarray(64 * shard, jnp.float32) for shard in shards]
    mean_sq = squared_norm(jax.tree.map(lambda *parts: sum(parts) / 512, *sums))
    noise = estimate(sum(shard_term(s, 64) for s in sums), mean_sq, 512, 8)
    assert noise.trace.dtype == jnp.float32
    assert float(noise.trace) == pytest.approx(exact, rel=3e-7 * (1 + 64 * signal**2))


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


class TestAverages:
    NOISES = (
        Estimate(1.0, 8.0, 100, 4),
        Estimate(math.nan, math.nan, 50, 1),
        Estimate(-0.5, 6.0, 300, 12),
        Estimate(math.inf, math.inf, 300, 12),
        Estimate(2.0, 7.0, 200, 8),
        Estimate(0.3, 9.0, 400, 16),
    )

    def averaged(self, noises, half_life_examples=500.0, averages=None):
        averages = averages or zero_averages()
        for noise in noises:
            averages = update_averages(averages, noise, half_life_examples)
        return averages

    def test_weighted_means_and_variances_by_definition(self):
        averages = self.averaged(self.NOISES)
        seen = np.cumsum([noise.num_examples for noise in self.NOISES])
        kept = [i for i, noise in enumerate(self.NOISES) if math.isfinite(noise.trace)]
        weights = np.array([self.NOISES[i].num_examples * 0.5 ** ((seen[-1] - seen[i]) / 500) for i in kept])
        values = np.array([self.NOISES[i][:2] for i in kept])
        means = weights @ values / weights.sum()
        centers = weights**2 @ values / (weights**2).sum()
        scatter = np.einsum("t,ti,tj->ij", weights**2, values - centers, values - centers)
        expected = [weights.sum(), *means, (weights**2).sum(), *centers, scatter[0, 0], scatter[1, 1], scatter[0, 1]]
        np.testing.assert_allclose(averages, expected, rtol=1e-12)
        assert gradient_noise_scale(averages) == pytest.approx(means[1] / means[0], rel=1e-12)

    def test_the_same_through_json(self):
        averages = self.averaged(self.NOISES[:3])
        restored = Averages(**json.loads(json.dumps(averages._asdict())))
        assert restored == averages
        assert self.averaged(self.NOISES[3:], averages=restored) == self.averaged(self.NOISES)

    def test_float64_from_float32_on_the_host(self):
        noise = estimate(np.float32(5.1), np.float32(0.3), np.int32(4), np.int32(3))
        averages = update_averages(zero_averages(), noise, 10.0)
        assert {type(value) for value in (*noise, *averages)} == {np.float64}

    def test_under_jit(self, float64):
        update = jax.jit(update_averages)
        averages = Averages(*map(jnp.asarray, zero_averages()))
        for noise in self.NOISES:
            averages = update(averages, noise, 500.0)
        np.testing.assert_allclose(averages, self.averaged(self.NOISES), rtol=1e-12)

    def test_a_history_at_another_batch_size_weighs_by_its_examples(self):
        """Four small updates or one large one of the same examples leave the same average."""
        small = self.averaged([Estimate(1.0, 8.0, 100, 2)] * 4, half_life_examples=1e9)
        large = self.averaged([Estimate(1.0, 8.0, 400, 8)], half_life_examples=1e9)
        np.testing.assert_allclose(small[:3], large[:3], rtol=1e-6)


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
        """|G|² 0.6 and 1.9 standard errors from zero: often no upper end, and covered all the same."""
        for norm, unbounded in ((0.08, 0.93), (0.15, 0.51)):
            averages = simulated_averages(np.full(6, norm / np.sqrt(6)), self.CONSTANT)
            low, high = confidence_interval(averages)
            assert coverage((low, high), 6 / norm**2) == pytest.approx(0.95, abs=0.02)
            assert np.isinf(high).mean() == pytest.approx(unbounded, abs=0.03)
            assert np.isfinite(low).mean() > 0.95

    def test_the_delta_method_covers_less(self):
        """Why it is Fieller's: the interval of log B, with the same variances."""
        averages = simulated_averages(np.full(6, 0.08 / np.sqrt(6)), self.CONSTANT)
        mean = np.stack([averages.grad_sq, averages.trace])
        offset = np.stack([averages.center_grad_sq, averages.center_trace]) - mean
        scatter = np.stack([averages.scatter_grad_sq, averages.scatter_trace, averages.scatter_product])
        scatter += averages.weight_sq * np.stack([offset[0] ** 2, offset[1] ** 2, offset[0] * offset[1]])
        variances = scatter / (averages.weight**2 - averages.weight_sq)
        relative = variances[0] / mean[0] ** 2 + variances[1] / mean[1] ** 2 - 2 * variances[2] / mean[0] / mean[1]
        half_length = 2.02 * np.sqrt(relative)
        distance = np.where(mean[0] > 0, np.abs(np.log(mean[1] / np.abs(mean[0]) / (6 / 0.08**2))), np.inf)
        assert (distance < half_length).mean() < 0.75

    def test_no_signal_at_all(self):
        low, high = confidence_interval(simulated_averages(np.zeros(6), self.CONSTANT))
        assert np.isinf(high).mean() == pytest.approx(0.975, abs=0.015)
        assert np.isfinite(low).mean() > 0.95

    def test_drift_only_widens(self):
        """|G|² falls to a quarter on the way: the interval holds the ratio of what was averaged."""
        decay = np.linspace(1.0, 0.5, len(self.CONSTANT))
        averages = simulated_averages(np.outer(decay, np.full(6, 1 / np.sqrt(6))), self.CONSTANT)
        weights = 0.5 ** (64 * np.arange(len(decay))[::-1] / 20_000.0)
        value = 6 / np.average(decay**2, weights=weights)
        assert coverage(confidence_interval(averages), value) > 0.95

    def test_closed_form_of_equal_updates(self):
        """Fieller's by hand, from two updates: s²/2 with one degree of freedom."""
        averages = zero_averages()
        for grad_sq, trace in ((10.0, 100.0), (10.0, 101.0)):
            averages = update_averages(averages, Estimate(grad_sq, trace, 10, 2), 1e12)
        half_length = 12.7062047 * 0.5  # Student's quantile times the standard error of the mean
        expected = ((100.5 - half_length) / 10, (100.5 + half_length) / 10)
        assert confidence_interval(averages) == pytest.approx(expected, rel=1e-6)
        assert gradient_noise_scale(averages) == pytest.approx(10.05)

    def test_by_definition(self):
        """Unequal updates: the roots of Fieller's parabola, with the sandwich variance of weighted means."""
        noises, averages = TestAverages.NOISES, zero_averages()
        for noise in noises:
            averages = update_averages(averages, noise, 500.0)
        seen = np.cumsum([noise.num_examples for noise in noises])
        kept = [i for i, noise in enumerate(noises) if math.isfinite(noise.trace)]
        weights = np.array([noises[i].num_examples * 0.5 ** ((seen[-1] - seen[i]) / 500) for i in kept])
        weights /= weights.sum()
        values = np.array([noises[i][:2] for i in kept])
        q, t = weights @ values
        effective_updates = 1 / (weights**2).sum()
        covariance = np.einsum("t,ti,tj->ij", weights**2, values - [q, t], values - [q, t])
        covariance /= 1 - 1 / effective_updates
        v_qq, v_tt, v_tq = scipy.stats.t.ppf(0.7, effective_updates - 1) ** 2 * covariance[[0, 1, 0], [0, 1, 1]]
        expected = np.sort(np.roots([q**2 - v_qq, -2 * (q * t - v_tq), t**2 - v_tt]))
        assert expected[0] > 0
        assert confidence_interval(averages, 0.4) == pytest.approx(tuple(expected), rel=1e-9)

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
        averages = zero_averages()
        for grad_sq, trace, n in noises:
            averages = update_averages(averages, Estimate(grad_sq, trace, n, 2), 1e3)
        low, high = confidence_interval(averages, confidence)
        if not math.isnan(low):
            assert 0 <= low <= high
            if averages.grad_sq > 1e-6 and averages.trace > 1e-6:
                scale = gradient_noise_scale(averages)
                assert low <= scale * (1 + 1e-6) and scale * (1 - 1e-6) <= high

    def test_confidence_is_a_probability(self):
        with pytest.raises(InvalidArgument, match=r"confidence is 95; it must be a number between 0 and 1"):
            confidence_interval(zero_averages(), 95)


def test_groups_add_up():
    sums = {"a": {"kernel": jnp.array([1.0, 2.0]), "bias": jnp.array(3.0)}, "b": {"kernel": jnp.array([[4.0]])}}
    by_layer = shard_term(sums, 2, lambda path: path.split("/")[0])
    assert {name: float(term) for name, term in by_layer.items()} == {"a": 7.0, "b": 8.0}
    assert float(shard_term(sums, 2)) == 15.0
    assert shard_term(sums, 0, lambda path: path) == {"a/kernel": 0.0, "a/bias": 0.0, "b/kernel": 0.0}


def test_half_precision_is_squared_in_float32():
    """Also complex numbers, by their modulus; and a tree may be empty."""
    square = squared_norm(jnp.full(1000, 0.1, jnp.bfloat16))
    assert square.dtype == jnp.float32
    assert float(square) == pytest.approx(1000 * float(jnp.bfloat16(0.1)) ** 2, rel=1e-5)
    assert float(squared_norm([jnp.array([3 + 4j]), jnp.array(2.0)])) == pytest.approx(29.0)
    assert float(squared_norm({})) == 0.0


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
