"""Estimates against exact expectations, over every possible draw, and closed forms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bsjax.gradient_noise import estimate, shard_term, squared_norm
from bsjax.models.ghost_batch_norm import GhostBatchNorm

# Those of a data set of five examples.
GRADS = np.random.RandomState(0).standard_normal((5, 3)) + np.array([1.0, 0.0, -0.5])
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
    """Up to the whole data set, where the mean gradient is exact and has no noise to subtract."""
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
    """Averaged over the order of the same examples, every split gives their sample variance."""
    counts = np.bincount([random.randrange(len(weights)) for _ in range(5)], minlength=len(weights))
    orders = every_draw_without_replacement(5)
    noise = estimate_of(orders, counts)
    if (counts > 0).sum() < 2:
        assert np.isnan(noise.trace).all() and np.isnan(noise.grad_sq).all()
    else:
        assert noise.trace.mean() == pytest.approx(TRACE_WITHOUT, rel=1e-12)
        assert (noise.trace > -1e-12).all()
        np.testing.assert_allclose(noise.grad_sq + noise.trace / 5, GRAD_SQ, rtol=1e-12)  # |ḡ|²


def test_whole_ghosts_are_unbiased(float64):
    """Two draws of a ghost of three, from four examples, each in every possible way."""
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
    ghosts = np.concatenate([parts["scale"], parts["bias"]], axis=-1)  # [64, 3, 4]: by ghost and example
    means = ghosts.mean(axis=1)
    pairs = ghosts[np.array(list(itertools.product(range(64), repeat=2)))].reshape(-1, 6, 4)
    noise = estimate_of(pairs, (3, 3))
    assert noise.trace.mean() == pytest.approx(3 * means.var(axis=0).sum(), rel=1e-12)
    assert noise.grad_sq.mean() == pytest.approx((means.mean(axis=0) ** 2).sum(), rel=1e-12)


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
