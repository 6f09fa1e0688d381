"""Controllers: limits and hysteresis, what follows the size, resuming to the same bits, bad input."""

import collections
import itertools
import json
import math

import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bsjax
from bsjax import gradient_noise
from bsjax.controllers import (
    CONTROLLERS,
    LAG,
    AdaBatch,
    Adaptive,
    AdaScale,
    Cabs,
    CriticalBatch,
    GradientNoise,
    Limits,
    Observation,
    Planned,
    Plateau,
    check_microbatches,
    create_controller,
    scaling_rule,
)
from bsjax.layout import Layouts
from bsjax.optimizers import OPTIMIZERS

PROPERTY = settings(derandomize=True, deadline=None, max_examples=50)
EXPONENTS = {"linear": 1.0, "sqrt": 0.5}
RECIPES = {
    "constant": bsjax.Recipe(0.1, 16, 2000, 2),
    "steps": bsjax.Recipe(optax.piecewise_constant_schedule(0.1, {1: 0.2, 2: 0.2}), 16, 2000, 3),
    "cosine": bsjax.Recipe(optax.cosine_decay_schedule(0.1, 3), 16, 2000, 3),
    "warm-up": bsjax.Recipe(optax.warmup_cosine_decay_schedule(0.0, 0.1, 1000, 6000), 16, 2000, 3, clock="examples"),
    "restarts": bsjax.Recipe(lambda epoch: 0.1 * (1 - 0.9 * (epoch % 1)), 16, 2000, 3),
    "batch": bsjax.Recipe(0.1, lambda epoch: 16 if epoch < 1 else 48, 2000, 3, momentum=0.5),
}


class Wanted(Adaptive):
    """Wants what a list says, update by update."""

    def __init__(self, *args, targets, **options):
        super().__init__(*args, **options)
        self._targets = targets

    def target(self, now):
        return self._targets[self._update % len(self._targets)]


class World:
    """What the updates of a run show: a function of the update and what came before it."""

    def __init__(self, half_life_examples=500):
        self.averages = gradient_noise.zero_averages()
        self.half_life_examples = half_life_examples
        self.measured = []

    def __call__(self, update):
        random = np.random.default_rng(update.update)
        estimate = gradient_noise.Estimate(random.normal(1, 0.5), random.uniform(20, 200), update.batch_size, 4)
        if update.update % 7 == 3:
            estimate = estimate._replace(grad_sq=math.nan, trace=math.nan)
        self.averages = gradient_noise.update_averages(self.averages, estimate, self.half_life_examples)
        return Observation(update, random.uniform(0.9, 1.1) + 1 / (1 + update.update), estimate, self.averages)


def play(controller, world, make=None, interruptions=()):
    """What the training loop does; where it is interrupted, another controller goes on."""
    updates, pending = [], collections.deque()
    while True:
        while pending and pending[0].update.update < len(updates) - LAG:
            controller.observe(pending.popleft())
        if len(updates) in interruptions:
            state = json.loads(json.dumps(controller.state(), allow_nan=False))
            assert make().identity() == controller.identity()
            controller = make()
            controller.restore(state)
        if branches := getattr(controller, "branches", lambda: None)():
            assert controller.branches() == branches  # asked again after a crash in between
            world.measured.append(branches)
            controller.observe_branches([[world_loss(update) for update in branch] for branch in branches])
        update = controller.next_update()
        if update is None:
            assert controller.next_update() is None
            return updates
        updates.append(update)
        pending.append(world(update))


def world_loss(update):
    return 1 + (update.batch_size / 300) ** 4 + np.random.default_rng(update.examples_seen).uniform(0, 0.001)


def limits_strategy():
    def build(smallest, steps, unit, growth, picked, monotone, hysteresis):
        smallest, largest = smallest * unit, (smallest + steps) * unit
        allowed = tuple(size for size in range(smallest, largest + 1, unit) if picked >> (size % 31) & 1) or None
        growth = None if allowed or growth is None else max(growth, 1 + unit / smallest)
        return Limits(smallest, largest, unit, growth, allowed, monotone, hysteresis)

    return st.builds(
        build,
        st.integers(1, 20),
        st.integers(0, 60),
        st.sampled_from([1, 3, 8]),
        st.sampled_from([None, None, 1.3, 2]),
        st.sampled_from([0, 0, 0x12345678]),
        st.booleans(),
        st.sampled_from([0.0, 0.1, 0.25, 1.0]),
    )


