"""Controllers: learning rates that follow the batch, resuming to the same bits, options, bad input."""

import dataclasses
import itertools
import json
import math
import re

import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bsjax
from bsjax import InvalidArgument, gradient_noise
from bsjax.controllers import (
    CONTROLLERS,
    LAG,
    AdaScaleOptions,
    Following,
    FollowingOptions,
    GradientNoiseOptions,
    Limits,
    Observation,
    PlateauOptions,
    create_controller,
    options_from_mapping,
    scaling_rule,
    state_to_json,
)
from bsjax.optimizers import OPTIMIZERS

EXPONENTS = {"linear": 1.0, "sqrt": 0.5}
HYPERPARAMETERS = {"b2": optax.linear_schedule(0.9, 0.99, 3)}
RECIPES = {
    "constant": bsjax.Recipe(0.1, 16, 2000, 2),
    "steps": bsjax.Recipe(optax.piecewise_constant_schedule(0.1, {1: 0.2, 2: 0.2}), 16, 2000, 3),
    "cosine": bsjax.Recipe(optax.cosine_decay_schedule(0.1, 3), 16, 2000, 3, hyperparameters=HYPERPARAMETERS),
    "warm-up": bsjax.Recipe(optax.warmup_cosine_decay_schedule(0.0, 0.1, 1000, 6000), 16, 2000, 3, clock="examples"),
    "restarts": bsjax.Recipe(lambda epoch: 0.1 * (1 - 0.9 * (epoch % 1)), 16, 2000, 3),
    "batch": bsjax.Recipe(0.1, lambda epoch: 16 if epoch < 1 else 48, 2000, 3, 0.5, hyperparameters=HYPERPARAMETERS),
}


@dataclasses.dataclass(frozen=True)
class Wanted(Following):
    """Its targets are given, one for each update."""

    targets: tuple[float, ...] = ()

    def target(self, state, now):
        return self.targets[state.update % len(self.targets)]


class World:
    """The observations of a run: functions of an update and of those before it."""

    def __init__(self):
        self.averages = gradient_noise.zero_averages()
        self.measured = []

    def observe(self, update):
        random = np.random.default_rng(update.update)
        estimate = gradient_noise.Estimate(random.normal(1, 0.5), random.uniform(20, 200), update.batch_size, 4)
        if update.update % 7 == 3:
            estimate = estimate._replace(grad_sq=math.nan, trace=math.nan)
        self.averages = gradient_noise.update_averages(self.averages, estimate, half_life_examples=500)
        return Observation(update, random.uniform(0.9, 1.1) + 1 / (1 + update.update), estimate, self.averages)

    def try_branches(self, branches):
        self.measured.append(branches)
        return [[self._loss(update) for update in branch] for branch in branches]

    def _loss(self, update):
        noise = np.random.default_rng(update.examples_seen).uniform(0, 0.001)
        return 1 + (update.batch_size / 300) ** 4 + noise


# The learning rate and the stream.


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    st.sampled_from(sorted(RECIPES)),
    st.lists(st.floats(0.1, 2000) | st.sampled_from([math.nan, math.inf, 0.0, -5.0]), min_size=1, max_size=30),
    st.sampled_from(["linear", "sqrt"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0, 700]),
)
def test_the_learning_rate_follows_the_size_and_updates_tile_the_stream(
    play, name, targets, scaling, bound, monotone, warmup
):
    recipe = RECIPES[name]
    limits = Limits(8, 400, 8, monotone=monotone, warmup_examples=warmup)
    controller = Wanted(recipe, limits, FollowingOptions(scaling, bound), tuple(targets))
    updates = play(controller)
    starts = np.array([update.examples_seen for update in updates])
    sizes = np.array([update.batch_size for update in updates])
    rates = np.array([update.learning_rate for update in updates])
    values = recipe.at(starts)

    assert [update.update for update in updates] == list(range(len(updates)))
    np.testing.assert_array_equal(starts, np.cumsum(sizes) - sizes)
    assert starts[-1] < recipe.num_examples == controller.num_examples <= starts[-1] + sizes[-1]
    assert set(sizes.tolist()) <= set(controller.batch_sizes)
    np.testing.assert_array_equal([update.momentum for update in updates], values.momentum)
    for hyperparameter, expected in recipe.others_at(starts).items():
        np.testing.assert_array_equal([update.others[hyperparameter] for update in updates], expected)
    followed = values.learning_rate * (sizes / values.batch_size) ** EXPONENTS[scaling]
    np.testing.assert_allclose(rates, followed, rtol=1e-12)
    if bound:
        assert np.all(rates <= np.maximum.accumulate(values.learning_rate) * (1 + 2e-6))
    if monotone and not bound:
        assert np.all(np.diff(sizes) >= 0)
    if not bound:
        assert np.all(sizes[starts < warmup] == 16)


