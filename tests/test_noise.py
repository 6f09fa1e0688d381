"""The noise scale formula, g = lr/(1-m)·(N/B - 1)."""

import numpy as np
import pytest

import bsjax


@pytest.mark.parametrize(
    ("learning_rate", "batch_size", "momentum"),
    [(0.1, 128, 0.9), (0.1 / 5, 128, 0.9), (0.5, 640, 0.9), (0.5, 3200, 0.98), (3.0, 8192, 0.0)],
)
def test_formula(learning_rate, batch_size, momentum):
    approximate = learning_rate * 50_000 / (batch_size * (1 - momentum))
    g = bsjax.sgd_noise_scale(learning_rate, batch_size, 50_000, momentum, exact=False)
    assert g == pytest.approx(approximate, rel=1e-14)
    g = bsjax.sgd_noise_scale(learning_rate, batch_size, 50_000, momentum)
    assert g == pytest.approx(approximate * (1 - batch_size / 50_000), rel=1e-12)


def test_the_paper_starts_all_four_runs_at_one_noise_scale():
    g = bsjax.sgd_noise_scale([0.1, 0.1, 0.5, 0.5], [128, 128, 640, 3200], 50_000, [0.9, 0.9, 0.9, 0.98], exact=False)
    np.testing.assert_allclose(g, 390.625, rtol=1e-14)


def test_full_batch_has_no_noise():
    assert bsjax.sgd_noise_scale(0.1, 50_000, 50_000, 0.9) == 0


def test_broadcasts_in_float64():
    g = bsjax.sgd_noise_scale(np.float32([[0.25], [0.5]]), np.array([1, 2, 4]), 8, exact=False)
    assert g.dtype == np.float64
    np.testing.assert_array_equal(g, [[2, 1, 0.5], [4, 2, 1]])
