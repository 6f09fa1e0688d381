"""The metrics of a classification: with many classes, the top-5 accuracy as well."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsjax.data import ArraySource
from bsjax.engine import Engine
from bsjax.models import create_model
from bsjax.optimizers import create_optimizer
from bsjax.tasks import Classification


class Given(nn.Module):
    """Its logits are the pixels."""

    num_classes: int

    def __call__(self, images):
        return images.reshape(len(images), -1)


def metrics_of(logits, labels, train=False):
    task = Classification(Given(logits.shape[1]))
    keys = jax.random.split(jax.random.key(0), len(logits))
    examples = {"image": jnp.asarray(logits)[:, None, :, None], "label": jnp.asarray(labels)}
    return task, task.losses({}, {}, task.read(examples, keys, train), keys, train)[1]


@pytest.mark.parametrize("train", [False, True])
def test_the_top_5_are_the_five_largest_logits(train):
    random = np.random.RandomState(0)
    logits, labels = random.standard_normal((200, 100)), random.randint(100, size=200).astype(np.int32)
    logits[np.arange(200), labels] += 2
    task, found = metrics_of(logits, labels, train)
    assert task.metrics == ("accuracy", "top5_accuracy")
    order = np.argsort(-logits, axis=1)
    np.testing.assert_array_equal(found["accuracy"], order[:, 0] == labels)
    np.testing.assert_array_equal(found["top5_accuracy"], (order[:, :5] == labels[:, None]).any(axis=1))
    assert found["accuracy"].sum() < found["top5_accuracy"].sum() < 200


def test_equal_logits_count_in_the_order_of_their_classes():
    _, found = metrics_of(np.zeros((7, 100)), np.arange(7))
    np.testing.assert_array_equal(found["accuracy"], [1, 0, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(found["top5_accuracy"], [1, 1, 1, 1, 1, 0, 0])


def test_with_few_classes_there_is_the_accuracy_alone():
    task, found = metrics_of(np.zeros((7, 99)), np.arange(7))
    assert task.metrics == tuple(found) == ("accuracy",)
    assert Classification(nn.Dense(200)).metrics == ("accuracy",)  # a model that does not say how many


def test_an_evaluation_reports_both():
    random = np.random.RandomState(0)
    examples = {"image": random.randint(256, size=(30, 2, 2, 1)).astype(np.uint8)}
    source = ArraySource(examples | {"label": random.randint(100, size=30).astype(np.int32)})
    task = Classification(create_model("mlp", 100, depth=1, width=8), mean=128, std=64)
    engine = Engine(task, create_optimizer("sgd"), source, source, [8], devices=jax.devices()[:1])
    found = engine.evaluate(engine.init())
    assert found.keys() == {"test_loss", "test_accuracy", "test_top5_accuracy"}
    assert 0 <= found["test_accuracy"] <= found["test_top5_accuracy"] < 1