@pytest.mark.parametrize("name", ["constant", "steps", "cosine", "warm-up"])
@pytest.mark.parametrize("scaling", ["linear", "sqrt"])
def test_all_of_the_decay_is_the_recipes_own_conversion(play, name, scaling):
    recipe = RECIPES[name]
    updates = play(Wanted(recipe, Limits(16, 400, 8), FollowingOptions(scaling, bound_by_decay=True), (math.inf,)))
    plan = recipe.increase_batch_size(max_batch_size=400, scaling=scaling, multiple_of=8).plan()
    assert [update.batch_size for update in updates] == plan.batch_sizes.tolist()
    np.testing.assert_allclose([update.learning_rate for update in updates], plan.learning_rates, rtol=1e-12)


def test_none_of_the_decay_is_the_recipe(play):
    controller = Wanted(COSINE, Limits(16, 400), FollowingOptions(bound_by_decay=True), (math.nan,))
    assert play(controller) == list(COSINE.plan())


def test_a_rising_learning_rate_takes_the_batch_back(play):
    limits = Limits(16, 400, monotone=True)
    updates = play(Wanted(RECIPES["restarts"], limits, FollowingOptions(bound_by_decay=True), (math.inf,)))
    end, start = next(pair for pair in itertools.pairwise(updates) if pair[1].batch_size < pair[0].batch_size)
    assert end.examples_seen < 2000 <= start.examples_seen + start.batch_size
    assert start.batch_size < 20 < 100 < end.batch_size


# Every controller.

COSINE = RECIPES["cosine"]
NOISY = Limits(16, 512, 8, hysteresis=0.1, warmup_examples=200)


def made(name, recipe, limits, **options):
    return CONTROLLERS[name](recipe, limits, CONTROLLERS[name].options_type(**options))


MADE = {
    "planned": create_controller("planned", COSINE.increase_batch_size(400), NOISY, "sgd"),
    "gradient noise": made("gradient_noise", COSINE, NOISY, factor=0.7),
    "gradient noise, bounded": made("gradient_noise", COSINE, NOISY, scaling="sqrt", bound_by_decay=True),
    "gradient noise, priced": made("gradient_noise", COSINE, NOISY, example_price=0.005),
    "cabs": made("cabs", bsjax.Recipe(2.0, 16, 2000, 3, hyperparameters={"b2": 0.9}), NOISY),
    "adascale": made("adascale", COSINE, Limits(16, 128), scale=8),
    "adascale, growing": made("adascale", RECIPES["batch"], Limits(16, 192), smoothing=0.9),
    "adabatch": made("adabatch", COSINE, NOISY, every_epochs=0.4),
    "plateau": made("plateau", COSINE, NOISY, factor=0.5, patience=3, cooldown=2, accumulation_size=2),
    "critical batch": made("critical_batch", COSINE, NOISY, measure_every_epochs=0.2, branch_examples=200),
    "critical batch, known": made("critical_batch", COSINE, NOISY, critical_batch_size=lambda e: e / 10),
}


