"""Recipes: the paper's table, equality and copies, bad input."""

import copy
import dataclasses
import functools
import math
import pickle

import numpy as np
import optax
import pytest

import bsjax

recipe_with = functools.partial(bsjax.Recipe, learning_rate=0.1, batch_size=128, dataset_size=50_000, num_epochs=200)

# The paper's runs. The counts are the paper's arithmetic, 60·50,000/128 + ... = 29,140.6, rounded up by the
# boundaries that fall inside an update: the first update at or past one is the first that changes.

CIFAR10 = bsjax.Recipe(optax.piecewise_constant_schedule(0.1, {60: 0.2, 120: 0.2, 160: 0.2}), 128, 50_000, 200)
LARGER_RATE = CIFAR10.scale_learning_rate(5)
LARGER_MOMENTUM = LARGER_RATE.scale_momentum(0.98)


@pytest.mark.parametrize(
    ("recipe", "num_updates", "batch_sizes", "learning_rates", "momentum"),
    [
        (CIFAR10, 78_125, [128] * 4, [0.1, 0.02, 0.004, 0.0008], 0.9),
        (CIFAR10.increase_batch_size(640), 34_376, [128, 640, 640, 640], [0.1, 0.1, 0.02, 0.004], 0.9),
        (CIFAR10.increase_batch_size(5120), 29_142, [128, 640, 3200, 5120], [0.1, 0.1, 0.1, 0.032], 0.9),
        (LARGER_RATE.increase_batch_size(5120), 6_407, [640, 3200, 5120, 5120], [0.5, 0.5, 0.16, 0.032], 0.9),
        (LARGER_MOMENTUM.increase_batch_size(5120), 2_305, [3200] + [5120] * 3, [0.5, 0.16, 0.032, 0.0064], 0.98),
        (CIFAR10.increase_batch_size(), 28_876, [128, 640, 3200, 16_000], [0.1] * 4, 0.9),
    ],
    ids=["decaying rate", "hybrid", "increasing batch", "larger rate", "larger momentum", "uncapped"],
)
def test_cifar10(recipe, num_updates, batch_sizes, learning_rates, momentum):
    stages = recipe.at(np.array([0, 60, 120, 160]) * 50_000)
    np.testing.assert_array_equal(stages.batch_size, batch_sizes)
    np.testing.assert_allclose(stages.learning_rate, learning_rates, rtol=1e-6)  # the schedule's float32
    np.testing.assert_allclose(stages.momentum, momentum)

    plan = recipe.plan()
    assert plan.num_updates == num_updates
    np.testing.assert_array_equal(np.unique(plan.batch_sizes), np.unique(batch_sizes))
    starts = np.searchsorted(plan.examples_seen, [0, 3_000_000, 6_000_000, 8_000_000])  # first at or past
    np.testing.assert_array_equal(plan.batch_sizes[starts], batch_sizes)
    np.testing.assert_allclose(plan.learning_rates[starts], learning_rates, rtol=1e-6)
    np.testing.assert_allclose(plan.learning_rates[starts[1:] - 1], learning_rates[:-1], rtol=1e-6)

    np.testing.assert_allclose(recipe.noise_scale(0, exact=False), 390.625, rtol=1e-6)
    np.testing.assert_allclose(recipe.noise_scale(0), 390.625 * (1 - batch_sizes[0] / 50_000), rtol=1e-6)
    approximate = recipe.noise_scale(np.array([0, 60, 120, 160]) * 50_000, exact=False)
    np.testing.assert_allclose(approximate, 390.625 / 5.0 ** np.arange(4), rtol=1e-6)


IMAGENET = bsjax.Recipe(optax.piecewise_constant_schedule(3.0, {30: 0.1, 60: 0.1, 80: 0.1}), 8192, 1_281_167, 90)


