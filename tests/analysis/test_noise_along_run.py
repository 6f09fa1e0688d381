"""The noise along a run: closed forms of the critical batch size, and a quadratic whose noise scale is known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bsjax import InvalidArgument, Recipe
from bsjax.analysis.noise_along_run import NoiseAlongRun, critical_batch_size, noise_along_run
from bsjax.data import ArraySource
from bsjax.errors import DivergedError
from bsjax.tasks import from_loss

SIZE, BATCH = 512, 8


@pytest.fixture(scope="module")
def quadratic():
    """Examples x and the loss |w - x|²/2: G is w minus their mean, Σ their covariance, and w begins at (3, 4)."""
    x = np.random.default_rng(0).normal(size=(SIZE, 2)).astype(np.float32)
    task = from_loss(
        lambda params, examples, keys, train: ((params[None] - examples) ** 2).sum(axis=1) / 2,
        init_fn=lambda key: jnp.array([3.0, 4.0]),
    )
    return task, ArraySource(x)


def measured(quadratic, learning_rate, num_updates, **arguments):
    task, source = quadratic
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=0.0, momentum=0.9)
    plan = Recipe(learning_rate, BATCH, SIZE, num_epochs=2).plan()
    return noise_along_run(task, tx, source, plan, num_updates, devices=jax.devices()[:1], **arguments)


def made(updates, batch_sizes, noise_scales, num_batches=3):
    """Measurements without noise."""
    squares = np.array([[(1.0, scale) for scale in noise_scales]] * num_batches)
    return NoiseAlongRun(np.array(updates), np.array(batch_sizes), squares)


def test_the_critical_batch_size_is_the_noise_scale_averaged_over_progress():
    """A noise scale that rises from 20 to 100 with the progress of 50 updates without noise, at any batch size."""
    progress = np.linspace(0, 50, 200_001)
    scale = 20 + 80 * progress / 50
    for batch_size in (1, 30, 1000):
        # dS = (1 + B/b) ds: the updates k = 0, 1, ... of this batch size, and the noise scale at each.
        updates = np.concatenate([[0], np.cumsum((1 + scale[1:] / batch_size) * np.diff(progress))])
        at = np.interp(np.arange(0.5, updates[-1]), updates, scale)
        assert critical_batch_size(at, np.full(len(at), batch_size)) == pytest.approx(60, rel=0.02)


def test_moments_where_the_gradient_is_lost_in_the_noise_make_no_progress():
    assert critical_batch_size([50, np.inf], [8, 8]) == pytest.approx((8 * 50 / 58 + 8) / (8 / 58))
    assert critical_batch_size([np.inf], [8]) == np.inf
    lost = made([4], [8] * 4, [np.inf])._replace(squares=np.array([[(-1.0, 5.0)]] * 3))
    assert lost.critical_batch_size() == (np.inf, 0, np.inf) == lost.noise_scales()[0]


def test_a_noise_scale_that_does_not_move_is_the_critical_batch_size():
    noise = made([1, 2, 4, 8], [8, 8, 16, 16, 16, 32, 32, 32], [70.0] * 4)
    assert noise.examples_seen.tolist() == [8, 16, 48, 160]
    assert noise.critical_batch_size() == pytest.approx((70, 70, 70))
    assert noise.up_to(3).examples_seen.tolist() == [8, 16]
    assert (noise.growth(), noise.extrapolated(10**6).value) == pytest.approx((0, 70))


@pytest.mark.parametrize(("exponent", "expected"), [(0.5, 0.5), (-0.3, 0.0), (1.7, 1.0)])
def test_growth_is_a_power_of_the_examples_that_is_extrapolated(exponent, expected):
    seen = np.array([1, 2, 4, 8])
    noise = made(seen, [1] * 8, 10.0 * seen**exponent)
    assert noise.growth() == pytest.approx(expected)
    middle = 10 * 2 ** (1.5 * exponent)  # the geometric mean, at 2^1.5 examples
    assert noise.extrapolated(800).value == pytest.approx(middle * (800 / 2**1.5) ** expected)


def test_the_noise_of_a_quadratic_is_measured_in_passing(quadratic):
    _, source = quadratic
    noise = measured(quadratic, learning_rate=1e-9, num_updates=64, num_batches=32)
    mean, trace = source.examples.mean(axis=0), source.examples.var(axis=0, ddof=1).sum()
    expected = trace / ((np.array([3.0, 4.0]) - mean) ** 2).sum()
    assert noise.updates.tolist() == [2, 4, 8, 16, 32, 64]
    assert noise.squares.shape == (32, 6, 2)
    for scale in noise.noise_scales():
        assert scale.value == pytest.approx(expected, rel=0.12)
        assert scale.low < scale.value < scale.high
    assert noise.critical_batch_size().value == pytest.approx(expected, rel=0.06)
    assert noise.critical_batch_size().low < expected < noise.critical_batch_size().high


def test_measuring_leaves_no_trace_in_the_training(quadratic):
    """The momentum would remember a gradient that does not belong to the training."""
    often, once = (measured(quadratic, 0.02, 16, num_batches=2, num_moments=count) for count in (5, 1))
    assert often.updates.tolist() == [1, 2, 4, 8, 16] and once.updates.tolist() == [16]
    np.testing.assert_array_equal(often.squares[:, -1], once.squares[:, -1])
    assert often.squares[:, -1, 0].mean() < 0.9 * often.squares[:, 0, 0].mean()  # it trains


def test_bad_input_is_refused(quadratic):
    noise = made([2, 4], [8] * 4, [1.0, 1.0])
    for call, message in (
        (lambda: noise.up_to(1), "num_updates is 1; it must be at least 2, the first moment; nearest: 2"),
        (lambda: measured(quadratic, 0.1, 129), "num_updates is 129; it must be at most the plan's; nearest: 128"),
        (lambda: measured(quadratic, 0.1, 4, num_batches=1), "num_batches is 1; it must be a whole number >= 2"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            call()
    task, source = quadratic
    wide = from_loss(task.loss_fn, task.init_fn, group_size=300)
    with pytest.raises(InvalidArgument, match=r"group_size is 300; .* half of the 512 .*; nearest: 256"):
        measured((wide, source), 0.1, 1)
    with pytest.raises(DivergedError, match="the gradient is not finite after update 15; try a smaller"):
        measured(quadratic, 1e30, 16, num_moments=1)
