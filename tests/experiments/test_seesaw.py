"""The schedules of Seesaw's study by arithmetic, its predictions from made-up results, and one small run of it all."""

import functools
import json
import math
import re
import warnings

import numpy as np
import pytest

import bsjax
from experiments.harness import build, presets
from experiments.harness.language_studies import loss_curve, loss_rows, separation
from experiments.harness.runs import Result
from experiments.seesaw import search
from experiments.seesaw.predictions import SHARE_MARGIN, predictions
from experiments.seesaw.schedules import (
    COSINE,
    HALF,
    LINEAR,
    PRESETS,
    QUARTER,
    SEESAW,
    SQRT,
    WARM_UP,
    Group,
    Start,
    groups,
    plan_rows,
    schedules,
    theory,
)

_EVERY_PRESET = pytest.mark.parametrize("name", PRESETS)


@functools.cache
def configs_of(name):
    preset = PRESETS[name]
    found, controls = groups(preset, preset.config, preset.starts)
    return preset, found | controls


@functools.cache
def plans_of(name):
    """The preset, and the recipe and the plan of every schedule."""
    preset, configs = configs_of(name)
    recipes = {key: build.recipe(config, preset.dataset_size) for key, config in configs.items()}
    return preset, {key: (recipe, recipe.plan()) for key, recipe in recipes.items()}


def after_warm_up(preset, plan):
    return plan.examples_seen >= round(preset.config.recipe.warmup_epochs * preset.dataset_size)


@pytest.mark.parametrize(
    ("decay", "schedule", "fewer"),
    [
        (HALF, SEESAW, 0.5),
        (HALF, LINEAR, 0.5),
        (HALF, SQRT, 5 / 8),
        (QUARTER, SEESAW, 1 - 2 / math.pi),
        (QUARTER, LINEAR, 1 - 2 / math.pi),
        (QUARTER, SQRT, 0.5),
    ],
)
def test_a_large_batch_without_a_cap_saves_the_updates_of_the_theory(decay, schedule, fewer):
    config = PRESETS["shakespeare_cpu"].config.replace(warmup_epochs=0.0, max_batch_size=None, num_epochs=1.0)
    made = schedules(config.replace(batch_size=400, lr_schedule=decay))
    recipe, plan = (build.recipe(made[name], 1_000_000).plan() for name in (COSINE, schedule))
    assert 1 - plan.num_updates / recipe.num_updates == pytest.approx(fewer, abs=0.01)
    assert theory(decay, schedule) == pytest.approx(fewer, abs=1e-12)


@_EVERY_PRESET
def test_all_but_one_control_see_the_same_tokens(name):
    preset, plans = plans_of(name)
    wanted = build.recipe(preset.config, preset.dataset_size).num_examples
    for (group, schedule), (_, plan) in plans.items():
        if schedule == presets.FEW_UPDATES:
            assert plan.num_examples < 0.8 * wanted
        else:
            assert wanted <= plan.num_examples < wanted + plan.batch_sizes[-1]
            assert plan.num_examples < 1.04 * wanted, (group, schedule)


@_EVERY_PRESET
def test_seesaw_divides_the_rate_by_the_root_of_what_multiplies_the_batch(name):
    preset, plans = plans_of(name)
    cap = preset.config.conversion.max_batch_size
    seen = 0
    for (group, schedule), (_, plan) in plans.items():
        if schedule != SEESAW:
            continue
        seen += 1
        cosine, after = plans[group, COSINE][0].at(plan.examples_seen).learning_rate, after_warm_up(preset, plan)
        growth = plan.batch_sizes / group.batch_size
        assert plan.learning_rates == pytest.approx(cosine * growth**0.5, rel=1e-9)
        decay = cosine.max() / cosine[after]
        wanted = np.minimum(group.batch_size * decay, cap)
        assert np.all((plan.batch_sizes[after] <= wanted + 1e-3) & (plan.batch_sizes[after] > wanted - 1 - 1e-3))
        assert group.decay == QUARTER or plan.batch_sizes.max() == cap
        below = plan.batch_sizes[after] < cap
        kept = plan.learning_rates[after] * growth[after] ** 0.5
        np.testing.assert_allclose(kept[below], cosine.max(), rtol=1 / group.batch_size)
    assert seen == len(preset.starts) + 1


@_EVERY_PRESET
@pytest.mark.parametrize(("schedule", "exponent"), [(LINEAR, 1.0), (SQRT, 0.5)])
def test_the_held_rates_are_held_up_to_the_cap_and_beyond_adams_bound(name, schedule, exponent):
    preset, plans = plans_of(name)
    for start in preset.starts:
        recipe, plan = plans[Group(start.batch_size, HALF), schedule]
        below = after_warm_up(preset, plan) & (plan.batch_sizes < preset.config.conversion.max_batch_size)
        rounding = (1 + 1 / plan.batch_sizes[below]) ** -exponent  # batches are rounded down, and so are the rates
        rates = plan.learning_rates[below] / start.learning_rate
        assert np.all((rates <= 1 + 1e-6) & (rates >= rounding - 1e-6))
        with pytest.warns(bsjax.AdamStabilityWarning):
            bsjax.check_adam_stability(recipe)


