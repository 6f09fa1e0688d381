"""The optimizer in shares: the same training with a part of the memory, and optimizers that cannot be shared."""

import contextlib
import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bsjax import InvalidArgument, Recipe, Update
from bsjax.data import ArraySource
from bsjax.engine import Engine
from bsjax.engine.devices import first_replica
from bsjax.engine.shares import check_elementwise
from bsjax.optimizers import OPTIMIZERS, create_optimizer
from bsjax.run import Checkpoints, train
from bsjax.tasks import from_loss

# Numbers that devices share evenly or not, fewer than devices, and single ones.
SHAPES = {"kernel": (3, 3, 7), "row": (1, 2), "bias": (7,), "one": (1,), "scalar": ()}
X = np.random.RandomState(0).standard_normal((45, 7))


def loss_fn(params, x, keys, train):
    y = x @ (params["kernel"] * params["row"].sum()).sum(axis=0).T + params["one"][:, None]
    return (y**2).mean(axis=1) + params["scalar"] * (x + params["bias"][None]).sum(axis=1) ** 2


def init_fn(key):
    return {
        name: jnp.asarray(np.random.RandomState(len(name)).uniform(0.5, 1, shape)) for name, shape in SHAPES.items()
    }


def make_engine(optimizer, num_devices, shard_optimizer=True):
    tx, source = create_optimizer(optimizer, weight_decay=0.1), ArraySource(X)  # decays kernel and row
    options = {"devices": jax.devices()[:num_devices], "shard_optimizer": shard_optimizer, "microbatch_size": 2}
    return Engine(from_loss(loss_fn, init_fn), tx, source, source, [16], **options)


@functools.cache
def updates(optimizer, num_devices, shard_optimizer):
    """The engine, and after a few updates its state and all metrics."""
    engine = make_engine(optimizer, num_devices, shard_optimizer)
    state, metrics = engine.init(), []
    for i, batch_size in enumerate((40, 16, 4, 45)):
        state, values = engine.update(state, Update(i, 40 * i, batch_size, 0.01, 0.9))
        metrics.append(values.read())
    return engine, state, metrics


def assert_close(tree, expected):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-14), tree, expected)


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
@pytest.mark.parametrize("num_devices", [1, 2, 8])
def test_the_same_updates_with_a_share_of_the_memory(float64, optimizer, num_devices):
    engine, state, metrics = updates(optimizer, num_devices, shard_optimizer=True)
    _, expected, expected_metrics = updates(optimizer, 1, shard_optimizer=False)
    assert_close(metrics, expected_metrics)
    assert_close(first_replica(state), first_replica(expected))
    for values in jax.tree.leaves(state.params):
        np.testing.assert_array_equal(values, np.asarray(values)[:1].repeat(num_devices, axis=0))

    def bytes_on(device, opt_state):
        shards = [shard for x in jax.tree.leaves(opt_state) for shard in x.addressable_shards]
        return sum(shard.data.nbytes for shard in shards if shard.device == device)

    copies, sizes = {"momentum": 1, "adamw": 2}[optimizer], [math.prod(shape) for shape in SHAPES.values()]
    saved = 8 * copies * sum(size - math.ceil(size / num_devices) for size in sizes)
    whole = bytes_on(jax.devices()[0], expected.opt_state)
    assert whole > 8 * copies * sum(sizes)
    assert [bytes_on(device, state.opt_state) for device in engine.devices] == [whole - saved] * num_devices


def test_both_mappings_share_to_the_same_bits(float64, monkeypatch):
    _, expected, expected_metrics = updates("momentum", 8, shard_optimizer=True)
    monkeypatch.setenv("BSJAX_MAPPING", "shard_map")
    _, state, metrics = updates.__wrapped__("momentum", 8, shard_optimizer=True)
    assert metrics == expected_metrics
    jax.tree.map(np.testing.assert_array_equal, state, expected)


def test_a_run_continues_on_any_number_of_devices(float64, tmp_path):
    """On as many, to the last bit; else to rounding, also with an optimizer that is not shared."""
    plan = Recipe(0.01, 8, len(X), num_epochs=2, momentum=0.9).plan()
    engines = {num_devices: updates("adamw", num_devices, shard_optimizer=True)[0] for num_devices in (1, 2, 8)}
    plain, _, _ = updates("adamw", 1, shard_optimizer=False)

    def run(name, stop_after, *parts):
        for engine in parts:
            left = itertools.count(stop_after - 1, -1)
            train(engine, plan, tmp_path / name, should_stop=lambda left=left: next(left) == 0, show="none")
        with contextlib.closing(Checkpoints(tmp_path / name / "checkpoints", read_only=True)) as checkpoints:
            found = checkpoints.restore(first_replica(plain.init()))
        assert found.number == plan.num_updates
        return found.state

    whole = run("whole", plan.num_updates + 1, engines[8])
    jax.tree.map(np.testing.assert_array_equal, run("stopped", 4, *[engines[8]] * 3), whole)
    assert_close(run("moved", 2, engines[8], engines[2], engines[1], plain, engines[8], engines[2]), whole)


