"""Data sets that never change, the endless stream, and augmentation by position."""

import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bsjax import InvalidArgument
from bsjax.data import ArraySource, Dataset, ExampleStream, load_dataset
from bsjax.data.augmentation import augment, distort
from bsjax.engine.step import example_keys, split_keys

PROPERTY = settings(derandomize=True, deadline=None, max_examples=100)


# The stream.


@PROPERTY
@given(st.integers(1, 40), st.integers(0, 200), st.lists(st.integers(0, 60), max_size=8), st.integers(0, 2**32))
def test_batches_of_any_sizes_cut_the_same_stream(dataset_size, start, batch_sizes, seed):
    epochs = range((start + sum(batch_sizes)) // dataset_size + 1)
    stream = np.concatenate([np.random.default_rng([seed, epoch]).permutation(dataset_size) for epoch in epochs])
    example_stream, taken = ExampleStream(dataset_size, seed), start
    for batch_size in batch_sizes:
        indices = example_stream.indices(taken, batch_size)
        assert indices.dtype == np.int32
        np.testing.assert_array_equal(indices, stream[taken : taken + batch_size])
        taken += batch_size


def test_every_epoch_is_another_permutation_and_every_seed_other_ones():
    epochs = np.array([ExampleStream(100, seed).indices(0, 300).reshape(3, 100) for seed in (0, 1)]).reshape(6, 100)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(100), (6, 1)))
    assert len(np.unique(epochs, axis=0)) == 6


@PROPERTY
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 1000), st.data())
def test_an_even_order_takes_every_example_once_and_spreads_each_class(classes, seed, data):
    size, classes = len(classes), np.array(classes)
    example_stream = ExampleStream(size, seed, classes)
    for epoch in (0, 3):
        order = example_stream.indices(epoch * size, size)
        assert sorted(order.tolist()) == list(range(size))
        counts = np.bincount(classes, minlength=5)
        so_far = np.cumsum(classes[order][:, None] == np.arange(5), axis=0)  # [N, classes]
        bound = 1 + len(set(classes.tolist())) * counts / size
        assert (np.abs(so_far - np.arange(1, size + 1)[:, None] * counts / size) <= bound + 1e-9).all()
    # A function of the seed and the position alone.
    start, count = data.draw(st.integers(0, 3 * size)), data.draw(st.integers(1, 2 * size))
    again = ExampleStream(size, seed, classes.tolist())
    whole = np.concatenate([again.indices(start, 1), again.indices(start + 1, count)])
    np.testing.assert_array_equal(whole, example_stream.indices(start, count + 1))


def test_classes_that_are_not_one_for_each_example_are_refused():
    for classes, found in (([0, 1], "int64[2]"), ([0.5, 1.0, 2.0], "float64[3]")):
        with pytest.raises(InvalidArgument, match=re.escape(f"classes is '{found}'; it must be int[3], the class of")):
            ExampleStream(3, seed=0, classes=classes)


# Augmentation.

KEY = jax.random.PRNGKey(7)
SIDE, PADDING = 6, 4
IMAGE = np.arange(1, 2 * SIDE**2 + 1, dtype=np.float32).reshape(SIDE, SIDE, 2)


def augmented(name, positions, key=KEY, image=IMAGE, padding=PADDING):
    positions = np.asarray(positions, np.uint64)
    halves = [(half & np.uint64(2**32 - 1)).astype(np.uint32) for half in (positions >> np.uint64(32), positions)]
    images = jnp.broadcast_to(image, (len(positions), *image.shape))
    keys = split_keys(example_keys(key, *halves))[0]
    return np.asarray(jax.jit(augment, static_argnums=(0, 3))(name, images, keys, padding))


def draws(name, positions, padding=PADDING, **options):
    """[n, 3]: top, left and flipped of the crop of the padded image at each position."""
    padded = np.pad(IMAGE, ((padding, padding), (padding, padding), (0, 0)))
    found = {}
    for top, left in np.ndindex(2 * padding + 1, 2 * padding + 1):
        crop = padded[top : top + SIDE, left : left + SIDE]
        found |= {crop.tobytes(): (top, left, False), crop[:, ::-1].tobytes(): (top, left, True)}
    assert len(found) == 2 * (2 * padding + 1) ** 2  # all crops differ
    return np.array([found[image.tobytes()] for image in augmented(name, positions, padding=padding, **options)])


@pytest.mark.parametrize("name", ["crop", "crop_flip"])
def test_crops_and_flips_are_uniform(name):
    top, left, flipped = draws(name, np.arange(1620)).T
    assert np.bincount(9 * top + left, minlength=81).min() > 0  # 20 of each are expected
    for offset in (top, left):
        assert np.abs(np.bincount(offset, minlength=9) - 180).max() < 50  # four standard deviations
    if name == "crop":
        assert not flipped.any()
    else:
        assert abs(flipped.sum() - 810) < 80
        assert np.abs(np.corrcoef([top, left, flipped]) - np.eye(3)).max() < 0.1


