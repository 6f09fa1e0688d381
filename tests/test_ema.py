"""The average of the parameters: its span in examples stays, it is a plain loop's, and the engine evaluates it."""

import contextlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bsjax import InvalidArgument, Recipe
from bsjax.data import ArraySource, ExampleStream
from bsjax.engine import Engine
from bsjax.engine.devices import first_replica
from bsjax.optimizers import average_of, create_optimizer
from bsjax.run import Checkpoints, train
from bsjax.tasks import from_loss

X = np.random.RandomState(0).standard_normal((40, 3))


def loss_fn(params, examples, keys, train):
    return jnp.square(examples @ params["kernel"] + params["bias"][None] - 1).sum(axis=-1)


def init_fn(key):
    return {"kernel": jnp.ones((3, 4)) / 3, "bias": jnp.zeros(4)}


def growing(**fields):
    """A batch that grows from 4 to 16 in mid-training."""
    steps = optax.piecewise_constant_schedule(0.01, {2: 0.25})
    recipe = Recipe(steps, 4, len(X), num_epochs=4, momentum=0.5, hyperparameters={"ema_decay": 0.9}, **fields)
    return recipe.increase_batch_size().scale_ema()


def engine_of(num_devices=1, microbatch_size=4, **options):
    tx, source = create_optimizer("momentum", ema_decay=0.9, scheduled=["ema_decay"]), ArraySource(X)
    task, devices = from_loss(loss_fn, init_fn), jax.devices()[:num_devices]
    return Engine(task, tx, source, source, [4, 16], microbatch_size=microbatch_size, devices=devices, **options)


@settings(derandomize=True, deadline=None, max_examples=20)
@given(st.floats(0.5, 0.9999), st.integers(2, 30), st.sampled_from(["linear", "sqrt"]), st.booleans())
def test_the_horizon_in_examples_stays_wherever_the_conversion_stands(decay, size, scaling, first):
    recipe = Recipe(optax.cosine_decay_schedule(0.1, 3), size, 1000, num_epochs=3, hyperparameters={"ema_decay": decay})
    if first:
        recipe = recipe.scale_ema()
    recipe = recipe.scale_learning_rate(1.7, scaling).increase_batch_size(500, scaling)
    recipe = recipe if first else recipe.scale_ema()
    everywhere = np.arange(0, recipe.num_examples, 7)
    sizes, decays = recipe.at(everywhere).batch_size, recipe.others_at(everywhere)["ema_decay"]
    assert sizes.max() > 2 * size
    np.testing.assert_allclose(-np.log(decays) / sizes, -np.log(decay) / size, rtol=1e-9)
    plan = recipe.plan()
    # A value's weight after some examples is that of the unconverted recipe's average.
    assert np.prod(plan.others["ema_decay"]) == pytest.approx(decay ** (plan.num_examples / size), rel=1e-6)


@pytest.fixture(scope="module")
def in_a_plain_loop():
    """The parameters of the plan in a loop of optax, and their average by numpy."""
    with jax.enable_x64(True):
        plan, stream = growing().plan(), ExampleStream(len(X), 0)
        tx = optax.inject_hyperparams(optax.sgd)(plan.learning_rate, momentum=plan.momentum)
        params = init_fn(None)
        average, state = jax.tree.map(np.asarray, params), tx.init(params)
        for step, decay in zip(plan, plan.others["ema_decay"], strict=True):
            examples = X[stream.indices(step.examples_seen, step.batch_size)]
            grads = jax.grad(lambda params, examples=examples: loss_fn(params, examples, None, True).mean())(params)
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            average = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * np.asarray(p), average, params)
        return plan, params, average


@pytest.mark.parametrize(("num_devices", "options"), [(1, {}), (8, {}), (8, {"shard_optimizer": True})])
def test_the_engine_keeps_and_evaluates_the_average(float64, in_a_plain_loop, num_devices, options):
    plan, params, average = in_a_plain_loop
    engine = engine_of(num_devices, 4 if num_devices == 1 else 1, **options)
    state = engine.init()
    first = engine.evaluate(state)["test_loss"]
    assert first == pytest.approx(float(np.mean(loss_fn(init_fn(None), X, None, False))), rel=1e-12)
    for step in plan:
        state, _ = engine.update(state, step)
    found = first_replica(state)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12), found.params, params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12), average_of(found.opt_state), average)
    evaluated, of_params = (float(np.mean(loss_fn(tree, X, None, False))) for tree in (average, params))
    assert engine.evaluate(state)["test_loss"] == pytest.approx(evaluated, rel=1e-12)
    assert abs(evaluated / of_params - 1) > 1e-3  # the average is something else


def test_a_run_that_stops_keeps_the_average_to_the_last_bit(float64, tmp_path):
    plan, engine = growing().plan(), engine_of()

    def run(name, stop_after):
        for _ in range(3):
            left = itertools.count(stop_after - 1, -1)
            train(engine, plan, tmp_path / name, should_stop=lambda left=left: next(left) == 0, show="none")
        with contextlib.closing(Checkpoints(tmp_path / name / "checkpoints", read_only=True)) as checkpoints:
            return checkpoints.restore(first_replica(engine.init())).state

    jax.tree.map(np.testing.assert_array_equal, run("stopped", plan.num_updates // 2), run("whole", 1000))


def test_without_a_conversion_the_decay_is_a_constant(float64):
    tx = create_optimizer("sgd", ema_decay=0.5)
    state = tx.init(jnp.zeros(2))
    assert "ema_decay" not in state.hyperparams
    state.hyperparams["learning_rate"] = jnp.asarray(1.0)
    _, state = tx.update(-jnp.ones(2), state, jnp.zeros(2))
    np.testing.assert_array_equal(average_of(state), [0.5, 0.5])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Recipe(0.1, 8, 100, 1).scale_ema(), r"hyperparameters is \[\]; it must be a mapping with ema_decay"),
        (
            lambda: Recipe(0.1, 8, 100, 1, hyperparameters={"ema_decay": 1.0}).scale_ema(),
            r"hyperparameters ema_decay is 1.0; it must be in \[0, 1\); nearest: 0.999",
        ),
        (lambda: growing().scale_ema(), "conversions is .*; it must be of one ScaleEma at most; nearest: ScaleEma"),
        (lambda: create_optimizer("sgd", ema_decay=1.0), r"ema_decay is 1.0; it must be in \[0, 1\), or None"),
        (
            lambda: create_optimizer("sgd", scheduled=["ema_decay"]),
            "scheduled is 'ema_decay'; it must be one of weight_decay",
        ),
    ],
)
def test_what_cannot_be_averaged_is_refused(call, message):
    with pytest.raises(InvalidArgument, match=message):
        call()
