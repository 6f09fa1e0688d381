"""Recipes from an optax schedule, from PyTorch's milestones and from Hugging Face's cosine."""

import bisect
import math

import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bsjax
from bsjax import InvalidArgument, Recipe

SIZES = {"batch_size": 32, "dataset_size": 1_000}
NUM_UPDATES = st.integers(1, 300)
few = settings(max_examples=10, deadline=None)


@few
@given(NUM_UPDATES, st.integers(1, 64), st.integers(64, 5_000))
def test_an_optax_schedule_gives_its_values_update_by_update(num_updates, batch_size, dataset_size):
    schedule = optax.warmup_cosine_decay_schedule(0.01, 0.4, warmup_steps=20, decay_steps=250)
    plan = Recipe.from_optax_schedule(schedule, batch_size, dataset_size, num_updates).plan()
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        expected = [float(schedule(np.int64(count))) for count in (0, num_updates // 2, num_updates - 1)]
    assert plan.num_updates == num_updates and set(plan.batch_sizes.tolist()) == {batch_size}
    np.testing.assert_allclose(plan.learning_rates[[0, num_updates // 2, -1]], expected, rtol=1e-13)


def test_an_optax_schedule_may_be_a_plain_function_or_a_number():
    plan = Recipe.from_optax_schedule(lambda count: 0.5 if count < 3 else 0.25, num_updates=5, **SIZES).plan()
    assert plan.learning_rates.tolist() == [0.5, 0.5, 0.5, 0.25, 0.25]
    constant = Recipe.from_optax_schedule(0.5, num_updates=5, momentum=0.0, **SIZES)
    assert constant.plan().learning_rates.tolist() == [0.5] * 5 and constant.at(0).momentum == 0.0


@few
@given(NUM_UPDATES, st.lists(st.integers(0, 300), max_size=4), st.floats(0.05, 2.0))
def test_milestones_in_updates_give_the_numbers_of_pytorch(num_updates, milestones, gamma):
    recipe = Recipe.from_milestones(0.1, milestones, num_updates=num_updates, gamma=gamma, **SIZES)
    rate, rates = 0.1, []
    for count in range(num_updates):  # torch.optim.lr_scheduler.MultiStepLR.get_lr, step by step
        for _ in range(milestones.count(count)):
            rate *= gamma
        rates.append(rate)
    assert recipe.plan().learning_rates.tolist() == rates


def test_milestones_in_epochs_are_those_of_the_paper():
    recipe = Recipe.from_milestones(0.1, [120, 60, 160], 128, 50_000, num_epochs=200, gamma=0.2)
    assert recipe.clock == "epochs"
    starts = recipe.plan().examples_seen
    expected = [0.1 * 0.2 ** bisect.bisect_right([60, 120, 160], start / 50_000) for start in starts[::97]]
    np.testing.assert_allclose(recipe.plan().learning_rates[::97], expected, rtol=1e-15)
    assert recipe.increase_batch_size(5120).plan().num_updates == 29_142


def lr_lambda(step, num_warmup_steps, num_training_steps, num_cycles):
    """As in transformers.optimization."""
    if step < num_warmup_steps:
        return float(step) / float(max(1, num_warmup_steps))
    progress = float(step - num_warmup_steps) / float(max(1, num_training_steps - num_warmup_steps))
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * float(num_cycles) * 2.0 * progress)))


@few
@given(st.integers(2, 300), st.integers(0, 299), st.floats(0.1, 2.0))
def test_a_cosine_with_warmup_gives_the_numbers_of_transformers(steps, warmup, num_cycles):
    warmup = min(warmup, steps - 1)
    if steps - 1 == warmup == 1:  # two updates: rates 0 and 1
        num_cycles = 0.5
    recipe = Recipe.from_cosine_with_warmup(5e-5, warmup, steps, num_cycles=num_cycles, **SIZES)
    expected = [5e-5 * lr_lambda(step, warmup, steps, num_cycles) for step in range(steps)]
    np.testing.assert_allclose(recipe.plan().learning_rates, expected, rtol=1e-12, atol=1e-18)


def test_a_cosine_with_warmup_converts():
    recipe = Recipe.from_cosine_with_warmup(1e-3, 50, 1_000, hyperparameters={"b2": 0.99}, **SIZES)
    larger = recipe.increase_batch_size(512, scaling="sqrt").scale_adam(weight_decay=None, epsilon=False)
    plan = larger.plan()
    assert plan.num_updates < 800 and plan.batch_sizes[0] == 32 and plan.batch_sizes[-1] == 512
    kept = np.sqrt(plan.batch_sizes) / plan.learning_rates.clip(1e-9)
    before = np.sqrt(32) / recipe.at(plan.examples_seen).learning_rate.clip(1e-9)
    np.testing.assert_allclose(kept[1:-5], before[1:-5], rtol=1e-9)  # the same noise


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Recipe.from_optax_schedule(0.1, num_updates=0, **SIZES), "num_updates is 0; .*nearest: 1"),
        (lambda: Recipe.from_optax_schedule(0.1, 2.5, 1_000, 10), "batch_size is 2.5; .*nearest: 2"),
        (lambda: Recipe.from_optax_schedule(0.1, 2_000, 1_000, 10), "batch_size is 2000; .*nearest: 1000"),
        (lambda: Recipe.from_optax_schedule(0.1, num_updates=9, clock="epochs", **SIZES), "clock is 'epochs'.*updates"),
        (lambda: Recipe.from_milestones(0.1, [3], **SIZES), "num_epochs is 'neither'; .*or num_updates"),
        (
            lambda: Recipe.from_milestones(0.1, [3], num_epochs=9, num_updates=9, **SIZES),
            "num_epochs is '9, and num_up",
        ),
        (lambda: Recipe.from_milestones(0.1, [3.5], num_updates=9, **SIZES), "milestones is 3.5; .*whole .*nearest: 4"),
        (
            lambda: Recipe.from_milestones(0.1, [-1], num_epochs=9, **SIZES),
            "milestones is -1; .*epochs .*nearest: 0",
        ),
        (lambda: Recipe.from_milestones(0.1, [math.nan], num_epochs=9, **SIZES), "milestones is nan; "),
        (lambda: Recipe.from_milestones(0.1, [3], num_epochs=9, gamma=0, **SIZES), "gamma is 0; .*positive"),
        (lambda: Recipe.from_cosine_with_warmup(0.1, 20, 10, **SIZES), "num_warmup_steps is 20; .*10; nearest: 10"),
        (lambda: Recipe.from_cosine_with_warmup(0.1, -1, 10, **SIZES), "num_warmup_steps is -1; .*nearest: 0"),
        (
            lambda: Recipe.from_cosine_with_warmup(0.1, 1, 10, num_cycles=-1, **SIZES),
            "num_cycles is -1; .*0.5",
        ),
        (lambda: Recipe.from_cosine_with_warmup(-1, 1, 10, **SIZES), "learning_rate is -1; .*positive"),
    ],
)
def test_bad_values_are_refused_in_one_line(make, message):
    with pytest.raises(InvalidArgument, match=f"^{message}") as refused:
        make()
    assert "\n" not in str(refused.value)


def test_a_recipe_of_numbers_prints_and_compares():
    recipe = Recipe.from_milestones(0.1, [3], num_epochs=9, **SIZES)
    assert recipe == Recipe.from_milestones(0.1, (3.0,), num_epochs=9, **SIZES)
    assert "Milestones(learning_rate=0.1, milestones=(3.0,), gamma=0.1)" in repr(recipe)
    assert isinstance(recipe, bsjax.Recipe)
