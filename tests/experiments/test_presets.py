"""The controls of the figures: what each changes, and what it keeps."""

import functools

import numpy as np
import pytest

from experiments.harness import build, presets

_EVERY_PRESET = pytest.mark.parametrize("name", presets.PRESETS)
_FEW, _DECAYED, _TWICE = (
    f"Control: {name}" for name in ("as few updates, small batch", "grown and decayed", "grown twice too much")
)


@functools.cache
def plans_of(name, **changes):
    """The growing batch, the recipe, and the plan of each control."""
    preset = presets.get(name)
    config = preset.config.replace(**changes)
    growing = presets.section_5_2(preset, config)["Increasing batch size"]
    configs = {"growing": growing, "recipe": config, **presets.controls(preset, config)}
    return preset, {label: build.recipe(one, preset.dataset_size).plan() for label, one in configs.items()}


def phases_of(plan, boundaries):
    """Batch size and learning rate of a plan between some epochs, each the only one there."""
    epochs, found = plan.examples_seen[: plan.num_updates] / plan.dataset_size, []
    slack = plan.batch_sizes.max() / plan.dataset_size  # an update goes on across a boundary
    for start, stop in zip([0.0, *boundaries], [*boundaries, np.inf], strict=True):
        inside = (epochs >= start + slack * (start > 0)) & (epochs < stop - 1e-9)
        values = {
            (int(b), float(f"{r:.9g}"))
            for b, r in zip(plan.batch_sizes[inside], plan.learning_rates[inside], strict=True)
        }
        assert len(values) == 1
        found.append(values.pop())
    return np.array(found).T


@_EVERY_PRESET
def test_the_constant_control_is_the_recipe_without_its_decay(name):
    _, plans = plans_of(name)
    plan, recipe = plans[presets.CONSTANT], plans["recipe"]
    assert set(plan.learning_rates) == {recipe.learning_rates[0]}
    np.testing.assert_array_equal(plan.batch_sizes, recipe.batch_sizes)


@_EVERY_PRESET
def test_the_short_control_has_as_many_updates_as_the_grown_batch_and_decays_at_the_same_shares(name):
    preset, plans = plans_of(name)
    plan, recipe = plans[_FEW], plans["recipe"]
    assert plan.num_updates == pytest.approx(plans["growing"].num_updates, rel=0.01)
    assert set(plan.batch_sizes) == {preset.config.recipe.batch_size}
    shares = [np.flatnonzero(np.diff(one.learning_rates)) / one.num_updates for one in (plan, recipe)]
    assert len(shares[0]) == len(preset.config.recipe.lr_decay_epochs)
    assert shares[0] == pytest.approx(shares[1], abs=0.003)


@_EVERY_PRESET
def test_grown_and_decayed_halves_the_time_constant_of_the_noise(name):
    preset, plans = plans_of(name)
    factor, decays = preset.config.recipe.lr_decay_factor, preset.config.recipe.lr_decay_epochs
    batches, rates = phases_of(plans[_DECAYED], decays)
    wanted, _ = phases_of(plans["growing"], decays)
    np.testing.assert_array_equal(batches, wanted)
    assert rates / batches == pytest.approx(rates[0] / batches[0] / factor ** (2 * np.arange(len(rates))), rel=1e-6)
    below = batches < preset.max_batch_size
    assert rates[below] == pytest.approx(rates[0] / factor ** np.arange(below.sum()), rel=1e-6)


@_EVERY_PRESET
def test_grown_twice_too_much_holds_the_rate_up_to_twice_the_cap(name):
    preset, plans = plans_of(name)
    factor, decays = preset.config.recipe.lr_decay_factor, preset.config.recipe.lr_decay_epochs
    batches, rates = phases_of(plans[_TWICE], decays)
    cap, growth = 2 * preset.max_batch_size, (2 * factor) ** np.arange(len(batches))
    np.testing.assert_array_equal(batches, np.minimum(batches[0] * growth, cap))
    assert rates[batches < cap] == pytest.approx(rates[0])
    assert rates / batches == pytest.approx(rates[0] / batches[0] / growth, rel=1e-6)


def test_controls_follow_the_recipes_flags():
    preset = presets.get("cifar10")
    cosine = presets.controls(preset, preset.config.replace(lr_schedule="cosine"))
    assert list(cosine) == [presets.CONSTANT, _FEW]
    # The square-root rule: the batch grows by the square of the factor, and still the rate falls by the factor.
    _, plans = plans_of("cifar10", optimizer="adam", batch_scaling="sqrt", lr_decay_epochs=(60.0,), lr_decay_factor=2.0)
    (before, after), rates = phases_of(plans[_DECAYED], (60.0,))
    assert (after / before, rates[0] / rates[1]) == pytest.approx((4, 2))
    _, plans = plans_of("cifar10", warmup_epochs=10.0)
    rates = [plans[label].learning_rates for label in (_FEW, "recipe")]
    first, last = (np.argmax(one == one.max()) / len(one) for one in rates)
    assert first == pytest.approx(last, rel=0.01)


@_EVERY_PRESET
def test_every_preset_names_its_margin(name):
    assert 0 < presets.get(name).margins["accuracy"] <= 0.01
