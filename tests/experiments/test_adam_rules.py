"""What follows the batch of Adam: by invariants, by the library's own conversions, and in one small run of it all."""

import math

import numpy as np
import pytest

from experiments import adam_rules
from experiments.adam_rules import BASE, FOLLOWING, PRESETS, RULES, SQRT, Rule
from experiments.harness import build
from experiments.harness.runs import Result

_KAPPAS = (2, 4, 8, 16)
_EVERY_PRESET = pytest.mark.parametrize("name", PRESETS)


def in_tokens(config):
    """What the constants mean in tokens: b2's half-life, eps·√B, and the time scale of the weight decay, B/(lr·λ)."""
    given, size = config.optimizer, config.recipe.batch_size
    time_scale = size / (given.learning_rate * given.weight_decay)
    return {"b2": size / -math.log2(given.b2), "eps": given.epsilon * size**0.5, "weight_decay": time_scale}


def plan_of(preset, config):
    return build.recipe(config, preset.dataset_size).plan()


@_EVERY_PRESET
@pytest.mark.parametrize("kappa", _KAPPAS)
def test_what_follows_keeps_its_meaning_in_tokens_and_all_else_stays(name, kappa):
    config = PRESETS[name].config
    before, optimizer = in_tokens(config), config.optimizer
    fields = {"b2": "b2", "eps": "epsilon", "weight_decay": "weight_decay"}
    for rule in RULES.values():
        scaled = adam_rules.scaled(config, kappa, rule)
        assert scaled.recipe.batch_size == kappa * config.recipe.batch_size
        assert scaled.optimizer.learning_rate == pytest.approx(optimizer.learning_rate * kappa**rule.exponent, rel=1e-5)
        for constant, field in fields.items():
            if constant in rule.follows:
                assert in_tokens(scaled)[constant] == pytest.approx(before[constant], rel=1e-3)
                assert getattr(scaled.optimizer, field) != getattr(optimizer, field)
            else:
                assert getattr(scaled.optimizer, field) == getattr(optimizer, field)


def test_each_constant_follows_alone_and_with_all():
    assert [rule.follows for rule in FOLLOWING.values()] == [
        ("b2",),
        ("eps",),
        ("weight_decay",),
        ("b2", "eps", "weight_decay"),
    ]
    assert {rule.exponent for rule in FOLLOWING.values()} == {0.5}
    assert [rule.exponent for rule in adam_rules.RATES.values()] == [0.0, 0.5, 1.0]


@_EVERY_PRESET
def test_all_following_is_the_recipes_own_conversion(name):
    preset, kappa = PRESETS[name], 4
    converted = preset.config.replace(scale_learning_rate=2.0, batch_scaling="sqrt", scale_adam="half_life")
    scaled = adam_rules.scaled(preset.config, kappa, RULES["√κ, all follow"])
    plan, expected = plan_of(preset, scaled), plan_of(preset, converted)
    np.testing.assert_array_equal(plan.batch_sizes, expected.batch_sizes)
    np.testing.assert_allclose(plan.learning_rates, expected.learning_rates, rtol=1e-5)
    given = scaled.optimizer
    assert given.b2 == pytest.approx(expected.others["b2"][-1], rel=1e-5)
    assert given.epsilon == pytest.approx(expected.others["eps"][-1], rel=1e-5)
    assert given.weight_decay == pytest.approx(expected.others["weight_decay"][-1], rel=1e-5)


@_EVERY_PRESET
def test_all_runs_see_the_same_tokens(name):
    preset = PRESETS[name]
    made = adam_rules.schedules(preset.config, _KAPPAS) | adam_rules.controls(preset.config, _KAPPAS[-1])
    assert len(made) == 1 + len(_KAPPAS) * len(RULES) + 3
    plans = {key: plan_of(preset, config) for key, config in made.items()}
    assert len({plan.num_examples for plan in plans.values()}) == 1
    for (kappa, _), plan in plans.items():
        assert plan.num_updates == plans[1, BASE].num_updates / kappa