def test_the_padding_bounds_the_shift():
    top, left, _ = draws("crop", np.arange(200), padding=1).T
    assert set(top) == set(left) == {0, 1, 2}


def test_a_signal_is_cropped_in_time():
    """A row of pixels keeps its height: the crop shifts it left or right, as far as the padding."""
    signal = np.arange(1, 9, dtype=np.float32).reshape(1, 8, 1)
    padded = np.pad(signal, ((0, 0), (3, 3), (0, 0)))
    shifts = {padded[:, left : left + 8].tobytes() for left in range(7)}
    assert {one.tobytes() for one in augmented("crop", np.arange(200), image=signal, padding=3)} == shifts


def test_distortions_have_their_amplitude_and_their_noise():
    image = np.full((20, 20, 1), 2.0, np.float32)
    images, keys = jnp.broadcast_to(image, (400, *image.shape)), jax.random.split(KEY, 400)
    scaled = np.asarray(distort(images, keys, amplitude=0.5))
    factors = np.log(scaled[:, 0, 0, 0] / 2)
    np.testing.assert_allclose(scaled, np.broadcast_to(scaled[:, :1, :1], scaled.shape))
    assert np.abs(factors).max() <= 0.5
    assert factors.std() == pytest.approx(0.5 / 3**0.5, rel=0.1)
    noise = np.asarray(distort(images, keys, noise=0.3)) - 2
    assert noise.std() == pytest.approx(0.3, rel=0.01)
    assert np.abs(noise.mean(axis=0)).max() < 0.3 * 5 / 400**0.5
    together = distort(images, keys, amplitude=0.5, noise=0.3)
    np.testing.assert_allclose(together, scaled + noise, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(distort(images[:3], keys[7:10], 0.5, 0.3), together[7:10])
    np.testing.assert_array_equal(distort(images, keys), images)


def test_no_augmentation():
    np.testing.assert_array_equal(augmented("none", [0, 1]), [IMAGE, IMAGE])


def test_augmentation_depends_on_the_seed_and_the_position_alone():
    positions = np.arange(40)
    alone = augmented("crop_flip", positions)
    np.testing.assert_array_equal(augmented("crop_flip", positions[::-1])[::-1], alone)
    np.testing.assert_array_equal(np.concatenate([augmented("crop_flip", [p]) for p in positions]), alone)
    # Whatever the image, the draw is the same.
    other = IMAGE[:, :, ::-1]
    np.testing.assert_array_equal(augmented("crop_flip", positions, image=other), alone[:, :, :, ::-1])
    assert (draws("crop_flip", positions, key=jax.random.PRNGKey(8)) != draws("crop_flip", positions)).any()


def test_positions_have_64_bits():
    low = np.arange(40, dtype=np.uint64)
    for high in (1, 2, 2**31):
        assert (draws("crop_flip", low + np.uint64(high << 32)) != draws("crop_flip", low)).any(axis=1).sum() > 20


def test_draws_are_the_same_in_float64():
    expected = augmented("crop_flip", np.arange(40))
    with jax.enable_x64(True):
        np.testing.assert_array_equal(augmented("crop_flip", np.arange(40), image=IMAGE.astype(np.float64)), expected)


# Data sets.


def checksums(source):
    return tuple(zlib.crc32(source.examples[key].tobytes()) for key in ("image", "label"))


@pytest.mark.parametrize(
    ("name", "shapes", "expected"),
    [
        ("digits", [(1437, 8, 8, 1), (360, 8, 8, 1)], [(3413791383, 978304894), (1422912373, 612558802)]),
        ("synthetic", [(2048, 32, 32, 3), (512, 32, 32, 3)], [(3108428564, 753601383), (447556091, 2245286786)]),
    ],
)
def test_data_sets_never_change(name, shapes, expected):
    dataset = load_dataset(name)
    sources = (dataset.train, dataset.test)
    assert [source.examples["image"].shape for source in sources] == shapes
    assert [checksums(source) for source in sources] == expected
    for source in sources:
        assert (source.examples["image"].dtype, source.examples["label"].dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(np.unique(source.examples["label"]), np.arange(dataset.num_classes))


def test_mean_and_standard_deviation_are_of_the_training_pixels():
    images = np.random.RandomState(0).randint(256, size=(5, 4, 3, 3)).astype(np.uint8)
    images[..., 2] = 9  # a channel without contrast must not be divided by zero
    train, test = (
        ArraySource({"image": part, "label": np.zeros(len(part), np.int32)}) for part in (images, images[:1] // 2)
    )
    dataset = Dataset("some", train, test, ("zero",))
    pixels = images.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(dataset.mean, pixels.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(dataset.std, np.maximum(pixels.std(axis=0), 1e-3), rtol=1e-6)
