"""Adam's constants: each rule keeps its invariant at every instant, wherever it stands; the bound of stability."""

import dataclasses
import functools
import pickle
import warnings

import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bsjax

PROPERTY = settings(derandomize=True, deadline=None, max_examples=20)
ADAM = {"b2": 0.99, "eps": 1e-8, "weight_decay": 0.1}
SCHEDULES = {
    "step": optax.piecewise_constant_schedule(0.1, {300: 0.2, 600: 0.2, 800: 0.2}),
    "cosine": optax.cosine_decay_schedule(0.1, 1000),
    "warm-up and cosine": optax.warmup_cosine_decay_schedule(0.0, 0.1, 150, 1000, end_value=1e-4),
    "one cycle": optax.cosine_onecycle_schedule(1000, 0.1),
}
recipe_with = functools.partial(bsjax.Recipe, learning_rate=0.1, batch_size=128, dataset_size=50_000, num_epochs=20)


@st.composite
def recipes(draw):
    schedule, num_epochs = SCHEDULES[draw(st.sampled_from(sorted(SCHEDULES)))], draw(st.sampled_from([1, 2.5]))
    dataset_size = draw(st.integers(400, 2000))
    size = draw(st.integers(4, dataset_size // 40))
    return bsjax.Recipe(
        lambda epoch: schedule(1000 * epoch / num_epochs),
        draw(st.sampled_from([size, optax.piecewise_constant_schedule(size, {num_epochs / 2: 2})])),
        dataset_size,
        num_epochs,
        draw(st.sampled_from([0.9, optax.linear_schedule(0.85, 0.95, num_epochs)])),
        hyperparameters={
            "b2": draw(st.sampled_from([0.99, 0.0, optax.linear_schedule(0.95, 0.999, num_epochs)])),
            "eps": draw(st.sampled_from([1e-8, optax.linear_schedule(1e-8, 1e-6, num_epochs)])),
            "weight_decay": draw(st.sampled_from([0.0, 0.1, optax.linear_schedule(0.2, 0.1, num_epochs)])),
        },
    )


def enlarged(draw, recipe):
    """The recipe with conversions that change its batch; none of them moves the momentum."""
    for kind in draw(st.sampled_from([["scale"], ["warm_up"], ["increase"], ["scale", "warm_up", "increase"]])):
        scaling = draw(st.sampled_from(["sqrt", 0.6, "linear"]))
        if kind == "warm_up":
            ends = sorted(draw(st.sets(st.floats(0.01, recipe.num_epochs), min_size=2, max_size=2)))
            recipe = recipe.warm_up_batch_size((0.3, 0.6), tuple(ends), scaling, linear=True)
        elif kind == "scale":
            recipe = recipe.scale_learning_rate(draw(st.floats(1, 1.5)), scaling)
        else:
            recipe = recipe.increase_batch_size(None, scaling, draw(st.sampled_from([0.3, 1.0])))
    return recipe


@PROPERTY
@given(st.data())
def test_half_life_epsilon_and_time_scale_keep_their_invariants_at_every_instant(data):
    recipe = data.draw(recipes())
    larger = enlarged(data.draw, recipe)
    scaled, everywhere = larger.scale_adam(), np.arange(recipe.num_examples)
    own, values = recipe.at(everywhere), scaled.at(everywhere)
    before, after = recipe.others_at(everywhere), scaled.others_at(everywhere)
    for value, expected in zip(values, larger.at(everywhere), strict=True):  # the rest is as without
        np.testing.assert_array_equal(value, expected)

    def kept(values, others):
        moves = own.learning_rate > 0
        yield values.batch_size * np.log(2) / -np.log(np.maximum(others["b2"], 1e-300)) * (before["b2"] > 0)
        yield others["eps"] * np.sqrt(values.batch_size)
        yield (values.learning_rate * others["weight_decay"] / values.batch_size)[moves]

    for now, then in zip(kept(values, after), kept(own, before), strict=True):
        np.testing.assert_allclose(now, then, rtol=1e-9)
    assert np.all((after["b2"] >= 0) & (after["b2"] < 1))
    assert np.all(np.isfinite(after["weight_decay"]))
    assert not after["b2"][before["b2"] == 0].any()

    plan = scaled.plan()
    for name, at in scaled.others_at(plan.examples_seen).items():
        np.testing.assert_array_equal(plan.others[name], at)
        np.testing.assert_array_equal(plan.hyperparameters[name](plan.num_updates - 1), np.float32(at[-1]))
    assert plan.scaling == larger.scaling


@PROPERTY
@given(st.data())
def test_the_sde_rule_keeps_its_invariant_or_names_the_largest_batch(data):
    recipe = data.draw(recipes())
    everywhere = np.arange(recipe.num_examples)
    cap = None
    for _ in range(3):
        larger = recipe.increase_batch_size(cap, "sqrt")
        try:
            scaled = larger.scale_adam("sde", weight_decay=None)
            after, values = scaled.others_at(everywhere), scaled.at(everywhere)
            break
        except bsjax.InvalidArgument as error:
            assert (error.name, error.value) == ("b2", "sde")
            cap = int(error.nearest.removeprefix("half_life, or a batch of at most "))
            if cap < recipe.at(everywhere).batch_size.max():
                return  # no cap below the recipe's own batch
    else:
        raise AssertionError("the nearest batch is refused")
    own, before = recipe.at(everywhere), recipe.others_at(everywhere)
    for now, then in ((values.momentum, own.momentum), (after["b2"], before["b2"])):
        np.testing.assert_allclose((1 - now) / values.batch_size, (1 - then) / own.batch_size, rtol=1e-9)
        assert np.all((now >= 0) & (now < 1))
    np.testing.assert_array_equal(values.learning_rate, larger.at(everywhere).learning_rate)


@settings(PROPERTY, max_examples=5)
@given(st.data())
def test_where_it_stands_in_a_recipe_does_not_matter(data):
    recipe = data.draw(recipes())
    first = enlarged(data.draw, recipe.scale_adam(b2_floor=0.0))
    last = dataclasses.replace(recipe, conversions=(*first.conversions[1:], first.conversions[0]))
    assert first.plan() == last.plan()
    assert isinstance(last.conversions[-1], bsjax.ScaleAdam)
    assert last.conversions[-1] == pickle.loads(pickle.dumps(last.conversions[-1])) == bsjax.ScaleAdam(b2_floor=0.0)


def test_a_batch_four_times_as_large():
    recipe = recipe_with(hyperparameters=ADAM).scale_learning_rate(2, "sqrt")
    half_life = recipe.scale_adam().others_at(0)
    assert half_life == pytest.approx({"b2": 0.99**4, "eps": 5e-9, "weight_decay": 0.2})
    assert recipe.scale_adam(b2_floor=0.97).others_at(0)["b2"] == 0.97
    sde = recipe.scale_adam("sde", epsilon=False, weight_decay=None)
    assert sde.others_at(0) == pytest.approx({"b2": 0.96, "eps": 1e-8, "weight_decay": 0.1})
    assert sde.at(0).momentum == pytest.approx(0.6)
    assert recipe.scale_adam(None).others_at(0) == pytest.approx({"b2": 0.99, "eps": 5e-9, "weight_decay": 0.2})


def test_nothing_changes_where_the_batch_does_not():
    recipe = recipe_with(hyperparameters=ADAM)
    for rule in ("half_life", "sde"):
        assert recipe.scale_adam(rule).plan() == recipe.plan()


def test_the_sde_rule_leaves_a_momentum_of_zero_and_a_floor_needs_no_bound_on_b2():
    recipe = recipe_with(momentum=0.0, hyperparameters={"b2": 0.9, "eps": 1e-8}).scale_learning_rate(4, "sqrt")
    with pytest.raises(
        bsjax.InvalidArgument, match=r"^b2 is 'sde'; .* half_life for a batch of 2048: .* 16 · 0.1 = 1.6; .* 1279$"
    ):
        recipe.scale_adam("sde", weight_decay=None)
    floored = recipe.scale_adam("sde", weight_decay=None, b2_floor=0.5)
    assert (floored.at(0).momentum, floored.others_at(0)["b2"]) == (0.0, 0.5)


MISSING = {"hyperparameters": {"eps": 1e-8}}
BAD_INPUT = [
    ({}, {"b2": "halflife"}, "b2 is 'halflife'; it must be one of half_life, sde; nearest: half_life"),
    ({}, {"weight_decay": "tau"}, "weight_decay is 'tau'; it must be one of time_scale; nearest: time_scale"),
    ({}, {"epsilon": 1e-8}, "epsilon is 1e-08; it must be True or False; nearest: True"),
    (
        {},
        {"b2": None, "epsilon": False, "weight_decay": None},
        "b2 is None; it must be one of half_life, sde where nothing else is scaled; nearest: half_life",
    ),
    ({}, {"b2_floor": 1.0}, "b2_floor is 1.0; it must be in [0, 1), or None; nearest: 0.95"),
    ({}, {"b2_floor": 0.995}, "b2_floor is 0.995; it must be at most the recipe's b2 0.99; nearest: 0.99"),
    ({}, {"b2": None, "b2_floor": 0.5}, "b2_floor is 0.5; it must be None where b2 stays as it is"),
    (
        MISSING,
        {},
        "hyperparameters is ['eps']; it must be a mapping with b2, weight_decay, which scale_adam scales without "
        "b2=None, weight_decay=None; nearest: {'b2': 0.999, 'weight_decay': 0.1}",
    ),
    (
        {"hyperparameters": ADAM | {"b2": 1.0}},
        {},
        "hyperparameters b2 is 1.0; it must be in [0, 1); nearest: 0.999",
    ),
    (
        {"hyperparameters": ADAM | {"eps": -1e-8}},
        {},
        "hyperparameters eps is -1e-08; it must be a number >= 0; nearest: 1e-08",
    ),
]


@pytest.mark.parametrize(("recipe", "arguments", "message"), BAD_INPUT)
def test_bad_input(recipe, arguments, message):
    with pytest.raises(bsjax.InvalidArgument) as refusal:
        recipe_with(**{"hyperparameters": ADAM, **recipe}).scale_adam(**arguments)
    assert str(refusal.value) == message


def test_conversions_that_contradict_it():
    recipe = recipe_with(hyperparameters=ADAM)
    for convert in (
        lambda r: r.scale_momentum(0.95).scale_adam("sde"),
        lambda r: r.scale_adam("sde").scale_momentum(0),
    ):
        with pytest.raises(
            bsjax.InvalidArgument, match=r"^b2 is 'sde'; .* with scale_momentum, .*; nearest: half_life$"
        ):
            convert(recipe)
    with pytest.raises(bsjax.InvalidArgument, match=r"^conversions is \[Scale.*; it must be of one ScaleAdam at most"):
        recipe.scale_adam().scale_adam()


@pytest.mark.parametrize("scaling", ["sqrt", "linear", 0.6])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.56, 0.66, 0.68, 1.0])
def test_the_bound_of_stability(scaling, share):
    recipe = recipe_with(learning_rate=optax.exponential_decay(0.1, 1, 0.5), batch_size=500)
    grown = recipe.increase_batch_size(scaling=scaling, share=share)
    # The bound itself, from what the conversion does within an epoch, in which the recipe's rate halves.
    values = grown.at([0, 50_000])
    alpha = values.learning_rate[0] / values.learning_rate[1]
    beta = values.batch_size[1] / values.batch_size[0]
    with warnings.catch_warnings(record=True, action="always") as caught:
        bsjax.check_adam_stability(recipe)
        bsjax.check_adam_stability(grown)
    inside = alpha >= np.sqrt(beta) * (1 - 0.005)  # whole batches
    assert len(caught) == (0 if inside else 1)
    for warning in caught:
        assert warning.category is bsjax.AdamStabilityWarning
        nearest = float(str(warning.message).split("nearest: ")[1])
        with warnings.catch_warnings(action="error"):
            bsjax.check_adam_stability(recipe.increase_batch_size(scaling=scaling, share=nearest))


def test_each_conversion_beyond_the_bound_warns_once():
    recipe = recipe_with(learning_rate=optax.exponential_decay(0.1, 1, 0.5)).increase_batch_size(512, "sqrt")
    with pytest.warns(bsjax.AdamStabilityWarning, match=r"^share is (1|0.7); .* at most 0.5 ") as caught:
        bsjax.check_adam_stability(recipe.increase_batch_size(1024, "sqrt", share=0.7))
    assert len(caught) == 2
