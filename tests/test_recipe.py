"""Recipes: every conversion keeps lr/(B^ρ (1 - m)); the paper's table; bad input."""

import functools
import itertools
import math

import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bsjax

PROPERTY = settings(derandomize=True, deadline=None, max_examples=50)
EXPONENTS = {"linear": 1.0, "sqrt": 0.5}

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
def conversions(draw, recipe, names=("increase_batch_size", "scale_learning_rate", "scale_momentum")):
    """A conversion that this recipe allows: its name, and its arguments."""
    sizes = recipe.at(np.arange(recipe.num_examples)).batch_size
    name = draw(st.sampled_from(names))
    where = draw(st.floats(0.01, 0.99))  # between the least and the largest value that is allowed
    if name == "scale_momentum":
        product = sizes * (1 - recipe.at(np.arange(recipe.num_examples)).momentum)
        least, largest = max(0.0, 1 - product.min()), 1 - product.max() / recipe.dataset_size
        return name, {"momentum": least + where * (largest - least)}
    scaling = draw(st.sampled_from(sorted(EXPONENTS)))
    if name == "scale_learning_rate":
        factor = (1 / sizes.min()) ** (1 - where) * (recipe.dataset_size / sizes.max()) ** where
        return name, {"factor": factor ** EXPONENTS[scaling], "scaling": scaling}
    multiple_of = draw(st.sampled_from([unit for unit in (1, 2, 3, 8) if not np.any(sizes % unit)]))
    cap = draw(st.none() | st.integers(sizes.max(), recipe.dataset_size))
    growth = draw(st.sampled_from([None, 1.3, 2, 5]))
    if growth is not None and sizes.min() * growth < sizes.min() + multiple_of:
        growth = 1.0 + multiple_of
    return name, {
        "max_batch_size": cap and cap // multiple_of * multiple_of,
        "scaling": scaling,
        "share": draw(st.sampled_from([1.0, 0.5, 0.3])),
        "growth": growth,
        "multiple_of": multiple_of,
    }


def kept(values, exponent):
    return values.learning_rate / (values.batch_size**exponent * (1 - values.momentum))


@PROPERTY
@given(st.data())
def test_conversions_keep_the_noise_at_every_instant(data):
    recipe = data.draw(recipes())
    everywhere = np.arange(recipe.num_examples)
    for _ in range(data.draw(st.integers(1, 3))):
        name, arguments = data.draw(conversions(recipe))
        before, recipe = recipe, getattr(recipe, name)(**arguments)
        exponent = EXPONENTS[arguments.get("scaling", "linear")]
        old, new = before.at(everywhere), recipe.at(everywhere)
        np.testing.assert_allclose(kept(new, exponent), kept(old, exponent), rtol=1e-12)
        assert new.batch_size.min() >= 1
        assert new.batch_size.max() <= recipe.dataset_size

        plan = recipe.plan()
        starts = plan.examples_seen
        planned = bsjax.Hyperparameters(plan.learning_rates, plan.batch_sizes, plan.momentums)
        np.testing.assert_allclose(kept(planned, exponent), kept(before.at(starts), exponent), rtol=1e-12)
        # The updates tile the stream, so that any two plans take the same examples in the same order.
        np.testing.assert_array_equal(starts + plan.batch_sizes, [*starts[1:], plan.num_examples])
        assert starts[0] == 0
        assert starts[-1] < recipe.num_examples <= plan.num_examples


@PROPERTY
@given(st.data())
def test_increased_batch_sizes_are_allowed_and_as_large_as_they_can_be(data):
    recipe = data.draw(recipes())
    _, arguments = data.draw(conversions(recipe, ["increase_batch_size"]))
    everywhere = np.arange(recipe.num_examples)
    old, new = recipe.at(everywhere), recipe.increase_batch_size(**arguments).at(everywhere)

    running_maximum = np.maximum.accumulate(old.learning_rate)
    assert np.all(new.learning_rate <= running_maximum * (1 + 1e-6))
    assert np.all(new.batch_size >= old.batch_size)
    assert np.all(new.batch_size <= (arguments["max_batch_size"] or recipe.dataset_size))
    assert not np.any(new.batch_size % arguments["multiple_of"])
    # While the learning rate warms up or holds, so does the batch.
    holds = old.learning_rate == running_maximum
    np.testing.assert_array_equal(new.batch_size[holds], old.batch_size[holds])

    # The next allowed size would take the learning rate above what the decay leaves, or the batch above the cap.
    # (Between two updates the running maximum is that of the recipe's own updates, hence the starts.)
    starts = recipe.plan().examples_seen
    starts = starts[old.learning_rate[starts] > 0]
    size, batch_size = old.batch_size[starts, None], new.batch_size[starts, None]
    decay = np.maximum.accumulate(old.learning_rate[starts]) / old.learning_rate[starts]
    target = size[:, 0] * decay ** (arguments["share"] / EXPONENTS[arguments["scaling"]])
    growth, unit = arguments["growth"], arguments["multiple_of"]
    allowed = unit * np.arange(5000.0) if growth is None else size * np.float64(growth) ** np.arange(60)
    rounded = np.floor(allowed / unit + 1e-9) * unit
    following = np.where(rounded > batch_size, allowed, np.inf).min(axis=1)
    cap = arguments["max_batch_size"] or recipe.dataset_size // unit * unit
    assert np.all((rounded == batch_size).any(axis=1))
    assert np.all(following > np.minimum(target, cap) * (1 - 1e-9))


