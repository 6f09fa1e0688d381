"""The pure functions of training against closed forms: softmax regression, and the running averages."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from bsjax.engine.step import Microbatch, Steps, TrainState
from bsjax.models.ghost_batch_norm import AXIS_NAME, GhostBatchNorm
from bsjax.tasks import Classification, from_loss

RANDOM = np.random.RandomState(0)
IMAGES, LABELS = RANDOM.standard_normal((12, 1, 1, 4)), np.arange(12) % 3
PARAMS = {"Dense_0": {"kernel": RANDOM.standard_normal((4, 3)), "bias": RANDOM.standard_normal(3)}}
HYPERPARAMS = {"learning_rate": 0.3}
SGD = optax.inject_hyperparams(optax.sgd)(learning_rate=0.0)
ADAM = optax.inject_hyperparams(optax.adam, static_args=("b2", "eps", "eps_root"))(learning_rate=0.0, b1=0.5)


class SoftmaxRegression(nn.Module):
    @nn.compact
    def __call__(self, images, train, keys=None):
        return nn.Dense(3, dtype=images.dtype)(images.reshape(len(images), -1))


class Normalised(nn.Module):
    """Softmax regression on ghost-normalised images."""

    ghost_batch_size: int

    @nn.compact
    def __call__(self, images, train, keys=None):
        x = GhostBatchNorm(self.ghost_batch_size, dtype=images.dtype)(images, train)
        return nn.Dense(3, dtype=images.dtype)(x.reshape(len(images), -1))


def microbatches(num_microbatches, weights=None):
    weights = np.ones(12) if weights is None else weights
    keys = np.zeros((12, 2), np.uint32)
    parts = zip(*(np.split(array, num_microbatches) for array in (IMAGES, LABELS, weights, keys)), strict=True)
    return [Microbatch({"image": images, "label": labels}, *others) for images, labels, *others in parts]


def on_one_device(function):
    """Maps a function over an axis of one device, as one program: each operation would be compiled on its own."""

    @jax.jit
    def mapped(*args):
        stacked = jax.tree.map(lambda x: jnp.asarray(x)[None], args)
        return jax.tree.map(lambda x: x[0], jax.vmap(function, axis_name=AXIS_NAME)(*stacked))

    return mapped


def one_update(steps, state, parts):
    if len(parts) == 1:
        return on_one_device(steps.train_step)(state, parts[0], HYPERPARAMS)
    accumulator, accumulate = steps.zero_accumulator(state), on_one_device(steps.accumulate)
    for part in parts:
        accumulator = accumulate(accumulator, state, part)
    return on_one_device(steps.apply_update)(state, accumulator, HYPERPARAMS)


def initial_state(model, tx=SGD, running=None):
    batch_stats = {} if running is None else {"GhostBatchNorm_0": running}
    variables = jax.jit(lambda: model.init(jax.random.key(0), IMAGES[:1], train=False))()
    params = jax.tree.map(lambda x: jnp.asarray(x, np.float64), {**variables["params"], **PARAMS})
    return TrainState(params, jax.tree.map(jnp.asarray, batch_stats), tx.init(params))


def softmax_regression_by_numpy(images, labels, label_smoothing):
    x, (kernel, bias) = images.reshape(len(images), -1), (PARAMS["Dense_0"][name] for name in ("kernel", "bias"))
    logits = x @ kernel + bias
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    targets = (1 - label_smoothing) * np.eye(3)[labels] + label_smoothing / 3
    residual = (np.exp(log_probabilities) - targets) / len(x)
    grads = {"kernel": x.T @ residual, "bias": residual.sum(axis=0)}
    metrics = {
        "loss": -(targets * log_probabilities).sum(axis=1).mean(),
        "accuracy": (logits.argmax(axis=1) == labels).mean(),
        "grad_norm": np.sqrt(sum((g**2).sum() for g in grads.values())),
    }
    return grads, metrics


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("num_microbatches", [1, 3])
@pytest.mark.parametrize("num_padding", [0, 5])
def test_an_update_of_softmax_regression(float64, label_smoothing, num_microbatches, num_padding):
    size = 12 - num_padding
    weights = (np.arange(12) < size).astype(float)
    model = SoftmaxRegression()
    steps = Steps(Classification(model, label_smoothing), SGD)
    state, metrics = one_update(steps, initial_state(model), microbatches(num_microbatches, weights))
    grads, expected_metrics = softmax_regression_by_numpy(IMAGES[:size], LABELS[:size], label_smoothing)
    for name, grad in grads.items():
        expected = PARAMS["Dense_0"][name] - 0.3 * grad
        np.testing.assert_allclose(state.params["Dense_0"][name], expected, rtol=1e-12)
    expected_metrics["weighted_grad_sq"] = 0.0
    if num_microbatches > 1:
        for start in range(0, size, 12 // num_microbatches):
            part = slice(start, min(size, start + 12 // num_microbatches))
            mean, _ = softmax_regression_by_numpy(IMAGES[part], LABELS[part], label_smoothing)
            expected_metrics["weighted_grad_sq"] += (part.stop - start) * sum((g**2).sum() for g in mean.values())
    assert metrics == pytest.approx(expected_metrics, rel=1e-12)


@pytest.mark.parametrize(
    ("tx", "hyperparams"),
    [(SGD, {"learning_rate": 0.3}), (ADAM, {"learning_rate": 0.3, "b1": 0.5})],
    ids=["sgd", "adam"],
)
def test_only_hyperparameters_that_the_optimizer_has_are_set(float64, tx, hyperparams):
    """There is no momentum here, and an optimizer's other hyperparameters stay as they are."""
    model = SoftmaxRegression()
    state, _ = one_update(Steps(Classification(model), tx), initial_state(model, tx), microbatches(1))
    assert state.opt_state.hyperparams == hyperparams


