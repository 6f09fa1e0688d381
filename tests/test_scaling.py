"""Predicted times: closed forms, the engine's own layout, and a plain loop over the updates."""

import math

import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bsjax import InvalidArgument, Plan, Recipe, layout
from bsjax.engine import Engine
from bsjax.models import create_model
from bsjax.optimizers import create_optimizer
from bsjax.scaling import AllReduce, Costs, StepTimes, best_num_devices, predict

PROPERTY = settings(derandomize=True, deadline=None, max_examples=60)
NO_COMMUNICATION = AllReduce(0, math.inf)
TIMES = StepTimes.affine(microbatch_s=0.01, example_s=0.002, apply_update_s=0.03)
COUNTS = [1, 2, 4, 8, 16, 32, 64]


def make_plan(batch_sizes):
    return Plan(1000, batch_sizes, [0.1] * len(batch_sizes), [0.9] * len(batch_sizes))


# Each ghost size divides 8, and so each batch holds whole ghosts.
plans = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 4)), min_size=1, max_size=12).map(
    lambda runs: make_plan([8 * size for size, count in runs for _ in range(count)])
)
all_reduces = st.builds(AllReduce, st.floats(0, 0.1), st.floats(1e3, 1e9))
costs_of_anything = st.builds(
    Costs,
    st.builds(
        StepTimes,
        st.dictionaries(st.integers(1, 64), st.floats(1e-6, 1), min_size=1, max_size=3),
        st.floats(0, 0.1),
    ),
    all_reduces,
    num_bytes=st.integers(0, 10**8),
    ghost_batch_size=st.sampled_from([1, 2, 8]),
    num_shared_means=st.integers(0, 30),
    max_microbatch_size=st.integers(1, 64),
)


def test_all_reduce_is_its_formula():
    all_reduce = AllReduce(latency_s=2.0, bytes_per_s=10.0)
    assert all_reduce.seconds(1000, 1) == 0
    for num_devices, messages in ((2, 2), (3, 4), (4, 4), (5, 6), (8, 6), (1024, 20)):
        expected = messages * 2.0 + 2 * (num_devices - 1) / num_devices * 100.0
        assert all_reduce.seconds(1000, num_devices) == pytest.approx(expected, rel=1e-15)


def test_one_device_takes_the_sum_over_the_updates():
    plan = make_plan([16] * 5 + [64] * 3 + [40])
    prediction = predict(plan, 1, Costs(TIMES, AllReduce(1, 1), 10**9, max_microbatch_size=16))
    # 40 examples: four microbatches without padding rather than three of 14.
    layouts = [(phase.update.num_microbatches, phase.update.microbatch_size) for phase in prediction.phases]
    assert layouts == [(1, 16), (4, 16), (4, 10)]
    expected = [5 * (0.01 + 0.032 + 0.03), 3 * (4 * (0.01 + 0.032) + 0.03), 4 * (0.01 + 0.02) + 0.03]
    np.testing.assert_allclose([phase.wall_time_s for phase in prediction.phases], expected, rtol=1e-12)
    assert prediction.wall_time_s == pytest.approx(sum(expected), rel=1e-12)
    assert prediction.device_hours == pytest.approx(sum(expected) / 3600, rel=1e-12)
    assert prediction.all_reduce_s == 0


def test_without_communication_d_devices_are_d_times_as_fast_until_a_microbatch_is_left():
    plan = make_plan([1024] * 10)
    times = StepTimes.affine(0.0, 0.001, apply_update_s=0.0)  # proportional to the examples
    costs = Costs(times, NO_COMMUNICATION, 10**9, max_microbatch_size=16)
    for count in COUNTS:
        prediction = predict(plan, count, costs)
        assert prediction.wall_time_s == pytest.approx(10 * 1.024 / count, rel=1e-9)
        assert prediction.device_hours == pytest.approx(10 * 1.024 / 3600, rel=1e-9)


def test_beyond_one_example_per_device_more_devices_do_not_help():
    plan = make_plan([8] * 3)
    costs = Costs(TIMES, NO_COMMUNICATION, 0)
    seconds = [predict(plan, count, costs).wall_time_s for count in COUNTS]
    np.testing.assert_allclose(seconds, [3 * (0.04 + 0.002 * size) for size in (8, 4, 2, 1, 1, 1, 1)], rtol=1e-12)
    assert best_num_devices(plan, COUNTS, costs, min_gain=0) == (8,)
    # Messages make it worse.
    seconds = [predict(plan, count, Costs(TIMES, AllReduce(0.01, 1e9), 0)).wall_time_s for count in COUNTS]
    assert np.argmin(seconds) < 3 and seconds[3:] == sorted(seconds[3:])


