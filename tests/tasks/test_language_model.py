"""A language model's loss, its results over a text, its steps in any layout, and what it refuses."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special

import bsjax
from bsjax import InvalidArgument
from bsjax.data import ArraySource, ExampleStream, TokenWindows
from bsjax.engine import Engine, TrainState
from bsjax.engine.devices import first_replica, replicate
from bsjax.errors import TaskError
from bsjax.models import Transformer
from bsjax.optimizers import create_optimizer
from bsjax.tasks import LanguageModel

CONTEXT, VOCABULARY, SEED = 4, 6, 3
TOKENS = np.random.RandomState(0).randint(VOCABULARY, size=48 * CONTEXT + 1).astype(np.uint8)
TRAIN, TEST = TokenWindows(TOKENS, CONTEXT), TokenWindows(TOKENS[: 10 * CONTEXT + 3], CONTEXT)


def task_of(dtype=jnp.float32, **options):
    model = Transformer(VOCABULARY, CONTEXT, depth=1, width=4, num_heads=2, dtype=dtype)
    return LanguageModel(model, CONTEXT, **options)


def draw(task, dtype=np.float64):
    """Parameters at random."""
    random, example = np.random.RandomState(1), TRAIN.gather(np.zeros(1, int))
    shapes, _ = jax.eval_shape(lambda: task.init(jax.random.key(0), example))
    return jax.tree.map(lambda shape: random.uniform(-1, 1, shape.shape).astype(dtype), shapes)


def plain_losses(task, params, windows):
    """Of each window, from the logits, in numpy."""
    apply = jax.jit(lambda params, tokens: task.model.apply({"params": params}, tokens))
    logs = special.log_softmax(np.asarray(apply(params, windows[:, :-1].astype(np.int32)), np.float64), axis=-1)
    return -np.take_along_axis(logs, windows[:, 1:, None].astype(int), axis=-1)[..., 0].mean(axis=1)


def engine_of(task, tx, **options):
    return Engine(task, tx, TRAIN, TEST, [], SEED, **{"devices": jax.devices()[:1], **options})


def state_of(engine, params, tx):
    return replicate(TrainState(params, {}, tx.init(jax.tree.map(jnp.asarray, params))), engine.devices)


def test_an_evaluation_is_a_mean_over_tokens_and_the_perplexity_is_of_that_mean(float64):
    task, tx = task_of(jnp.float64, bytes_per_token=1.5), create_optimizer("sgd")
    params = draw(task)
    losses = plain_losses(task, params, TEST.gather(np.arange(10))["tokens"])
    engine = engine_of(task, tx, microbatch_size=4)  # the last of three microbatches is padded
    assert engine.evaluate(state_of(engine, params, tx)) == {
        "test_loss": pytest.approx(losses.mean(), rel=1e-12),
        "test_bits_per_byte": pytest.approx(losses.mean() / np.log(2) / 1.5, rel=1e-12),
        "test_perplexity": pytest.approx(np.exp(losses.mean()), rel=1e-12),
    }
    assert np.exp(losses).mean() > 1.001 * np.exp(losses.mean())  # which would be wrong


def test_losses_are_float32_at_least():
    task = task_of(jnp.bfloat16)
    windows = jax.ShapeDtypeStruct((2, CONTEXT + 1), jnp.int32)
    losses, metrics, _ = jax.eval_shape(lambda x: task.losses(draw(task, np.float32), {}, x, None, False), windows)
    assert (losses.shape, losses.dtype, metrics) == ((2,), jnp.float32, {})
    assert task.of_means({"loss": 1e4}) == {"perplexity": np.inf}


def plan_of_seesaw():
    """Batches from 6 to 24, with all of Adam's constants moving."""
    constants = {"b2": 0.9, "eps": 1e-3, "weight_decay": 0.1}
    recipe = bsjax.Recipe(optax.cosine_decay_schedule(0.05, 2), 6, len(TRAIN), num_epochs=2, hyperparameters=constants)
    return recipe.increase_batch_size(24, scaling="sqrt", share=0.5).scale_adam().plan()


