"""Conversions: each keeps lr/(B^ρ (1 - m)) at every instant; values that compare, hash and pickle; bad input."""

import ast
import dataclasses
import functools
import math
import pickle

import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bsjax
from bsjax.noise import scaling_exponent

recipe_with = functools.partial(bsjax.Recipe, learning_rate=0.1, batch_size=128, dataset_size=50_000, num_epochs=200)
PROPERTY = settings(derandomize=True, deadline=None, max_examples=50)
SCALINGS = ["linear", "sqrt", 0.6, 1]
INCREASE, SCALE, MOMENTUM = bsjax.IncreaseBatchSize, bsjax.ScaleLearningRate, bsjax.ScaleMomentum
METHODS = {
    INCREASE: bsjax.Recipe.increase_batch_size,
    SCALE: bsjax.Recipe.scale_learning_rate,
    MOMENTUM: bsjax.Recipe.scale_momentum,
}

# Schedules over 1000 counts, stretched below to the length and the clock of a recipe.
CYCLES = [
    {"init_value": 0.0, "peak_value": peak, "warmup_steps": 50, "decay_steps": 400, "end_value": 0.001}
    for peak in (0.1, 0.05, 0.2)
]
SCHEDULES = {
    "step": optax.piecewise_constant_schedule(0.1, {300: 0.2, 600: 0.2, 800: 0.2}),
    "exponential": optax.exponential_decay(0.1, 250, 0.3),
    "cosine": optax.cosine_decay_schedule(0.1, 1000),
    "warm-up and cosine": optax.warmup_cosine_decay_schedule(0.0, 0.1, 150, 1000, end_value=1e-4),
    "one cycle": optax.cosine_onecycle_schedule(1000, 0.1),
    "polynomial": optax.polynomial_schedule(0.1, 0.0, 2, 1000),
    "warm restarts": optax.sgdr_schedule(CYCLES),
}


