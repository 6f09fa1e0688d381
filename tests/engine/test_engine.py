"""The engine against plain JAX and numpy, in every layout; what it compiles; and how it evaluates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bsjax
from bsjax.data import ArraySource
from bsjax.data.augmentation import augment
from bsjax.engine import Engine
from bsjax.engine.devices import replicate
from bsjax.engine.step import example_keys, split_keys
from bsjax.models import CNN, MLP
from bsjax.optimizers import create_optimizer
from bsjax.tasks import Classification, from_loss

GHOST = 8
TRAIN_SIZE = 45  # the updates below go through it almost three times
SEED = 3
# Batch size, learning rate and momentum of each.
UPDATES = [(40, 0.1, 0.9), (48, 0.05, 0.8), (40, 0.2, 0.9)]
WEIGHT_DECAY, MAX_GRAD_NORM, SMOOTHING, DECAY = 0.01, 1.0, 0.1, 0.9


# An independent implementation: the whole batch at once on one device, and the optimizer in numpy.


def plain_cnn(params, x, running=None):
    """The logits of CNN, and the mean and variance of each ghost [ghosts, channels] in every layer."""
    stats = {}
    for layer in range(2):
        norm = f"GhostBatchNorm_{layer}"
        kernel, gamma, beta = params[f"Conv_{layer}"]["kernel"], params[norm]["scale"], params[norm]["bias"]
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        if running is None:
            ghosts = x.reshape(-1, GHOST, *x.shape[1:])
            mean, var = (moment(ghosts, axis=(1, 2, 3), keepdims=True) for moment in (jnp.mean, jnp.var))
            stats[norm] = {"mean": mean[:, 0, 0, 0], "var": var[:, 0, 0, 0]}
            x = ((ghosts - mean) / jnp.sqrt(var + 1e-5)).reshape(x.shape)
        else:
            x = (x - running[norm]["mean"]) / jnp.sqrt(running[norm]["var"] + 1e-5)
        x = jnp.maximum(gamma * x + beta, 0)
        n, height, width, channels = x.shape
        x = x.reshape(n, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))
    return x.reshape(len(x), -1) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"], stats


def mean_loss(params, images, targets):
    logits, stats = plain_cnn(params, images)
    log_normalizers = jnp.log(jnp.exp(logits).sum(axis=1, keepdims=True))
    return (targets * (log_normalizers - logits)).sum(axis=1).mean(), (logits, stats)


def standardised(images, dataset):
    pixels = dataset.train.examples["image"].reshape(-1, 1).astype(np.float64)
    return (images.astype(np.float64) - pixels.mean(axis=0).astype(np.float32)) / pixels.std(axis=0).astype(np.float32)


def augmented(dataset, examples, positions):
    """These training examples at these stream positions."""
    key = jax.random.split(jax.random.PRNGKey(SEED))[1]
    upper, lower = ((half % 2**32).astype(np.uint32) for half in (positions >> 32, positions))
    images = standardised(dataset.train.examples["image"][examples], dataset)

    def augment_all(*halves):
        return augment("crop_flip", images, split_keys(example_keys(key, *halves))[0])

    return jax.jit(augment_all)(upper, lower)


def step(optimizer, grad, theta, moments, count, momentum):
    """The step of one parameter; `moments` are changed."""
    grad = grad + WEIGHT_DECAY * theta * (theta.ndim > 1)
    if optimizer == "momentum":
        moments[0] = momentum * moments[0] + grad
        return moments[0]
    moments[:] = momentum * moments[0] + (1 - momentum) * grad, 0.999 * moments[1] + 0.001 * grad**2
    corrected = moments[0] / (1 - momentum**count), moments[1] / (1 - 0.999**count)
    return corrected[0] / (np.sqrt(corrected[1]) + 1e-8)


@pytest.fixture(scope="module")
def train_plainly(dataset, random_state):
    """A function: optimizer -> parameters, running averages and metrics [updates, 3] after UPDATES, in float64."""
    grad_fn = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))

    @functools.cache
    def images_and_labels():
        order = [np.random.default_rng([SEED, epoch]).permutation(TRAIN_SIZE) for epoch in range(3)]
        order = np.concatenate(order)[: sum(size for size, _, _ in UPDATES)]
        images = augmented(dataset, order, np.arange(len(order)))
        return np.asarray(images), dataset.train.examples["label"][order]

    @functools.cache
    def train(optimizer):
        state = random_state(cnn(), create_optimizer("sgd"), (8, 8, 1), np.float64)
        theta, treedef = jax.tree.flatten(state.params)
        moments = [[np.zeros_like(value), np.zeros_like(value)] for value in theta]
        running, metrics, start = state.batch_stats, [], 0
        for count, (batch_size, learning_rate, momentum) in enumerate(UPDATES, 1):
            images, labels = (array[start : start + batch_size] for array in images_and_labels())
            start += batch_size
            targets = (1 - SMOOTHING) * np.eye(10)[labels] + SMOOTHING / 10
            results = jax.device_get(grad_fn(jax.tree.unflatten(treedef, theta), images, targets))
            (loss, (logits, stats)), grads = results[0], jax.tree.leaves(results[1])
            norm = np.sqrt(sum((grad**2).sum() for grad in grads))
            metrics.append([loss, (logits.argmax(axis=1) == labels).mean(), norm])
            for i, grad in enumerate(grads):
                grad = grad * min(1, MAX_GRAD_NORM / norm)
                theta[i] = theta[i] - learning_rate * step(optimizer, grad, theta[i], moments[i], count, momentum)
            kept = DECAY ** (batch_size // GHOST)
            running = jax.tree.map(lambda old, new, kept=kept: kept * old + (1 - kept) * new.mean(0), running, stats)
        return jax.tree.unflatten(treedef, theta), running, np.array(metrics)

    def train_in_float64(optimizer):
        with jax.enable_x64(True), jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            return train(optimizer)

    return train_in_float64


def make_engine(
    dataset, model, tx, batch_sizes, *args, augmentation="none", label_smoothing=0.0, decay=0.99, **options
):
    task = Classification(model, label_smoothing, augmentation, dataset.mean, dataset.std, decay)
    return Engine(task, tx, dataset.train, dataset.test, batch_sizes, *args, **options)


def update(examples_seen, batch_size, learning_rate=0.1, momentum=0.0):
    return bsjax.Update(0, examples_seen, batch_size, learning_rate, momentum)


def values(metrics, names=("loss", "accuracy", "grad_norm")):
    return [metrics.read()[name] for name in names]


def cnn(dtype=jnp.float32):
    return CNN(10, depth=2, width=4, ghost_batch_size=GHOST, dtype=dtype)


def assert_replicas_equal(stacked, expected, tolerance):
    """Every device's entry of `stacked` is `expected`."""
    for (path, values), value in zip(jax.tree.leaves_with_path(stacked), jax.tree.leaves(expected), strict=True):
        values = np.asarray(values)
        np.testing.assert_allclose(
            values, np.broadcast_to(value, values.shape), tolerance, tolerance, err_msg=jax.tree_util.keystr(path)
        )