def test_shares_grow_with_the_devices(float64):
    """Compiled ahead for other devices than those that have the state."""
    tx, source = create_optimizer("momentum"), ArraySource(X)
    states = []
    for options in ({"grow_devices": True, "shard_optimizer": True}, {}):
        engine = Engine(from_loss(loss_fn, init_fn), tx, source, source, [1, 40], devices=jax.devices()[:4], **options)
        state = engine.init()
        if options:
            assert [engine.layout(size).num_devices for size in (1, 40)] == [1, 4]
            engine.check_hyperparameters({"learning_rate": 0.01, "momentum": 0.9})
            for size in (1, 40):
                engine.compile_ahead(state, size)
        for i, size in enumerate((1, 40, 40, 1)):
            state, _ = engine.update(state, Update(i, 40 * i, size, 0.01, 0.9))
        states.append(first_replica(state))
    assert_close(*states)


WHY = "False with this optimizer, which does not compute each number of an update from that number's gradient alone"
ALL = jax.tree.map(
    lambda shape: jax.ShapeDtypeStruct(shape, np.float32), SHAPES, is_leaf=lambda x: isinstance(x, tuple)
)


MIXING = ("lars", "lamb", "muon")  # by norms and products of arrays


def decay(is_decayed):
    return optax.add_decayed_weights(0.1, lambda params: jax.tree.map(is_decayed, params))


@pytest.mark.parametrize(
    "tx",
    [
        *(create_optimizer(name, weight_decay=0.1) for name in OPTIMIZERS if name not in MIXING),
        optax.lion(0.1),
        optax.MultiSteps(optax.nadam(optax.cosine_decay_schedule(0.1, 9)), 2),
        optax.chain(optax.clip(1.0), optax.masked(optax.trace(0.9), {name: name != "bias" for name in SHAPES})),
    ],
)
def test_optimizers_that_compute_each_number_alone(tx):
    shared = check_elementwise(tx, ALL)
    sizes = [math.prod(x.shape) for x in jax.tree.leaves(jax.eval_shape(tx.init, ALL))]
    assert jax.tree.leaves(shared) == [size > 1 for size in sizes]


@pytest.mark.parametrize(
    ("tx", "why"),
    [
        (create_optimizer("momentum", max_grad_norm=1e30), "found reduce_sum"),
        *((create_optimizer(name), "found ") for name in MIXING),
        (optax.lamb(0.1), "found reduce_sum"),
        (optax.lars(0.1), "found reduce_sum"),
        (optax.adafactor(0.1), "found reduce_sum"),
        (optax.apply_if_finite(optax.sgd(0.1), 3), "found reduce_and"),
        (
            optax.masked(optax.trace(0.9), lambda p: jax.tree.map(lambda x: x.size > 7, p)),
            "part of its state has no shares",
        ),
        (optax.add_noise(0.1, 0.5, jax.random.key(0)), "found random_split"),
        (optax.stateless(lambda grads, _: jax.tree.map(lambda g: g[..., ::-1], grads)), "found rev"),
        (decay(lambda x: x.size > 7), "it treats arrays of different shapes differently"),
        (optax.stateless(lambda grads, _: jax.tree.map(lambda g: g / g.size, grads)), "it treats arrays of different"),
    ],
)
def test_optimizers_that_do_not_are_refused(tx, why):
    tree = {name: ALL[name] for name in ("kernel", "row", "bias")} if "rev" in why else ALL
    with pytest.raises(InvalidArgument, match=re.escape(f"shard_optimizer is True; it must be {WHY} ({why}")) as raised:
        check_elementwise(tx, tree)
    assert raised.value.nearest is False


def test_the_engine_refuses_before_it_compiles():
    tx, source = create_optimizer("momentum", max_grad_norm=1.0), ArraySource(X)
    with pytest.raises(InvalidArgument, match="shard_optimizer is True"):
        Engine(from_loss(loss_fn, init_fn), tx, source, source, [16], shard_optimizer=True)
