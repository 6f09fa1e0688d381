"""Batches that warm up: the noise at every instant, the sizes, the clocks, bad input."""

import functools
import pickle

import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bsjax

PROPERTY = settings(derandomize=True, deadline=None, max_examples=20)
recipe_with = functools.partial(bsjax.Recipe, learning_rate=0.1, batch_size=128, dataset_size=1000, num_epochs=10)


@PROPERTY
@given(st.data())
def test_it_keeps_the_noise_at_every_instant(data):
    clock = data.draw(st.sampled_from(["epochs", "updates", "examples", "tokens"]))
    linear, unit = data.draw(st.booleans()), data.draw(st.sampled_from([1, 4, 8]))
    size, num_epochs, dataset_size = 8 * unit * data.draw(st.integers(1, 6)), 3, 1000
    size = min(size, 8 * unit * (dataset_size // (8 * unit)))
    end = {"epochs": 3, "updates": -(-3000 // size), "examples": 3000, "tokens": 30_000}[clock]
    cosine = optax.warmup_cosine_decay_schedule(0.0, 0.1, 100, 1000)
    recipe = bsjax.Recipe(
        lambda count: cosine(1000 * count / end), size, dataset_size, num_epochs, clock=clock, tokens_per_example=10
    )
    until = tuple(end * share for share in sorted(data.draw(st.sets(st.floats(0.01, 1), min_size=2, max_size=2))))
    factors = data.draw(st.sampled_from([(0.25, 0.5), (0.125, 0.875)]))
    scaling = data.draw(st.sampled_from(["sqrt", "linear", 0.6]))
    warm = recipe.warm_up_batch_size(factors, until, scaling, linear, unit)
    everywhere = np.arange(recipe.num_examples)
    old, new, exponent = recipe.at(everywhere), warm.at(everywhere), warm.scaling
    np.testing.assert_allclose(new.learning_rate / new.batch_size**exponent, old.learning_rate / size**exponent)
    np.testing.assert_array_equal(new.momentum, old.momentum)
    assert not np.any(new.batch_size % unit)
    assert np.all(np.diff(new.batch_size) >= 0)
    assert new.batch_size[0] == factors[0] * size

    per_example = {"epochs": 0.001, "examples": 1, "tokens": 10}.get(clock)
    time = everywhere // size if clock == "updates" else everywhere * per_example
    if linear:
        allowed = np.interp(time, [0, *until], [*factors, 1.0]) * size
        assert np.all(new.batch_size <= allowed * (1 + 1e-6))
        assert np.all(new.batch_size > allowed - unit)
    else:
        expected = np.select([time < until[0], time < until[1]], [factors[0] * size, factors[1] * size], size)
        np.testing.assert_array_equal(new.batch_size, expected)


def test_quarter_half_and_whole():
    plan = recipe_with().warm_up_batch_size((0.25, 0.5), (0.5, 2)).plan()
    assert [phase.batch_size for phase in plan.phases] == [32, 64, 128]
    assert [phase.learning_rate[0] for phase in plan.phases] == pytest.approx([0.05, 0.1 / 2**0.5, 0.1])
    assert plan.scaling == 0.5
    one = recipe_with().warm_up_batch_size(0.25, 2, linear=True)  # one factor is a ramp, as Falcon-Mamba's
    assert one.at([0, 1000, 2000]).batch_size.tolist() == [32, 80, 128]
    assert (
        one.conversions[0]
        == pickle.loads(pickle.dumps(one.conversions[0]))
        == bsjax.WarmUpBatchSize(0.25, 2, 0.5, True)
    )


def test_it_composes_with_a_growing_batch_in_either_order():
    recipe = recipe_with(learning_rate=optax.piecewise_constant_schedule(0.1, {6: 0.25}), batch_size=16)
    warm_first = recipe.warm_up_batch_size(0.25, 2).increase_batch_size(scaling="sqrt")
    grown_first = recipe.increase_batch_size(scaling="sqrt").warm_up_batch_size(0.25, 2)
    for converted in (warm_first, grown_first):
        assert converted.at([0, 2000, 6000]).batch_size.tolist() == [4, 16, 256]
        np.testing.assert_allclose(converted.at([0, 2000, 6000]).learning_rate, [0.05, 0.1, 0.1], rtol=1e-6)


BAD_INPUT = [
    ({"factors": 1.5}, "factors is (1.5,); it must be below 1, the recipe's own batch; nearest: (0.5,)"),
    ({"factors": (0.5, 1)}, "factors is (0.5, 1); it must be below 1, the recipe's own batch; nearest: (0.5,)"),
    (
        {"factors": (0.5, 0.25)},
        "factors is (0.5, 0.25); it must be a positive number, or several in increasing order; nearest: (0.25, 0.5)",
    ),
    ({"factors": 0}, "factors is 0; it must be a positive number, or several in increasing order"),
    ({"factors": "half"}, "factors is 'half'; it must be a positive number, or several in increasing order"),
    ({"factors": ()}, "factors is (); it must be a positive number, or several in increasing order"),
    (
        {"until": (2, 1)},
        "until is (2, 1); it must be a positive number, or several in increasing order; nearest: (1, 2)",
    ),
    ({"until": (1, 2)}, "until is (1, 2); it must be one time for each of the 1 factors"),
    ({"until": 11}, "until is (11,); it must be at most 10 epochs, the end of training; nearest: (10.0,)"),
    (
        {"factors": 0.3},
        "factors is (0.3,); it must be such that batch_size 128 · 0.3 = 38.4 is a multiple of multiple_of 1; "
        "nearest: (0.296875,)",
    ),
    (
        {"factors": (0.25, 0.26), "until": (1, 2), "multiple_of": 32},
        "factors is (0.25, 0.26); it must be such that batch_size 128 · 0.26 = 33.28 is a multiple of multiple_of 32; "
        "nearest: (0.25, 0.5)",
    ),
    (
        {"factors": 0.1, "multiple_of": 32, "linear": True},
        "factors is (0.1,); it must be such that batch_size 128 · 0.1 = 12.8 is at least multiple_of 32; "
        "nearest: (0.25,)",
    ),
    ({"multiple_of": 0}, "multiple_of is 0; it must be a whole number >= 1; nearest: 1"),
    ({"scaling": 0}, "scaling is 0; it must be linear, sqrt or an exponent in (0, 1]; nearest: sqrt"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT)
def test_bad_input_is_refused_with_a_choice_that_is_not(arguments, message):
    arguments = {"factors": 0.25, "until": 2, **arguments}
    with pytest.raises(bsjax.InvalidArgument) as refusal:
        recipe_with().warm_up_batch_size(**arguments)
    assert str(refusal.value) == message
    if refusal.value.nearest is not None:
        nearest = {refusal.value.name: refusal.value.nearest}
        if (number := len(np.atleast_1d(refusal.value.nearest))) != len(np.atleast_1d(arguments["until"])):
            arguments["until"] = tuple(range(1, number + 1))
        if refusal.value.name == "until" and number > 1:
            arguments["factors"] = (0.25, 0.5)
        recipe_with().warm_up_batch_size(**arguments | nearest)


def test_clocks_that_end_earlier():
    for clock, end in (("updates", 79), ("examples", 10_000)):
        with pytest.raises(bsjax.InvalidArgument, match=rf"at most {end} {clock}, the end of training"):
            recipe_with(clock=clock).warm_up_batch_size(0.25, end + 1)
        recipe_with(clock=clock).warm_up_batch_size(0.25, end)