TARGETS = st.lists(st.floats(0.1, 2000) | st.sampled_from([math.nan, math.inf, 0.0, -5.0]), min_size=1, max_size=30)


# Limits.


@PROPERTY
@given(limits_strategy(), TARGETS)
def test_sizes_are_allowed_and_follow_what_is_clearly_past_them(limits, targets):
    sizes = set(limits.sizes)
    assert all(limits.min_batch_size <= size <= limits.max_batch_size for size in sizes)
    assert all(size % limits.multiple_of == 0 for size in sizes)
    size = limits.sizes[0]
    for target in targets:
        before, size = size, limits.follow(size, target)
        assert size in sizes
        if limits.monotone:
            assert size >= before
        if math.isnan(target):
            assert size == before
        elif size != before:
            assert size == limits.round_down(target)
        else:  # no allowed size lies between it and the target, beyond the hysteresis
            above = [other for other in sizes if before < other <= target / (1 + limits.hysteresis)]
            below = [other for other in sizes if target * (1 + limits.hysteresis) * (1 + 1e-6) < other <= before]
            assert not above
            assert limits.monotone or not below or before == min(sizes)


@PROPERTY
@given(limits_strategy(), st.integers(0, 2**32 - 1))
def test_a_noisy_constant_changes_the_size_once_at_most(limits, seed):
    # All targets within a factor 1 + h of each other, wherever the borders between the sizes are.
    random = np.random.default_rng(seed)
    lowest = random.uniform(limits.min_batch_size, limits.max_batch_size)
    highest = lowest * (1 + limits.hysteresis) * (1 - 1e-9)
    sizes = [int(random.choice(limits.sizes))]
    for target in random.uniform(lowest, max(lowest, highest), 40):
        sizes.append(limits.follow(sizes[-1], target))
    assert sum(one != other for one, other in itertools.pairwise(sizes)) <= 1


def test_without_hysteresis_the_same_noise_oscillates():
    sizes, free = [64], Limits(32, 256, growth=2, hysteresis=0)
    for target in (127, 129) * 5:
        sizes.append(free.follow(sizes[-1], target))
    assert sizes[1:] == [64, 128] * 5


def test_allowed_sizes_by_growth_list_and_multiples():
    assert list(Limits(128, 5120, growth=5).sizes) == [128, 640, 3200]
    assert list(Limits(24, 104, multiple_of=8, growth=1.5).sizes) == [24, 32, 48, 80]
    assert list(Limits(8, 64, 8, allowed_batch_sizes=(64, 8, 16)).sizes) == [8, 16, 64]
    assert list(Limits(8, 32, 8).sizes) == [8, 16, 24, 32]
    assert Limits(1, 2000).round_down(1279.9999999) == 1280


# What follows the size.


@settings(PROPERTY, max_examples=30)
@given(
    st.sampled_from(sorted(RECIPES)),
    TARGETS,
    st.sampled_from(["linear", "sqrt"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0, 700]),
)
def test_the_learning_rate_follows_the_size_and_updates_tile_the_stream(
    name, targets, scaling, bound, monotone, warmup
):
    recipe = RECIPES[name]
    limits = Limits(8, 400, 8, monotone=monotone, warmup_examples=warmup)
    controller = Wanted(recipe, limits, scaling, bound, targets=targets)
    updates = play(controller, lambda update: Observation(update, 1.0, None, None))
    starts = np.array([update.examples_seen for update in updates])
    sizes = np.array([update.batch_size for update in updates])
    rates = np.array([update.learning_rate for update in updates])
    values = recipe.at(starts)

    assert [update.update for update in updates] == list(range(len(updates)))
    np.testing.assert_array_equal(starts, np.cumsum(sizes) - sizes)
    assert starts[-1] < recipe.num_examples == controller.num_examples <= starts[-1] + sizes[-1]
    assert set(sizes.tolist()) <= set(controller.batch_sizes)
    np.testing.assert_array_equal([update.momentum for update in updates], values.momentum)
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
def test_all_of_the_decay_is_the_recipes_own_conversion(name, scaling):
    recipe = RECIPES[name]
    controller = Wanted(recipe, Limits(16, 400, 8), scaling, bound_by_decay=True, targets=[math.inf])
    updates = play(controller, lambda update: Observation(update, 1.0, None, None))
    plan = recipe.increase_batch_size(max_batch_size=400, scaling=scaling, multiple_of=8).plan()
    assert [update.batch_size for update in updates] == plan.batch_sizes.tolist()
    np.testing.assert_allclose([update.learning_rate for update in updates], plan.learning_rates, rtol=1e-12)


