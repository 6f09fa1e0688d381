"""The noise of normalisation layers, from each example's gradient in the backward pass of any layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsjax import InvalidArgument, Update, gradient_noise
from bsjax.data import ArraySource, ExampleStream, TokenWindows
from bsjax.engine import Engine, TrainState
from bsjax.engine.devices import first_replica
from bsjax.engine.step import example_keys, split_keys
from bsjax.models import Transformer
from bsjax.optimizers import create_optimizer
from bsjax.tasks import LanguageModel, from_loss

CONTEXT, VOCABULARY, SEED, BATCH_SIZE = 4, 6, 3, 22
TOKENS = np.random.RandomState(0).randint(VOCABULARY, size=30 * CONTEXT + 1).astype(np.uint8)
WINDOWS = TokenWindows(TOKENS, CONTEXT)
BATCH = WINDOWS.gather(ExampleStream(len(WINDOWS), SEED).indices(0, BATCH_SIZE))["tokens"]
NORMS = ("attention_norm", "feed_forward_norm", "norm")
TX = create_optimizer("momentum")
UPDATE = Update(0, 0, BATCH_SIZE, learning_rate=0.1, momentum=0.9)


def transformer():
    sizes = {"depth": 1, "width": 4, "num_heads": 2, "use_bias": True, "dropout": 0.3, "dtype": jnp.float64}
    return LanguageModel(Transformer(VOCABULARY, CONTEXT, **sizes), CONTEXT)


def draw(task):
    """Parameters at random."""
    random = np.random.RandomState(1)
    shapes, _ = jax.eval_shape(lambda: task.init(jax.random.key(0), WINDOWS.gather(np.zeros(1, int))))
    return jax.tree.map(lambda shape: jnp.asarray(random.uniform(-1, 1, shape.shape)), shapes)


def update_once(task, params, source, **options):
    """The state after UPDATE, and its metrics."""
    engine = Engine(task, TX, source, source, [], SEED, **{"devices": jax.devices()[:1], **options})
    state, metrics = engine.update(engine.place(TrainState(params, {}, TX.init(params))), UPDATE)
    return first_replica(state), metrics.read()


@pytest.fixture(scope="module")
def exact():
    """The transformer's parameters, the exact gradients [n, P] of its layer normalisations, and a plain update."""
    with jax.enable_x64(True):
        task = transformer()
        params, positions = draw(task), np.arange(BATCH_SIZE, dtype=np.uint32)
        keys = example_keys(jax.random.split(jax.random.PRNGKey(SEED))[1], 0 * positions, positions)

        def loss(params, window, key):
            return task.losses(params, {}, window[None], key[None], train=True)[0].sum()

        grad_fn = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0, 0)))
        grads = grad_fn(params, BATCH.astype(np.int32), split_keys(keys)[1])
        leaves = jax.tree_util.tree_leaves_with_path(grads)
        chosen = [np.asarray(leaf) for path, leaf in leaves if {entry.key for entry in path} & set(NORMS)]
        assert len(chosen) == 6
        plain = update_once(task, params, WINDOWS, microbatch_size=BATCH_SIZE)
    return params, np.concatenate(chosen, axis=1), plain


@pytest.mark.parametrize(
    ("num_devices", "options"),
    [
        (1, {"microbatch_size": BATCH_SIZE}),
        (8, {"microbatch_size": 2, "shard_optimizer": True}),  # two on each, with ten windows of padding
    ],
    ids=["one microbatch", "eight devices"],
)
def test_each_layout_measures_the_exact_gradients_of_the_examples(float64, exact, num_devices, options):
    params, grads, (plain_state, plain_metrics) = exact
    devices = jax.devices()[:num_devices]
    state, metrics = update_once(transformer(), params, WINDOWS, layer_norm_noise=True, devices=devices, **options)
    assert metrics["layer_norm_example_sq"] == pytest.approx((grads**2).sum(axis=1).mean(), rel=1e-12)
    assert metrics["layer_norm_mean_sq"] == pytest.approx((grads.mean(axis=0) ** 2).sum(), rel=1e-12)
    assert metrics["layer_norm_example_sq"] > 1.1 * metrics["layer_norm_mean_sq"]  # there is noise
    # The update is the one that measures nothing.
    for name in ("loss", "grad_norm"):
        assert metrics[name] == pytest.approx(plain_metrics[name], rel=1e-12)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13), state.params, plain_state.params
    )


