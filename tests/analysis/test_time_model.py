"""Predicted times: closed forms, the engine's own layout, and a plain loop over the updates."""

import math
import re

import jax
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bsjax import InvalidArgument, Plan, Recipe
from bsjax.analysis.time_model import AllReduce, Costs, StepTimes, best_num_devices, predict
from bsjax.engine import Engine, layout
from bsjax.models import CNN
from bsjax.optimizers import create_optimizer
from bsjax.tasks import Classification

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
costs_of_anything = st.builds(
    Costs,
    st.builds(
        StepTimes,
        st.dictionaries(st.integers(1, 64), st.floats(1e-6, 1), min_size=1),
        st.floats(0.05, 0.1),
        st.floats(0, 0.05),
    ),
    st.builds(AllReduce, st.floats(0, 0.1), st.floats(1e3, 1e9)),
    num_bytes=st.integers(0, 10**8),
    ghost_batch_size=st.sampled_from([1, 2, 8]),
    num_shared_means=st.integers(0, 30),
)


def test_without_communication_d_devices_are_d_times_as_fast_until_a_microbatch_is_left():
    plan = make_plan([1024] * 10)
    times = StepTimes.affine(0.0, 0.001, apply_update_s=0.0, max_microbatch_size=16)  # proportional to the examples
    costs = Costs(times, NO_COMMUNICATION, 10**9)
    for count in COUNTS:
        prediction = predict(plan, count, costs)
        assert prediction.wall_time_s == pytest.approx(10 * 1.024 / count, rel=1e-9)
        assert prediction.device_hours == pytest.approx(10 * 1.024 / 3600, rel=1e-9)


def test_step_times_are_interpolated_and_never_better_than_measured():
    times = StepTimes({32: 0.5, 8: 0.2}, apply_update_s=0.0)
    assert [times.accumulate(size) for size in (1, 8, 20, 32, 96)] == pytest.approx([0.2, 0.2, 0.35, 0.5, 1.5])
    affine = StepTimes.affine(0.1, 0.01, apply_update_s=0.0, max_microbatch_size=100)
    assert [affine.accumulate(size) for size in (1, 37, 100, 200)] == pytest.approx([0.11, 0.47, 1.1, 2.2])


@PROPERTY
@given(plans, st.integers(1, 40), costs_of_anything)
def test_prediction_is_a_plain_loop_over_the_updates(plan, num_devices, costs):
    ghost, times = costs.ghost_batch_size, costs.step_times
    layouts = layout.Layouts(plan.batch_sizes.tolist(), ghost, [num_devices], max(times.accumulate_s), times=times)
    seconds = 0.0
    for update in plan:
        size = layouts(update.batch_size).microbatch_size
        for _ in range(0, update.batch_size, size * num_devices):
            seconds += times.accumulate(size)
            if size < ghost:
                seconds += costs.num_shared_means * 2 * math.ceil(math.log2(ghost / size)) * costs.all_reduce.latency_s
        seconds += times.apply_update_s - (times.single_saving_s if update.batch_size <= size * num_devices else 0.0)
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
    # With a number of devices per phase, each phase is as with that number throughout.
    moving = predict(plan, best, costs)
    assert list(moving.phases) == [fixed[count][i] for i, count in enumerate(best)]
    hours = sum(count * phase.wall_time_s for count, phase in zip(best, moving.phases, strict=True)) / 3600
    assert moving.device_hours == pytest.approx(hours, rel=1e-12)
    if min_gain == 0:
        assert moving.wall_time_s <= min(predict(plan, count, costs).wall_time_s for count in COUNTS) * (1 + 1e-6)


def test_a_larger_batch_pays_for_more_devices():
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
@pytest.mark.parametrize("microbatch_size", [TIMES, 16])
def test_the_layout_is_the_engines(make_dataset, num_devices, batch_sizes, microbatch_size):
    data, tx = make_dataset(64), create_optimizer("momentum")
    task = Classification(CNN(10, ghost_batch_size=8, depth=1, width=2), mean=data.mean, std=data.std)
    options = {"microbatch_size": microbatch_size, "devices": jax.devices()[:num_devices]}
    engine = Engine(task, tx, data.train, data.test, batch_sizes, **options)
    costs = Costs(TIMES, NO_COMMUNICATION, 0, 8, microbatch_size=None if microbatch_size is TIMES else microbatch_size)
    for phase in predict(make_plan(batch_sizes), num_devices, costs).phases:
        size = engine.layout(phase.phase.batch_size).microbatch_size
        assert phase.update.microbatch_size == size
        assert phase.update.num_microbatches == -(-phase.phase.batch_size // (size * num_devices))


PLAN = make_plan([8, 16])
COSTS = Costs(TIMES, NO_COMMUNICATION, 0)
SECONDS = "it must be a number of seconds >= 0; nearest: 0"
BY_SIZE = "it must be positive seconds by microbatch size"
WHOLE = "it must be a whole number >= {0}; nearest: {0}"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: AllReduce(-1.0, 1.0), f"latency_s is -1.0; {SECONDS}"),
        (lambda: AllReduce(math.nan, 1.0), f"latency_s is nan; {SECONDS}"),
        (lambda: AllReduce(0.0, 0.0), "bytes_per_s is 0.0; it must be positive"),
        (lambda: StepTimes({}, 0.0), "accumulate_s is {}; it must be seconds of at least one microbatch size"),
        (lambda: StepTimes({8: 0.0}, 0.0), f"accumulate_s is {{8: 0.0}}; {BY_SIZE}"),
        (lambda: StepTimes({0: 1.0}, 0.0), f"accumulate_s is {{0: 1.0}}; {BY_SIZE}"),
        (lambda: StepTimes({8: 1.0}, 0.0, -1.0), f"single_saving_s is -1.0; {SECONDS}"),
        (lambda: StepTimes({8: 1.0}, -1.0), f"apply_update_s is -1.0; {SECONDS}"),
        (lambda: Costs(TIMES, NO_COMMUNICATION, -1), f"num_bytes is -1; {WHOLE.format(0)}"),
        (lambda: Costs(TIMES, NO_COMMUNICATION, 0, ghost_batch_size=0), f"ghost_batch_size is 0; {WHOLE.format(1)}"),
        (lambda: predict(PLAN, 0, COSTS), f"num_devices is 0; {WHOLE.format(1)}"),
        (lambda: predict(PLAN, [1, 2, 4], COSTS), "num_devices is [1, 2, 4]; it must be one number, or one for each "),
        (
            lambda: predict(PLAN, 1, Costs(TIMES, NO_COMMUNICATION, 0, ghost_batch_size=16)),
            "batch_size is 8; it must be a multiple of the group size 16; nearest: 16",
        ),
        (
            lambda: predict(PLAN, 1, Costs(TIMES, NO_COMMUNICATION, 0, 8, microbatch_size=12)),
            "microbatch_size is 12; it must be a multiple of the group size 8; ",
        ),
        (lambda: best_num_devices(PLAN, [], COSTS), "device_counts is []; it must be at least one number of devices; "),
        (lambda: best_num_devices(PLAN, [4, 0], COSTS), f"device_counts is 0; {WHOLE.format(1)}"),
        (lambda: best_num_devices(PLAN, [1], COSTS, 1.0), "min_gain is 1.0; it must be in [0, 1); nearest: 0.1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InvalidArgument, match=f"^{re.escape(message)}"):
        call()
