"""The plan of each rule trains an NNX transformer in a loop of optax as the engine does; a ramp that stops."""

import contextlib
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import bsjax
from bsjax.data import ExampleStream, TokenWindows
from bsjax.engine import Engine
from bsjax.engine.devices import first_replica
from bsjax.models import Transformer
from bsjax.optimizers import create_optimizer
from bsjax.run import Checkpoints, train
from bsjax.tasks import LanguageModel

CONTEXT, VOCABULARY, WIDTH, HEADS, SEED, LARGEST = 4, 6, 4, 2, 3, 24
CONSTANTS = {"b2": 0.9, "eps": 1e-3, "weight_decay": 0.1}
TRAIN = TokenWindows(np.random.RandomState(0).randint(VOCABULARY, size=48 * CONTEXT + 1).astype(np.uint8), CONTEXT)
COSINE = optax.cosine_decay_schedule(0.05, 2)
RECIPE = bsjax.Recipe(COSINE, 6, len(TRAIN), num_epochs=2, hyperparameters=CONSTANTS)
SEESAW = RECIPE.increase_batch_size(LARGEST, scaling="sqrt", share=0.5)
MEGATRON = bsjax.from_batch_schedule("0:6 24:12 48:24")
RAMP = bsjax.Recipe(COSINE, LARGEST, len(TRAIN), num_epochs=2, hyperparameters=CONSTANTS).warm_up_batch_size(
    0.25, 1.5, linear=True
)
RULES = {
    "linear": RECIPE.increase_batch_size(LARGEST),
    "square root": RECIPE.increase_batch_size(LARGEST, "sqrt"),
    "Seesaw": SEESAW,
    "scaled learning rate": RECIPE.scale_learning_rate(2, "sqrt"),
    "scaled momentum": RECIPE.scale_momentum(0.95),
    "warm-up": bsjax.Recipe(COSINE, 24, 48, 2, hyperparameters=CONSTANTS).warm_up_batch_size((0.25, 0.5), (0.5, 1)),
    "ramp": RAMP,
    "half-life, eps and time scale": SEESAW.scale_adam(),
    "sde": SEESAW.scale_adam("sde"),
    "floor": SEESAW.scale_adam(b2_floor=0.8),
    "half-life in a ramp": RAMP.scale_adam(),
    "Megatron's": bsjax.Recipe(COSINE, MEGATRON, 48, 2, clock="examples", hyperparameters=CONSTANTS),
}


class Float64(LanguageModel):
    """It begins with parameters of float64."""

    def init(self, key, examples):
        random, (shapes, _) = np.random.RandomState(1), jax.eval_shape(super().init, key, examples)
        return jax.tree.map(lambda shape: jnp.asarray(random.uniform(-1, 1, shape.shape)), shapes), {}


def engine_of(num_devices=1, microbatch_size=8):
    options = {"depth": 1, "width": WIDTH, "num_heads": HEADS, "positions": "learned", "use_bias": True}
    task = Float64(Transformer(VOCABULARY, CONTEXT, dtype=jnp.float64, **options), CONTEXT)
    tx = create_optimizer("adamw", 0.1, decay_biases_and_norms=True, scheduled=list(CONSTANTS))
    devices = jax.devices()[:num_devices]
    return Engine(task, tx, TRAIN, TRAIN, [], SEED, microbatch_size=microbatch_size, devices=devices)


def attend(query, key, value, mask, **options):
    """JAX's attention, which is the default, rounds to float32."""
    scores = jnp.einsum("bthk,bshk->bhts", query, key) / np.sqrt(query.shape[-1])
    return jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(jnp.where(mask, scores, -jnp.inf)), value)


class NnxTransformer(nnx.Module):
    """The same function, of flax's own layers."""

    def __init__(self):
        options = {"param_dtype": jnp.float64, "dtype": jnp.float64, "rngs": nnx.Rngs(0)}
        self.embedding = nnx.Embed(VOCABULARY, WIDTH, **options)
        self.positions = nnx.Param(jnp.zeros((CONTEXT, WIDTH)))
        self.attention_norm, self.feed_forward_norm, self.norm = (
            nnx.LayerNorm(WIDTH, epsilon=1e-5, **options) for _ in range(3)
        )
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, attention_fn=attend, **options)
        self.hidden, self.out = nnx.Linear(WIDTH, 4 * WIDTH, **options), nnx.Linear(4 * WIDTH, WIDTH, **options)

    def __call__(self, tokens):
        x = self.embedding(tokens) + self.positions[...]
        x = x + self.attention(self.attention_norm(x), mask=nnx.make_causal_mask(tokens))
        x = x + self.out(nnx.gelu(self.hidden(self.feed_forward_norm(x))))
        return self.embedding.attend(self.norm(x))