@pytest.mark.parametrize(
    ("recipe", "num_updates", "first", "published"),
    [
        (IMAGENET, 14_076, 8192, 14_000),
        (IMAGENET.increase_batch_size(65_536), 5_865, 8192, 6_000),
        # The paper drops the examples of an epoch that do not fill a batch: 30·78 + 60·19 = 3,480 updates.
        (IMAGENET.scale_momentum(0.95).increase_batch_size(65_536), 3_519, 16_384, 3_500),
        (IMAGENET.scale_momentum(0.975).increase_batch_size(65_536), 2_346, 32_768, 2_500),
    ],
    ids=["decaying rate", "increasing batch", "momentum 0.95", "momentum 0.975"],
)
def test_imagenet(recipe, num_updates, first, published):
    plan = recipe.plan()
    assert plan.num_updates == num_updates == pytest.approx(published, rel=0.07)
    assert plan.batch_sizes[0] == first
    last = IMAGENET.plan()[-1]
    assert plan.learning_rates[-1] / (plan.batch_sizes[-1] * (1 - plan.momentums[-1])) == pytest.approx(
        last.learning_rate / (last.batch_size * (1 - last.momentum))
    )


def test_seesaw_divides_the_rate_by_the_root_and_multiplies_the_batch():
    recipe = CIFAR10.increase_batch_size(scaling="sqrt", share=0.5)
    stages = recipe.at(np.array([0, 60, 120, 160]) * 50_000)
    np.testing.assert_array_equal(stages.batch_size, [128, 640, 3200, 16_000])
    np.testing.assert_allclose(stages.learning_rate, 0.1 / np.sqrt(5.0) ** np.arange(4), rtol=1e-6)


def test_instants_of_any_shape():
    values = CIFAR10.at([[0, 1], [3_000_000, 8_000_000]])
    assert values.batch_size.shape == values.learning_rate.shape == (2, 2)
    assert CIFAR10.at(0).learning_rate.shape == ()


def test_a_fraction_of_an_epoch():
    recipe = bsjax.Recipe(0.1, 10, 1000, 0.125)
    assert (recipe.num_examples, recipe.plan().num_updates) == (125, 13)


def test_recipes_are_values():
    def make(num_epochs, **changes):
        recipe = recipe_with(num_epochs=num_epochs, hyperparameters={"b2": 0.95, "eps": 1e-8}, **changes)
        return recipe.scale_learning_rate(5).scale_momentum(0.95).increase_batch_size(5120, growth=2)

    recipe = make(2)
    recipe.plan()  # equality ignores what this caches
    assert recipe == make(2) != make(2, dataset_size=60_000)
    assert hash(recipe) == hash(make(2))
    for other in (pickle.loads(pickle.dumps(recipe)), copy.deepcopy(recipe), dataclasses.replace(recipe)):
        assert other == recipe
        assert other.plan() == recipe.plan()
    longer = dataclasses.replace(recipe, num_epochs=4)
    assert longer == make(4)
    assert longer.conversions == recipe.conversions
    assert longer.plan() == make(4).plan()
    plain = recipe_with(num_epochs=2, hyperparameters=recipe.hyperparameters)
    assert dataclasses.replace(recipe, conversions=()) == plain
    with pytest.raises(bsjax.InvalidArgument, match=r"factor is 5; .* nearest: 1\.5625"):
        dataclasses.replace(recipe, dataset_size=200)


@pytest.mark.parametrize("clock", ["epochs", "updates", "examples"])
def test_further_hyperparameters_follow_the_clock_of_the_recipe(clock):
    unit = {"epochs": 1, "updates": 10, "examples": 1000}[clock]
    steps = optax.piecewise_constant_schedule(0.1, {unit: 0.5})
    b2 = optax.piecewise_constant_schedule(0.9, {unit: 1.1})
    recipe = bsjax.Recipe(steps, 100, 1000, 2, clock=clock, hyperparameters={"weight_decay": 0.1, "b2": b2})
    for converted in (recipe, recipe.scale_learning_rate(2), recipe.increase_batch_size().scale_momentum(0.95)):
        plan = converted.plan()
        np.testing.assert_allclose(plan.others["b2"], np.where(plan.examples_seen < 1000, 0.9, 0.99))
        np.testing.assert_array_equal(plan.others["weight_decay"], 0.1)
        assert converted.others_at([[0, 999], [1000, 1500]])["b2"].round(9).tolist() == [[0.9, 0.9], [0.99, 0.99]]
    assert recipe == bsjax.Recipe(steps, 100, 1000, 2, clock=clock, hyperparameters=[("b2", b2), ("weight_decay", 0.1)])
    assert recipe != bsjax.Recipe(steps, 100, 1000, 2, clock=clock, hyperparameters={"b2": b2})


