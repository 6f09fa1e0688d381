"""Schedules on the clock of examples: batches of a stream, clocks, roundings."""

import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bsjax
from bsjax.schedules import take_batches

PROPERTY = settings(derandomize=True, deadline=None, max_examples=50)


def plain_loop(batch_size_at, num_examples):
    sizes, start = [], 0
    while start < num_examples:
        sizes.append(int(batch_size_at(np.array([start]))[0]))
        start += sizes[-1]
    return sizes


@PROPERTY
@given(st.integers(1, 20_000), st.integers(1, 50), st.integers(1, 5000), st.integers(0, 2**32 - 1))
def test_take_batches_is_the_plain_loop(num_examples, largest, stretch, seed):
    # Stretches of one example make a size that jumps at every position, long ones a few phases.
    sizes = np.random.default_rng(seed).integers(1, largest, num_examples // stretch + 1, endpoint=True)

    def batch_size_at(position):
        return sizes[position // stretch]

    assert take_batches(batch_size_at, num_examples).tolist() == plain_loop(batch_size_at, num_examples)


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


@pytest.mark.parametrize("clock", ["epochs", "updates", "examples"])
@pytest.mark.parametrize("length", [7, 20, 40, 55, 80, 160])
def test_a_rounding_below_zero_is_zero(clock, length):
    # optax computes 0.1 - 0.0999...9 here; for 20, 80 and 160 epochs that is -5.551e-18.
    unit = {"epochs": 1, "updates": 1000 / 25, "examples": 1000}[clock]
    decay = optax.linear_schedule(0.1, 0.0, length * unit)
    recipe = bsjax.Recipe(decay, 25, 1000, 1.25 * length, momentum=optax.linear_schedule(0.1, 0.0, length), clock=clock)
    rates = recipe.plan().learning_rates
    assert np.all(rates >= 0)
    np.testing.assert_allclose(rates[length * 40 :], 0, atol=1e-16)
    assert recipe.increase_batch_size(500).plan().batch_sizes[-1] == 500


@pytest.mark.parametrize(("lowest", "is_rounding"), [(-1e-9, True), (-1e-5, False)])
def test_how_far_below_zero_a_rounding_goes_depends_on_the_largest_value(lowest, is_rounding):
    for largest in (1e-3, 30.0):
        schedule = optax.linear_schedule(largest, lowest * largest, 2)
        if is_rounding:
            assert bsjax.Recipe(schedule, 10, 1000, 3).at(2500).learning_rate == 0
        else:
            with pytest.raises(bsjax.InvalidArgument, match="it must be a number >= 0"):
                bsjax.Recipe(schedule, 10, 1000, 3)
