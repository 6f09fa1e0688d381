"""The noise scale g = lr/(1-m)·(N/B - 1), and what any scaling rule keeps, lr/(1-m)·(N/B)^ρ."""

import math

import numpy as np
import pytest

import bsjax
from bsjax.noise import scaling_exponent


@pytest.mark.parametrize(
    ("learning_rate", "batch_size", "momentum"),
    [(0.1, 128, 0.9), (0.1 / 5, 128, 0.9), (0.5, 640, 0.9), (0.5, 3200, 0.98), (3.0, 8192, 0.0), (0.1, 50_000, 0.9)],
)
def test_formula(learning_rate, batch_size, momentum):
    approximate = learning_rate * 50_000 / (batch_size * (1 - momentum))
    g = bsjax.sgd_noise_scale(learning_rate, batch_size, 50_000, momentum, exact=False)
    assert g == pytest.approx(approximate, rel=1e-14)
    g = bsjax.sgd_noise_scale(learning_rate, batch_size, 50_000, momentum)
    assert g == pytest.approx(approximate * (1 - batch_size / 50_000), rel=1e-12)


def test_broadcasts_in_float64():
    g = bsjax.sgd_noise_scale(np.float32([[0.25], [0.5]]), np.array([1, 2, 4]), 8, exact=False)
    assert g.dtype == np.float64
    np.testing.assert_array_equal(g, [[2, 1, 0.5], [4, 2, 1]])


@pytest.mark.parametrize("scaling", ["linear", "sqrt", 0.6])
def test_kept_noise_stays_where_the_learning_rate_follows_the_batch(scaling):
    batch_size, exponent = np.array([1, 32, 8192]), scaling_exponent(scaling)
    noise = bsjax.kept_noise(0.01 * batch_size**exponent, batch_size, 50_000, 0.9, scaling)
    np.testing.assert_allclose(noise, 0.1 * 50_000**exponent, rtol=1e-12)


def test_kept_noise_of_the_linear_rule_is_the_noise_scale():
    arguments = [0.1, 0.5], [128, 640], 50_000, [0.9, 0.98]
    np.testing.assert_array_equal(bsjax.kept_noise(*arguments), bsjax.sgd_noise_scale(*arguments, exact=False))


@pytest.mark.parametrize("scaling", [1, 1.0, 0.6, 1e-3, np.float32(0.5)])
def test_exponents_are_taken_as_they_are(scaling):
    assert scaling_exponent(scaling) == scaling


@pytest.mark.parametrize(
    ("scaling", "nearest"),
    [("liner", "linear"), ("root", "sqrt"), (0, "sqrt"), (-1, "sqrt"), (1.01, "1"), (7, "1")]
    + [(other, "linear") for other in (None, math.nan, math.inf, True, [0.5])],
)
def test_other_scalings_are_refused(scaling, nearest):
    with pytest.raises(bsjax.InvalidArgument, match="it must be linear, sqrt or an exponent in") as refusal:
        scaling_exponent(scaling)
    assert refusal.value.nearest == nearest
