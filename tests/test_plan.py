"""Plans: updates, phases, schedules over the update count, tables, JSON."""

import dataclasses
import json
import pickle
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bsjax

PLAN = bsjax.Plan(10, [2, 2, 4, 8], [0.1, 0.2, 0.2, 0.05], [0.9, 0.9, 0.9, 0.95])


def cosine_plan():
    recipe = bsjax.Recipe(optax.cosine_decay_schedule(0.1, 20), 16, 1000, num_epochs=20)
    return recipe.increase_batch_size(max_batch_size=300).plan()


def test_updates():
    assert (PLAN.num_updates, len(PLAN), PLAN.num_examples) == (4, 4, 16)
    assert PLAN.examples_seen.tolist() == [0, 2, 4, 8]
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


def test_json_round_trip_is_exact_and_short():
    plan = cosine_plan()
    copy = bsjax.Plan.from_json(plan.to_json())
    assert copy == plan
    assert copy.learning_rates.tobytes() == plan.learning_rates.tobytes()
    assert copy.batch_sizes.dtype == np.int64
    constant = bsjax.Recipe(0.1, 1, 100_000, num_epochs=1).plan()
    assert bsjax.Plan.from_json(constant.to_json()) == constant
    assert len(constant.to_json()) < 200


ADAM = bsjax.Plan(
    10,
    [2, 2, 4, 8],
    [0.1, 0.2, 0.2, 0.05],
    [0.9, 0.9, 0.9, 0.95],
    others={"b2": [0.9, 0.99, 0.99, 0.999], "eps": [1e-8] * 4},
    scaling="sqrt",
)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("dataset_size", 20),
        ("batch_sizes", [2, 2, 4, 16]),
        ("learning_rates", [0.1, 0.2, 0.2, 0.06]),
        ("momentums", [0.9] * 4),
        ("start", 2),
        ("others", {"b2": [0.9, 0.99, 0.99, 0.9], "eps": [1e-8] * 4}),
        ("others", {"b2": [0.9, 0.99, 0.99, 0.999]}),
        ("scaling", 0.6),
    ],
)
def test_plans_are_equal_when_all_their_parts_are(part, value):
    ADAM.learning_rate(0)  # a schedule is a function, which no pickle holds
    for same in (dataclasses.replace(ADAM), bsjax.Plan.from_json(ADAM.to_json()), pickle.loads(pickle.dumps(ADAM))):
        assert same == ADAM
    other = dataclasses.replace(ADAM, **{part: value})
    assert other != ADAM
    assert bsjax.Plan.from_json(other.to_json()) == other


def test_further_hyperparameters():
    assert ADAM[2].others == {"b2": 0.99, "eps": 1e-8}
    assert ADAM[2].hyperparameters == {"learning_rate": 0.2, "momentum": 0.9, "b2": 0.99, "eps": 1e-8}
    assert PLAN[2].hyperparameters == {"learning_rate": 0.2, "momentum": 0.9}
    for update in (ADAM[2], PLAN[2]):
        assert bsjax.Update(*json.loads(json.dumps(update))) == update
    with pytest.raises(ValueError, match="read-only"):
        ADAM.others["b2"][0] = 0.5


def test_hyperparameters_drive_an_optax_optimizer():
    schedules = ADAM.hyperparameters
    tx = optax.inject_hyperparams(optax.adam)(b1=schedules.pop("momentum"), **schedules)
    params, state = jnp.array(1.0), tx.init(jnp.array(1.0))
    for update in ADAM:
        with jax.numpy_dtype_promotion("standard"):  # optax's Adam needs it
            _, state = jax.jit(tx.update)(params, state)
        for name, value in update.hyperparameters.items():
            assert state.hyperparams[{"momentum": "b1"}.get(name, name)] == np.float32(value)


@pytest.mark.parametrize("name", ["learning_rate", "momentum", "batch_size", "", 3])
def test_names_of_further_hyperparameters(name):
    with pytest.raises(bsjax.InvalidArgument, match="it must be an optimizer's argument other than learning_rate"):
        bsjax.Plan(10, [2], [0.1], [0.9], others={name: [0.5]})


