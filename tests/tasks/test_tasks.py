"""Models of every kind: each trains, resumes, grows its batch without a recompilation, and measures its noise."""

import functools

import equinox
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import bsjax
from bsjax import run
from bsjax.data import ArraySource, TokenWindows
from bsjax.engine import Engine
from bsjax.models import CNN, MLP, ConvAutoencoder, Projector, Transformer
from bsjax.optimizers import create_optimizer
from bsjax.tasks import Autoencoder, Classification, Contrastive, LanguageModel, from_loss

TRAIN_SIZE, TEST_SIZE = 96, 40
RANDOM = np.random.RandomState(0)
TRUE_WEIGHTS = RANDOM.standard_normal(5).astype(np.float32)


def regression_data(size):
    x = RANDOM.standard_normal((size, 5)).astype(np.float32)
    y = x @ TRUE_WEIGHTS + 0.1 * RANDOM.standard_normal(size).astype(np.float32)
    return ArraySource((x, y))  # any pytree of arrays


def image_data(size, labelled=True):
    labels = RANDOM.randint(3, size=size).astype(np.int32)
    patterns = np.random.RandomState(1).uniform(0, 255, (3, 8, 8, 1))
    images = (patterns[labels] + RANDOM.uniform(0, 255, (size, 8, 8, 1))) / 2
    return ArraySource({"image": images.astype(np.uint8), **({"label": labels} if labelled else {})})


def linen_classifier():
    return Classification(CNN(3, depth=1, width=4, ghost_batch_size=8), mean=128, std=64), image_data


def autoencoder():
    def unlabelled(size):
        return image_data(size, labelled=False)

    return Autoencoder(ConvAutoencoder(depth=1, width=4, latent=4)), unlabelled


def contrastive():
    def unlabelled(size):
        return image_data(size, labelled=False)

    model = Projector(MLP(16, depth=1, width=32))
    return Contrastive(model, group_size=4, view_noise=0.5, mean=128, std=64), unlabelled


def language_model():
    def token_data(size):
        steps = RANDOM.choice([1, 2], p=[0.9, 0.1], size=8 * size + 1)
        return TokenWindows((steps.cumsum() % 5).astype(np.uint8), context_length=8)

    model = Transformer(5, context_length=8, depth=1, width=8, num_heads=2, dropout=0.1)
    return LanguageModel(model, context_length=8, bytes_per_token=1), token_data


def plain_regression():
    def loss_fn(params, examples, keys, train):
        x, y = examples
        error = x @ params["w"] + params["b"] - y
        return jnp.square(error), {"absolute_error": jnp.abs(error)}

    def init_fn(key):
        return {"w": jnp.zeros(5), "b": jnp.zeros(())}

    return from_loss(loss_fn, init_fn, metrics=("absolute_error",)), regression_data


def nnx_model():
    graph = nnx.graphdef(nnx.eval_shape(lambda: nnx.Linear(5, 1, rngs=nnx.Rngs(0))))

    def init_fn(key):
        return nnx.to_pure_dict(nnx.state(nnx.Linear(5, 1, rngs=nnx.Rngs(key))))

    def loss_fn(params, examples, keys, train):
        x, y = examples
        model = nnx.merge(graph, nnx.State(params))
        return jnp.square(model(x)[:, 0] - y)

    return from_loss(loss_fn, init_fn), regression_data


def equinox_model():
    def make(key):
        return equinox.partition(equinox.nn.MLP(5, 1, width_size=4, depth=1, key=key), equinox.is_inexact_array)

    _, static = make(jax.random.key(0))

    def loss_fn(params, examples, keys, train):
        x, y = examples
        model = equinox.combine(params, static)
        return jnp.square(jax.vmap(model)(x)[:, 0] - y)

    return from_loss(loss_fn, init_fn=lambda key: make(key)[0]), regression_data


class GuardedEngine(Engine):
    """Its updates send to the devices what they must explicitly, and wait for nothing."""

    def update(self, state, update, stop=False):
        with jax.transfer_guard("disallow"):
            return super().update(state, update, stop)


MAKERS = [linen_classifier, autoencoder, contrastive, language_model, plain_regression, nnx_model, equinox_model]


@pytest.fixture(scope="module", params=MAKERS, ids=lambda maker: maker.__name__)
def trained(request, tmp_path_factory):
    """The engine, the folder, and the summary of a run whose batch grows from 8 to 32."""
    task, make_data = request.param()
    train, test = make_data(TRAIN_SIZE), make_data(TEST_SIZE)
    tx, options = create_optimizer("momentum", weight_decay=1e-4), {"microbatch_size": 8, "devices": jax.devices()[:1]}
    engine = GuardedEngine(task, tx, train, test, [], seed=1, **options)
    decay = optax.exponential_decay(0.05, transition_steps=6, decay_rate=1 / 8)
    recipe = bsjax.Recipe(decay, batch_size=8, dataset_size=TRAIN_SIZE, num_epochs=6)
    plan = recipe.increase_batch_size(max_batch_size=32, multiple_of=8).plan()
    folder = tmp_path_factory.mktemp("run")
    summary = run.train(engine, plan, folder, run.Intervals(log_every_epochs=0.25), show="none")
    return plan, folder, engine, summary


