"""Dropout drops units at its rate, with masks that belong to the examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from bsjax import InvalidArgument
from bsjax.engine.step import example_keys, split_keys
from bsjax.models import CLASSIFIERS, create_model
from bsjax.models.dropout import Dropout
from bsjax.optimizers import create_optimizer


def keys_of(positions, seed=0):
    zeros = np.zeros(len(positions), np.uint32)
    return split_keys(example_keys(jax.random.PRNGKey(seed), zeros, np.asarray(positions, np.uint32)))[1]


SHALLOW = {
    "wide_resnet": {"depth": 10},
    "resnet50": {"num_blocks": (1, 1)},
}


class TwoLayers(nn.Module):
    @nn.compact
    def __call__(self, x, keys):
        return Dropout(0.5)(x, True, keys), Dropout(0.5)(x, True, keys)


def test_units_are_kept_with_probability_one_minus_rate_and_the_mean_stays():
    ones = np.ones((200, 10, 10), np.float32)
    for rate in (0.1, 0.5, 0.9):
        y = np.asarray(Dropout(rate).apply({}, ones, True, keys_of(range(200))))
        np.testing.assert_allclose(np.unique(y), [0, 1 / (1 - rate)], rtol=1e-6)
        # Four standard deviations over all units, and over each unit's examples.
        assert abs((y > 0).mean() - (1 - rate)) < 4 * np.sqrt(rate * (1 - rate) / y.size)
        assert np.abs((y > 0).mean(axis=0) - (1 - rate)).max() < 5 * np.sqrt(rate * (1 - rate) / len(y))


def test_masks_belong_to_the_seed_the_position_and_the_layer():
    ones, positions = np.ones((30, 50), np.float32), np.arange(30)
    first, second = (np.asarray(y) > 0 for y in TwoLayers().apply({}, ones, keys_of(positions)))
    assert (first != second).mean() > 0.4
    assert len(np.unique(first, axis=0)) == 30
    assert (first != np.asarray(TwoLayers().apply({}, ones, keys_of(positions, seed=1))[0] > 0)).mean() > 0.4
    backwards = np.asarray(TwoLayers().apply({}, ones, keys_of(positions[::-1]))[0])
    np.testing.assert_array_equal(backwards[::-1] > 0, first)
    with jax.enable_x64(True):
        wide = TwoLayers().apply({}, ones.astype(np.float64), keys_of(positions))[0]
        np.testing.assert_array_equal(np.asarray(wide) > 0, first)


def test_nothing_is_dropped_in_evaluation_or_at_rate_zero():
    x = np.random.RandomState(0).randn(4, 5).astype(np.float32)
    np.testing.assert_array_equal(Dropout(0.5).apply({}, x, False, None), x)
    np.testing.assert_array_equal(Dropout(0.0).apply({}, x, True, None), x)


# Compiling the last one takes long; test_imagenet_models.py has a test of its own.
@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if name != "inception_resnet_v2"])
def test_every_model_drops_in_training_alone(name, random_state):
    size = SHALLOW.get(name, {})
    models = [create_model(name, 10, ghost_batch_size=2, dropout=rate, width=8).clone(**size) for rate in (0.0, 0.5)]
    plain, dropping = models
    state = random_state(plain, create_optimizer("sgd"), (8, 8, 1))
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    images, keys = np.random.RandomState(0).randn(4, 8, 8, 1).astype(np.float32), keys_of(range(4))

    def logits(model, train):
        def forward(variables, images, keys):  # as constants, XLA would compute much of it while it compiles
            return model.apply(variables, images, train=train, keys=keys, mutable=["ghost_stats"])[0]

        return np.asarray(jax.jit(forward)(variables, images, keys))

    np.testing.assert_array_equal(logits(dropping, train=False), logits(plain, train=False))
    assert (logits(dropping, train=True) != logits(plain, train=True)).all(axis=1).any()
    with pytest.raises(ValueError, match="dropout needs keys"):
        jax.eval_shape(lambda: dropping.apply(variables, jnp.asarray(images), train=True, mutable=["ghost_stats"]))


@pytest.mark.parametrize("rate", [1.0, -0.1, float("nan")])
def test_bad_input(rate):
    for name in CLASSIFIERS:
        with pytest.raises(InvalidArgument) as refusal:
            create_model(name, 10, dropout=rate)
        assert str(refusal.value) == f"dropout is {rate}; it must be in [0, 1); nearest: 0"
