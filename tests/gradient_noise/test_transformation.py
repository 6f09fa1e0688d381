"""The optax transformation: the same estimates, averages and mean gradient, however the shards are laid out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bsjax import InvalidArgument
from bsjax.gradient_noise import estimate, measure_gradient_noise, reason, update_averages, zero_averages

COUNTS = np.array([2.0, 1.0, 3.0, 2.0, 0.0, 4.0, 1.0, 3.0])
PARAMS = {"kernel": jnp.zeros(3), "bias": jnp.zeros(())}


@pytest.fixture
def grads():
    """Mean gradients [updates, 8, ...] of the shards; of the one without examples, 0/0."""
    random = np.random.RandomState(11)
    grads = {"kernel": random.standard_normal((3, 8, 3)) + 1, "bias": random.standard_normal((3, 8))}
    grads["kernel"][:, 4], grads["bias"][:, 4] = np.nan, np.nan
    return grads


@pytest.fixture
def expected(grads):
    averages, means = zero_averages(), []
    for update in range(3):
        shards = np.concatenate([grads["kernel"][update], grads["bias"][update][:, None]], axis=1)
        sums = np.where(COUNTS[:, None] > 0, COUNTS[:, None] * shards, 0)
        weighted_sq = ((sums**2).sum(axis=1) / np.maximum(COUNTS, 1)).sum()
        means.append(sums.sum(axis=0) / COUNTS.sum())
        noise = estimate(weighted_sq, (means[-1] ** 2).sum(), COUNTS.sum(), 7, dataset_size=60)
        averages = update_averages(averages, noise, 100.0)
    return averages, noise, np.array(means)


def train(update, grads, rows=lambda x: x):
    """Three updates; the last state and the mean gradients."""
    state, means = measure_gradient_noise(100.0, axis_name="batch").init(PARAMS), []
    counts = rows(jnp.asarray(COUNTS))
    for step in range(3):
        mean, state = update(jax.tree.map(lambda g, step=step: rows(jnp.asarray(g[step])), grads), state, counts)
        means.append(np.append(np.asarray(mean["kernel"]), np.asarray(mean["bias"])))
    return state, np.array(means)


def check(result, expected, rtol=1e-12):
    (state, means), (averages, noise, expected_means) = result, expected
    np.testing.assert_allclose(state.averages, averages, rtol=rtol)
    np.testing.assert_allclose(state.latest, noise, rtol=rtol)
    np.testing.assert_allclose(means, expected_means, rtol=rtol)


MESH = jax.sharding.Mesh(np.array(jax.devices()), "batch")


def mapped(**kwargs):
    tx = measure_gradient_noise(100.0, dataset_size=60, **kwargs)
    return lambda grads, state, n: tx.update(grads, state, PARAMS, num_examples=n)


def shard_mapped(check_vma):
    specs = {"in_specs": (jax.P("batch"), jax.P(), jax.P("batch")), "out_specs": jax.P(), "check_vma": check_vma}
    return jax.jit(jax.shard_map(mapped(axis_name="batch", stacked=True), mesh=MESH, **specs))


@pytest.mark.parametrize(
    "update",
    [
        jax.jit(mapped(stacked=True)),
        jax.jit(jax.vmap(mapped(axis_name="shard"), (0, None, 0), None, axis_name="shard")),
        jax.pmap(mapped(axis_name="batch"), "batch", in_axes=(0, None, 0), out_axes=None),
        shard_mapped(check_vma=True),
        shard_mapped(check_vma=False),
    ],
    ids=["stacked", "vmap", "pmap", "shard_map", "shard_map without checks"],
)
def test_every_layout_measures_the_same(float64, grads, expected, update):
    check(train(update, grads), expected)


def test_stacks_on_four_pmapped_devices(float64, grads, expected):
    update = mapped(axis_name="batch", stacked=True)
    update = jax.pmap(update, "batch", in_axes=(0, None, 0), out_axes=None, devices=jax.devices()[:4])
    check(train(update, grads, lambda x: x.reshape(4, 2, *x.shape[1:])), expected)


def test_stacked_in_float32(grads, expected):
    check(train(jax.jit(mapped(stacked=True)), grads), expected, rtol=1e-4)


@pytest.mark.parametrize("cast", [True, False])
def test_shard_map_sums_gradients_by_itself_unless_told(cast):
    tx = measure_gradient_noise(100.0, num_examples=2, axis_name="batch")

    def update(w, state, examples):
        local = jax.lax.pcast(w, "batch", to="varying") if cast else w
        return tx.update(jax.grad(lambda w: ((w - examples) ** 2).mean() / 2)(local), state)

    update = jax.shard_map(update, mesh=MESH, in_specs=(jax.P(), jax.P(), jax.P("batch")), out_specs=jax.P())
    w, examples = jnp.zeros(()), jnp.arange(16.0) ** 2
    if cast:
        mean, state = jax.jit(update)(w, tx.init(w), examples)
        assert float(mean) == pytest.approx(-float(examples.mean()), rel=1e-5)
        shard_means = np.asarray(examples).reshape(8, 2).mean(axis=1)
        assert state.latest.trace == pytest.approx(2 * shard_means.var(ddof=1), rel=1e-5)
    else:
        with pytest.raises(ValueError, match=r"summed over 'batch' already.*pcast\(params, 'batch', to='varying'\)"):
            jax.jit(update)(w, tx.init(w), examples)


def test_partition_measures_groups_apart(float64, grads):
    """Each label's state is that of its gradients alone; and every gradient is averaged."""
    grads = jax.tree.map(lambda g: jnp.asarray(g[0]), grads)
    tx = measure_gradient_noise(100.0, stacked=True)
    both = optax.partition({"matrix": tx, "vector": tx}, {"kernel": "matrix", "bias": "vector"})
    mean, state = jax.jit(both.update)(grads, both.init(PARAMS), num_examples=COUNTS)
    for label, name in (("matrix", "kernel"), ("vector", "bias")):
        alone_mean, alone = tx.update(grads[name], tx.init(PARAMS[name]), num_examples=COUNTS)
        np.testing.assert_allclose(mean[name], alone_mean, rtol=1e-12)
        np.testing.assert_allclose(state.inner_states[label].inner_state.averages, alone.averages, rtol=1e-12)