def test_a_ghost_shared_by_devices_costs_its_means():
    plan = make_plan([8] * 3)
    costs = Costs(TIMES, AllReduce(0.5, math.inf), 0, ghost_batch_size=8, num_shared_means=10)
    alone, shared = predict(plan, 1, costs).phases[0].update, predict(plan, 4, costs).phases[0].update
    assert (alone.microbatch_size, shared.microbatch_size) == (8, 2)
    assert alone.accumulate_s == pytest.approx(0.01 + 8 * 0.002)
    assert shared.accumulate_s == pytest.approx(0.01 + 2 * 0.002 + 10 * (2 * 2 * 0.5))
    assert shared.all_reduce_s == pytest.approx(2 * 2 * 0.5)


def test_step_times_are_interpolated_and_never_better_than_measured():
    times = StepTimes({32: 0.5, 8: 0.2}, apply_update_s=0.0)
    assert [times.accumulate(size) for size in (1, 8, 20, 32, 96)] == pytest.approx([0.2, 0.2, 0.35, 0.5, 1.5])
    affine = StepTimes.affine(0.1, 0.01, apply_update_s=0.0, max_microbatch_size=100)
    assert [affine.accumulate(size) for size in (1, 37, 100, 200)] == pytest.approx([0.11, 0.47, 1.1, 2.2])


@PROPERTY
@given(plans, st.integers(1, 40), costs_of_anything)
def test_prediction_is_a_plain_loop_over_the_updates(plan, num_devices, costs):
    ghost, largest = costs.ghost_batch_size, costs.max_microbatch_size
    layouts = layout.Layouts(plan.batch_sizes.tolist(), ghost, [num_devices], largest)
    seconds = 0.0
    for update in plan:
        size = layouts(update.batch_size).microbatch_size
        for _ in range(0, update.batch_size, size * num_devices):
            seconds += costs.step_times.accumulate(size)
            if size < ghost:
                seconds += costs.num_shared_means * 2 * math.ceil(math.log2(ghost / size)) * costs.all_reduce.latency_s
        seconds += costs.step_times.apply_update_s
        if num_devices > 1:
            seconds += 2 * math.ceil(math.log2(num_devices)) * costs.all_reduce.latency_s
            seconds += 2 * (1 - 1 / num_devices) * costs.num_bytes / costs.all_reduce.bytes_per_s
    prediction = predict(plan, num_devices, costs)
    assert prediction.wall_time_s == pytest.approx(seconds, rel=1e-9)
    assert prediction.wall_time_s == pytest.approx(sum(phase.wall_time_s for phase in prediction.phases), rel=1e-12)
    assert prediction.device_hours == pytest.approx(num_devices * seconds / 3600, rel=1e-9)
    bound = plan.num_updates * costs.all_reduce.seconds(costs.num_bytes, num_devices)
    assert prediction.all_reduce_s == pytest.approx(bound, rel=1e-9)
    assert prediction.wall_time_s >= bound


@PROPERTY
@given(plans, st.integers(1, 40), costs_of_anything, st.floats(0, 1), st.floats(1, 10))
def test_a_slower_network_is_never_faster(plan, num_devices, costs, latency_s, factor):
    def seconds(latency_s, bytes_per_s):
        all_reduce = AllReduce(latency_s, bytes_per_s)
        return predict(plan, num_devices, Costs(TIMES, all_reduce, costs.num_bytes)).wall_time_s

    before = seconds(latency_s, 1e6)
    assert before <= seconds(factor * latency_s, 1e6) * (1 + 1e-12)
    assert before <= seconds(latency_s, 1e6 / factor) * (1 + 1e-12)


@PROPERTY
@given(plans, costs_of_anything, st.floats(0, 0.5))
def test_no_larger_count_pays_from_where_a_phase_stops(plan, costs, min_gain):
    best = best_num_devices(plan, COUNTS, costs, min_gain)
    fixed = {count: predict(plan, count, costs).phases for count in COUNTS}

    def pays(i, small, large):
        ratio = fixed[large][i].wall_time_s / fixed[small][i].wall_time_s
        return ratio < (1 - min_gain) ** math.log2(large / small) * (1 - 1e-9)

    for i, count in enumerate(best):
        assert not any(pays(i, count, larger) for larger in COUNTS if larger > count)
        for smaller in COUNTS[: COUNTS.index(count)]:
            assert any(pays(i, smaller, larger) for larger in COUNTS if larger > smaller)
    # Devices that come and go with the batch: the phases are those of the fixed counts.
    moving = predict(plan, best, costs)
    assert [phase.wall_time_s for phase in moving.phases] == [
        fixed[count][i].wall_time_s for i, count in enumerate(best)
    ]
    hours = sum(count * phase.wall_time_s for count, phase in zip(best, moving.phases, strict=True)) / 3600
    assert moving.device_hours == pytest.approx(hours, rel=1e-12)
    if min_gain == 0:
        assert moving.wall_time_s <= min(predict(plan, count, costs).wall_time_s for count in COUNTS) * (1 + 1e-6)