def in_nnx(params):
    """The transformer's parameters, or anything like them, as the NNX model has them."""
    block = params["block_0"]

    def heads(kernel_or_bias):
        return kernel_or_bias.reshape(*kernel_or_bias.shape[:-1], HEADS, -1)

    qkv = {name: np.split(array, 3, axis=-1) for name, array in block["qkv"].items()}
    attention = {part: {name: heads(qkv[name][i]) for name in qkv} for i, part in enumerate(("query", "key", "value"))}
    out = block["attention_out"]
    attention["out"] = {"kernel": out["kernel"].reshape(HEADS, -1, WIDTH), "bias": out["bias"]}
    return {
        "embedding": {"embedding": params["embedding"]},
        "positions": params["positions"],
        "norm": params["norm"],
        **{name: block[name] for name in ("attention_norm", "feed_forward_norm", "hidden")},
        "out": block["feed_forward_out"],
        "attention": attention,
    }


@nnx.jit
def loss_and_grads(model, windows, batch_size):
    """Of the first batch_size windows, so that one program serves all batches."""

    def loss_fn(model):
        losses = optax.softmax_cross_entropy_with_integer_labels(model(windows[:, :-1]), windows[:, 1:]).mean(axis=1)
        return jnp.where(jnp.arange(len(windows)) < batch_size, losses, 0).sum() / batch_size

    return nnx.value_and_grad(loss_fn)(model)


def train_in_nnx(plan, params):
    """The parameters and losses of somebody else's loop, in which optax's schedules are the plan's."""
    model, stream, losses = NnxTransformer(), ExampleStream(len(TRAIN), SEED), []
    state = nnx.state(model)
    nnx.replace_by_pure_dict(state, in_nnx(params))
    nnx.update(model, state)
    schedules = {name: plan.hyperparameters[name] for name in ("learning_rate", *CONSTANTS)}
    # Flat, because JAX compiles each operation for each shape.
    tx = optax.flatten(optax.inject_hyperparams(optax.adamw)(b1=plan.momentum, **schedules))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for step in plan:
        windows = TRAIN.gather(stream.indices(step.examples_seen, LARGEST))["tokens"].astype(np.int32)
        loss, grads = loss_and_grads(model, windows, step.batch_size)
        optimizer.update(model, grads)
        losses.append(float(loss))
    return nnx.to_pure_dict(nnx.state(model)), losses


@pytest.fixture(scope="module")
def engine():
    with jax.enable_x64(True):
        return engine_of()


@pytest.mark.parametrize("rule", RULES)
def test_the_plan_of_each_rule_trains_an_nnx_transformer_as_the_engine_does(float64, engine, rule):
    plan = RULES[rule].plan()
    assert plan != RECIPE.plan()
    assert plan.batch_sizes.max() <= LARGEST
    state, found = engine.init(), []
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        params, losses = train_in_nnx(plan, first_replica(state).params)
    for step in plan:
        state, metrics = engine.update(state, step)
        found.append(metrics.loss)
    np.testing.assert_allclose(found, losses, rtol=1e-12)
    trained = in_nnx(jax.tree.map(np.asarray, first_replica(state).params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), trained, params)


@pytest.mark.parametrize("resumed_on", [1, 8])
def test_a_run_that_stops_inside_a_ramp(float64, engine, tmp_path, resumed_on):
    """It ends with the same bits on the same device; on eight in place of one, with the same to rounding."""
    plan, stops = RAMP.scale_adam().plan(), (2, 5)
    assert all(6 < plan.batch_sizes[stop - 1] < plan.batch_sizes[stop] < LARGEST for stop in stops)

    def run(name, engine, stop_after=-1):
        left = itertools.count(stop_after - 1, -1)
        return train(engine, plan, tmp_path / name, should_stop=lambda: next(left) == 0, show="none")

    def trained(name):
        with contextlib.closing(Checkpoints(tmp_path / name / "checkpoints", read_only=True)) as checkpoints:
            return checkpoints.restore(first_replica(engine.init())).state

    other = engine if resumed_on == 1 else engine_of(8, 2)
    assert run("whole", engine)["completed"]
    assert run("parts", engine, 2) is None
    assert run("parts", other, 3) is None
    assert run("parts", engine)["completed"]
    tolerance = 0 if resumed_on == 1 else 1e-12
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
        trained("parts"),
        trained("whole"),
    )