@_EVERY_PRESET
def test_controls_have_the_tokens_of_a_larger_batch_that_leaves_a_constant_behind(name):
    config, kappa = PRESETS[name].config, 16
    left_behind = in_tokens(adam_rules.scaled(config, kappa, RULES[SQRT]))
    before = in_tokens(config)
    controls = list(adam_rules.controls(config, kappa).values())
    for control, constant in zip(controls, before, strict=True):
        meaning = in_tokens(control)
        assert meaning.pop(constant) == pytest.approx(left_behind[constant], rel=1e-2)
        assert meaning == pytest.approx({name: value for name, value in before.items() if name != constant})
        assert control.recipe == config.recipe
        assert control.optimizer.learning_rate == config.optimizer.learning_rate


def results(losses):
    return [Result({"completed": True, "final_test_loss": loss}, []) for loss in losses]


def test_a_constant_matters_where_the_loss_with_it_differs_from_that_without():
    without = np.array([2.0, 2.1, 2.2])
    noise = np.array([0.001, 0.0, -0.001])
    found = {(1, BASE): results(without), (4, SQRT): results(without), (4, "rate held"): results(without - 1)}
    found |= {(4, name): results(without + noise - 0.1 * (i == 0)) for i, name in enumerate(FOLLOWING)}
    rows = adam_rules.what_matters(found, margin=0.02)
    assert [(row["kappa"], row["follows"]) for row in rows] == [(4, "b2"), (4, "eps"), (4, "weight decay"), (4, "all")]
    assert [row["verdict"] for row in rows] == ["different", "equal", "equal", "equal"]
    assert rows[0]["difference"] == pytest.approx(-0.1)
    assert rows[0]["difference_low"] < -0.1 < rows[0]["difference_high"] < 0


def test_constants_of_no_rule_are_those_of_the_recipe():
    assert adam_rules.constants(PRESETS["shakespeare_cpu"].config, 8, Rule(1.0)) == {}


def test_the_study_end_to_end(call, data_dir, read_csv, results_table, tmp_path):
    flags = ["--dataset=walk", f"--data_dir={data_dir}", "--context_length=8", "--model_depth=1", "--model_width=8"]
    flags += ["--microbatch_size=4", "--num_epochs=1", "--batch_size=4", "--learning_rate=0.02", "--kappas=2"]
    flags += ["--seeds=1", "--jobs=1", f"--workdir={tmp_path}"]
    result = call("adam_rules", *flags, "--nocontrols")
    assert result.returncode == 0, result.stderr
    table = {row["schedule"]: row for row in read_csv(tmp_path / "adam_rules_table.csv")}
    assert list(table) == [BASE, *RULES]
    losses = {name: float(row["test_loss_mean"]) for name, row in table.items()}
    for name in RULES:
        assert float(table[name]["difference"]) == pytest.approx(losses[name] - losses[BASE], abs=1e-5)
    assert len(set(losses.values())) > 4  # the rules are not one run
    rows = {row["follows"]: row for row in read_csv(tmp_path / "adam_rules_constants.csv")}
    for name, said in (("√κ, b2 follows", "b2"), ("√κ, all follow", "all")):
        assert float(rows[said]["difference"]) == pytest.approx(losses[name] - losses[SQRT], abs=1e-5)
    points = read_csv(tmp_path / "adam_rules.csv")
    assert {(row["kappa"], row["schedule"]) for row in points} == {("2", name) for name in (BASE, *RULES)}
    assert (tmp_path / "adam_rules.png").stat().st_size > 10_000
    page = results_table.tables(tmp_path.parent, [f"{tmp_path.name}/adam_rules"])
    row = table["rate held"]
    assert "\nKappa 2:\n" in page
    assert f"\n| rate held | {row['updates']} | {int(row['tokens']):,} | {losses['rate held']:.4f} | " in page

    searched = call("adam_rules", *flags, "--search", "--factors=1")
    assert searched.returncode == 0, searched.stderr
    found = {
        float(row["learning_rate"]): float(row["test_loss"]) for row in read_csv(tmp_path / "adam_rules_search.csv")
    }
    assert list(found) == [0.02]
    assert "Least loss: --learning_rate=0.02; it is an end of the grid" in searched.stdout