@pytest.mark.parametrize("controller", MADE.values(), ids=MADE)
def test_killed_and_resumed_is_uninterrupted_bitwise(play, controller):
    undisturbed = World()
    uninterrupted = play(controller, undisturbed.observe, undisturbed.try_branches)
    sizes, decided = list(controller.batch_sizes), {update.batch_size for update in uninterrupted}
    assert decided <= set(sizes)
    assert sizes == sorted(set(sizes))
    is_adascale = type(controller) is CONTROLLERS["adascale"]
    assert len(decided) >= 2 or is_adascale
    end = uninterrupted[-1].examples_seen + uninterrupted[-1].batch_size
    assert end <= controller.num_examples if is_adascale else end >= controller.num_examples
    assert controller.dataset_size == 2000
    assert all(list(update.others) == ["b2"] for update in uninterrupted)
    for interruptions in ([1], [len(uninterrupted) // 2], range(0, len(uninterrupted), LAG + 2)):
        world = World()
        assert play(controller, world.observe, world.try_branches, interruptions) == uninterrupted
        assert world.measured == undisturbed.measured


def test_other_settings_are_another_identity():
    identities = [json.dumps(controller.identity(), allow_nan=False) for controller in MADE.values()]
    assert len(set(identities)) == len(MADE)
    for controller, identity in zip(MADE.values(), identities, strict=True):
        assert json.loads(identity) == dataclasses.replace(controller).identity()
    known = MADE["critical batch, known"]
    options = dataclasses.replace(known.options, critical_batch_size=lambda e: e / 11)
    assert dataclasses.replace(known, options=options).identity() != known.identity()
    by_name, by_number = (made("plateau", COSINE, NOISY, scaling=scaling) for scaling in ("sqrt", 0.5))
    assert by_name.identity() == by_number.identity()


def test_a_state_that_json_would_change_is_refused():
    state = MADE["adabatch"].init()
    for value in ([1.0], np.zeros(2), np.float32(1)):
        with pytest.raises(TypeError, match=type(value).__name__):
            state_to_json(state._replace(learnt=value))


# By name.


def test_registry_makes_every_controller():
    recipe, limits = RECIPES["constant"], Limits(16, 256)
    for name, kind in CONTROLLERS.items():
        assert type(create_controller(name, recipe, limits, "sgd")) is kind
        assert create_controller(name, recipe, limits, "sgd", kind.options_type()).batch_sizes
    assert list(create_controller("planned", recipe, limits, "adam").plan) == list(recipe.plan())
    assert create_controller("plateau", recipe, limits, "adam").exponent == 0.5
    assert create_controller("plateau", recipe, limits, "adam", PlateauOptions("linear")).exponent == 1
    rules = {name: scaling_rule(name) for name in OPTIMIZERS if name not in ("lars", "lamb")}
    assert [name for name, rule in rules.items() if rule == "sqrt"] == ["adam", "adamw", "rmsprop", "muon"]


@pytest.mark.parametrize("name", CONTROLLERS)
def test_options_come_back_from_values_and_from_text(name):
    defaults = CONTROLLERS[name].options_type()
    values = json.loads(json.dumps(dataclasses.asdict(defaults)))
    assert options_from_mapping(name, values) == defaults
    assert options_from_mapping(name, {option: json.dumps(value) for option, value in values.items()}) == defaults


MISFITS = [
    (("gradient_nose",), r"controller is 'gradient_nose'; .* one of planned, .*; nearest: gradient_noise"),
    (("cabs", "momentum"), r"optimizer is 'momentum'; it must be sgd for cabs; nearest: sgd"),
    (("adascale", "adam"), r"optimizer is 'adam'; .* momentum or nesterov or sgd for adascale; nearest: momentum"),
    (("plateau", "adma"), r"optimizer is 'adma'; it must be one of sgd, momentum, .*, muon; nearest: adam"),
    *(
        (("plateau", name), rf"optimizer is '{name}'; .* for lars and lamb there is none; .*")
        for name in ("lars", "lamb")
    ),
    (("plateau", "sgd", Limits(16, 4000)), r"max_batch_size is 4000; .* at most dataset_size 2000; nearest: 2000"),
    (("adascale", "sgd", Limits(3000, 4000)), r"min_batch_size is 3000; .* at most dataset_size 2000; nearest: 2000"),
    (("plateau", "sgd", Limits(32, 64), PlateauOptions(None, True)), r"min_batch_size is 32; .* 16 .*; nearest: 16"),
    (("adascale", "sgd", Limits(8, 8)), r"max_batch_size is 8; .* at least the recipe's batch_size 16; nearest: 16"),
    (("adascale", "sgd", NOISY, AdaScaleOptions(33)), r"scale is 33; it must be in \[1, 32\], by .*; nearest: 32"),
    (("adascale", "sgd", Limits(64, 256), AdaScaleOptions(2)), r"scale is 2; .* large enough .* 16 .*; nearest: 4"),
    (("cabs", "sgd", NOISY, AdaScaleOptions(2)), r"options is AdaScale.*; nearest: CabsOptions\(smoothing=0.95\)"),
]
MULTIPLES = "whole numbers in increasing order, from 1 to more than 2"
BAD_OPTIONS = [
    ("planned", "factor", 2, "controller_options is 'factor'; it must be empty: planned has no options"),
    ("cabs", "smothing", 0.9, "controller_options is 'smothing'; it must be one of smoothing; nearest: smoothing"),
    ("plateau", "patience", "few", "patience is 'few'; it must be a whole number >= 1"),
    ("plateau", "patience", True, "patience is True; it must be a whole number >= 1; nearest: 1"),
    ("plateau", "bound_by_decay", "1", "bound_by_decay is 1; it must be True or False; nearest: True"),
    ("plateau", "bound_by_decay", "yes", "bound_by_decay is 'yes'; it must be True or False; nearest: True"),
    (
        "plateau",
        "scaling",
        "root",
        "scaling is 'root'; it must be linear, sqrt or an exponent in (0, 1]; nearest: sqrt",
    ),
    ("adascale", "scale", "big", "scale is 'big'; it must be a number >= 1, or None; nearest: 1"),
    *(
        ("critical_batch", "multiples", text, f"multiples is {value}; it must be {MULTIPLES}; nearest: (1, 2, 4)")
        for text, value in (("2", 2), ("[1, 2]", (1, 2)), ([], ()), ([1, 4, 2], (1, 4, 2)), ("[1, 2.5]", (1, 2.5)))
    ),
    ("gradient_noise", "factor", 0, "factor is 0; it must be a positive finite number"),
    ("gradient_noise", "example_price", 0, "example_price is 0; it must be a positive number of updates, or None"),
    ("cabs", "smoothing", 1, "smoothing is 1; it must be in [0, 1); nearest: 0.95"),
    ("adascale", "scale", 0.5, "scale is 0.5; it must be a number >= 1, or None; nearest: 1"),
    ("adascale", "smoothing", 1.0, "smoothing is 1.0; it must be in [0, 1), or None; nearest: 0.999"),
    ("adabatch", "every_epochs", 0, "every_epochs is 0; it must be a positive finite number"),
    ("adabatch", "factor", 1, "factor is 1; it must be a number greater than 1; nearest: 2"),
    ("plateau", "factor", 1, "factor is 1; it must be in (0, 1); nearest: 0.1"),
    ("plateau", "patience", 0, "patience is 0; it must be a whole number >= 1; nearest: 1"),
    ("plateau", "rtol", 2, "rtol is 2; it must be in [0, 1]; nearest: 0.0001"),
    ("plateau", "rtol", 0, "rtol is 0; it must be positive where atol is 0; nearest: 0.0001"),
    ("plateau", "atol", -1, "atol is -1; it must be a number >= 0; nearest: 0"),
    ("plateau", "cooldown", -1, "cooldown is -1; it must be a whole number >= 0; nearest: 0"),
    ("plateau", "min_scale", 2, "min_scale is 2; it must be in [0, 1]; nearest: 0"),
    ("critical_batch", "tolerance", -1, "tolerance is -1; it must be a number >= 0; nearest: 0.01"),
    ("critical_batch", "critical_batch_size", 0, "critical_batch_size is 0; it must be a positive finite number"),
    ("critical_batch", "branch_examples", 0, "branch_examples is 0; it must be a whole number >= 1; nearest: 1"),
]


@pytest.mark.parametrize(("arguments", "message"), MISFITS)
def test_what_does_not_fit_together_is_refused_with_the_numbers(arguments, message):
    name, optimizer, limits, *options = (*arguments, *(None, "sgd", Limits(16, 256))[len(arguments) :])
    with pytest.raises(InvalidArgument) as refusal:
        create_controller(name, COSINE, limits, optimizer, *options)
    assert re.fullmatch(message, str(refusal.value))


@pytest.mark.parametrize(("name", "option", "value", "message"), BAD_OPTIONS)
def test_bad_options_are_refused_with_the_numbers(name, option, value, message):
    with pytest.raises(InvalidArgument) as refusal:
        options_from_mapping(name, {option: value})
    assert str(refusal.value) == message


def test_a_factor_and_a_price_are_refused():
    with pytest.raises(InvalidArgument, match=r"^factor is 2; it must be 1 with an example_price; nearest: 1$"):
        GradientNoiseOptions(example_price=1e-3, factor=2)