def test_batch_sizes_beyond_int32():
    plan = bsjax.Recipe(0.1, 2**32, 10**11, 2).plan()
    assert plan.num_updates == 47
    assert [update.batch_size for update in plan] == plan.batch_sizes.tolist() == [2**32] * 47
    assert plan[46].examples_seen == 46 * 2**32
    for evaluate in (plan.batch_size, jax.jit(plan.batch_size)):
        with pytest.raises(bsjax.InvalidArgument, match=r"batch_size is 4294967296; .* nearest: 2147483647"):
            evaluate(0)
    with jax.enable_x64(True):
        assert plan.batch_size(0) == 2**32
    assert bsjax.Plan(2**31, [2**31 - 1], [0.1], [0.9]).batch_size(0) == 2**31 - 1


def test_plans_cannot_be_changed():
    sizes = np.array([1, 2])
    plan = bsjax.Plan(10, sizes, [0.1, 0.1], [0, 0])
    sizes[0] = 5
    assert plan.batch_sizes[0] == 1
    with pytest.raises(ValueError, match="read-only"):
        plan.batch_sizes[0] = 5


@pytest.mark.parametrize("sizes", [[], [1], [1, 2, 3]])
def test_parts_must_be_equally_long(sizes):
    with pytest.raises(ValueError, match="as many values of each hyperparameter as batch sizes"):
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


def test_table_shows_what_is_kept():
    assert str(ADAM) == (
        "updates  from epoch  batch size  learning rate  momentum           b2    eps  lr·(N/B)^0.5/(1-m)\n"
        "      2        0.00           2     0.1 -> 0.2       0.9  0.9 -> 0.99  1e-08      2.236 -> 4.472\n"
        "      1        0.40           4            0.2       0.9         0.99  1e-08               3.162\n"
        "      1        0.80           8           0.05      0.95        0.999  1e-08               1.118\n"
        "4 updates, 16 examples, 1.60 epochs"
    )


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


def test_a_csv_has_a_row_for_each_update_to_the_last_bit(tmp_path):
    recipe = bsjax.Recipe(optax.cosine_decay_schedule(0.1, 2), 16, 100, num_epochs=2, hyperparameters={"b2": 0.95})
    plan = recipe.increase_batch_size(max_batch_size=64).plan()
    assert plan.to_csv(tmp_path / "plan.csv") is None
    text = (tmp_path / "plan.csv").read_text()
    assert text == plan.to_csv()
    header, *rows = [line.split(",") for line in text.splitlines()]
    assert header == ["update", "examples_seen", "epoch", "batch_size", "learning_rate", "momentum", "b2"]
    for row, update in zip(rows, plan, strict=True):
        read = dict(zip(header, map(float, row), strict=True))
        assert read == {"update": update.update, "examples_seen": update.examples_seen, "momentum": 0.9, "b2": 0.95} | {
            "epoch": update.examples_seen / 100,
            "batch_size": update.batch_size,
            "learning_rate": update.learning_rate,
        }


def test_a_dataframe_has_the_columns_and_pandas_is_asked_for(monkeypatch):
    calls = []
    stand_in = types.SimpleNamespace(DataFrame=lambda *arguments: calls.append(arguments))
    monkeypatch.setitem(sys.modules, "pandas", stand_in)
    PLAN.as_dataframe()
    [(columns, index)] = calls
    assert list(columns) == ["examples_seen", "epoch", "batch_size", "learning_rate", "momentum"]
    assert index.tolist() == [0, 1, 2, 3] and columns["batch_size"].tolist() == [2, 2, 4, 8]
    monkeypatch.setitem(sys.modules, "pandas", None)  # as if it were not installed
    with pytest.raises(ImportError, match=r"needs pandas \(pip install pandas\)"):
        PLAN.as_dataframe()