@_EVERY_PRESET
def test_seesaw_and_the_warm_up_are_within_adams_bound(name):
    _, plans = plans_of(name)
    with warnings.catch_warnings(action="error"):
        for (_, schedule), (recipe, _) in plans.items():
            if schedule in (SEESAW, WARM_UP):
                bsjax.check_adam_stability(recipe)


@_EVERY_PRESET
def test_the_batch_warms_up_from_a_quarter_at_the_square_root_rule(name):
    preset, plans = plans_of(name)
    total = build.recipe(preset.config, preset.dataset_size).num_examples
    for start in preset.starts:
        group = Group(start.batch_size, HALF)
        plan, cosine = plans[group, WARM_UP][1], plans[group, COSINE][0]
        shares = plan.batch_sizes / start.batch_size
        done = plan.examples_seen / total
        expected = np.select([done < 0.03 - 1e-4, done < 0.1 - 1e-4], [0.25, 0.5], 1.0)
        clear = np.abs(done[:, None] - [0.03, 0.1]).min(axis=1) > 1e-3
        np.testing.assert_array_equal(shares[clear], expected[clear])
        rates = cosine.at(plan.examples_seen).learning_rate * shares**0.5
        np.testing.assert_allclose(plan.learning_rates, rates, rtol=1e-9)


@_EVERY_PRESET
def test_each_control_changes_one_thing(name):
    preset, plans = plans_of(name)
    for (group, schedule), (_, plan) in plans.items():
        _, cosine = plans[group, COSINE]
        if schedule == presets.CONSTANT:
            held = plan.learning_rates[after_warm_up(preset, plan)]
            np.testing.assert_allclose(held, cosine.learning_rates.max(), rtol=1e-6)
            np.testing.assert_array_equal(plan.batch_sizes, cosine.batch_sizes)
        if schedule == presets.FEW_UPDATES:
            assert plan.num_updates == pytest.approx(plans[group, SEESAW][1].num_updates, abs=2)
            assert set(plan.batch_sizes) == {group.batch_size}
            assert plan.learning_rates.max() == pytest.approx(cosine.learning_rates.max(), rel=0.02)
            assert plan.learning_rates[-1] < 0.01 * cosine.learning_rates.max()


@_EVERY_PRESET
def test_the_first_start_has_room_for_the_growth_of_the_theory(name):
    preset, configs = configs_of(name)
    rows = plan_rows(preset.dataset_size, configs)
    found = {(row["start"], row["decay"], row["schedule"]): row for row in rows}
    for decay in ("half cosine", "quarter cosine"):
        row = found[preset.starts[0].batch_size, decay, SEESAW]
        assert row["fewer"] == pytest.approx(row["theory"], abs=SHARE_MARGIN)
    for row in rows:
        if row["schedule"] in (presets.CONSTANT, WARM_UP):
            assert row["fewer"] == pytest.approx(0, abs=0.02) and math.isnan(row["theory"])


def results(losses):
    """Runs that ended with these test losses; NaN: one that diverged."""
    return [
        Result({"completed": not math.isnan(loss), "final_test_loss": loss, "num_updates": 9}, []) for loss in losses
    ]


def test_predictions_hold_or_not_or_are_undecided():
    cosine, noise = np.array([1.80, 1.81, 1.79]), np.array([0.001, -0.001, 0.0])
    first, quarter, large = Group(12, HALF), Group(12, QUARTER), Group(96, HALF)
    found = {
        first: {COSINE: cosine, SEESAW: cosine + noise, SQRT: cosine + 0.05 + noise, presets.CONSTANT: cosine + 0.2},
        quarter: {COSINE: cosine, SEESAW: cosine + 0.03 + noise, presets.CONSTANT: cosine + 0.02},
        large: {COSINE: cosine + 0.1, SEESAW: cosine + 0.1 + 30 * noise},
    }
    found = {group: {name: results(losses) for name, losses in its.items()} for group, its in found.items()}
    plans = [
        {"start": 12, "decay": "half cosine", "schedule": SEESAW, "fewer": 0.48, "theory": 0.5},
        {"start": 12, "decay": "quarter cosine", "schedule": SEESAW, "fewer": 0.30, "theory": 0.363},
        {"start": 96, "decay": "half cosine", "schedule": SEESAW, "fewer": 0.1, "theory": 0.5},
    ]
    assert predictions(found, plans, margin=0.02) == {
        "Seesaw has 50.0 % fewer updates with the half cosine": True,
        "Seesaw has 36.3 % fewer updates with the quarter cosine": False,
        "12 windows, half cosine: no decay is 5 standard deviations worse": True,
        "12 windows, quarter cosine: no decay is 5 standard deviations worse": False,
        "12 windows, half cosine: Seesaw is equal": True,
        "12 windows, quarter cosine: Seesaw is equal": False,
        "12 windows, half cosine: the square-root rule with the rate held is worse than Seesaw": True,
        "96 windows, half cosine: Seesaw is worse": None,
    }
    assert len(predictions(found, plans, margin=None)) == 4


