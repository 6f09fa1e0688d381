"""The studies of noise and controllers, end to end with little of everything."""

import math
import re

import numpy as np
import pytest

from experiments import adaptive
from experiments import noise_scale as noise_scale_study
from experiments.harness import build, figures, presets

_SMALL = ["--model=mlp", "--model_width=4", "--num_epochs=1.5", "--lr_decay_epochs=0.7,1.2", "--seeds=1", "--jobs=1"]
_SMALL.append("--microbatch_size=auto")


def test_noise_scale(call, read_csv, tmp_path):
    result = call("noise_scale", *_SMALL, f"--workdir={tmp_path}", "--log_every_epochs=0.25")
    assert result.returncode == 0, result.stderr
    assert "not measured" not in result.stdout
    rows = read_csv(tmp_path / "noise_scale.csv")
    labels = list(presets.section_5_2(presets.get("digits"), presets.get("digits").config))
    assert list(dict.fromkeys(row["schedule"] for row in rows)) == labels
    assert all(float(row["noise_scale"]) > 0 for row in rows if row["noise_scale"] != "nan")
    assert {int(row["batch_size"]) for row in rows if row["schedule"] == labels[0]} == {8}
    table = read_csv(tmp_path / "noise_scale_table.csv")
    assert [row["schedule"] for row in table] == labels
    for row in table:
        scales = [float(point["noise_scale"]) for point in rows if point["schedule"] == row["schedule"]]
        values = [float(row[f"noise_scale_{when}"]) for when in ("first", "middle", "last")]
        expected = scales[0], scales[len(scales) // 2], scales[-1]
        assert values == pytest.approx(expected, rel=1e-4, nan_ok=True)
    assert not re.search(r"nan|\de\+", result.stdout)
    assert (tmp_path / "noise_scale.png").stat().st_size > 10_000


def test_crosses_are_where_the_noise_scale_cannot_be_measured():
    epoch, noise_scale = np.arange(1.0, 6.0), np.array([10, np.nan, 40, np.nan, 80])
    one = noise_scale_study.NoiseCurve(epoch, np.array([8, 8, 20, 20, 160]), noise_scale, np.tile(noise_scale, (3, 1)))
    figure = noise_scale_study.draw({"Original training schedule": one})
    crosses = [next(line.get_xdata() for line in axes.lines if line.get_marker() == "x") for axes in figure.axes]
    assert [list(each) for each in crosses] == [[2, 4], [2, 4]]
    row = noise_scale_study.table_row("A", one)
    assert (row["ratio_first"], row["ratio_middle"], row["ratio_last"]) == (0.8, 0.5, 2.0)
    assert (row["percent_above"], row["last_epoch"]) == (pytest.approx(100 / 3), 5.0)


def test_the_line_without_decay_is_at_the_controls_difference():
    columns = ("schedule", "updates", "examples", "difference", "difference_low", "difference_high")
    rows = [("Original training schedule", 90, 10, "", "", ""), (presets.CONSTANT, 90, 10, -0.02, -0.03, -0.01)]
    rows.append(("AdaScale", 30, 20, 0.01, -math.inf, math.inf))  # one seed
    table = [dict(zip(columns, row, strict=True)) for row in rows]
    left, right = adaptive.draw(table, figures.Scale("Test accuracy (%)", 100.0, 0.01)).axes
    assert [-2.0, -2.0] in [list(line.get_xdata()) for line in right.lines]
    bars = [container.lines[0].get_xdata().item() for container in right.containers]
    assert bars == pytest.approx([0.0, -2.0, 1.0])
    assert [text.get_text() for text in left.get_yticklabels()] == [row[0] for row in rows]
    assert [text.get_text() for text in left.texts] == [" 2.0 × the examples "]


def test_adaptive(call, read_csv, tmp_path):
    result = call("adaptive", *_SMALL, f"--workdir={tmp_path}")
    assert result.returncode == 0, result.stderr
    rows = {row["schedule"]: row for row in read_csv(tmp_path / "adaptive_table.csv")}
    assert presets.CONSTANT in rows and float(rows["AdaScale"]["difference"]) == pytest.approx(
        float(rows["AdaScale"]["test_accuracy_mean"]) - float(rows[presets.ORIGINAL]["test_accuracy_mean"]), abs=1e-5
    )
    assert list(rows) == list(adaptive.contestants(presets.get("digits"), presets.get("digits").config))
    examples = {label: int(row["examples"]) for label, row in rows.items()}
    epochs = 1.5 * 1437
    for label, seen in examples.items():
        if label == "AdaScale":
            assert seen > 1.3 * epochs  # its clock
        elif not label.startswith("CriticalBatch"):
            assert epochs <= seen < epochs + 144
    assert (tmp_path / "adaptive.png").stat().st_size > 10_000


@pytest.mark.parametrize("preset", adaptive.PRESETS)
def test_every_preset_has_contestants_that_can_be_made(preset):
    preset = adaptive.PRESETS[preset]
    for config in adaptive.contestants(preset, preset.config).values():
        controller = build.controller(config, preset.dataset_size)
        update, _ = controller.decide(controller.init())
        assert update.examples_seen == 0
        assert update.batch_size >= preset.config.recipe.batch_size


@pytest.mark.parametrize("name", adaptive.LANGUAGE_MODELS)
def test_contestants_of_a_language_model_see_the_same_tokens_and_follow_the_square_root(name):
    preset = adaptive.LANGUAGE_MODELS[name]
    made = adaptive.contestants(preset, preset.config)
    kinds = [config.controller.controller for config in made.values()]
    assert kinds == 3 * ["planned"] + 2 * ["gradient_noise"] + 2 * ["critical_batch"] + ["plateau"]
    smallest, largest = preset.config.recipe.batch_size, preset.config.conversion.max_batch_size
    wanted = build.recipe(preset.config, preset.dataset_size).num_examples
    for config in made.values():
        controller = build.controller(config, preset.dataset_size)
        state, updates, measured = controller.init(), [], 0
        while True:
            if (branches := controller.branches(state)) is not None:
                measured += 1
                losses = [[1.0 + k] * len(branch) for k, branch in enumerate(branches)]  # larger ones are worse
                state = controller.observe_branches(state, losses)
            update, state = controller.decide(state)
            if update is None:
                break
            updates.append(update)
        assert wanted <= sum(update.batch_size for update in updates) < wanted + largest
        if config.controller.controller != "planned":
            assert (controller.limits.sizes[0], controller.exponent) == (smallest, 0.5)
            is_noise = config.controller.controller == "gradient_noise"
            after = round(preset.config.recipe.warmup_epochs * preset.dataset_size)
            assert controller.limits.warmup_examples == is_noise * after
            assert measured == 3 * (config.controller.controller == "critical_batch")
