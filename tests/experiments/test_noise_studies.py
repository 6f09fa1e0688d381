"""The studies of noise and controllers, end to end with little of everything."""

import pytest

from experiments import adaptive
from experiments.harness import build, presets

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
    assert len(read_csv(tmp_path / "noise_scale_table.csv")) == 4
    assert (tmp_path / "noise_scale.png").stat().st_size > 10_000


def test_adaptive(call, read_csv, tmp_path):
    result = call("adaptive", *_SMALL, f"--workdir={tmp_path}")
    assert result.returncode == 0, result.stderr
    rows = {row["schedule"]: row for row in read_csv(tmp_path / "adaptive_table.csv")}
    assert list(rows) == list(adaptive.contestants(presets.get("digits"), presets.get("digits").config))
    examples = {label: int(row["examples"]) for label, row in rows.items()}
    epochs = 1.5 * 1437
    for label, seen in examples.items():
        if label == "AdaScale":
            assert seen > 1.3 * epochs  # its clock
        elif not label.startswith("CriticalBatch"):
            assert epochs <= seen < epochs + 144
    assert (tmp_path / "adaptive.png").stat().st_size > 10_000


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_every_preset_has_contestants_that_can_be_made(preset):
    preset = presets.get(preset)
    for config in adaptive.contestants(preset, preset.config).values():
        controller = build.controller(config, preset.dataset_size)
        update, _ = controller.decide(controller.init())
        assert update.examples_seen == 0
        assert update.batch_size >= preset.config.recipe.batch_size