@st.composite
def recipes(draw):
    dataset_size = draw(st.integers(200, 2000))
    size = draw(st.integers(max(1, dataset_size // 200), dataset_size // 10))
    num_epochs = draw(st.sampled_from([1, 2.5, 4]))
    clock = draw(st.sampled_from(["epochs", "updates", "examples"]))
    length = {"epochs": num_epochs, "updates": num_epochs * dataset_size / size, "examples": num_epochs * dataset_size}
    schedule = SCHEDULES[draw(st.sampled_from(sorted(SCHEDULES)))]
    ramp = optax.piecewise_constant_schedule(size, {length[clock] / 2: 2})
    momentum = optax.linear_schedule(0.85, 0.95, length[clock])
    return bsjax.Recipe(
        lambda count: schedule(1000 * count / length[clock]),
        draw(st.sampled_from([size, size, ramp])),
        dataset_size,
        num_epochs,
        draw(st.sampled_from([0.0, 0.9, momentum])),
        clock,
    )


@st.composite
def conversions(draw, recipe, kinds=tuple(METHODS)):
    """A conversion that this recipe allows."""
    _, sizes, momentums = recipe.at(np.arange(recipe.num_examples))
    kind = draw(st.sampled_from(kinds))
    where = draw(st.floats(0.01, 0.99))  # between the least and the largest value that is allowed
    if kind is MOMENTUM:
        product = sizes * (1 - momentums)
        least, largest = max(0.0, 1 - product.min()), 1 - product.max() / recipe.dataset_size
        return kind(float(least + where * (largest - least)))
    scaling = draw(st.sampled_from(SCALINGS) | st.floats(0.1, 1))
    if kind is SCALE:
        factor = (1 / sizes.min()) ** (1 - where) * (recipe.dataset_size / sizes.max()) ** where
        return kind(float(factor ** scaling_exponent(scaling)), scaling)
    multiple_of = draw(st.sampled_from([unit for unit in (1, 2, 3, 8) if not np.any(sizes % unit)]))
    cap = draw(st.none() | st.integers(sizes.max(), recipe.dataset_size))
    growth = draw(st.sampled_from([None, 1.3, 2, 5]))
    if growth is not None and sizes.min() * growth < sizes.min() + multiple_of:
        growth = 1.0 + multiple_of
    share = draw(st.sampled_from([1.0, 0.5, 0.3]))
    return kind(cap and cap // multiple_of * multiple_of, scaling, share, growth, multiple_of)


def converted(recipe, conversion):
    return METHODS[type(conversion)](recipe, *dataclasses.astuple(conversion))


def kept(values, exponent):
    return values.learning_rate / (values.batch_size**exponent * (1 - values.momentum))


@PROPERTY
@given(st.data())
def test_conversions_keep_the_noise_at_every_instant(data):
    recipe = data.draw(recipes())
    everywhere = np.arange(recipe.num_examples)
    for _ in range(data.draw(st.integers(1, 3))):
        conversion = data.draw(conversions(recipe))
        before, recipe = recipe, converted(recipe, conversion)
        old, new, exponent = before.at(everywhere), recipe.at(everywhere), conversion.exponent
        np.testing.assert_allclose(kept(new, exponent), kept(old, exponent), rtol=1e-12)
        assert new.batch_size.min() >= 1
        assert new.batch_size.max() <= recipe.dataset_size

        plan = recipe.plan()
        starts = plan.examples_seen
        planned = bsjax.Hyperparameters(plan.learning_rates, plan.batch_sizes, plan.momentums)
        np.testing.assert_allclose(kept(planned, exponent), kept(before.at(starts), exponent), rtol=1e-12)
        assert plan.scaling == exponent
        # The updates tile the stream, so that any two plans take the same examples in the same order.
        np.testing.assert_array_equal(starts + plan.batch_sizes, [*starts[1:], plan.num_examples])
        assert starts[0] == 0
        assert starts[-1] < recipe.num_examples <= plan.num_examples


@PROPERTY
@given(st.data())
def test_increased_batch_sizes_are_allowed_and_as_large_as_they_can_be(data):
    recipe = data.draw(recipes())
    conversion = data.draw(conversions(recipe, [INCREASE]))
    cap, scaling, share, growth, unit = dataclasses.astuple(conversion)
    everywhere = np.arange(recipe.num_examples)
    old, new = recipe.at(everywhere), converted(recipe, conversion).at(everywhere)

    running_maximum = np.maximum.accumulate(old.learning_rate)
    assert np.all(new.learning_rate <= running_maximum * (1 + 1e-6))
    assert np.all(new.batch_size >= old.batch_size)
    assert np.all(new.batch_size <= (cap or recipe.dataset_size))
    assert not np.any(new.batch_size % unit)
    # While the learning rate warms up or holds, so does the batch.
    holds = (old.learning_rate == running_maximum) & ((growth is None) | (old.batch_size == old.batch_size.min()))
    np.testing.assert_array_equal(new.batch_size[holds], old.batch_size[holds])

    # The next allowed size would take the learning rate above what the decay leaves, or the batch above the cap.
    # (Between two updates the running maximum is that of the recipe's own updates, hence the starts.)
    starts = recipe.plan().examples_seen
    starts = starts[old.learning_rate[starts] > 0]
    own, batch_size = old.batch_size[starts, None], new.batch_size[starts, None]
    decay = np.maximum.accumulate(old.learning_rate[starts]) / old.learning_rate[starts]
    target = own[:, 0] * decay ** (share / scaling_exponent(scaling))
    allowed = unit * np.arange(5000.0)
    if growth is not None:
        sizes = old.batch_size.min() * np.float64(growth) ** np.arange(60)
        allowed = np.hstack([np.broadcast_to(sizes, (len(starts), 60)), own])
    rounded = np.floor(allowed / unit + 1e-9) * unit
    following = np.where(rounded > batch_size, allowed, np.inf).min(axis=1)
    assert np.all((rounded == batch_size).any(axis=1))
    assert np.all(following > np.minimum(target, cap or recipe.dataset_size // unit * unit) * (1 - 1e-9))


@PROPERTY
@given(st.data())
def test_batch_never_shrinks_while_the_learning_rate_does_not_rise(data):
    recipe = data.draw(recipes())
    for _ in range(data.draw(st.integers(0, 2))):
        recipe = converted(recipe, data.draw(conversions(recipe)))
    conversion = data.draw(conversions(recipe, [INCREASE]))
    everywhere = np.arange(recipe.num_examples)
    old, new = recipe.at(everywhere), converted(recipe, conversion).at(everywhere)
    falls = (np.diff(old.learning_rate) <= 0) & (np.diff(old.batch_size) >= 0)
    assert np.all(np.diff(new.batch_size)[falls] >= 0)


def test_growth_counts_from_the_smallest_batch_of_a_schedule():
    recipe = bsjax.Recipe(optax.exponential_decay(0.1, 1, 0.6), lambda epoch: 3 if epoch < 5 else 5, 100, 8)
    sizes = [phase.batch_size for phase in recipe.increase_batch_size(9, growth=2).plan().phases]
    assert sizes == [3, 6]  # not 5 after 6, although 5 · 2 is above the cap
    constant = dataclasses.replace(recipe, learning_rate=0.1)  # where nothing decays, the batch is the recipe's
    assert constant.increase_batch_size(9, growth=2).at([0, 500]).batch_size.tolist() == [3, 5]


@settings(PROPERTY, max_examples=10)
@given(st.data())
def test_conversions_are_values(data):
    recipe = data.draw(recipes())
    before = recipe.plan()
    conversion = data.draw(conversions(recipe))
    once, twice = converted(recipe, conversion), converted(recipe, conversion)
    replaced = dataclasses.replace(recipe, conversions=(conversion,))
    assert once == twice == replaced != recipe
    assert hash(once) == hash(replaced)
    assert once.plan() == twice.plan() == replaced.plan()
    assert recipe.plan() == before
    assert pickle.loads(pickle.dumps(conversion)) == conversion == eval(repr(conversion), vars(bsjax))
    assert repr(conversion) in str(once)


def test_a_rule_and_its_exponent_are_equal():
    assert recipe_with().increase_batch_size(scaling="sqrt") == recipe_with().increase_batch_size(scaling=0.5)
    assert recipe_with().scale_learning_rate(2) == recipe_with().scale_learning_rate(2, 1) != recipe_with()


@pytest.mark.parametrize(("scaling", "batch_size"), [("linear", 256), ("sqrt", 512), (0.25, 2048), (1, 256)])
def test_learning_rate_twice_as_large(scaling, batch_size):
    values = recipe_with().scale_learning_rate(2, scaling).at(0)
    assert (values.batch_size, values.learning_rate) == (batch_size, pytest.approx(0.2))


@pytest.mark.parametrize("growth", [None, 2])
def test_a_cap_holds_earlier_conversions_to_it(growth):
    values = recipe_with().scale_learning_rate(5).increase_batch_size(max_batch_size=400, growth=growth).at(0)
    assert (values.batch_size, values.learning_rate) == (400, pytest.approx(0.3125))


def test_large_batch_sizes_are_exact():
    # Tolerances for float32 schedules are relative, and must not add examples to a batch of millions.
    recipe = bsjax.Recipe(optax.piecewise_constant_schedule(3.0, {1: 0.1, 2: 1e-4}), 4_000_000, 99_999_999, 3)
    assert recipe.increase_batch_size().plan().batch_sizes.max() == 99_999_999
    sizes = recipe.increase_batch_size(growth=10).at([0, 99_999_999, 299_999_996]).batch_size
    assert sizes.tolist() == [4_000_000, 40_000_000, 40_000_000]


def test_zero_learning_rate_takes_the_cap_after_the_warm_up_only():
    recipe = bsjax.Recipe(optax.piecewise_interpolate_schedule("linear", 1.0, {2: 0.0}), 10, 1000, 3)
    assert recipe.increase_batch_size(500).at(2500) == (0.0, 500, 0.9)
    warm_up = bsjax.Recipe(optax.linear_schedule(0.0, 0.1, 1), 10, 1000, 3)
    assert warm_up.increase_batch_size(500).at(0) == (0.0, 10, 0.9)


def choices(nearest):
    """What an error offers, as values."""
    for text in str(nearest).split(" or "):
        try:
            yield ast.literal_eval(text)
        except ValueError:
            yield text


SMALL = "small enough for a batch_size of at most dataset_size 50000, not"
RHO = "linear, sqrt or an exponent in (0, 1]; nearest:"
BAD_INPUT = [
    (INCREASE, {"max_batch_size": 100}, "at least the recipe's batch_size 128; nearest: 128"),
    (INCREASE, {"max_batch_size": 60_000}, "at most dataset_size 50000; nearest: 50000"),
    (INCREASE, {"max_batch_size": 1000.0}, "a whole number >= 1; nearest: 1000"),
    (INCREASE, {"max_batch_size": 1000, "multiple_of": 128}, "a multiple of multiple_of 128; nearest: 896 or 1024"),
    (INCREASE, {"max_batch_size": 49_999, "multiple_of": 128}, "a multiple of multiple_of 128; nearest: 49920"),
    (INCREASE, {"max_batch_size": 60_000, "multiple_of": 128}, "at most dataset_size 50000; nearest: 49920"),
    (INCREASE, {"multiple_of": 0}, "a whole number >= 1; nearest: 1"),
    *((INCREASE, {"growth": value}, "a number greater than 1, or None; nearest: 2") for value in (1, math.inf, "2")),
    (INCREASE, {"growth": 1.001}, "enough to get from 128 to a larger allowed size; nearest: 1.00782"),
    (INCREASE, {"growth": 1.5, "multiple_of": 128}, "enough to get from 128 to a larger allowed size; nearest: 2"),
    *((INCREASE, {"share": value}, "in (0, 1]; nearest: 1") for value in (0, 1.5, "half")),
    (INCREASE, {"scaling": "linaer"}, f"{RHO} linear"),
    (INCREASE, {"scaling": 0}, f"{RHO} sqrt"),
    *((SCALE, {"factor": value}, "a positive finite number") for value in (0, math.nan)),
    (SCALE, {"factor": 1000}, f"{SMALL} 128000; nearest: 390.625"),
    (SCALE, {"factor": 0.001}, "large enough for a batch_size of 1 or more; nearest: 0.0078125"),
    (SCALE, {"factor": 100, "scaling": "sqrt"}, f"{SMALL} 1280000; nearest: 19.7642"),
    (SCALE, {"factor": 5, "scaling": 0.001}, f"{SMALL} inf; nearest: 1.00598"),  # 5^1000 is no float
    (SCALE, {"scaling": "cube", "factor": 5}, f"{RHO} linear"),
    *((MOMENTUM, {"momentum": value}, "in [0, 1)") for value in (1, None)),
    (MOMENTUM, {"momentum": 0.9999}, f"{SMALL} 128000; nearest: 0.999743"),
]


@pytest.mark.parametrize(("kind", "arguments", "message"), BAD_INPUT)
def test_bad_input_is_refused_with_a_choice_that_is_not(kind, arguments, message):
    name = next(iter(arguments))
    with pytest.raises(bsjax.InvalidArgument) as refusal:
        converted(recipe_with(), kind(**arguments))
    assert str(refusal.value) == f"{name} is {arguments[name]!r}; it must be {message}"
    if refusal.value.nearest is not None:
        for choice in choices(refusal.value.nearest):
            converted(recipe_with(), kind(**arguments | {name: choice}))


@pytest.mark.parametrize(
    ("batch_size", "options", "message"),
    [
        (3, {"growth": 1.3}, "growth is 1.3; it must be enough .* from 3 to a larger .*; nearest: 1.33334"),
        (128, {"multiple_of": 100}, "batch_size is 128; .* a multiple of multiple_of 100; nearest: 100 or 200"),
        (990, {"multiple_of": 400}, "batch_size is 990; .* a multiple of multiple_of 400; nearest: 800"),
        (990, {"multiple_of": 1001}, "batch_size is 990; .* a multiple of multiple_of 1001"),
    ],
)
def test_batch_sizes_that_do_not_suit_a_conversion(batch_size, options, message):
    recipe = recipe_with(batch_size=batch_size, dataset_size=1000)
    with pytest.raises(bsjax.InvalidArgument, match=f"^{message}$"):
        recipe.increase_batch_size(**options)