@pytest.fixture(scope="module")
def in_a_plain_loop():
    """The parameters and losses of the plan in a loop of optax."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        task, plan, stream = task_of(jnp.float64), plan_of_seesaw(), ExampleStream(len(TRAIN), SEED)
        hyper = {name: plan.hyperparameters[name] for name in ("b2", "eps", "weight_decay", "learning_rate")}
        tx = optax.inject_hyperparams(optax.adamw)(b1=plan.momentum, **hyper)
        params = jax.tree.map(jnp.asarray, draw(task))

        @jax.jit
        def update(batch_size, params, opt_state, windows):  # of which the first batch_size count
            def loss_fn(params):
                logits = task.model.apply({"params": params}, windows[:, :-1])
                picked = jnp.take_along_axis(jax.nn.log_softmax(logits), windows[:, 1:, None], axis=-1)
                return -jnp.where(jnp.arange(24) < batch_size, picked.mean(axis=(1, 2)), 0).sum() / batch_size

            loss, grads = jax.value_and_grad(loss_fn)(params)
            updates, opt_state = tx.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, loss

        opt_state, losses = tx.init(params), []
        for step in plan:
            windows = TRAIN.gather(stream.indices(step.examples_seen, 24))["tokens"].astype(np.int32)
            params, opt_state, loss = update(step.batch_size, params, opt_state, windows)
            losses.append(float(loss))
    return plan, params, losses


@pytest.mark.parametrize(("num_devices", "microbatch_size"), [(1, 24), (1, 5), (8, 2)])
def test_any_layout_of_a_plan_gives_the_parameters_of_a_plain_loop(
    float64, in_a_plain_loop, num_devices, microbatch_size
):
    plan, params, losses = in_a_plain_loop
    assert (plan.batch_sizes.min(), plan.batch_sizes.max()) == (6, 24)
    tx = create_optimizer("adamw", 0.1, decay_biases_and_norms=True, scheduled=["b2", "eps", "weight_decay"])
    task = task_of(jnp.float64)
    engine = engine_of(task, tx, microbatch_size=microbatch_size, devices=jax.devices()[:num_devices])
    state, found = state_of(engine, draw(task), tx), []
    for step in plan:
        state, metrics = engine.update(state, step)
        found.append(metrics.loss)
    np.testing.assert_allclose(found, losses, rtol=1e-12)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), first_replica(state).params, params
    )


def beyond(index, token=VOCABULARY):
    tokens = TOKENS.astype(np.int32)
    tokens[index] = token
    return tokens


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (TokenWindows(beyond(37), CONTEXT), r"the train token 37 is 6; it must be in \[0, 6\), the model's vocabulary"),
        (TokenWindows(beyond(-1, -1), CONTEXT), "the train token 192 is -1; it must be in"),
        (ArraySource({"tokens": beyond(7)[:10].reshape(2, 5)}), "the train token 2 of example 1 is 6; it must be in"),
        (TokenWindows(TOKENS, 5), "context_length is 4; it must be 5, as the train examples have 6 tokens; nearest: 5"),
        (ArraySource({"text": TOKENS}), r"examples is \['text'\]; it must be a dict with \"tokens\" for LanguageModel"),
    ],
)
def test_examples_that_it_cannot_learn(source, message):
    with pytest.raises(InvalidArgument, match=f"^{message}"):
        Engine(task_of(), create_optimizer("sgd"), source, source, [8])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context_length": 5}, "context_length is 5; it must be at most the model's 4; nearest: 4"),
        ({"context_length": 0}, "context_length is 0; it must be a whole number >= 1"),
        ({"context_length": 4, "bytes_per_token": 0.0}, "bytes_per_token is 0.0; it must be a positive"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(InvalidArgument, match=f"^{message}"):
        LanguageModel(task_of().model, **options)


def test_a_model_of_another_shape():
    class Sentence(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            return nn.Embed(VOCABULARY, VOCABULARY)(tokens).mean(axis=1)

    engine = engine_of(LanguageModel(Sentence(), CONTEXT), create_optimizer("sgd"))
    with pytest.raises(
        TaskError, match=r"needs logits \[n, tokens, vocabulary\], not \[\d+, 6\] for tokens \[\d+, 4\]"
    ):
        engine.update(engine.init(), bsjax.Update(0, 0, 8, 0.1, 0.0))