def test_the_distance_of_two_schedules_is_in_the_larger_deviation():
    random = np.random.RandomState(0).normal(size=(2, 50)) * [[0.1], [0.3]] + [[1.0], [2.0]]
    near, far = random
    assert separation(far, near) == pytest.approx((far.mean() - near.mean()) / far.std(ddof=1))
    assert separation(near, far) == pytest.approx(-separation(far, near))
    assert separation(np.append(far, math.nan), near) == separation(far, near)
    assert math.isnan(separation(far[:1], near))


def test_the_search_takes_the_least_loss_of_the_rates_that_are_far_apart(capsys):
    cosine = np.array([1.90, 1.91, 1.92])
    rows = [
        search.row_of(12, 1e-3, cosine, cosine + 0.02),
        search.row_of(12, 2e-3, cosine - 0.05, cosine + 0.02),
        search.row_of(12, 4e-3, cosine - 0.02, cosine + 0.2),
        search.row_of(12, 8e-3, np.array([1.0, 1.0, math.nan]), cosine + 0.3),
        search.row_of(96, 4e-3, cosine + 0.1, cosine + 0.3),
    ]
    assert [round(row["separation"], 6) for row in rows[:3]] == [2.0, 7.0, 22.0]
    assert search.best(rows[:4])["learning_rate"] == 2e-3
    starts = (Start(12, 1e-3), Start(96, 4e-3))
    search.report(rows, starts, margin=0.02)
    printed = capsys.readouterr().out
    assert "96 windows: the decay ends +0.1500 nats from 12 windows, on the same tokens: above the critical" in printed
    assert printed.endswith("--batch_sizes=12,96 --learning_rates=0.002,0.004\n")
    search.report(rows[:1], starts[:1], margin=None)
    assert "12 windows: at no rate are they 5 standard deviations apart" in capsys.readouterr().out


def test_losses_are_drawn_against_tokens():
    def run(losses):
        lines = [{"epoch": n, "update": 3 * n, "examples_seen": 500 * n} for n in (1, 2)]
        metrics = [line | {"train_loss": loss} for line, loss in zip(lines, losses, strict=True)]
        return Result({"completed": True}, [*metrics, {"update": 6, "test_loss": 1.0}])

    one, other = (loss_curve([run(losses)], context_length=64) for losses in ([3.0, 2.0], [3.5, 2.25]))
    assert one.epoch == pytest.approx([0.032, 0.064])
    rows = loss_rows({"one": one, "other": other}, start=12)
    assert [(row["million_tokens"], row["difference"]) for row in rows[2:]] == [(0.032, "0.5"), (0.064, "0.25")]


def test_the_study_end_to_end(call, data_dir, read_csv, results_table, tmp_path):
    flags = ["--dataset=walk", f"--data_dir={data_dir}", "--context_length=8", "--model_depth=1", "--model_width=8"]
    flags += ["--microbatch_size=4", "--num_epochs=1.5", "--batch_sizes=4", "--learning_rates=0.02"]
    flags += ["--max_batch_size=32", "--seeds=1", "--jobs=1", f"--workdir={tmp_path}"]
    result = call("seesaw", *flags)
    assert result.returncode == 0, result.stderr
    table = {(row["decay"], row["schedule"]): row for row in read_csv(tmp_path / "seesaw_table.csv")}
    cosine, ours = table["half cosine", COSINE], table["half cosine", SEESAW]
    assert int(ours["updates"]) < int(cosine["updates"]) == 56
    difference = float(ours["test_loss_mean"]) - float(cosine["test_loss_mean"])
    assert float(ours["difference"]) == pytest.approx(difference, abs=1e-5)
    assert len(table) == 7 + 3
    assert re.search(r"^4 +half cosine +Seesaw +\d+ +[\d.]+ % +50.0 % +32$", result.stdout, re.MULTILINE)
    said = json.loads((tmp_path / "seesaw.json").read_text())["predictions"]
    assert said["4 windows, half cosine: no decay is 5 standard deviations worse"] is None  # one seed
    assert {row["schedule"] for row in read_csv(tmp_path / "seesaw.csv")} == {name for _, name in table}
    assert (tmp_path / "seesaw.png").stat().st_size > 10_000
    page = results_table.tables(tmp_path.parent, [f"{tmp_path.name}/seesaw"])
    assert page.index("\nStart 4, decay half cosine:\n") < page.index("\nStart 4, decay quarter cosine:\n")
    assert f"\n| {COSINE} | 56 | {56 * 4 * 8:,} | {float(cosine['test_loss_mean']):.4f} |" in page
    assert "of each table, in nats" in page and "| tokens/s |" in page
    assert "| 4 windows, half cosine: no decay is 5 standard deviations worse | undecided" in page

    searched = call("seesaw", *flags, "--search", "--factors=1")
    assert searched.returncode == 0, searched.stderr
    assert len(list((tmp_path / "runs").glob("*seed=100*"))) == 2
    [row] = read_csv(tmp_path / "seesaw_search.csv")
    assert (row["batch_size"], row["learning_rate"]) == ("4", "0.02")