def test_none_of_the_decay_is_the_recipe():
    controller = Wanted(RECIPES["cosine"], Limits(16, 400), bound_by_decay=True, targets=[math.nan])
    assert play(controller, lambda update: Observation(update, 1.0, None, None)) == list(RECIPES["cosine"].plan())


def test_a_rising_learning_rate_takes_the_batch_back():
    recipe = RECIPES["restarts"]
    controller = Wanted(recipe, Limits(16, 400, monotone=True), bound_by_decay=True, targets=[math.inf])
    updates = play(controller, lambda update: Observation(update, 1.0, None, None))
    end, start = next(pair for pair in itertools.pairwise(updates) if pair[1].batch_size < pair[0].batch_size)
    assert end.examples_seen < 2000 <= start.examples_seen + start.batch_size
    assert start.batch_size < 20 < 100 < end.batch_size


# Every controller.

COSINE = RECIPES["cosine"]
NOISY = Limits(16, 512, 8, hysteresis=0.1, warmup_examples=200)
MAKERS = {
    "planned": lambda: Planned(COSINE.increase_batch_size(400).plan()),
    "gradient noise": lambda: GradientNoise(COSINE, NOISY, factor=0.7),
    "gradient noise, bounded": lambda: GradientNoise(COSINE, NOISY, "sqrt", bound_by_decay=True),
    "gradient noise, priced": lambda: GradientNoise(COSINE, NOISY, example_price=0.005),
    "cabs": lambda: Cabs(bsjax.Recipe(2.0, 16, 2000, 3), NOISY),
    "adascale": lambda: AdaScale(COSINE, Limits(16, 128), scale=8),
    "adascale, growing": lambda: AdaScale(RECIPES["batch"], Limits(16, 192), smoothing=0.9),
    "adabatch": lambda: AdaBatch(COSINE, NOISY, every_epochs=0.4),
    "plateau": lambda: Plateau(COSINE, NOISY, factor=0.5, patience=3, cooldown=2, accumulation_size=2),
    "critical batch": lambda: CriticalBatch(COSINE, NOISY, measure_every_epochs=0.2, branch_examples=200),
    "critical batch, known": lambda: CriticalBatch(COSINE, NOISY, critical_batch_size=lambda seen: seen / 10),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_killed_and_resumed_is_uninterrupted_bitwise(make):
    undisturbed = World()
    uninterrupted = play(make(), undisturbed)
    assert len({update.batch_size for update in uninterrupted}) >= 2 or isinstance(make(), AdaScale)
    for interruptions in ([1], [len(uninterrupted) // 2], range(0, len(uninterrupted), LAG + 2)):
        world = World()
        assert play(make(), world, make, interruptions) == uninterrupted
        assert world.measured == undisturbed.measured


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_what_the_engine_is_told(make):
    controller = make()
    sizes = list(controller.batch_sizes)
    updates = play(controller, World())
    assert {update.batch_size for update in updates} <= set(sizes)
    assert sizes == sorted(set(sizes))
    assert controller.num_examples <= updates[-1].examples_seen + updates[-1].batch_size
    assert controller.dataset_size == 2000
    assert json.loads(json.dumps(controller.identity(), allow_nan=False)) == make().identity()


def test_other_settings_are_another_identity():
    identities = [json.dumps(make().identity()) for make in MAKERS.values()]
    assert len(set(identities)) == len(MAKERS)
    other = CriticalBatch(COSINE, NOISY, critical_batch_size=lambda seen: seen / 11)
    assert other.identity() != MAKERS["critical batch, known"]().identity()


def test_registry_makes_every_controller():
    recipe, limits = RECIPES["constant"], Limits(16, 256)
    for name, kind in CONTROLLERS.items():
        assert type(create_controller(name, recipe, limits, "sgd")) is kind
    assert list(create_controller("planned", recipe, limits, "adam").plan) == list(recipe.plan())
    assert create_controller("plateau", recipe, limits, "adam").identity()["scaling"] == "sqrt"
    assert create_controller("plateau", recipe, limits, "adam", scaling="linear").identity()["scaling"] == "linear"
    assert [name for name in OPTIMIZERS if scaling_rule(name) == "sqrt"] == ["adam", "adamw", "rmsprop"]


def test_two_microbatches_in_every_update():
    recipe = RECIPES["constant"]
    noise, plan = GradientNoise(recipe, Limits(32, 256, 8)), Planned(recipe.plan())
    fine = Layouts([64], 8, [1], 1024, microbatch_size=16)
    whole = Layouts([64], 8, [1], 1024, microbatch_size=32)
    check_microbatches(noise, fine, ghost_batch_size=8)
    check_microbatches(plan, whole, ghost_batch_size=8)
    with pytest.raises(bsjax.InvalidArgument, match=r"^microbatch_size is 32; .* in a batch of 32: .*; nearest: 16$"):
        check_microbatches(noise, whole, ghost_batch_size=8)
    with pytest.raises(bsjax.InvalidArgument, match=r"^min_batch_size is 32; .* ghost_batch_size 32: .*; nearest: 64$"):
        check_microbatches(noise, whole, ghost_batch_size=32)


def built(name, **options):
    optimizer = options.pop("optimizer", "sgd")
    return create_controller(name, RECIPES["cosine"], options.pop("limits", Limits(16, 256)), optimizer, **options)


BAD_INPUT = [
    (lambda: Limits(0, 8), "min_batch_size is 0; it must be a whole number >= 1; nearest: 1"),
    (lambda: Limits(8, 8.5), "max_batch_size is 8.5; it must be a whole number >= 1; nearest: 8"),
    (lambda: Limits(16, 8), "min_batch_size is 16; it must be at most max_batch_size 8; nearest: 8"),
    (lambda: Limits(20, 64, 8), "min_batch_size is 20; it must be a multiple of multiple_of 8; nearest: 16 or 24"),
    (lambda: Limits(8, 9, 0), "multiple_of is 0; it must be a whole number >= 1; nearest: 1"),
    (
        lambda: Limits(8, 64, 8, allowed_batch_sizes=(8, 20)),
        "allowed_batch_sizes is 20; it must be a multiple of multiple_of 8; nearest: 16 or 24",
    ),
    (
        lambda: Limits(8, 64, 8, allowed_batch_sizes=(8, 72)),
        "allowed_batch_sizes is 72; it must be between min_batch_size 8 and max_batch_size 64; nearest: 64",
    ),
    (
        lambda: Limits(8, 64, allowed_batch_sizes=()),
        "allowed_batch_sizes is (); it must be at least one size, or None; nearest: (8,)",
    ),
    (
        lambda: Limits(8, 64, growth=2, allowed_batch_sizes=(8,)),
        "growth is 2; it must be None where allowed_batch_sizes are given",
    ),
    (lambda: Limits(8, 64, growth=1), "growth is 1; it must be a number greater than 1, or None; nearest: 2"),
    (
        lambda: Limits(8, 64, 8, growth=1.5),
        "growth is 1.5; it must be enough to get from 8 to a larger allowed size; nearest: 2.0",
    ),
    (lambda: Limits(8, 64, hysteresis=-0.1), "hysteresis is -0.1; it must be a number >= 0; nearest: 0"),
    (lambda: Limits(8, 64, hysteresis=math.nan), "hysteresis is nan; it must be a number >= 0; nearest: 0"),
    (lambda: Limits(8, 64, warmup_examples=-1), "warmup_examples is -1; it must be a whole number >= 0; nearest: 0"),
    (
        lambda: built("gradient_nose"),
        "controller is 'gradient_nose'; it must be one of planned, gradient_noise, cabs, adascale, adabatch, plateau, "
        "critical_batch; nearest: gradient_noise",
    ),
    (lambda: built("planned", factor=2), "option of planned is 'factor'; it must be left out: it has none"),
    (
        lambda: built("cabs", smothing=0.9),
        "option of cabs is 'smothing'; it must be one of smoothing; nearest: smoothing",
    ),
    (lambda: built("cabs", optimizer="momentum"), "optimizer is 'momentum'; it must be sgd for Cabs; nearest: sgd"),
    (
        lambda: built("adascale", optimizer="adam"),
        "optimizer is 'adam'; it must be momentum or nesterov or sgd for AdaScale; nearest: momentum",
    ),
    (
        lambda: built("plateau", optimizer="adma"),
        "optimizer is 'adma'; it must be one of sgd, momentum, nesterov, adam, adamw, rmsprop; nearest: adam",
    ),
    (
        lambda: built("plateau", limits=Limits(16, 4000)),
        "max_batch_size is 4000; it must be at most dataset_size 2000; nearest: 2000",
    ),
    (
        lambda: built("plateau", limits=Limits(32, 256), bound_by_decay=True),
        "min_batch_size is 32; it must be at most the recipe's batch_size 16 with bound_by_decay; nearest: 16",
    ),
    (
        lambda: built("plateau", scaling="cube"),
        "scaling is 'cube'; it must be one of linear, sqrt; nearest: linear",
    ),
    (lambda: built("gradient_noise", factor=0), "factor is 0; it must be a positive finite number"),
    (
        lambda: built("gradient_noise", example_price=0),
        "example_price is 0; it must be a positive number of updates, or None",
    ),
    (
        lambda: built("gradient_noise", example_price=-1e-3),
        "example_price is -0.001; it must be a positive number of updates, or None",
    ),
    (
        lambda: built("gradient_noise", example_price=1e-3, factor=2),
        "factor is 2; it must be 1 with an example_price; nearest: 1",
    ),
    (lambda: built("cabs", smoothing=1), "smoothing is 1; it must be in [0, 1); nearest: 0.95"),
    (
        lambda: built("adascale", limits=Limits(8, 8)),
        "max_batch_size is 8; it must be at least the recipe's batch_size 16; nearest: 16",
    ),
    (
        lambda: built("adascale", scale=17),
        "scale is 17; it must be in [1, 16], by the recipe's batch_size 16 and max_batch_size 256; nearest: 16",
    ),
    (
        lambda: built("adascale", scale=0.5),
        "scale is 0.5; it must be in [1, 16], by the recipe's batch_size 16 and max_batch_size 256; nearest: 1",
    ),
    (
        lambda: built("adascale", limits=Limits(64, 256), scale=2),
        "scale is 2; it must be large enough to get from 16 to an allowed size; nearest: 4",
    ),
    (lambda: built("adascale", smoothing=1.0), "smoothing is 1.0; it must be in [0, 1), or None; nearest: 0.999"),
    (lambda: built("adabatch", every_epochs=0), "every_epochs is 0; it must be a positive finite number"),
    (lambda: built("adabatch", factor=1), "factor is 1; it must be a number greater than 1; nearest: 2"),
    (lambda: built("plateau", factor=1), "factor is 1; it must be in (0, 1); nearest: 0.1"),
    (lambda: built("plateau", patience=0), "patience is 0; it must be a whole number >= 1; nearest: 1"),
    (lambda: built("plateau", rtol=2), "rtol is 2; it must be in [0, 1]; nearest: 0.0001"),
    (lambda: built("plateau", rtol=0), "rtol is 0; it must be positive where atol is 0; nearest: 0.0001"),
    (lambda: built("plateau", atol=-1), "atol is -1; it must be a number >= 0; nearest: 0"),
    (lambda: built("plateau", cooldown=-1), "cooldown is -1; it must be a whole number >= 0; nearest: 0"),
    (lambda: built("plateau", min_scale=2), "min_scale is 2; it must be in [0, 1]; nearest: 0"),
    (
        lambda: built("critical_batch", multiples=(1, 2)),
        "multiples is (1, 2); it must be whole numbers in increasing order, from 1 to more than 2; nearest: (1, 2, 4)",
    ),
    (lambda: built("critical_batch", tolerance=-1), "tolerance is -1; it must be a number >= 0; nearest: 0.01"),
    (
        lambda: built("critical_batch", critical_batch_size=0),
        "critical_batch_size is 0; it must be a positive finite number",
    ),
    (
        lambda: built("critical_batch", branch_examples=0),
        "branch_examples is 0; it must be a whole number >= 1; nearest: 1",
    ),
    (
        lambda: built("critical_batch", measure_every_epochs=0),
        "measure_every_epochs is 0; it must be a positive finite number",
    ),
]


@pytest.mark.parametrize(("build", "message"), BAD_INPUT, ids=[message.split(";")[0] for _, message in BAD_INPUT])
def test_bad_input_is_refused_with_the_numbers(build, message):
    with pytest.raises(bsjax.InvalidArgument) as refusal:
        build()
    assert str(refusal.value) == message