@PROPERTY
@given(st.data())
def test_conversions_leave_the_original_alone_and_repeat(data):
    recipe = data.draw(recipes())
    before = recipe.plan()
    name, arguments = data.draw(conversions(recipe))
    once, twice = (getattr(recipe, name)(**arguments).plan() for _ in range(2))
    assert once == twice
    assert recipe.plan() == before


@pytest.mark.parametrize("scaling", sorted(EXPONENTS))
def test_conversions_of_different_kinds_commute_where_nothing_is_rounded(scaling):
    recipe = bsjax.Recipe(optax.exponential_decay(0.1, 1, 0.5, staircase=True), 16, 65_536, 5)
    steps = [lambda r: r.scale_learning_rate(2, scaling), lambda r: r.increase_batch_size(scaling=scaling)]
    if scaling == "linear":
        steps.append(lambda r: r.scale_momentum(0.975))
    plans = [functools.reduce(lambda r, step: step(r), order, recipe).plan() for order in itertools.permutations(steps)]
    for plan in plans[1:]:
        np.testing.assert_array_equal(plan.batch_sizes, plans[0].batch_sizes)
        np.testing.assert_allclose(plan.learning_rates, plans[0].learning_rates, rtol=1e-12)


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


def test_square_root_scaling_of_the_learning_rate():
    values = CIFAR10.scale_learning_rate(2, scaling="sqrt").at(0)
    assert (values.batch_size, values.learning_rate) == (512, pytest.approx(0.2))


def test_growth_counts_from_the_batch_size():
    recipe = bsjax.Recipe(optax.cosine_decay_schedule(0.1, 10), 100, 50_000, 10)
    sizes = recipe.increase_batch_size(max_batch_size=1000, growth=2).plan().batch_sizes
    assert np.unique(sizes).tolist() == [100, 200, 400, 800]


@pytest.mark.parametrize("growth", [None, 2])
def test_a_cap_holds_earlier_conversions_to_it(growth):
    values = LARGER_RATE.increase_batch_size(max_batch_size=400, growth=growth).at(0)
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


@pytest.mark.parametrize("clock", ["epochs", "updates", "examples"])
def test_clocks_agree(clock):
    unit = {"epochs": 1, "updates": 100, "examples": 1000}[clock]
    schedule = optax.piecewise_constant_schedule(0.1, {2 * unit: 0.5, 3 * unit: 0.5})
    recipe = bsjax.Recipe(schedule, 10, 1000, 4, clock=clock)
    np.testing.assert_allclose(recipe.at([0, 1999, 2000, 2999, 3000]).learning_rate, [0.1, 0.1, 0.05, 0.05, 0.025])
    # The original's updates of 10 examples are the clock's, also when those of the plan are of 20 and 40.
    assert recipe.increase_batch_size().plan().num_updates == 200 + 50 + 25


def test_schedules_in_plain_python_and_of_batch_sizes():
    recipe = bsjax.Recipe(lambda epoch: 0.1 if epoch < 1 else 0.05, lambda epoch: 10 if epoch < 2 else 50, 1000, 3)
    plan = recipe.plan()
    assert [(phase.num_updates, phase.batch_size) for phase in plan.phases] == [(200, 10), (20, 50)]
    assert plan.phases[0].learning_rate == (0.1, 0.05)


def test_batch_sizes_over_updates_matter_only_until_the_end():
    plan = bsjax.Recipe(0.1, lambda update: 32 + update, 1000, 10, clock="updates").plan()
    assert plan.batch_sizes.tolist() == list(range(32, 32 + plan.num_updates))
    assert plan.num_examples - plan.batch_sizes[-1] < 10_000 <= plan.num_examples


def test_instants_of_any_shape():
    values = CIFAR10.at([[0, 1], [3_000_000, 8_000_000]])
    assert values.batch_size.shape == values.learning_rate.shape == (2, 2)
    assert CIFAR10.at(0).learning_rate.shape == ()


