"""Curvature agrees with dense Hessians and closed forms."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from bsjax.analysis.sharpness import hessian_vector_product, largest_eigenvalues, stability_threshold, trace
from bsjax.data import ArraySource
from bsjax.errors import InvalidArgument, RunError
from bsjax.tasks import from_loss

_NONE = np.zeros(4, np.float32)


def test_a_product_is_that_of_the_dense_hessian_whatever_the_microbatch(net):
    hessian = np.asarray(jax.jit(jax.hessian(lambda flat: net.losses(flat).mean()))(net.flat))
    vector = np.random.RandomState(3).normal(size=net.flat.shape)
    unravel = jax.flatten_util.ravel_pytree(net.params)[1]
    for microbatch_size in (4, 1000):  # the last of 4 is padded; 1000 are more than there are
        product = hessian_vector_product(net.task, net.source, microbatch_size)
        found = jax.flatten_util.ravel_pytree(product(net.params, net.batch_stats, unravel(vector)))[0]
        np.testing.assert_allclose(found, hessian @ vector, rtol=1e-10, atol=1e-13)
    bound = functools.partial(product, net.params, net.batch_stats)
    exact = np.linalg.eigvalsh(hessian)[::-1]
    found = largest_eigenvalues(bound, net.params, count=4, tolerance=1e-9)
    np.testing.assert_allclose(found.values, exact[:4], rtol=1e-9)
    assert found.num_products <= len(exact)
    _, low, high = trace(bound, net.params, num_probes=100, confidence=0.999)
    assert low < np.trace(hessian) < high and high - low < np.abs(exact).sum()


def test_the_hessian_of_a_quadratic_is_its_curvature():
    """Each example has curvatures of its own; the loss's are their means."""
    curvatures = np.random.RandomState(0).uniform(0, 4, (9, 5)).astype(np.float32)
    task = from_loss(lambda params, h, keys, train: (h * params["w"][None] ** 2).sum(axis=1) / 2, lambda key: None)
    product = hessian_vector_product(task, ArraySource(curvatures), microbatch_size=2)
    params = {"w": np.ones(5, np.float32)}
    bound = functools.partial(product, params, {})
    np.testing.assert_allclose(
        largest_eigenvalues(bound, params, count=5).values, np.sort(curvatures.mean(axis=0))[::-1], rtol=1e-5
    )
    exact = curvatures.mean(axis=0).sum()
    assert trace(bound, params, num_probes=2) == pytest.approx((exact, exact, exact), rel=1e-5)  # diagonal: exact


@given(st.integers(1, 30), st.integers(0, 10**6), st.floats(0.5, 8))
def test_eigenvalues_are_those_of_dense_symmetric_matrices(size, seed, decades):
    """With spectra over many decades, where Lanczos without reorthogonalisation repeats the largest."""
    random = np.random.default_rng(seed)
    spectrum = np.sort(10 ** random.uniform(-decades, 0, size) * random.choice([1, 1, -1], size))[::-1]
    vectors = np.linalg.qr(random.normal(size=(size, size)))[0]
    matrix = (vectors * spectrum) @ vectors.T
    count = min(3, size)
    with jax.enable_x64(True):
        found = largest_eigenvalues(lambda v: matrix @ np.asarray(v), np.zeros(size), count, tolerance=1e-8, seed=seed)
    assert (np.abs(found.values - spectrum[:count]) <= 1e-8 * np.abs(found.values) + 1e-12).all()
    assert found.num_products <= size


def test_errors_bound_the_distance_when_the_search_ends_early(float64):
    random = np.random.RandomState(0)
    matrix = random.normal(size=(200, 200))
    matrix = matrix + matrix.T
    found = largest_eigenvalues(lambda v: matrix @ np.asarray(v), np.zeros(200), tolerance=1e-12, max_products=12)
    exact = np.linalg.eigvalsh(matrix)
    assert found.num_products == 12 and found.errors[0] > 1e-6
    assert np.abs(exact - found.values[0]).min() <= found.errors[0]


def test_a_matrix_of_few_directions_gives_all_that_is_asked_for(float64):
    one = np.zeros((6, 6))
    one[0, 0] = 2.0
    assert largest_eigenvalues(lambda v: one @ np.asarray(v), np.zeros(6), count=3).values == pytest.approx([2, 0, 0])
    assert largest_eigenvalues(lambda v: 0 * v, np.zeros(6)).values == [0]


def test_the_trace_has_hutchinsons_variance_and_its_interval_covers():
    matrix = np.array([[1.0, 2.0, 0.0], [2.0, -1.0, 1.0], [0.0, 1.0, 5.0]], np.float32)
    found = [trace(lambda v: matrix @ v, np.zeros(3, np.float32), num_probes=20, seed=seed) for seed in range(150)]
    estimates = np.array([one.estimate for one in found])
    variance = 2 * (np.square(matrix).sum() - np.square(np.diag(matrix)).sum()) / 20
    assert abs(estimates.mean() - 5) < 4 * np.sqrt(variance / 150)
    low, high = stats.chi2.ppf([0.0005, 0.9995], 149) / 149
    assert low < estimates.var(ddof=1) / variance < high
    assert np.mean([one.low <= 5 <= one.high for one in found]) > 0.88


def test_gradient_descent_is_stable_below_the_threshold_and_not_above():
    def distance(curvature, learning_rate, momentum):
        x, velocity = 1.0, 0.0
        for _ in range(2000):
            velocity = momentum * velocity + curvature * x
            x -= learning_rate * velocity
        return abs(x)

    for momentum in (0.0, 0.5, 0.9):
        threshold = stability_threshold(0.1, momentum)
        assert distance(0.99 * threshold, 0.1, momentum) < 1e-3 < 1e3 < distance(1.01 * threshold, 0.1, momentum)


class _Groups:
    group_size, groups_may_span_devices = 4, False


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: largest_eigenvalues(lambda v: v, _NONE, count=5), "count is 5; it must be at most the 4 parameters"),
        (lambda: largest_eigenvalues(lambda v: v, _NONE, count=0), "count is 0; it must be a whole number >= 1"),
        (lambda: largest_eigenvalues(lambda v: v, _NONE, count=3, max_products=2), "max_products is 2; it must be at"),
        (lambda: largest_eigenvalues(lambda v: v, _NONE, tolerance=0), "tolerance is 0; it must be a positive finite"),
        (lambda: trace(lambda v: v, _NONE, num_probes=1), "num_probes is 1; it must be a whole number >= 2; nearest"),
        (lambda: stability_threshold(0), "learning_rate is 0; it must be a positive"),
        (lambda: stability_threshold(1, 1), "momentum is 1; it must be in [0, 1); nearest: 0.9"),
        (lambda: hessian_vector_product(_Groups(), None), "task is '_Groups with group_size 4'; it must be one whose"),
        (lambda: hessian_vector_product(from_loss(len, len), None, 0), "loss_fn is "),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InvalidArgument, match=f"^{re.escape(message)}"):
        call()


def test_a_diverged_run_is_said():
    with pytest.raises(RunError, match=r"not finite: are the parameters those of a run that diverged\?"):
        largest_eigenvalues(lambda v: jnp.nan * v, _NONE)