NAN_AFTER_60 = optax.join_schedules([optax.constant_schedule(0.1), optax.constant_schedule(math.nan)], [60])
OWN = "an optimizer's argument other than learning_rate, batch_size, momentum"
WHOLE = "a whole number between 1 and dataset_size 50000"
BAD_INPUT = [
    *(({"learning_rate": rate}, "a positive finite number") for rate in (0, -0.1, math.nan, math.inf, "fast", None)),
    *(({"momentum": momentum}, "in [0, 1)") for momentum in (1.0, -0.1, math.nan, "0.9")),
    ({"batch_size": 60_000}, "at most dataset_size 50000; nearest: 50000"),
    ({"batch_size": 128.5}, "a whole number >= 1; nearest: 128"),
    ({"batch_size": 0}, "a whole number >= 1; nearest: 1"),
    ({"batch_size": "128"}, "a whole number >= 1"),
    ({"batch_size": True}, "a whole number >= 1; nearest: 1"),
    ({"dataset_size": 0}, "a whole number >= 1; nearest: 1"),
    ({"dataset_size": 5e4}, "a whole number >= 1; nearest: 50000"),
    ({"num_epochs": 0}, "a positive finite number"),
    ({"num_epochs": math.inf}, "a positive finite number"),
    ({"clock": "epoch"}, "one of epochs, updates, examples, tokens; nearest: epochs"),
    ({"conversions": ["scale_learning_rate"]}, "a tuple of conversions, such as IncreaseBatchSize()"),
    ({"hyperparameters": 0.95}, "a mapping of names to numbers or schedules"),
    ({"hyperparameters": {"momentum": 0.9}}, f"hyperparameters is 'momentum'; {OWN}"),
    ({"hyperparameters": {"b2": math.inf}}, "hyperparameters b2 is inf; a finite number or a schedule"),
    ({"hyperparameters": {"b2": "0.95"}}, "hyperparameters b2 is '0.95'; a finite number or a schedule"),
    ({"hyperparameters": {"b2": NAN_AFTER_60}}, "b2 at update 23438 (epoch 60) is nan; a finite number"),
    ({"learning_rate": NAN_AFTER_60}, "learning_rate at update 23438 (epoch 60) is nan; a number >= 0"),
    (
        {"learning_rate": optax.linear_schedule(0.1, -0.1, 200)},
        "learning_rate at update 39063 (epoch 100) is -1.2799999999923983e-06; a number >= 0",
    ),
    (
        {"learning_rate": lambda epoch: 0.0 * epoch},
        "learning_rate is 0.0; positive somewhere, not zero at every update",
    ),
    ({"momentum": optax.linear_schedule(0.5, 1.0, 100)}, "momentum at update 39063 (epoch 100) is 1.0; in [0, 1)"),
    ({"batch_size": lambda epoch: 100 + epoch / 2}, f"batch_size at epoch 0.002 is 100.001; {WHOLE}; nearest: 100"),
    ({"batch_size": lambda epoch: 50_000 * (1 + epoch)}, f"batch_size at epoch 1 is 100000.0; {WHOLE}; nearest: 50000"),
    (
        {"batch_size": lambda update: 100 + 0.5 * update, "clock": "updates"},
        f"batch_size at update 1 is 100.5; {WHOLE}; nearest: 100",
    ),
    ({"batch_size": lambda epoch: math.nan}, f"batch_size at epoch 0 is nan; {WHOLE}"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_INPUT)
def test_bad_input_is_refused_with_the_numbers(changes, message):
    name, value = next(iter(changes.items()))
    message = message if " is " in message else f"{name} is {value!r}; {message}"
    with pytest.raises(bsjax.InvalidArgument) as refusal:
        recipe_with(**changes)
    assert str(refusal.value) == message.replace("; ", "; it must be ", 1)