def only_norms(params, x, keys, train):
    """A loss whose parameters all belong to a layer normalisation, of examples [n, 3, 2]."""
    del keys, train
    y = jnp.tanh(x * params["norm"]["scale"][None, None] + params["norm"]["bias"][None, None])
    return jnp.square(y.sum(axis=1)).sum(axis=1)


X = np.random.RandomState(2).standard_normal((BATCH_SIZE, 3, 2))
PARAMS = {"norm": {"scale": np.array([1.0, -0.5]), "bias": np.array([0.3, 0.1])}}


def test_of_normalisation_layers_alone_both_estimates_are_one(float64):
    """With a microbatch for each example, to the last digits."""
    params = jax.tree.map(jnp.asarray, PARAMS)
    task = from_loss(only_norms, lambda key: params)
    _, metrics = update_once(task, params, ArraySource(X), layer_norm_noise=True, microbatch_size=1)
    assert metrics["weighted_grad_sq"] == pytest.approx(BATCH_SIZE * metrics["layer_norm_example_sq"], rel=1e-12)
    assert metrics["grad_norm"] ** 2 == pytest.approx(metrics["layer_norm_mean_sq"], rel=1e-12)


def test_the_mean_of_many_estimates_between_microbatches_is_that_of_the_examples(float64):
    """Of all examples, whose noise is known exactly, in random orders."""
    params = jax.tree.map(jnp.asarray, PARAMS)

    def summed_loss(params, offsets):
        losses = gradient_noise.of_each_example(
            lambda params, x: only_norms(params, x, None, True), params, offsets, jnp.asarray(X)
        )
        return losses.sum()

    offsets = gradient_noise.zero_offsets(params, BATCH_SIZE)
    grads, example_grads = jax.jit(jax.grad(summed_loss, argnums=(0, 1)))(params, offsets)
    totals = {path: g.sum(axis=0) for path, g in example_grads.items()}
    for path, grad in gradient_noise.layer_norm_params(grads).items():
        np.testing.assert_allclose(totals[path], grad, rtol=1e-12)
    mean_sq = float(gradient_noise.squared_norm(grads)) / BATCH_SIZE**2
    weighted_sq = float(gradient_noise.squared_norm(example_grads))
    exact = gradient_noise.estimate(weighted_sq, mean_sq, BATCH_SIZE, BATCH_SIZE, dataset_size=BATCH_SIZE)
    flat = np.concatenate([np.asarray(g) for g in example_grads.values()], axis=1)
    assert exact.trace == pytest.approx(flat.var(axis=0, ddof=1).sum(), rel=1e-12)
    assert exact.grad_sq == pytest.approx((flat.mean(axis=0) ** 2).sum(), rel=1e-12)

    # By the formulas of one backward pass with B_small = 1.
    mean_example_sq = weighted_sq / BATCH_SIZE
    single = gradient_noise.estimate(weighted_sq, mean_sq, BATCH_SIZE, BATCH_SIZE)
    assert single.trace == pytest.approx((mean_example_sq - mean_sq) * BATCH_SIZE / (BATCH_SIZE - 1), rel=1e-12)
    assert single.grad_sq == pytest.approx((BATCH_SIZE * mean_sq - mean_example_sq) / (BATCH_SIZE - 1), rel=1e-12)

    orders = np.random.default_rng(3).permuted(np.tile(np.arange(BATCH_SIZE), (20_000, 1)), axis=1)
    sums = flat[orders].reshape(len(orders), 2, BATCH_SIZE // 2, -1).sum(axis=2)  # of two microbatches
    between = gradient_noise.estimate(
        (sums**2).sum(axis=(1, 2)) / (BATCH_SIZE // 2), mean_sq, BATCH_SIZE, 2, dataset_size=BATCH_SIZE
    )
    error = between.trace.std() / np.sqrt(len(orders))
    assert abs(between.trace.mean() - exact.trace) < 4 * error < 0.1 * exact.trace


@pytest.mark.parametrize(
    ("task", "why"),
    [
        (from_loss(only_norms, lambda key: PARAMS, group_size=2), "with group size 2, because the examples of a group"),
        (
            from_loss(lambda *_: X, lambda key: {"scale": np.ones(2)}),
            "with this model, because no parameter belongs to",
        ),
    ],
)
def test_what_cannot_be_measured(task, why):
    source = ArraySource(X)
    with pytest.raises(InvalidArgument, match=f"^layer_norm_noise is True; it must be False {why}.*; nearest: False$"):
        Engine(task, TX, source, source, [4], layer_norm_noise=True)
    Engine(task, TX, source, source, [4])