def test_it_trains(trained):
    plan, folder, engine, summary = trained
    losses = [line["train_loss"] for line in run.read_metrics(folder / "metrics.jsonl") if "train_loss" in line]
    assert summary["completed"]
    assert summary["num_updates"] == plan.num_updates
    assert losses[-1] < 0.9 * losses[0]
    assert {f"final_test_{name}" for name in ("loss", *engine.task.metrics)} <= summary.keys()


def test_its_batch_grows_without_a_recompilation(trained):
    plan, _, engine, _ = trained
    assert len(plan.phases) == 4
    # The step of one microbatch, the three functions of several, and the evaluation.
    assert engine.num_compilations == 5


def test_its_noise_is_measured(trained):
    *_, summary = trained
    assert summary["gradient_noise_scale_reason"] is None
    assert summary["gradient_noise_scale"] > 0


def test_it_resumes_to_the_same_bits(trained, tmp_path):
    plan, folder, engine, summary = trained
    count, resumed = 0, None
    while resumed is None:
        should_stop = functools.partial(next, iter([False] * 15), True)
        resumed = run.train(engine, plan, tmp_path, run.Intervals(log_every_epochs=0.25), should_stop, show="none")
        count += 1
    assert count == 3
    numbers = [name for name in summary if name.startswith(("final", "gradient_noise_scale"))]
    assert {name: resumed[name] for name in numbers} == {name: summary[name] for name in numbers}

    def metrics(path):
        lines = run.read_metrics(path / "metrics.jsonl")
        return [{name: value for name, value in line.items() if name != "examples_per_second"} for line in lines]

    assert metrics(tmp_path) == metrics(folder)


def test_losses_of_an_autoencoder_are_means_over_pixels():
    class Constant(nn.Module):
        @nn.compact
        def __call__(self, images):
            return jnp.broadcast_to(self.param("value", nn.initializers.constant(0.5), ()), images.shape)

    images = np.random.RandomState(0).randint(0, 17, (6, 4, 3, 2)).astype(np.uint8)
    x = images / 16
    with jax.enable_x64(True):
        for reconstruction, losses, metrics in (
            ("squared_error", (0.5 - x) ** 2, {}),
            (
                "bernoulli",
                -x * np.log(1 / (1 + np.exp(-0.5))) - (1 - x) * np.log(1 / (1 + np.exp(0.5))),
                {"squared_error": (1 / (1 + np.exp(-0.5)) - x) ** 2},
            ),
        ):
            task = Autoencoder(Constant(), reconstruction, max_value=16)
            inputs = task.read({"image": jnp.asarray(images)}, None, True)
            found, found_metrics, _ = task.losses({"value": jnp.float64(0.5)}, {}, inputs, None, True)
            np.testing.assert_allclose(found, losses.mean(axis=(1, 2, 3)), rtol=1e-12)
            assert found_metrics.keys() == metrics.keys() == set(task.metrics)
            for name, values in metrics.items():
                np.testing.assert_allclose(found_metrics[name], values.mean(axis=(1, 2, 3)), rtol=1e-12)


def test_a_linen_model_is_called_with_what_it_takes():
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(x.reshape(len(x), -1))

    source = image_data(16)
    engine = Engine(Classification(Plain()), create_optimizer("sgd"), source, source, [8], devices=jax.devices()[:1])
    _, metrics = engine.update(engine.init(), bsjax.Update(0, 0, 8, 0.0, 0.0))
    assert metrics.loss > 0


def test_float_images_train_too():
    images = RANDOM.standard_normal((16, 4, 4, 1))
    source = ArraySource({"image": images, "label": np.zeros(16, np.int64)})
    task = Classification(CNN(3, depth=1, width=2, ghost_batch_size=8))
    engine = Engine(task, create_optimizer("sgd"), source, source, [8], devices=jax.devices()[:1])
    for examples_on in ("device", "host"):
        engine = Engine(
            task, create_optimizer("sgd"), source, source, [8], examples_on=examples_on, devices=jax.devices()[:1]
        )
        _, metrics = engine.update(engine.init(), bsjax.Update(0, 0, 8, 0.1, 0.0))
        assert np.isfinite(metrics.loss)


class Softmax(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x.reshape(len(x), -1))


@pytest.mark.parametrize("model", [CNN(3, depth=1, width=2), Softmax()])
@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_is_no_class_is_refused(model, label):
    def source(last):
        return ArraySource({"image": np.ones((16, 4, 4, 1), np.uint8), "label": np.r_[[0] * 14, last, 2]})

    message = rf"^the label of test example 14 is {label}; it must be in \[0, 3\), a class of the model$"
    with pytest.raises(bsjax.InvalidArgument, match=message):
        Engine(Classification(model), create_optimizer("sgd"), source(0), source(label), [8])
