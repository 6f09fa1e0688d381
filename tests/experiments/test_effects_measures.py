"""What the claims about early stopping and autoencoders measure, against closed forms."""

import doctest
import math

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from bsjax import InvalidArgument
from bsjax.data import ArraySource, load_dataset
from bsjax.tasks import Autoencoder, from_loss
from experiments.effects import autoencoders, early_stopping, regimes, study, training
from experiments.effects.autoencoders import Patches, patch_squares, shares, within_patches
from experiments.effects.early_stopping import Halves, stop_early, stop_last
from experiments.effects.training import Data, Lab, Outcome, Setup, Training
from experiments.harness.control import Control

_CONFIG = study.BASES["digits"].config
_RANDOM = np.random.RandomState(0)
_IMAGES = _RANDOM.uniform(0, 1, (5, 8, 12, 3))


def _lab(task, examples):
    source = ArraySource(examples)
    return Lab(None, task, source, source, seed=0, initial=None, mean_train_loss=None)


def _kept_and_explained(outputs, size=4):
    found = shares(patch_squares(_IMAGES, outputs, size))
    return found["kept"], found["explained"]


def test_the_image_itself_keeps_everything_and_the_means_of_patches_nothing():
    means = _IMAGES - within_patches(_IMAGES, 4)
    assert _kept_and_explained(_IMAGES) == (1, 1)
    assert _kept_and_explained(means) == pytest.approx((0, 0), abs=1e-12)
    by_hand = _IMAGES.reshape(5, 2, 4, 3, 4, 3).mean(axis=(2, 4)).repeat(4, axis=1).repeat(4, axis=2)
    np.testing.assert_allclose(means, by_hand, rtol=1e-12)


@pytest.mark.parametrize("factor", [0.3, -1.0, 2.0])
def test_a_scaled_image_keeps_the_square_of_the_factor(factor):
    offset = _RANDOM.uniform(-9, 9, (5, 2, 1, 3, 1, 3))  # of each patch and channel: no local difference
    outputs = (factor * _IMAGES.reshape(5, 2, 4, 3, 4, 3) + offset).reshape(_IMAGES.shape)
    assert _kept_and_explained(outputs) == pytest.approx((factor**2, 1 - (1 - factor) ** 2), rel=1e-9)


def test_noise_is_kept_and_not_explained():
    noise = _RANDOM.standard_normal((400, *_IMAGES.shape[1:]))
    images = np.tile(_IMAGES, (80, 1, 1, 1))
    found = shares(patch_squares(images, images + noise, 4))
    ratio = np.square(within_patches(noise, 4)).sum() / np.square(within_patches(images, 4)).sum()
    assert found["explained"] == pytest.approx(1 - ratio, rel=1e-9)
    assert found["kept"] == pytest.approx(1 + ratio, rel=0.02)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_squared_error_is_that_of_the_means_of_patches_and_that_within(size):
    outputs = _RANDOM.uniform(0, 1, _IMAGES.shape)
    errors = outputs - _IMAGES
    of_means = np.square(errors - within_patches(errors, size)).sum()
    assert of_means + patch_squares(_IMAGES, outputs, size)[2] == pytest.approx(np.square(errors).sum(), rel=1e-12)


def test_patches_that_do_not_fit_are_refused_with_a_size_that_fits():
    with pytest.raises(InvalidArgument, match="patch_size is 3; it must be a divisor of the images' height") as it:
        within_patches(_IMAGES, 3)
    assert within_patches(_IMAGES, it.value.nearest).shape == _IMAGES.shape


class _Scaled(nn.Module):
    """A factor of each image, and a constant, which is no local difference."""

    @nn.compact
    def __call__(self, images):
        return self.param("factor", nn.initializers.constant(0.5), ()) * images + 0.25


