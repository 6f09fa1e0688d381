"""Presets of language models, and a text from its file to a trained model."""

import json
import math

import numpy as np
import pytest

from bsjax import InvalidArgument
from experiments.harness import build, language_models


@pytest.mark.parametrize(
    ("name", "num_updates", "batch_tokens", "warmup", "end"),
    [
        ("shakespeare_cpu", 2000, 12 * 64, 100, 1e-4),
        ("shakespeare", 5000, 64 * 256, 100, 1e-4),
        ("gpt2_small", 19_073, 524_288, 700, 0.0),
    ],
)
def test_presets_have_the_published_lengths(name, num_updates, batch_tokens, warmup, end):
    preset = language_models.get(name)
    plan = build.recipe(preset.config, preset.dataset_size).plan()
    rates, peak = plan.learning_rates, preset.config.optimizer.learning_rate
    assert plan.num_updates == num_updates
    assert set(plan.batch_sizes * plan.tokens_per_example) == {batch_tokens}
    assert rates.argmax() == warmup
    np.testing.assert_allclose(rates[:warmup], peak * np.arange(warmup) / warmup, atol=1e-9)
    assert rates[-1] == pytest.approx(end, abs=1e-4 * peak)
    assert build.model(preset.config, 65).depth == preset.config.task.model_depth
    every = preset.config.run.eval_every_epochs * preset.dataset_size / preset.config.recipe.batch_size
    assert every == pytest.approx(round(every))


def test_a_linear_decay_ends_where_it_shall():
    config = language_models.get("shakespeare_cpu").config.replace(lr_schedule="linear", lr_end_factor=0.5)
    rates = build.recipe(config, 15_685).plan().learning_rates
    assert rates[-1] == pytest.approx(0.5e-3, rel=1e-3)


def test_data_and_task_must_fit(data_dir):
    config = language_models.get("shakespeare_cpu").config
    with pytest.raises(InvalidArgument, match=r"^dataset is 'digits'; it must be a text, .* with task=language_model"):
        build.dataset(config.replace(dataset="digits"))
    with pytest.raises(InvalidArgument, match=r"^task is 'classification'; .* with walk, a text; nearest: language_mo"):
        build.dataset(config.replace(dataset="walk", task="classification", model="mlp"), data_dir)
    with pytest.raises(InvalidArgument, match=r"^context_length is 100; it must be less than the 100 tokens"):
        build.dataset(config.replace(dataset="walk", context_length=100), data_dir)


_SMALL = ("--context_length=8", "--model_depth=1", "--model_width=16", "--num_heads=2", "--microbatch_size=4")
_GROWS = ("--schedule=increase_batch_size", "--batch_scaling=sqrt", "--batch_share=0.5")


def test_a_run_trains_grows_measures_noise_and_resumes_to_the_same_bits(call, data_dir, tmp_path):
    noise = ("--measure_noise", "--layer_norm_noise")
    flags = ("--preset=shakespeare_cpu", "--dataset=walk", f"--data_dir={data_dir}", *_SMALL, *_GROWS, *noise)
    flags += ("--num_epochs=3", "--batch_size=8", "--warmup_epochs=0.2", "--dropout=0.1", "--eval_every_epochs=1")
    result = call("train", *flags, f"--workdir={tmp_path / 'whole'}")
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    sizes = [line["batch_size"] for line in lines if "batch_size" in line]
    assert sizes[0] == 8 < sizes[-1]
    assert summary["final_test_loss"] < math.log(7)
    assert summary["final_test_perplexity"] == pytest.approx(math.exp(summary["final_test_loss"]))
    assert summary["final_test_bits_per_byte"] == pytest.approx(summary["final_test_loss"] / math.log(2), rel=1e-5)
    assert summary["tokens_per_second"] == pytest.approx(8 * summary["examples_per_second"], rel=0.01)
    for name in ("gradient_noise_scale", "layer_norm_gradient_noise_scale"):
        assert summary[f"{name}_tokens"] == (summary[name] and 8 * summary[name])
    assert summary["layer_norm_grad_trace"] > 0
    assert f"test perplexity {summary['final_test_perplexity']:.4f}, test loss" in result.stdout
    assert result.stdout.rstrip().endswith("tokens/s")
    assert "tokens/s" in result.stderr

    stopped = call("train", *flags, "--stop_after_s=1e-9", f"--workdir={tmp_path / 'parts'}")
    assert "stopped; the same command continues." in stopped.stdout
    assert call("train", *flags, f"--workdir={tmp_path / 'parts'}").returncode == 0
    resumed = json.loads((tmp_path / "parts" / "summary.json").read_text())
    numbers = [name for name in summary if name.startswith("final")]
    assert {name: resumed[name] for name in numbers} == {name: summary[name] for name in numbers}


def test_the_noise_of_a_language_model_is_in_tokens_by_both_estimates(call, read_csv, data_dir, tmp_path):
    flags = ("--preset=shakespeare_cpu", "--dataset=walk", f"--data_dir={data_dir}", *_SMALL, "--num_epochs=1.5")
    flags += ("--batch_size=8", "--warmup_epochs=0.1", "--log_every_epochs=0.25", "--seeds=1", "--jobs=1")
    result = call("noise_scale", *flags, f"--workdir={tmp_path}")
    assert result.returncode == 0, result.stderr
    rows = read_csv(tmp_path / "noise_scale.csv")
    labels = list(dict.fromkeys(row["schedule"] for row in rows))
    assert labels == [
        *("Original training schedule", "Original training schedule, layer norms"),
        *("Increasing batch size", "Increasing batch size, layer norms"),
    ]
    assert {row["batch_size"] for row in rows if row["schedule"] in labels[:2]} == {"64"}  # of 8 windows of 8 tokens
    assert max(int(row["batch_size"]) for row in rows) > 64

    # The curves end where the runs' summaries do.
    summaries = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("runs/*/summary.json")}
    for label, summary in zip(labels[::2], (summaries[name] for name in sorted(summaries, key=len)), strict=True):
        for end, name in (("", "gradient_noise_scale"), (", layer norms", "layer_norm_gradient_noise_scale")):
            *_, last = (row for row in rows if row["schedule"] == label + end)
            found = math.nan if summary[f"{name}_tokens"] is None else summary[f"{name}_tokens"]
            assert float(last["noise_scale"]) == pytest.approx(found, rel=1e-4, nan_ok=True)
    about = json.loads((tmp_path / "noise_scale.json").read_text())
    assert about["unit"] == "tokens"
    assert list(about["agreement"]) == labels[::2]
    assert result.stdout.count("predict B_simple. Theirs is ") == 2
    assert (tmp_path / "noise_scale.png").stat().st_size > 10_000