@pytest.mark.parametrize(
    ("optimizer", "dtype", "num_devices", "microbatch_size"),
    [
        ("momentum", jnp.float64, 1, 48),  # one microbatch
        ("momentum", jnp.float64, 1, 16),  # several of two ghosts, the last one padded
        ("momentum", jnp.float64, 8, 8),  # one ghost on each device, or none
        ("momentum", jnp.float64, 8, 4),  # two devices share a ghost
        ("adam", jnp.float64, 8, 2),  # four
        ("momentum", jnp.float64, 8, 1),  # all
        ("momentum", jnp.float32, 8, 4),
    ],
)
def test_any_layout_is_one_big_batch(
    dataset, train_plainly, random_state, optimizer, dtype, num_devices, microbatch_size
):
    """Parameters, running averages and metrics, with padding, augmentation, smoothing, weight decay and clipping."""
    params, running, expected_metrics = train_plainly(optimizer)
    with jax.enable_x64(dtype == jnp.float64):
        model = cnn(dtype)
        tx = create_optimizer(optimizer, WEIGHT_DECAY, max_grad_norm=MAX_GRAD_NORM)
        engine = make_engine(
            dataset,
            model,
            tx,
            [size for size, _, _ in UPDATES],
            SEED,
            microbatch_size,
            augmentation="crop_flip",
            label_smoothing=SMOOTHING,
            decay=DECAY,
            devices=jax.devices()[:num_devices],
        )
        state, examples_seen = replicate(random_state(model, tx, (8, 8, 1), dtype), engine.devices), 0
        tolerance = 1e-12 if dtype == jnp.float64 else 1e-5
        for (batch_size, learning_rate, momentum), expected in zip(UPDATES, expected_metrics, strict=True):
            state, metrics = engine.update(state, update(examples_seen, batch_size, learning_rate, momentum))
            examples_seen += batch_size
            np.testing.assert_allclose(values(metrics), expected, tolerance, tolerance)
        assert_replicas_equal((state.params, state.batch_stats), (params, running), tolerance)