def test_a_larger_batch_bears_more_devices():
    recipe = Recipe(optax.piecewise_constant_schedule(0.1, {60: 0.2, 120: 0.2, 160: 0.2}), 128, 50_000, 200)
    plan = recipe.increase_batch_size(max_batch_size=5120).plan()
    times = StepTimes.affine(0.001, 4e-5, apply_update_s=2e-4)
    costs = Costs(times, AllReduce(1e-5, 2.5e10), num_bytes=11_000_000, ghost_batch_size=128, num_shared_means=26)
    counts = [2**power for power in range(11)]
    best = best_num_devices(plan, counts, costs)
    assert list(best) == sorted(best) and best[0] < best[-1]
    growing = predict(plan, best, costs)
    fixed = predict(plan, max(best), costs)
    assert growing.device_hours < fixed.device_hours
    assert growing.wall_time_s < 1.5 * fixed.wall_time_s


@pytest.mark.parametrize("num_devices", [1, 2, 8])
@pytest.mark.parametrize("batch_sizes", [(8, 40, 200), tuple(range(8, 104, 8))], ids=["few sizes", "many sizes"])
@pytest.mark.parametrize("microbatch_size", [None, 16])
def test_the_layout_is_the_engines(make_dataset, num_devices, batch_sizes, microbatch_size):
    model = create_model("cnn", 10, ghost_batch_size=8, depth=1, width=2)
    devices = jax.devices()[:num_devices]
    engine = Engine(
        model,
        create_optimizer("momentum"),
        make_dataset(64),
        batch_sizes,
        microbatch_size=microbatch_size,
        devices=devices,
    )
    costs = Costs(TIMES, NO_COMMUNICATION, 0, 8, max_microbatch_size=64, microbatch_size=microbatch_size)
    for phase in predict(make_plan(batch_sizes), num_devices, costs).phases:
        size = engine.layout(phase.phase.batch_size).microbatch_size
        assert phase.update.microbatch_size == size
        assert phase.update.num_microbatches == -(-phase.phase.batch_size // (size * num_devices))


PLAN = make_plan([8, 16])
COSTS = Costs(TIMES, NO_COMMUNICATION, 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: AllReduce(-1.0, 1.0), "latency_s is -1.0; it must be a number of seconds >= 0; nearest: 0"),
        (lambda: AllReduce(math.nan, 1.0), "latency_s is nan; it must be a number of seconds >= 0; nearest: 0"),
        (lambda: AllReduce(0.0, 0.0), "bytes_per_s is 0.0; it must be positive"),
        (lambda: StepTimes({}, 0.0), "accumulate_s is {}; it must be seconds of at least one microbatch size"),
        (lambda: StepTimes({8: 0.0}, 0.0), "accumulate_s is {8: 0.0}; it must be positive seconds by microbatch size"),
        (lambda: StepTimes({0: 1.0}, 0.0), "accumulate_s is {0: 1.0}; it must be positive seconds by microbatch size"),
        (lambda: StepTimes({8: 1.0}, -1.0), "apply_update_s is -1.0; it must be a number of seconds >= 0; nearest: 0"),
        (lambda: Costs(TIMES, NO_COMMUNICATION, -1), "num_bytes is -1; it must be a whole number >= 0; nearest: 0"),
        (
            lambda: Costs(TIMES, NO_COMMUNICATION, 0, ghost_batch_size=0),
            "ghost_batch_size is 0; it must be a whole number >= 1; nearest: 1",
        ),
        (lambda: predict(PLAN, 0, COSTS), "num_devices is 0; it must be a whole number >= 1; nearest: 1"),
        (
            lambda: predict(PLAN, [1, 2, 4], COSTS),
            "num_devices is [1, 2, 4]; it must be one number, or one for each of the plan's 2 phases",
        ),
        (
            lambda: predict(PLAN, 1, Costs(TIMES, NO_COMMUNICATION, 0, ghost_batch_size=16)),
            "batch_size is 8; it must be a multiple of ghost_batch_size 16; nearest: 16",
        ),
        (
            lambda: predict(PLAN, 1, Costs(TIMES, NO_COMMUNICATION, 0, 8, microbatch_size=12)),
            "microbatch_size is 12; it must be a multiple of ghost_batch_size 8, or a share of it for 1 devices; "
            "nearest: 8",
        ),
        (
            lambda: best_num_devices(PLAN, [], COSTS),
            "device_counts is []; it must be at least one number of devices; nearest: [1]",
        ),
        (
            lambda: best_num_devices(PLAN, [4, 0], COSTS),
            "device_counts is 0; it must be a whole number >= 1; nearest: 1",
        ),
        (lambda: best_num_devices(PLAN, [1], COSTS, 1.0), "min_gain is 1.0; it must be in [0, 1); nearest: 0.1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InvalidArgument) as refusal:
        call()
    assert str(refusal.value) == message