def test_a_fraction_of_an_epoch():
    assert bsjax.Recipe(0.1, 10, 1000, 0.125).num_examples == 125
    assert bsjax.Recipe(0.1, 10, 1000, 0.125).plan().num_updates == 13


def test_text_shows_the_conversions():
    assert str(LARGER_MOMENTUM.increase_batch_size(5120)).splitlines()[1:] == [
        "  .scale_learning_rate(5, scaling='linear')",
        "  .scale_momentum(0.98)",
        "  .increase_batch_size(max_batch_size=5120, scaling='linear', share=1.0, growth=None, multiple_of=1)",
    ]


def recipe_with(**changes):
    return bsjax.Recipe(
        **{"learning_rate": 0.1, "batch_size": 128, "dataset_size": 50_000, "num_epochs": 200} | changes
    )


def increased(batch_size=128, **options):
    return recipe_with(batch_size=batch_size).increase_batch_size(**options)


NAN_AFTER_60 = optax.join_schedules([optax.constant_schedule(0.1), optax.constant_schedule(math.nan)], [60])
MOMENTUM_TO_1 = optax.linear_schedule(0.5, 1.0, 100)
BAD_INPUT = [
    (lambda: recipe_with(learning_rate=0), "learning_rate is 0; it must be a positive finite number"),
    (lambda: recipe_with(learning_rate=-0.1), "learning_rate is -0.1; it must be a positive finite number"),
    (lambda: recipe_with(learning_rate=math.nan), "learning_rate is nan; it must be a positive finite number"),
    (lambda: recipe_with(learning_rate=math.inf), "learning_rate is inf; it must be a positive finite number"),
    (lambda: recipe_with(learning_rate="fast"), "learning_rate is 'fast'; it must be a positive finite number"),
    (lambda: recipe_with(learning_rate=None), "learning_rate is None; it must be a positive finite number"),
    (lambda: recipe_with(momentum=1.0), "momentum is 1.0; it must be in [0, 1)"),
    (lambda: recipe_with(momentum=-0.1), "momentum is -0.1; it must be in [0, 1)"),
    (lambda: recipe_with(momentum=math.nan), "momentum is nan; it must be in [0, 1)"),
    (lambda: recipe_with(momentum="0.9"), "momentum is '0.9'; it must be in [0, 1)"),
    (
        lambda: recipe_with(batch_size=60_000),
        "batch_size is 60000; it must be at most dataset_size 50000; nearest: 50000",
    ),
    (lambda: recipe_with(batch_size=128.5), "batch_size is 128.5; it must be a whole number >= 1; nearest: 128"),
    (lambda: recipe_with(batch_size=0), "batch_size is 0; it must be a whole number >= 1; nearest: 1"),
    (lambda: recipe_with(batch_size="128"), "batch_size is '128'; it must be a whole number >= 1"),
    (lambda: recipe_with(batch_size=True), "batch_size is True; it must be a whole number >= 1; nearest: 1"),
    (lambda: recipe_with(dataset_size=0), "dataset_size is 0; it must be a whole number >= 1; nearest: 1"),
    (lambda: recipe_with(dataset_size=5e4), "dataset_size is 50000.0; it must be a whole number >= 1; nearest: 50000"),
    (lambda: recipe_with(num_epochs=0), "num_epochs is 0; it must be a positive finite number"),
    (lambda: recipe_with(num_epochs=math.inf), "num_epochs is inf; it must be a positive finite number"),
    (
        lambda: recipe_with(clock="epoch"),
        "clock is 'epoch'; it must be one of epochs, updates, examples; nearest: epochs",
    ),
    (
        lambda: recipe_with(learning_rate=NAN_AFTER_60),
        "learning_rate at update 23438 (epoch 60) is nan; it must be a number >= 0",
    ),
    (
        lambda: recipe_with(learning_rate=optax.linear_schedule(0.1, -0.1, 200)),
        "learning_rate at update 39063 (epoch 100) is -1.2799999999923983e-06; it must be a number >= 0",
    ),
    (
        lambda: recipe_with(learning_rate=lambda epoch: 0.0 * epoch),
        "learning_rate is 0.0; it must be positive somewhere, not zero at every update",
    ),
    (lambda: recipe_with(momentum=MOMENTUM_TO_1), "momentum at update 39063 (epoch 100) is 1.0; it must be in [0, 1)"),
    (
        lambda: recipe_with(batch_size=lambda epoch: 100 + epoch / 2),
        "batch_size at epoch 0.002 is 100.001; it must be a whole number between 1 and dataset_size 50000; "
        "nearest: 100",
    ),
    (
        lambda: recipe_with(batch_size=lambda epoch: 50_000 * (1 + epoch)),
        "batch_size at epoch 1 is 100000.0; it must be a whole number between 1 and dataset_size 50000; nearest: 50000",
    ),
    (
        lambda: recipe_with(batch_size=lambda update: 100 + 0.5 * update, clock="updates"),
        "batch_size at update 1 is 100.5; it must be a whole number between 1 and dataset_size 50000; nearest: 100",
    ),
    (
        lambda: recipe_with(batch_size=lambda epoch: math.nan),
        "batch_size at epoch 0 is nan; it must be a whole number between 1 and dataset_size 50000",
    ),
    (
        lambda: increased(max_batch_size=100),
        "max_batch_size is 100; it must be at least the recipe's batch_size 128; nearest: 128",
    ),
    (
        lambda: increased(max_batch_size=60_000),
        "max_batch_size is 60000; it must be at most dataset_size 50000; nearest: 50000",
    ),
    (
        lambda: increased(max_batch_size=1000.0),
        "max_batch_size is 1000.0; it must be a whole number >= 1; nearest: 1000",
    ),
    (
        lambda: increased(max_batch_size=1000, multiple_of=128),
        "max_batch_size is 1000; it must be a multiple of multiple_of 128; nearest: 896 or 1024",
    ),
    (
        lambda: increased(max_batch_size=60_000, multiple_of=128),
        "max_batch_size is 60000; it must be at most dataset_size 50000; nearest: 49920",
    ),
    (
        lambda: increased(multiple_of=100),
        "batch_size is 128; it must be a multiple of multiple_of 100; nearest: 100 or 200",
    ),
    (lambda: increased(multiple_of=0), "multiple_of is 0; it must be a whole number >= 1; nearest: 1"),
    (lambda: increased(growth=1), "growth is 1; it must be a number greater than 1, or None; nearest: 2"),
    (lambda: increased(growth=math.inf), "growth is inf; it must be a number greater than 1, or None; nearest: 2"),
    (lambda: increased(growth="2"), "growth is '2'; it must be a number greater than 1, or None; nearest: 2"),
    (
        lambda: increased(growth=1.001),
        "growth is 1.001; it must be enough to get from 128 to a larger allowed size; nearest: 1.00782",
    ),
    (
        lambda: increased(batch_size=3, growth=1.3),
        "growth is 1.3; it must be enough to get from 3 to a larger allowed size; nearest: 1.33334",
    ),
    (
        lambda: increased(growth=1.5, multiple_of=128),
        "growth is 1.5; it must be enough to get from 128 to a larger allowed size; nearest: 2",
    ),
    (lambda: increased(share=0), "share is 0; it must be in (0, 1]; nearest: 1"),
    (lambda: increased(share=1.5), "share is 1.5; it must be in (0, 1]; nearest: 1"),
    (lambda: increased(share="half"), "share is 'half'; it must be in (0, 1]; nearest: 1"),
    (lambda: increased(scaling="linaer"), "scaling is 'linaer'; it must be one of linear, sqrt; nearest: linear"),
    (lambda: recipe_with().scale_learning_rate(0), "factor is 0; it must be a positive finite number"),
    (lambda: recipe_with().scale_learning_rate(math.nan), "factor is nan; it must be a positive finite number"),
    (
        lambda: recipe_with().scale_learning_rate(1000),
        "factor is 1000; it must be small enough for a batch_size of at most dataset_size 50000, not 128000; "
        "nearest: 390.625",
    ),
    (
        lambda: recipe_with().scale_learning_rate(0.001),
        "factor is 0.001; it must be large enough for a batch_size of 1 or more; nearest: 0.0078125",
    ),
    (
        lambda: recipe_with().scale_learning_rate(100, scaling="sqrt"),
        "factor is 100; it must be small enough for a batch_size of at most dataset_size 50000, not 1280000; "
        "nearest: 19.7642",
    ),
    (
        lambda: recipe_with().scale_learning_rate(5, scaling="cube"),
        "scaling is 'cube'; it must be one of linear, sqrt; nearest: linear",
    ),
    (lambda: recipe_with().scale_momentum(1), "momentum is 1; it must be in [0, 1)"),
    (
        lambda: recipe_with().scale_momentum(0.9999),
        "momentum is 0.9999; it must be small enough for a batch_size of at most dataset_size 50000, not 128000; "
        "nearest: 0.999743",
    ),
    (lambda: recipe_with().scale_momentum(None), "momentum is None; it must be in [0, 1)"),
]


@pytest.mark.parametrize(("build", "message"), BAD_INPUT, ids=[message.split(";")[0] for _, message in BAD_INPUT])
def test_bad_input_is_refused_with_the_numbers(build, message):
    with pytest.raises(bsjax.InvalidArgument) as refusal:
        build()
    assert str(refusal.value) == message