@pytest.mark.parametrize(("num_devices", "microbatch_size"), [(1, 24), (8, 1)])
def test_augmentation_of_late_positions(float64, dataset, random_state, num_devices, microbatch_size):
    """The stream's positions are 64-bit numbers, here around 2^33 + 2^31, where an int32 would change its sign."""
    model, tx = MLP(10, depth=1, width=4, dtype=jnp.float64), create_optimizer("sgd")
    devices = jax.devices()[:num_devices]
    engine = make_engine(dataset, model, tx, [24], SEED, microbatch_size, augmentation="crop_flip", devices=devices)
    state, start = random_state(model, tx, (8, 8, 1), np.float64), 2**33 + 2**31 - 12
    _, metrics = engine.update(replicate(state, devices), update(start, 24))

    positions = np.arange(start, start + 24)
    epoch, offset = divmod(start, TRAIN_SIZE)
    order = np.concatenate([np.random.default_rng([SEED, epoch + i]).permutation(TRAIN_SIZE) for i in range(2)])
    examples = order[offset : offset + 24]
    images = augmented(dataset, examples, positions)
    logits = model.apply({"params": state.params}, images, train=True)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, dataset.train.examples["label"][examples])
    np.testing.assert_allclose(metrics.loss, losses.mean(), rtol=1e-12)


@pytest.mark.parametrize(("num_devices", "test_size"), [(1, 37), (1, 40), (8, 67), (8, 3)])
def test_evaluation_is_the_mean_over_the_whole_test_split(float64, make_dataset, random_state, num_devices, test_size):
    dataset = make_dataset(TRAIN_SIZE, test_size)
    model, tx = cnn(jnp.float64), create_optimizer("sgd")
    devices = jax.devices()[:num_devices]
    training = {"augmentation": "crop_flip", "label_smoothing": SMOOTHING}  # which evaluation does without
    engine = make_engine(dataset, model, tx, [GHOST], microbatch_size=GHOST, devices=devices, **training)
    state = random_state(model, tx, (8, 8, 1), np.float64)
    evaluation = engine.evaluate(replicate(state, devices))
    images = standardised(dataset.test.examples["image"], dataset)
    with jax.numpy_rank_promotion("allow"):
        logits = np.asarray(plain_cnn(state.params, images, state.batch_stats)[0])
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = dataset.test.examples["label"]
    assert evaluation == {
        "test_loss": pytest.approx(-np.log(probabilities[np.arange(test_size), labels]).mean(), rel=1e-12),
        "test_accuracy": pytest.approx((logits.argmax(axis=1) == labels).mean(), rel=1e-12),
    }


