"""The library in somebody else's training loop: plain JAX and optax, and a plan for schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import bsjax
from bsjax.data import ExampleStream, load_dataset
from bsjax.engine import Engine
from bsjax.engine.devices import first_replica, replicate
from bsjax.models import MLP
from bsjax.optimizers import create_optimizer
from bsjax.tasks import Classification

SEED = 5


def train_in_a_plain_loop(plan, model, params, dataset):
    labels = dataset.train.examples["label"]
    images = (dataset.train.examples["image"].astype(np.float64) - dataset.mean) / dataset.std
    stream = ExampleStream(len(images), SEED)
    tx = optax.sgd(plan.learning_rate, momentum=0.9)

    @jax.jit
    def update(params, opt_state, images, labels):
        def loss(params):
            logits = model.apply({"params": params}, images, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    opt_state, examples_seen, losses = tx.init(params), 0, []
    for count in range(plan.num_updates):
        batch_size = int(plan.batch_size(count))
        indices = stream.indices(examples_seen, batch_size)
        params, opt_state, loss = update(params, opt_state, images[indices], labels[indices])
        examples_seen += batch_size
        losses.append(float(loss))
    return params, losses


def test_a_plan_in_a_plain_optax_loop_is_the_engine(float64, random_state):
    dataset = load_dataset("digits")
    schedule = optax.piecewise_constant_schedule(0.1, {1: 0.2, 2: 0.2})
    recipe = bsjax.Recipe(schedule, 32, len(dataset.train), num_epochs=3)
    plan = recipe.increase_batch_size(max_batch_size=600).plan()
    assert [phase.batch_size for phase in plan.phases] == [32, 160, 600]

    model, tx = MLP(10, depth=1, width=8, dtype=jnp.float64), create_optimizer("momentum")
    initial = random_state(model, tx, (8, 8, 1), np.float64)
    with jax.numpy_dtype_promotion("standard"):
        params, losses = train_in_a_plain_loop(plan, model, initial.params, dataset)

    task = Classification(model, mean=dataset.mean, std=dataset.std)
    engine = Engine(task, tx, dataset.train, dataset.test, [], SEED, microbatch_size=30, devices=jax.devices()[:2])
    state, engine_losses = replicate(initial, engine.devices), []
    for update in plan:
        state, metrics = engine.update(state, update)
        engine_losses.append(metrics.loss)
    np.testing.assert_allclose(engine_losses, losses, rtol=1e-10)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), first_replica(state).params, params
    )
    assert losses[-1] < losses[0] / 3  # it learns
