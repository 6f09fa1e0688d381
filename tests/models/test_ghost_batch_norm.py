"""Ghost batch norm against numpy, on one device and with ghosts shared by several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsjax.models.ghost_batch_norm import AXIS_NAME, GhostBatchNorm

RANDOM = np.random.RandomState(0)
GAMMA, BETA = RANDOM.uniform(0.5, 2, 3), RANDOM.uniform(-1, 1, 3)
VARIABLES = {
    "params": {"scale": GAMMA, "bias": BETA},
    "batch_stats": {"mean": RANDOM.uniform(-1, 1, 3), "var": RANDOM.uniform(0.5, 2, 3)},
}


def apply(x, ghost_batch_size, variables=VARIABLES, **options):
    norm = GhostBatchNorm(ghost_batch_size, dtype=x.dtype, **options)
    y, updated = norm.apply(variables, x, train=True, mutable=["ghost_stats"])
    return y, updated["ghost_stats"]


def normalised_by_numpy(x, ghost_batch_size, epsilon):
    ys, means, variances = [], [], []
    for ghost in np.split(x, len(x) // ghost_batch_size):
        pixels = ghost.reshape(-1, x.shape[-1])
        means.append(pixels.mean(axis=0))
        variances.append(pixels.var(axis=0))
        ys.append(GAMMA * (ghost - means[-1]) / np.sqrt(variances[-1] + epsilon) + BETA)
    return np.concatenate(ys), np.array(means), np.array(variances)


def images(num_examples, *shape):
    """Examples whose mean and variance grow, so that no two ghosts have the same."""
    scale = np.linspace(1, 3, num_examples).reshape(-1, *[1] * len(shape))
    return scale * (1 + np.random.RandomState(1).standard_normal((num_examples, *shape)))


@pytest.mark.parametrize("shape", [(4, 5, 3), (3,)], ids=["images", "features"])
@pytest.mark.parametrize(("ghost_batch_size", "epsilon"), [(12, 1e-5), (4, 1e-5), (2, 1e-5), (4, 0.5)])
def test_statistics_are_of_each_ghost(float64, shape, ghost_batch_size, epsilon):
    x = images(12, *shape)
    y, stats = apply(x, ghost_batch_size, epsilon=epsilon)
    expected_y, mean, var = normalised_by_numpy(x, ghost_batch_size, epsilon)
    np.testing.assert_allclose(y, expected_y, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-12)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("train", [True, False])
def test_without_a_scale_it_is_one(float64, train):
    x = images(12, 4, 5, 3)
    ones = VARIABLES | {"params": {"scale": np.ones(3), "bias": BETA}}
    without = VARIABLES | {"params": {"bias": BETA}}
    outputs = []
    for variables, options in ((ones, {}), (without, {"use_scale": False})):
        norm = GhostBatchNorm(4, dtype=x.dtype, **options)
        outputs.append(norm.apply(variables, x, train=train, mutable=["ghost_stats"])[0])
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-14)
    made = GhostBatchNorm(4, use_scale=False).init(jax.random.key(0), x, train=False)["params"]
    assert made.keys() == {"bias"}


def test_a_constant_ghost_is_finite():
    y, stats = apply(jnp.full((4, 3), 1000.1), 4)
    np.testing.assert_array_equal(stats["var"] >= 0, True)
    np.testing.assert_array_equal(jnp.isfinite(y), True)


@pytest.mark.parametrize(("num_devices", "local_size"), [(2, 4), (4, 2), (8, 1), (4, 4), (8, 2)])
def test_neighbouring_devices_share_a_ghost(float64, num_devices, local_size):
    """Ghosts of 8 examples on several devices, outputs, statistics and gradients, equal those on one."""
    x = images(num_devices * local_size, 2, 2, 3)
    cotangent = np.random.RandomState(2).standard_normal(x.shape)

    def outputs_and_gradients(x, cotangent, params):
        def loss(x, params):
            y, stats = apply(x, 8, VARIABLES | {"params": params})
            return (y * cotangent).sum(), (y, stats)

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(x, params)

    (dx, dparams), (y, stats) = jax.jit(outputs_and_gradients)(x, cotangent, VARIABLES["params"])
    mapped = jax.pmap(outputs_and_gradients, AXIS_NAME, in_axes=(0, 0, None), devices=jax.devices()[:num_devices])
    sharded = (array.reshape(num_devices, local_size, *x.shape[1:]) for array in (x, cotangent))
    (dx_sharded, dparams_sharded), (y_sharded, stats_sharded) = mapped(*sharded, VARIABLES["params"])
    np.testing.assert_allclose(y_sharded.reshape(x.shape), y, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(dx_sharded.reshape(x.shape), dx, rtol=1e-12, atol=1e-12)
    for name in ("mean", "var"):
        of_each_device = np.repeat(stats[name], 8 // local_size, axis=0)
        np.testing.assert_allclose(stats_sharded[name][:, 0], of_each_device, rtol=1e-12)
    for name, gradient in dparams.items():
        np.testing.assert_allclose(dparams_sharded[name].sum(axis=0), gradient, rtol=1e-12, atol=1e-12)


def test_evaluation_uses_the_running_averages(float64):
    x = images(5, 4, 3)  # not a multiple of the ghost
    y = GhostBatchNorm(4, dtype=x.dtype).apply(VARIABLES, x, train=False)
    running = VARIABLES["batch_stats"]
    np.testing.assert_allclose(y, GAMMA * (x - running["mean"]) / np.sqrt(running["var"] + 1e-5) + BETA, rtol=1e-12)


def test_bfloat16_keeps_float32_statistics():
    # In bfloat16 a mean of 4096 values of 1 + 1/128 would be off by more than this.
    x = jnp.full((4096, 3), 1 + 1 / 128, jnp.bfloat16)
    y, stats = apply(x, 4096)
    assert (y.dtype, stats["mean"].dtype, stats["var"].dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    np.testing.assert_allclose(stats["mean"], 1 + 1 / 128, rtol=1e-6)
    assert GhostBatchNorm(4, dtype=jnp.bfloat16).apply(VARIABLES, x, train=False).dtype == jnp.bfloat16