@pytest.mark.parametrize("num_microbatches", [1, 2, 3])
@pytest.mark.parametrize("num_ghosts", [3, 2], ids=["full", "padded"])
def test_running_averages_take_up_the_mean_of_the_ghosts(float64, num_microbatches, num_ghosts):
    """G ghosts weigh 1 - decay^G together, and padding nothing."""
    ghost_batch_size, decay = 2 if num_microbatches == 2 else 4, 0.8
    num_ghosts *= 4 // ghost_batch_size
    weights = (np.arange(12) < num_ghosts * ghost_batch_size).astype(float)
    model = Normalised(ghost_batch_size)
    steps = Steps(Classification(model, batch_stats_decay=decay), SGD)
    running = {"mean": np.array([1.0, 2, 3, 4]), "var": np.array([4.0, 3, 2, 1])}
    state, _ = one_update(steps, initial_state(model, running=running), microbatches(num_microbatches, weights))

    ghosts = IMAGES.reshape(-1, ghost_batch_size, 4)[:num_ghosts]
    of_ghosts = {"mean": ghosts.mean(axis=1), "var": ghosts.var(axis=1)}
    for name, values in of_ghosts.items():
        expected = decay**num_ghosts * running[name] + (1 - decay**num_ghosts) * values.mean(axis=0)
        np.testing.assert_allclose(state.batch_stats["GhostBatchNorm_0"][name], expected, rtol=1e-12)


def test_evaluation_sums_the_examples_that_count(float64):
    model = SoftmaxRegression()
    steps = Steps(Classification(model, label_smoothing=0.1), SGD)  # which evaluation has not
    weights = (np.arange(12) < 7).astype(float)
    sums = on_one_device(steps.eval_step)(initial_state(model), microbatches(1, weights)[0])
    _, metrics = softmax_regression_by_numpy(IMAGES[:7], LABELS[:7], 0.0)
    expected = {"loss": 7 * metrics["loss"], "accuracy": 7 * metrics["accuracy"], "num_examples": 7}
    assert sums == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("sizes", [(3, 5), (2**16, 3), (2**16 + 1, 2**17)], ids=["small", "mixed", "large"])
def test_norms_are_over_all_parameters_of_any_size(float64, sizes):
    """Small arrays are joined before their squares are summed."""
    params = {str(i): jnp.asarray(RANDOM.standard_normal(size)) for i, size in enumerate(sizes)}

    def loss_fn(params, examples, keys, train):
        return sum(examples["x"] * (p**2).sum() for p in params.values())

    steps = Steps(from_loss(loss_fn, lambda key: params), SGD)
    parts = [Microbatch({"x": np.array(x)}, np.ones(2), np.zeros((2, 2), np.uint32)) for x in ([1.0, 3.0], [5.0, 7.0])]
    _, metrics = one_update(steps, TrainState(params, {}, SGD.init(params)), parts)
    square = sum((2 * np.asarray(p)) ** 2 @ np.ones(len(p)) for p in params.values())
    expected = {
        "loss": 4 * square / 4,
        "grad_norm": 4 * np.sqrt(square),
        "weighted_grad_sq": (4**2 + 12**2) * square / 2,
    }
    assert metrics == pytest.approx(expected, rel=1e-12)
