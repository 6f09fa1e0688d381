"""The advice on the batch size: closed forms of its two batch sizes, a task of one's own, and memory that runs out."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bsjax import InvalidArgument, Recipe
from bsjax.analysis import advice_in_words
from bsjax.analysis.batch_size_advice import (
    AdviceOptions,
    advise,
    advise_batch_size,
    measure_step_times,
    suggest,
)
from bsjax.analysis.noise_along_run import NoiseAlongRun
from bsjax.analysis.time_model import AllReduce, Costs, predict, smallest_batch_size, throughput
from bsjax.data import ArraySource
from bsjax.engine import StepTimes
from bsjax.engine.programs import Programs
from bsjax.errors import RunError
from bsjax.tasks import from_loss

STEPS = optax.piecewise_constant_schedule(0.1, {6: 0.2, 9: 0.2})
RECIPE = Recipe(STEPS, batch_size=8, dataset_size=1000, num_epochs=12)
FULL = Recipe(0.1, batch_size=600, dataset_size=1000, num_epochs=12)
FREE = AllReduce(0.0, math.inf)


def noise_of(scale):
    """Measurements without noise, of a noise scale that does not move."""
    return NoiseAlongRun(np.array([2, 4]), np.full(4, 8), np.array([[(1.0, scale)] * 2] * 3))


@pytest.mark.parametrize("num_devices", [1, 2, 8, 64])
def test_the_smallest_batch_amortizes_what_an_update_costs_besides(num_devices):
    """An update of B examples takes B x / D + a + c, so it runs at B / (B + D (a + c) / x) of full speed."""
    apply_s, all_reduce = 0.05, AllReduce(latency_s=0.01, bytes_per_s=1e6)
    costs = Costs(StepTimes.affine(0.0, 0.001, apply_s), all_reduce, num_bytes=10_000)
    extra = num_devices * (apply_s + all_reduce.seconds(10_000, num_devices)) / 0.001
    speeds = throughput(costs, num_devices)
    for size in (64, 4096, 2**20):
        assert speeds[size] == pytest.approx(size / (size + extra) * num_devices * 1000, rel=1e-6)
    for share in (0.5, 0.9):
        least = share / (1 - share) * extra
        assert smallest_batch_size(costs, num_devices, share) == 2 ** math.ceil(math.log2(least))


def test_a_device_that_takes_many_examples_at_once_needs_them_all():
    times = StepTimes({1: 1.0, 64: 1.0, 128: 2.0}, apply_update_s=0.0)  # idle below 64
    assert smallest_batch_size(Costs(times, FREE, 0), 1) == 64
    assert smallest_batch_size(Costs(times, FREE, 0), 8) == 512
    assert smallest_batch_size(Costs(times, FREE, 0, ghost_batch_size=48), 1) == 96  # whole ghosts


@pytest.mark.parametrize(
    ("critical", "first"), [(1, 8), (79, 8), (80, 16), (159, 16), (161, 32), (1e6, 512), (math.inf, 8)]
)
def test_the_first_batch_costs_at_most_the_allowed_excess(critical, first):
    sizes = suggest(RECIPE, critical).plan().batch_sizes
    assert sizes[0] == first
    assert sizes.max() == max(100, first)  # a tenth of the data set
    constant = suggest(Recipe(0.1, 8, 1000, num_epochs=12), critical).plan()
    assert set(constant.batch_sizes) == {first}
    assert suggest(RECIPE, critical, options=AdviceOptions(excess=1e-9)).plan().batch_sizes[0] == 8


@pytest.mark.parametrize(("scaling", "share"), [("linear", 1.0), ("sqrt", 0.5), (0.6, 1.0)])
def test_the_suggested_recipe_keeps_the_noise_at_every_instant(scaling, share):
    suggested = suggest(RECIPE, 400, 4, AdviceOptions(scaling=scaling, growth_share=share))
    rho = {"linear": 1.0, "sqrt": 0.5}.get(scaling, scaling)
    seen = np.arange(0, 12_000, 7)
    before, after = RECIPE.at(seen), suggested.at(seen)
    assert after.batch_size[0] == 64 and set(after.batch_size % 4) == {0}
    kept = [values.learning_rate / values.batch_size**rho for values in (before, after)]
    np.testing.assert_allclose(*kept, rtol=1e-12)


def test_times_are_those_of_the_time_model_and_the_words_have_the_numbers():
    costs = Costs(StepTimes({4: 0.004, 32: 0.016, 64: 0.04}, 0.002), FREE, num_bytes=4_000_000)
    advice = advise(RECIPE, costs, noise_of(100.0), "timed on a stopwatch", AdviceOptions(device_counts=(1, 4)))
    assert advice.microbatch_size == 32 and advice.examples_per_s == pytest.approx({4: 1000, 32: 2000, 64: 1600})
    assert advice.critical_batch_size == pytest.approx((100, 100, 100))
    for count in (1, 4):
        found = [one.wall_time_s for one in advice.times(count)]
        assert found == [predict(one.plan(), count, costs).wall_time_s for one in (RECIPE, advice.suggested)]
    text = " ".join(advice_in_words.text(advice).split())
    for words in (
        "The fastest microbatch has 32 examples per device, 2,000 examples/s. By microbatch: 4: 1,000, 32: 2,000",
        f"at 90 % of full speed: {smallest_batch_size(costs, 1)} on 1 device and {smallest_batch_size(costs, 4)} on 4",
        "4 updates, 32 examples, 0.267 % of its length",
        "100 (100 to 100) after 16 examples",
        "at the end of the recipe, after 375 times as many",
        "Start with batches of 16 and learning rate 0.2; the recipe has 8 and 0.1. By the critical batch size so far "
        "this costs 16 % more",
        "let the batch grow instead, up to 100 examples",
        f"{advice.suggested.plan().num_updates:,} updates instead of 1,500",
        "On 4 devices: ",
        "Its learning rate is 2 times the recipe's.",
        "Step times are timed on a stopwatch.",
        "to sum 4 MB at 0 s per message",
    ):
        assert words in text
    for recipe, scale, why in ((RECIPE, 50.0, "cost more than the 20 % allowed."), (FULL, 1e6, "beyond the data set.")):
        text = " ".join(advice_in_words.text(advise(recipe, costs, noise_of(scale))).split())
        assert f"batch of {recipe.batch_size}. By the" in text and why in text
    # What cannot be measured is said, and then nothing is scaled.
    lost = noise_of(5.0)._replace(squares=np.array([[(-1.0, 5.0)] * 2] * 3))
    text = advice_in_words.text(advise(RECIPE, costs, lost))
    assert "Critical batch size so far, in examples: too large to be measured" in text
    assert "Start with the recipe's batch of 8" in text and "Its learning rate is" not in text


@pytest.fixture(scope="module")
def quadratic():
    """A task of one's own: |w - x|²/2, whose gradient at (3, 4) has a noise scale near 1800 / 25."""
    x = np.random.default_rng(0).normal(scale=30.0, size=(512, 2)).astype(np.float32)
    task = from_loss(
        lambda params, examples, keys, train: ((params[None] - examples) ** 2).sum(axis=1) / 2,
        init_fn=lambda key: jnp.array([3.0, 4.0]),
    )
    return task, optax.inject_hyperparams(optax.sgd)(learning_rate=0.0), ArraySource(x)