def test_the_probe_takes_every_test_image_once():
    """There are more of them than a microbatch holds, so that the last one has padding."""
    images = _RANDOM.randint(0, 17, (600, 8, 8, 1)).astype(np.uint8)
    lab = _lab(Autoencoder(_Scaled(), max_value=16), {"image": images})
    found = Patches(4)(lab, {"factor": jnp.float32(0.5)}, {})
    assert found == pytest.approx({"kept": 0.25, "explained": 0.75}, rel=1e-5)
    found = Patches(2)(lab, {"factor": jnp.float32(1.0)}, {})
    assert found == pytest.approx({"kept": 1.0, "explained": 1.0}, rel=1e-5)


def test_halves_are_every_other_test_example():
    x = _RANDOM.uniform(0, 1, 601).astype(np.float32)  # two microbatches of the probe
    task = from_loss(lambda params, examples, keys, train: params * examples["x"], init_fn=lambda key: jnp.ones(()))
    found = Halves()(_lab(task, {"x": x}), jnp.float32(3.0), {})
    assert found == pytest.approx({"even": 3 * x[::2].mean(), "odd": 3 * x[1::2].mean()}, rel=1e-5)


def _outcome(even, odd, diverged=False):
    points = [
        {"update": 2**i, "examples_seen": 8 * 2**i, "even": a, "odd": b, "test_loss": (a + b) / 2}
        for i, (a, b) in enumerate(zip(even, odd, strict=True))
    ]
    return Outcome(Training(_CONFIG, (1,)), points, diverged)


def test_the_best_evaluation_is_not_reported_where_it_was_chosen():
    """Each half is lucky once; a minimum over all evaluations would report the luck."""
    outcome = _outcome(even=[1.0, 1.0, 0.2, 1.0], odd=[1.0, 0.3, 1.0, 1.0])
    assert stop_early(outcome) == (1.0, (4 + 2) / 2, 8 * (4 + 2) / 2)
    assert stop_last(outcome) == (1.0, 8, 64)
    agreed = _outcome(even=[3.0, 1.0, 2.0], odd=[3.0, 1.5, 2.5])
    assert stop_early(agreed) == (1.25, 2, 16)
    assert stop_last(agreed) == (2.25, 4, 32)
    assert all(math.isnan(stop(_outcome([1.0], [1.0], diverged=True)).test_loss) for stop in (stop_early, stop_last))


def test_regimes_are_as_long_as_the_base(tmp_path):
    one = study.Study("digits", False, study.BASES["digits"], tmp_path, range(1), 1, None, None)
    found = regimes.trainings(one, _CONFIG, (8, 32), base_batch_size=32, num_epochs=3.0, num_examples=320)
    assert {key: its.evaluate_at for key, its in found.items()} == {
        ("epochs", 8): (120,),
        ("epochs", 32): (30,),
        ("updates", 8): (30,),
        ("updates", 32): (30,),
    }
    assert {its.data for its in found.values()} == {Data(num_examples=320)}
    assert found["epochs", 32] == found["updates", 32]
    rates = [found["epochs", size].config.optimizer.learning_rate for size in (8, 32)]
    assert rates == pytest.approx([0.1, 0.2])


def test_a_training_sees_the_first_examples_only(tmp_path):
    setup = Setup(_CONFIG, num_eval_examples=1000, control=Control(devices="1"))
    config = _CONFIG.replace(model_width=8, batch_size=32)
    lab = training.create_lab(setup, config.replace(batch_size=1), Data(num_examples=32))
    assert (lab.engine.dataset_size, len(lab.train), len(lab.test)) == (32, 32, 360)
    expected = load_dataset("digits").train.gather(np.arange(32))["image"]
    np.testing.assert_array_equal(lab.train.examples["image"], expected)
    outcome = training.train(setup, Training(config, (1,), data=Data(num_examples=32)), tmp_path)
    assert outcome.points[0]["examples_seen"] == 32
    assert training.read(setup, Training(config, (1,), data=Data(num_examples=64)), tmp_path) is None


@pytest.mark.parametrize("module", [autoencoders, early_stopping, regimes])
def test_examples_in_docstrings(module):
    result = doctest.testmod(module)
    assert result.attempted and not result.failed