@pytest.mark.parametrize(("num_devices", "microbatch_size"), [(1, 5), (8, 2)])
def test_two_plans_of_one_recipe_consume_the_same_examples_in_the_same_order(float64, num_devices, microbatch_size):
    """The loss of an example is a number that only it has, so that the mean tells which examples an update took."""
    recipe = bsjax.Recipe(optax.piecewise_constant_schedule(0.1, {1: 1 / 3, 2: 1 / 3}), 8, TRAIN_SIZE, num_epochs=4)
    order = np.concatenate([np.random.default_rng([0, epoch]).permutation(TRAIN_SIZE) for epoch in range(5)])
    x = np.random.RandomState(0).uniform(1, 2, TRAIN_SIZE)
    task = from_loss(lambda params, x, keys, train: x + 0 * params, init_fn=lambda key: jnp.zeros(()))
    tx, source, devices = create_optimizer("momentum"), ArraySource(x), jax.devices()[:num_devices]
    for plan in (recipe.plan(), recipe.increase_batch_size().plan()):
        engine = Engine(task, tx, source, source, [], microbatch_size=microbatch_size, devices=devices)
        state = engine.init()
        for one in plan:
            state, metrics = engine.update(state, one)
            taken = order[one.examples_seen : one.examples_seen + one.batch_size]
            assert metrics.loss == pytest.approx(x[taken].mean(), rel=1e-14)


def test_the_noise_is_that_of_all_microbatches_of_all_devices(dataset, random_state):
    """The same microbatches on one device and on four, padding included; and who measures nothing says so."""
    model, tx = CNN(10, depth=1, width=2, ghost_batch_size=GHOST), create_optimizer("sgd")
    rows, engines = [], []
    for num_devices, microbatch_size in ((1, GHOST), (4, GHOST), (4, 2 * GHOST), (8, GHOST // 2), (1, 5 * GHOST)):
        devices = jax.devices()[:num_devices]
        engine = make_engine(dataset, model, tx, [5 * GHOST], microbatch_size=microbatch_size, devices=devices)
        state = replicate(random_state(model, tx, (8, 8, 1)), devices)
        _, metrics = engine.update(state, update(3, 5 * GHOST))
        rows.append(values(metrics, ("loss", "accuracy", "grad_norm", "weighted_grad_sq")))
        engines.append(engine)
    assert [engine.num_shards(5 * GHOST) for engine in engines] == [5, 5, 3, 0, 1]
    np.testing.assert_allclose(rows[1], rows[0], rtol=1e-5)
    assert rows[4][3] == 0


def test_a_batch_size_that_comes_later_is_checked_too(dataset):
    engine = make_engine(dataset, cnn(), create_optimizer("sgd"), [16], devices=jax.devices()[:1])
    with pytest.raises(bsjax.InvalidArgument, match=r"^batch_size is 20; .* nearest: 16 or 24$"):
        engine.update(engine.init(), update(0, 20))


def test_an_order_that_spreads_classes_puts_one_of_each_into_every_pair():
    """The loss is the class, so that a pair of one of each has 0.5."""
    classes = np.repeat([0, 1], 4)
    source = ArraySource(classes.astype(np.float32))
    task = from_loss(lambda params, x, keys, train: 0 * params + x, lambda key: jnp.zeros(()))
    make = functools.partial(Engine, task, create_optimizer("sgd"), source, source, [2], devices=jax.devices()[:1])
    engines = make(classes=classes), make()
    assert [set(engine.identity["engine"]) for engine in engines] == [{"seed", "classes"}, {"seed"}]
    losses = []
    for engine in engines:
        state = engine.init()
        for number in range(8):  # two epochs
            state, metrics = engine.update(state, update(2 * number, 2))
            losses.append(metrics.loss)
    assert losses[:8] == [0.5] * 8 != losses[8:]