def test_a_task_of_ones_own(quadratic):
    times, one = StepTimes({8: 0.001, 64: 0.002}, 0.001), jax.devices()[:1]
    recipe = Recipe(1e-9, batch_size=2, dataset_size=512, num_epochs=2, momentum=0)
    options = AdviceOptions(run_share=0.1, num_batches=4)
    advice = advise_batch_size(*quadratic, recipe, options, devices=one, step_times=times)
    assert advice.noise.examples_seen[-1] == 104  # those that begin within a tenth of 1,024
    assert advice.costs.num_bytes == 4 * 2
    x = quadratic[2].examples
    expected = x.var(axis=0, ddof=1).sum() / ((np.array([3.0, 4.0]) - x.mean(axis=0)) ** 2).sum()
    assert advice.critical_batch_size.low < expected < advice.critical_batch_size.high
    first = advice.suggested.plan()[0].batch_size
    assert first > 2 and first <= 0.2 * advice.critical_batch_size.value < 2 * first
    with pytest.raises(InvalidArgument, match=r"dataset_size is 500; it must be 512, as many as .*; nearest: 512"):
        advise_batch_size(*quadratic, Recipe(0.1, 1, 500, num_epochs=2))


def test_memory_that_runs_out_ends_the_search_and_is_said(quadratic, monkeypatch, tmp_path):
    monkeypatch.setenv("BSJAX_DATA_DIR", str(tmp_path))
    timer = Programs.time_microbatches

    def limited(self, state, microbatch_size, count):
        if microbatch_size > largest:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory\nand a long explanation")
        return timer(self, state, microbatch_size, count)

    monkeypatch.setattr(Programs, "time_microbatches", limited)
    largest, arguments = 1, (*quadratic, {"learning_rate": 0.0, "momentum": 0.0}, 0, jax.devices()[:1])
    times, timed = measure_step_times(*arguments)
    assert list(times.accumulate_s) == [1]
    assert re.fullmatch(r"timed on 1 × cpu; 4 fails: RESOURCE_EXHAUSTED: out of memory; 2 fails: .*", timed)
    [path] = (tmp_path / "step_times").glob("*.json")
    path.unlink()
    largest = 0
    with pytest.raises(RunError, match=r"a device's memory does not hold the smallest microbatch .*: RESOURCE_EXHAU"):
        measure_step_times(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"run_share": 0.0}, r"run_share is 0.0; it must be in \(0, 1\]; nearest: 1"),
        ({"growth_share": 2}, "growth_share is 2; it must be in"),
        ({"excess": 0}, "excess is 0; it must be a positive finite number"),
        ({"num_batches": 1}, "num_batches is 1; it must be a whole number >= 2; nearest: 2"),
        ({"device_counts": ()}, r"device_counts is \(\); it must be at least one number of devices"),
        ({"device_counts": (0,)}, "device_counts is 0; it must be a whole number >= 1; nearest: 1"),
        ({"scaling": "liner"}, "scaling is 'liner'; .*; nearest: linear"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(InvalidArgument, match=message):
        AdviceOptions(**arguments)
    with pytest.raises(InvalidArgument, match=r"share is 1; it must be in \(0, 1\); nearest: 0.9"):
        smallest_batch_size(Costs(StepTimes({8: 1.0}, 0.0), FREE, 0), 1, share=1)