def test_bfloat16_gradients_are_squared_in_float32():
    tx = measure_gradient_noise(100.0, num_examples=1, stacked=True)
    grads = jnp.array([[1.0, 2.0], [1.03125, 2.0]], jnp.bfloat16)
    mean, state = tx.update(grads, tx.init(jnp.zeros(2)))
    assert mean.dtype == jnp.bfloat16
    assert state.latest.trace == pytest.approx(0.03125**2 / 2, rel=1e-2)


def test_what_cannot_be_measured_is_said():
    with pytest.raises(InvalidArgument, match="axis_name is None; it must be the name of a mapped axis, unless"):
        measure_gradient_noise(100.0)
    with pytest.raises(InvalidArgument, match="half_life_examples is 0; it must be a positive number"):
        measure_gradient_noise(0, stacked=True)
    tx = measure_gradient_noise(100.0, stacked=True)
    with pytest.raises(InvalidArgument, match="num_examples is None; it must be the number of examples behind"):
        tx.update(jnp.ones((2, 3)), tx.init(jnp.zeros(3)))


def test_a_single_shard_changes_no_average():
    tx = measure_gradient_noise(100.0, num_examples=4, stacked=True)
    mean, state = tx.update(jnp.array([[1.0, 2.0]]), tx.init(jnp.zeros(2)))
    np.testing.assert_array_equal(mean, [1, 2])
    assert reason(jax.device_get(state.latest)) == "one microbatch on one device: at least two are needed"
    np.testing.assert_array_equal(state.averages, np.zeros(9))
