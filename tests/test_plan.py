"""Plans: how a stream is cut into batches, and schedules over the update count."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bsjax
from bsjax.plan import take_batches

PROPERTY = settings(derandomize=True, deadline=None, max_examples=50)
PLAN = bsjax.Plan(10, [2, 2, 4, 8], [0.1, 0.2, 0.2, 0.05], [0.9, 0.9, 0.9, 0.95])


def cosine_plan():
    recipe = bsjax.Recipe(optax.cosine_decay_schedule(0.1, 20), 16, 1000, num_epochs=20)
    return recipe.increase_batch_size(max_batch_size=300).plan()


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


@pytest.mark.parametrize("period", [7.0, 300.0, 20_000.0])
def test_take_batches_of_a_wave_is_the_plain_loop(period):
    def batch_size_at(position):
        return (5 + 4 * np.sin(position / period)).astype(np.int64)

    assert take_batches(batch_size_at, 60_000).tolist() == plain_loop(batch_size_at, 60_000)


def test_counts():
    assert PLAN.num_updates == len(PLAN) == 4
    assert PLAN.num_examples == 16
    assert PLAN.examples_seen.tolist() == [0, 2, 4, 8]


def test_updates():
    assert PLAN[2] == bsjax.Update(update=2, examples_seen=4, batch_size=4, learning_rate=0.2, momentum=0.9)
    assert PLAN[-1] == PLAN[3]
    assert list(PLAN) == [PLAN[0], PLAN[1], PLAN[2], PLAN[3]]
    with pytest.raises(IndexError):
        PLAN[4]


def test_phases():
    first, second, third = PLAN.phases
    assert first == bsjax.Phase(0, 2, 0, 2, learning_rate=(0.1, 0.2), momentum=(0.9, 0.9))
    assert (second.start_update, second.num_updates, second.examples_seen) == (2, 1, 4)
    assert (third.start_update, third.batch_size, third.momentum) == (3, 8, (0.95, 0.95))


@pytest.mark.parametrize(
    "evaluate",
    [
        lambda schedule, counts: [schedule(count) for count in counts],
        lambda schedule, counts: [jax.jit(schedule)(count) for count in counts],
        lambda schedule, counts: jax.vmap(schedule)(jnp.array(counts)),
        lambda schedule, counts: jax.jit(schedule)(jnp.array(counts)),
    ],
    ids=["int", "jit", "vmap", "array"],
)
def test_schedules_look_up_the_count_and_hold_at_both_ends(evaluate):
    counts, held = [0, 1, 2, 3, 4, 1000, -1], [0, 1, 2, 3, 3, 3, 0]
    np.testing.assert_array_equal(evaluate(PLAN.batch_size, counts), PLAN.batch_sizes[held])
    np.testing.assert_array_equal(evaluate(PLAN.learning_rate, counts), np.float32(PLAN.learning_rates[held]))
    np.testing.assert_array_equal(evaluate(PLAN.momentum, counts), np.float32(PLAN.momentums[held]))


def test_schedules_of_a_long_plan():
    plan = cosine_plan()
    counts = jnp.arange(plan.num_updates)
    assert plan.batch_size(counts).dtype == jnp.int32
    np.testing.assert_array_equal(plan.batch_size(counts), plan.batch_sizes)
    np.testing.assert_array_equal(plan.learning_rate(counts), np.float32(plan.learning_rates))
    with jax.enable_x64(True):
        np.testing.assert_array_equal(plan.learning_rate(counts), plan.learning_rates)


def test_schedules_drive_an_optax_optimizer():
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=PLAN.learning_rate, momentum=PLAN.momentum)
    params = jnp.array(1.0)
    state = tx.init(params)
    theta, velocity = 1.0, 0.0
    for update in PLAN:
        updates, state = jax.jit(tx.update)(params, state)  # the gradient of θ²/2 is θ
        params = optax.apply_updates(params, updates)
        velocity = update.momentum * velocity + theta
        theta -= update.learning_rate * velocity
        np.testing.assert_allclose(params, theta, atol=1e-6)


def test_json_round_trip_is_exact_and_short():
    plan = cosine_plan()
    copy = bsjax.Plan.from_json(plan.to_json())
    assert copy == plan
    assert copy.learning_rates.tobytes() == plan.learning_rates.tobytes()
    assert copy.batch_sizes.dtype == np.int64
    constant = bsjax.Recipe(0.1, 1, 100_000, num_epochs=1).plan()
    assert bsjax.Plan.from_json(constant.to_json()) == constant
    assert len(constant.to_json()) < 200


@pytest.mark.parametrize("name", ["dataset_size", "batch_sizes", "learning_rates", "momentums"])
def test_plans_differ_when_any_part_does(name):
    parts = {part: getattr(PLAN, part) for part in ("dataset_size", "batch_sizes", "learning_rates", "momentums")}
    assert bsjax.Plan(**parts) == PLAN
    assert bsjax.Plan(**parts | {name: parts[name] * 2}) != PLAN


def test_plans_cannot_be_changed():
    sizes = np.array([1, 2])
    plan = bsjax.Plan(10, sizes, [0.1, 0.1], [0, 0])
    sizes[0] = 5
    assert plan.batch_sizes[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        plan.batch_sizes[0] = 5


@pytest.mark.parametrize("sizes", [[], [1], [1, 2, 3]])
def test_parts_must_be_equally_long(sizes):
    with pytest.raises(ValueError, match="as many learning rates and momentums as batch sizes"):
        bsjax.Plan(10, sizes, [0.1] * 2 if sizes else [], [0] * 2 if sizes else [])


def test_table():
    assert str(PLAN) == (
        "updates  from epoch  batch size  learning rate  momentum  noise scale\n"
        "      2        0.00           2     0.1 -> 0.2       0.9       4 -> 8\n"
        "      1        0.40           4            0.2       0.9            3\n"
        "      1        0.80           8           0.05      0.95         0.25\n"
        "4 updates, 16 examples, 1.60 epochs"
    )
    assert repr(PLAN) == "<Plan: 4 updates in 3 phases>"


def test_table_of_a_long_plan_leaves_out_its_middle():
    plan = cosine_plan()
    lines = plan.table(max_rows=6).splitlines()
    assert len(plan.phases) > 50
    assert len(lines) == 1 + 3 + 1 + 3 + 1
    assert lines[4].strip() == f"... {len(plan.phases) - 6} more phases ..."
    every_line = plan.table(max_rows=10_000).splitlines()
    assert lines[:4] == every_line[:4]
    assert lines[5:] == every_line[-4:]
    assert len(every_line) == len(plan.phases) + 2
