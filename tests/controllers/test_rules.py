"""What each controller decides: by hand, against independent implementations, and in noise of known size."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bsjax
from bsjax import gradient_noise
from bsjax.controllers import LAG, AdaBatch, AdaScale, Cabs, GradientNoise, Limits, Observation, Plateau
from bsjax.gradient_noise import Estimate

NO_AVERAGES = gradient_noise.zero_averages()


def constant(learning_rate=0.1, batch_size=16, num_epochs=2, dataset_size=2000):
    return bsjax.Recipe(learning_rate, batch_size, dataset_size, num_epochs)


def averages(grad_sq, trace):
    return NO_AVERAGES._replace(weight=1.0, grad_sq=grad_sq, trace=trace)


def decide(controller, *observations):
    """The next update after these observations."""
    state = controller.init()
    for seen in observations:
        update, state = controller.decide(state)
        state = controller.observe(state, Observation(update, *seen))
    return controller.decide(state)[0]


def record_gradients(seed, updates, shards, signal):
    """float64 [updates, shards, 50]: recorded mean gradients, of shards that have one size."""
    random = np.random.default_rng(seed)
    mean = signal * random.standard_normal((updates, 1, 50)) * np.linspace(2, 0.1, updates)[:, None, None]
    return mean + random.standard_normal((updates, shards, 50))


def estimate_of(gradients, shard_size):
    """What the engine reports of one update."""
    shards = len(gradients)
    weighted_sq = shard_size * (gradients**2).sum()  # Σ |s|²/n over shards with s = n g
    mean_sq = float((gradients.mean(0) ** 2).sum())
    return gradient_noise.estimate(weighted_sq, mean_sq, shards * shard_size, shards)


# Gradient noise.


@pytest.mark.parametrize(
    ("seen", "options", "size"),
    [
        (averages(2.0, 400.0), {}, 200),
        (averages(2.0, 400.0), {"factor": 0.5}, 100),
        (averages(2.0, 400.0), {"example_price": 0.02}, 100),
        (averages(-0.1, 4.0), {}, 512),  # lost in the noise
        (averages(0.0, 0.0), {}, 16),  # unknown
        (NO_AVERAGES, {}, 16),
    ],
)
def test_gradient_noise_by_hand(seen, options, size):
    controller = GradientNoise(constant(), Limits(1, 512, hysteresis=0), GradientNoise.options_type(**options))
    assert decide(controller, (1.0, None, seen)).batch_size == size


def test_gradient_noise_price_minimises_steps_and_examples():
    noise_scale, price = 300.0, 0.01
    sizes = np.arange(1, 2000)
    cost = (1 + noise_scale / sizes) + price * (sizes + noise_scale)
    controller = GradientNoise(
        constant(), Limits(1, 2000, hysteresis=0), GradientNoise.options_type(example_price=price)
    )
    decided = decide(controller, (1.0, None, averages(1.0, noise_scale)))
    assert decided.batch_size == pytest.approx(sizes[cost.argmin()], abs=1)


@pytest.mark.parametrize("factor", [0.5, 1.0])
def test_gradient_noise_settles_where_the_noise_says(play, factor):
    true_scale, shards, dimension = 160.0, 4, 50
    random = np.random.default_rng(0)
    average = NO_AVERAGES

    def observe(update):
        nonlocal average
        spread = (true_scale / dimension) ** 0.5  # of one example, where |G|² = 1
        mean = np.eye(1, dimension)
        gradients = mean + random.normal(0, spread / (update.batch_size / shards) ** 0.5, (shards, dimension))
        weighted_sq = (update.batch_size / shards) * (gradients**2).sum()
        noise = gradient_noise.estimate(weighted_sq, (gradients.mean(0) ** 2).sum(), update.batch_size, shards)
        average = gradient_noise.update_averages(average, noise, half_life_examples=10_000)
        return Observation(update, 1.0, noise, average)

    limits = Limits(8, 1024, 8, hysteresis=0.1, warmup_examples=2000)
    controller = GradientNoise(bsjax.Recipe(0.1, 32, 50_000, 1), limits, GradientNoise.options_type(factor=factor))
    sizes = [update.batch_size for update in play(controller, observe)]
    settled = sizes[len(sizes) // 2 :]
    assert all(0.8 * factor * true_scale <= size <= 1.2 * factor * true_scale for size in settled)
    assert sum(one != other for one, other in itertools.pairwise(settled)) <= 2


# CABS.


@pytest.mark.parametrize("smoothing", [0.95, 0.9])
def test_cabs_against_the_paper_on_recorded_gradients(smoothing):
    recorded = record_gradients(1, 80, shards=4, signal=1.0)
    losses = np.random.default_rng(2).uniform(0.5, 2.5, 80)
    recipe = bsjax.Recipe(lambda epoch: 0.14 if epoch < 0.5 else 0.11, 16, 2000, 50)
    controller = Cabs(recipe, Limits(4, 400, 4, hysteresis=0), Cabs.options_type(smoothing))
    state, updates = controller.init(), []
    for gradients, loss in zip(recorded, losses, strict=True):
        update, state = controller.decide(state)
        noise = estimate_of(gradients, update.batch_size // 4)
        state = controller.observe(state, Observation(update, loss, noise, NO_AVERAGES))
        updates.append(update)

    # The variance of one example's gradient from those of shards of B/4, and the running means of Algorithm 1.
    variance = loss = seen = 0.0
    batch_size = 16
    for gradients, new_loss, update in zip(recorded, losses, updates, strict=True):
        learning_rate = 0.14 if seen < 1000 else 0.11
        if seen:
            batch_size = min(max(int(learning_rate * variance / loss) // 4 * 4, 4), 400)
        assert (update.batch_size, update.learning_rate) == (batch_size, learning_rate)
        seen += batch_size
        new_variance = batch_size / 4 * gradients.var(axis=0, ddof=1).sum()
        variance = smoothing * variance + (1 - smoothing) * new_variance
        loss = smoothing * loss + (1 - smoothing) * new_loss
    assert len({update.batch_size for update in updates}) > 5


def test_cabs_without_noise_or_loss_keeps_its_size():
    controller = Cabs(constant(), Limits(1, 1000))
    assert decide(controller, (1.0, Estimate(math.nan, math.nan, 16, 1), None)).batch_size == 16
    assert decide(Cabs(constant(), Limits(1, 1000)), (0.0, Estimate(1.0, 8.0, 16, 4), None)).batch_size == 16


# AdaScale.


@pytest.mark.parametrize(("scale", "signal", "updates"), [(8, 0.3, 60), (2, 3.0, 90), (500, 0.05, 12)])
def test_adascale_gain_against_the_paper_on_recorded_gradients(play, scale, signal, updates):
    shards, base = min(scale, 16), 16
    recorded = record_gradients(4, updates, shards, signal)
    recipe = bsjax.Recipe(optax.cosine_decay_schedule(0.1, 1), base, 16 * 500 * 4, 1)
    original = recipe.plan()
    shard_size = base * scale // shards

    def observe(update):
        return Observation(update, 1.0, estimate_of(recorded[update.update % updates], shard_size), NO_AVERAGES)

    played = play(AdaScale(recipe, Limits(16, 16 * scale), AdaScale.options_type(scale)), observe)

    # Johnson et al., Algorithm 1 and Appendix B.3, with the estimates of LAG + 1 updates before.
    variances, squares, clock = [], [], 0.0
    smoothed_variance = smoothed_square = None
    gains = []
    while clock < original.num_updates:
        count = len(gains) - LAG
        if count > 0:
            gradients = recorded[(count - 1) % updates]
            sum_sq, mean_sq = (gradients**2).sum(), (gradients.mean(0) ** 2).sum()
            variance = scale / shards / (shards - 1) * sum_sq - scale / (shards - 1) * mean_sq
            variances.append(max(variance, 1e-6))
            squares.append(max(mean_sq - variance / scale, 0.0))
            theta = max(1 - scale / 1000, 0)
            if count < 1 / (1 - theta):
                smoothed_variance, smoothed_square = np.mean(variances), np.mean(squares)
            else:
                smoothed_variance = theta * smoothed_variance + (1 - theta) * variances[-1]
                smoothed_square = theta * smoothed_square + (1 - theta) * squares[-1]
        gain = 1.0
        if smoothed_variance is not None:
            gain = (smoothed_variance + smoothed_square) / (smoothed_variance / scale + smoothed_square)
        update = played[len(gains)]
        assert update.learning_rate == pytest.approx(gain * original.learning_rates[int(clock)], rel=1e-9)
        assert update.batch_size == scale * base
        gains.append(gain)
        clock += gain
    assert len(played) == len(gains)
    assert 1 <= min(gains) < max(gains) <= scale * (1 + 1e-9)


@pytest.mark.parametrize(
    ("noise", "num_updates", "gain"),
    [
        (Estimate(0.0, 1e9, 1, 4), 34, 8),  # 3 before the first estimate, then 247 / 8
        (Estimate(1e9, 0.0, 1, 4), 250, 1),
        (Estimate(math.nan, math.nan, 128, 1), 250, 1),
    ],
)
def test_adascale_takes_the_recipes_examples_in_noise_and_its_updates_without(play, noise, num_updates, gain):
    controller = AdaScale(constant(), Limits(16, 128), AdaScale.options_type(scale=8))  # 250 updates of 16
    updates = play(controller, lambda update: Observation(update, 1.0, noise, NO_AVERAGES))
    assert len(updates) == num_updates
    assert updates[-1].learning_rate == pytest.approx(0.1 * gain)


def test_adascale_scales_a_batch_that_grows(play):
    recipe = bsjax.Recipe(0.1, lambda epoch: 16 if epoch < 1 else 48, 2000, 2)
    controller = AdaScale(recipe, Limits(16, 96))
    assert list(controller.batch_sizes) == [32, 96]
    noise = Estimate(0.0, 160.0, 32, 4)
    updates = play(controller, lambda update: Observation(update, 1.0, noise, NO_AVERAGES))
    assert [update.batch_size for update in updates] == sorted(update.batch_size for update in updates)
    assert updates[-1].learning_rate == pytest.approx(0.2)
    # At the latest it would end after as many updates as the recipe has.
    assert controller.num_examples == 125 * 32 + 42 * 96


# AdaBatch.


def test_adabatch_doubles_and_decays_as_in_the_paper(play):
    decay = optax.exponential_decay(0.01, 20, 0.375, staircase=True)
    recipe = bsjax.Recipe(decay, 10, 100, 80)
    updates = play(AdaBatch(recipe, Limits(10, 40)))
    changes = [(u.examples_seen, u.batch_size, u.learning_rate) for u in updates]
    firsts = [next(change for change in changes if change[0] >= epoch * 100) for epoch in (0, 20, 40, 60)]
    assert [size for _, size, _ in firsts] == [10, 20, 40, 40]
    expected = [0.01, 0.01 * 0.75, 0.01 * 0.75**2, 0.01 * 0.75**2 * 0.375]  # at the cap the decay is the baseline's
    np.testing.assert_allclose([rate for _, _, rate in firsts], expected, rtol=1e-5)


# Plateau.

PLATEAUS = [
    {},
    {"patience": 3, "factor": 0.5},
    {"patience": 2, "cooldown": 5, "factor": 0.3},
    {"patience": 1, "accumulation_size": 4, "factor": 0.9, "rtol": 0.0, "atol": 0.02},
    {"patience": 4, "cooldown": 1, "accumulation_size": 3, "min_scale": 0.05, "factor": 0.4, "rtol": 0.01},
    {"patience": 2, "factor": 0.5, "rtol": 1.0, "min_scale": 0.2},
]


@pytest.mark.parametrize("options", PLATEAUS, ids=str)
def test_plateau_decides_as_optax(options, float64):
    random = np.random.default_rng(5)
    num_losses = 400
    decay = np.maximum(np.exp(-np.arange(num_losses) / 60), 0.3)
    losses = decay + random.uniform(0, 0.1, num_losses) * random.integers(0, 2, num_losses)
    transformation = optax.contrib.reduce_on_plateau(**options)
    start = transformation.init(jnp.zeros((), jnp.float64))

    def step(state, loss):
        _, state = transformation.update(jnp.zeros(()), state, value=loss)
        return state, state.scale

    with jax.numpy_dtype_promotion("standard"):  # optax's transformation needs it
        _, scales = jax.lax.scan(step, start, jnp.asarray(losses))
    for scaling, exponent in (("linear", 1.0), ("sqrt", 0.5)):
        made = Plateau.options_type(scaling, **options)
        plateau = Plateau(constant(dataset_size=1_000_000), Limits(16, 512), made)
        state = plateau.init()
        for loss, scale in zip(losses, np.asarray(scales), strict=True):
            update, state = plateau.decide(state)
            state = plateau.observe(state, Observation(update, loss, None, None))
            following, _ = plateau.decide(state)
            held = following.learning_rate / (following.batch_size / 16) ** exponent
            assert held == pytest.approx(0.1 * scale, rel=1e-12)
            wanted = min(16 * scale ** (-1 / exponent), 512)
            assert following.batch_size == int(wanted * (1 + 1e-6))
            assert following.learning_rate <= 0.1 * (1 + 1e-6)
    assert np.asarray(scales)[-1] < 1
