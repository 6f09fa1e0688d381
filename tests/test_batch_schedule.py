"""Batch schedules of other libraries: what they mean, in recipes and in traced functions; texts that do not parse."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bsjax
from bsjax import BatchSchedule, from_batch_schedule


@pytest.mark.parametrize(
    ("text", "starts", "sizes"),
    [
        ("0:768 250B:1536 500B:3072", (0, 250 * 10**9, 500 * 10**9), (768, 1536, 3072)),
        ("0:1k,1.5M:2K , 2t:4096", (0, 1_500_000, 2 * 10**12), (1000, 2000, 4096)),
        ("0:32", (0,), (32,)),
        ("  0:32   1e3:64 ", (0, 1000), (32, 64)),
    ],
)
def test_megatrons_texts(text, starts, sizes):
    assert from_batch_schedule(text, "tokens") == BatchSchedule(starts, sizes, "tokens")


def test_levanters_segments():
    expected = BatchSchedule((0, 1000), (32, 64), "updates")
    step = types.SimpleNamespace
    for segments in (
        [(0, 32), (1000, 64)],
        [{"start": 0, "value": 32}, {"start": 1000, "value": 64}],
        [step(start=0, value=32), step(start=1000, value=64)],
        np.array([[0, 32], [1000, 64]]),
        "0:32 1000:64",
    ):
        assert from_batch_schedule(segments, unit="updates") == expected


def test_a_size_holds_from_its_threshold_on_in_every_kind_of_call():
    schedule = from_batch_schedule("0:2 3:4 250B:8")
    counts, sizes = [-1, 0, 2, 3, 10], [2, 2, 2, 4, 4]
    assert [int(schedule(count)) for count in counts] == sizes
    assert schedule(np.array(counts)).tolist() == sizes
    for traced in (jax.jit(schedule)(jnp.array(counts)), jax.vmap(schedule)(jnp.array(counts))):
        assert traced.tolist() == sizes
    assert jax.jit(schedule)(jnp.array([0.0, 2.9, 3.0, 3e11])).tolist() == [2, 2, 4, 8]
    assert int(schedule(250 * 10**9)) == 8
    with jax.enable_x64(True):
        assert jax.jit(schedule)(250 * 10**9 - 1) == 4
        assert jax.jit(schedule)(250 * 10**9) == 8


def test_in_a_recipe_on_each_clock():
    def sizes(text, unit, **fields):
        recipe = bsjax.Recipe(0.1, from_batch_schedule(text, unit), 1000, 1, clock=unit, **fields)
        return [(phase.num_updates, phase.batch_size) for phase in recipe.plan().phases]

    assert sizes("0:10 200:50", "examples") == [(20, 10), (16, 50)]
    assert sizes("0:10 20:50", "updates") == [(20, 10), (16, 50)]
    assert sizes("0:10 12.8K:50", "tokens", tokens_per_example=64) == [(20, 10), (16, 50)]
    with pytest.raises(bsjax.InvalidArgument, match=r"^clock is 'epochs'; it must be tokens, .*; nearest: tokens$"):
        bsjax.Recipe(0.1, from_batch_schedule("0:10", "tokens"), 1000, 1)


@pytest.mark.parametrize(
    ("unit", "text", "end", "nearest"),
    [
        ("examples", "0:10 200:50 1000:100", "1,000", "0:10 200:50"),
        ("tokens", "0:10 64K:20 128K:40", "64,000", "0:10"),
        ("updates", "0:10 20:50 36:60", "36", "0:10 20:50"),
    ],
)
def test_a_size_that_begins_after_the_training(unit, text, end, nearest):
    def recipe(batch_schedule):
        schedule = from_batch_schedule(batch_schedule, unit)
        return bsjax.Recipe(0.1, schedule, 1000, 1, clock=unit, tokens_per_example=64)

    with pytest.raises(
        bsjax.InvalidArgument, match=f"whose last threshold is below the training's {end} {unit}; "
    ) as no:
        recipe(text)
    assert no.value.nearest == repr(nearest)
    assert recipe(nearest).plan().num_updates > 0


PAIRS = "THRESHOLD:SIZE pairs of whole numbers, such as '0:768 250B:1536'"
SEGMENTS = "pairs of whole numbers, such as [(0, 32), (1000, 64)]"
SUCH = "such as '0:768 250B:1536'"


@pytest.mark.parametrize(
    ("schedule", "allowed"),
    [
        *((text, PAIRS) for text in ("", "768", "0:768 250G:1536", "0:768:3", "0:-768", "0:1.5", "0.1:2", "0:768 :9")),
        ("1:768", f"a schedule whose first size begins at 0, {SUCH}"),
        ("0:768 250B:1536 1B:32", f"a schedule whose thresholds increase, {SUCH}"),
        ("0:768 0:1536", f"a schedule whose thresholds increase, {SUCH}"),
        ("0:0", f"a schedule whose sizes are 1 or more, {SUCH}"),
        ([(0, 32), (10, 64, 3)], SEGMENTS),
        ([(0, 32.5)], SEGMENTS),
        ([(0, True)], SEGMENTS),
        ([(0, "32")], SEGMENTS),
        ([{"start": 0}], SEGMENTS),
        ([], SEGMENTS),
        (128, SEGMENTS),
    ],
)
def test_schedules_that_do_not_parse(schedule, allowed):
    with pytest.raises(bsjax.InvalidArgument) as refusal:
        from_batch_schedule(schedule)
    assert str(refusal.value) == f"batch_schedule is {schedule!r}; it must be {allowed}"


def test_units():
    with pytest.raises(bsjax.InvalidArgument, match=r"unit is 'token'; .* updates, examples, tokens; nearest: tokens"):
        from_batch_schedule("0:1", "token")
