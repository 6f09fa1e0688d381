"""Three updates of every optimizer against numpy, with a learning rate and a momentum that change."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bsjax import InvalidArgument
from bsjax.optimizers import OPTIMIZERS, create_optimizer

RANDOM = np.random.RandomState(0)
PARAMS = {"kernel": RANDOM.standard_normal((2, 3)), "bias": RANDOM.standard_normal(3)}
GRADS = [{name: scale * RANDOM.standard_normal(value.shape) for name, value in PARAMS.items()} for scale in (5, 0.2, 2)]
LEARNING_RATES, MOMENTUMS = (0.1, 0.05, 0.2), (0.9, 0.9, 0.8)


DECOUPLED = ("adamw", "lamb", "muon")


def ratio(theta, step):
    return np.sqrt((theta**2).sum() / (step**2).sum())


def orthogonalized(matrix, eps):
    """Five Newton-Schulz iterations, which move the singular values near 1."""
    x = matrix / (np.sqrt((matrix**2).sum()) + eps)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def updated_by_numpy(name, weight_decay=0.0, decay_biases_and_norms=False, max_grad_norm=None, b2=0.999, eps=1e-8):
    params = {key: value.copy() for key, value in PARAMS.items()}
    first = {key: np.zeros_like(value) for key, value in PARAMS.items()}
    second = {key: np.zeros_like(value) for key, value in PARAMS.items()}
    for count, (grads, learning_rate, momentum) in enumerate(zip(GRADS, LEARNING_RATES, MOMENTUMS, strict=True), 1):
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        factor = 1.0 if max_grad_norm is None else min(1.0, max_grad_norm / norm)
        for key, theta in params.items():
            decay = weight_decay * theta if key == "kernel" or decay_biases_and_norms else 0.0
            g = factor * grads[key] + (0.0 if name in DECOUPLED else decay)
            if name == "sgd":
                step = g
            elif name == "lars":  # the trace is of steps, which have their learning rates already
                first[key] = momentum * first[key] + learning_rate * 0.001 * ratio(theta, g) * g
                step = first[key] / learning_rate
            elif name == "muon" and key == "kernel":
                first[key] = momentum * first[key] + (1 - momentum) * g
                ahead = momentum * first[key] / (1 - momentum ** (count + 1)) + (1 - momentum) * g / (
                    1 - momentum**count
                )
                step = np.sqrt(max(1, 3 / 2)) * orthogonalized(ahead, eps) + decay
            elif name in ("momentum", "nesterov"):
                first[key] = momentum * first[key] + g
                step = g + momentum * first[key] if name == "nesterov" else first[key]
            elif name == "rmsprop":
                second[key] = b2 * second[key] + (1 - b2) * g**2
                first[key] = momentum * first[key] + g / (np.sqrt(second[key]) + eps)
                step = first[key]
            else:
                b1 = 0.9 if name == "muon" else momentum
                first[key] = b1 * first[key] + (1 - b1) * g
                second[key] = b2 * second[key] + (1 - b2) * g**2
                root = np.sqrt(second[key] / (1 - b2**count))
                mean = first[key] / (1 - b1**count)
                if name == "muon":  # whose Adam is Nesterov's
                    mean = b1 * first[key] / (1 - b1 ** (count + 1)) + (1 - b1) * g / (1 - b1**count)
                step = mean / (root + eps) + (decay if name in DECOUPLED else 0.0)
                step *= ratio(theta, step) if name == "lamb" else 1.0
            params[key] = theta - learning_rate * step
    return params


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weight_decay": 0.3},
        {"weight_decay": 0.3, "decay_biases_and_norms": True},
        {"max_grad_norm": 1.0, "weight_decay": 0.3},  # the second gradient is shorter
        {"b2": 0.7, "eps": 0.5},
    ],
    ids=lambda options: ",".join(options) or "plain",
)
def test_three_updates(float64, name, options):
    tx = create_optimizer(name, **options)
    params = jax.tree.map(jnp.asarray, PARAMS)
    state = tx.init(params)
    for grads, learning_rate, momentum in zip(GRADS, LEARNING_RATES, MOMENTUMS, strict=True):
        state.hyperparams.update(learning_rate=jnp.asarray(learning_rate))
        if name != "sgd":
            state.hyperparams.update(momentum=jnp.asarray(momentum))
        with jax.numpy_dtype_promotion("standard"):  # which optax relies on
            updates, state = tx.update(jax.tree.map(jnp.asarray, grads), state, params)
        params = optax.apply_updates(params, updates)
    expected = updated_by_numpy(name, **options)
    for key, value in params.items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adm", {}, f"optimizer is 'adm'; it must be one of {', '.join(OPTIMIZERS)}; nearest: adam"),
        ("sgd", {"weight_decay": -1e-4}, "weight_decay is -0.0001; it must be a number >= 0; nearest: 0"),
        ("sgd", {"weight_decay": float("nan")}, "weight_decay is nan; it must be a number >= 0; nearest: 0"),
        ("sgd", {"max_grad_norm": 0.0}, "max_grad_norm is 0.0; it must be positive, or None"),
        ("adam", {"b2": 1.0}, "b2 is 1.0; it must be in [0, 1)"),
    ],
)
def test_bad_input(name, options, message):
    with pytest.raises(InvalidArgument) as refusal:
        create_optimizer(name, **options)
    assert str(refusal.value) == message


def test_muon_takes_every_axis_but_the_last_as_one():
    """A convolution's kernel moves as the matrix that it is, and what a matrix is not, moves as with Adam."""
    tx = create_optimizer("muon")
    kernel, bias = jnp.asarray(RANDOM.standard_normal((3, 3, 2, 5)), jnp.float32), jnp.ones(5)
    updates = []
    for params in ({"a": kernel, "b": bias}, {"a": kernel.reshape(18, 5), "b": bias}):
        state = tx.init(params)
        state.hyperparams.update(learning_rate=jnp.asarray(0.1), momentum=jnp.asarray(0.9))
        with jax.numpy_dtype_promotion("standard"):
            update, _ = tx.update(params, state, params)
        updates.append(update)
    np.testing.assert_allclose(updates[0]["a"].reshape(18, 5), updates[1]["a"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(updates[0]["b"], -0.1 * (1 + 0.9 / 1.9) * np.ones(5), rtol=1e-5)
