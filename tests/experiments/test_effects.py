"""The study of what the batch size does: every claim end to end in its quick mode."""

import json
import math
import re

import numpy as np
import pytest

from experiments.effects import claim, rates, study
from experiments.effects.__main__ import CLAIMS

_FLAGS = ["--quick", "--seeds=2", "--jobs=1"]


@pytest.fixture(scope="module")
def everything(call, tmp_path_factory):
    """The folder and the output of all claims."""
    folder = tmp_path_factory.mktemp("effects")
    result = call("effects", "--claim=all", *_FLAGS, f"--workdir={folder}")
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_has_settings_for_the_presets_that_suit_it(name):
    one = CLAIMS[name]
    of_cifar100 = {"cifar100_small", "cifar100"}
    assert set(one.settings) - {"quick"} == (of_cifar100 if name == "resnet18" else {*study.BASES} - of_cifar100)
    for settings in one.settings.values():
        sizes = getattr(settings, "batch_sizes", ())
        assert list(sizes) == sorted(set(sizes))
    assert all(text and not text.endswith(" ") for text in (one.question, one.claim, one.prediction, one.margin))


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_says_what_it_is_and_leaves_its_files(everything, read_csv, name):
    folder, stdout = everything
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in (folder / f"{name}.svg").read_text(encoding="utf-8")
    assert read_csv(folder / f"{name}.csv") and read_csv(folder / f"{name}_table.csv")
    about = json.loads((folder / f"{name}.json").read_text())
    one = CLAIMS[name]
    assert (about["question"], about["claim"], about["margin"]) == (one.question, one.claim, one.margin)
    assert about["quick"] and about["seeds"] == 2 and about["versions"]["jax"]
    verdict = claim.verdict_of(about["cases"])
    assert (about["verdict"], about["detail"]) == verdict
    said = re.search(rf"^== {name}: .*?^Verdict: (.*?)\n\n", stdout, re.MULTILINE | re.DOTALL)[1]
    assert " ".join(said.split()) == str(verdict)
    [row] = [row for row in read_csv(folder / "verdicts.csv") if row["claim"] == name]
    assert (row["verdict"], row["detail"]) == verdict


def test_nothing_is_trained_again(everything, call, read_csv):
    folder, stdout = everything
    before = {path: path.stat().st_mtime_ns for path in folder.glob("trainings/*")}
    result = call("effects", "--claim=momentum", *_FLAGS[:-1], "--jobs=2", f"--workdir={folder}")
    assert result.returncode == 0, result.stderr
    assert result.stdout in stdout
    assert {path: path.stat().st_mtime_ns for path in folder.glob("trainings/*")} == before


def test_variance_is_measured_beside_its_formula(everything, read_csv):
    rows = read_csv(everything[0] / "variance.csv")
    assert {(row["moment"], row["replacement"]) for row in rows} == {
        (moment, kind) for moment in ("early", "late") for kind in ("True", "False")
    }
    for row in rows:
        size, trace, exact, found = (float(row[k]) for k in ("batch_size", "trace", "exact_variance", "variance"))
        share = 1 / 64 if row["replacement"] == "True" else size / 64  # of 64 examples
        assert exact == pytest.approx(trace / size * (1 - share), rel=1e-4)
        assert found == pytest.approx(exact, rel=0.6, abs=1e-9)
        assert float(row["square"]) - found == pytest.approx(float(row["exact_square"]) - exact, rel=1, abs=0.3 * trace)


def test_regimes_have_the_same_epochs_or_the_same_updates(everything, read_csv):
    table = read_csv(everything[0] / "generalisation_table.csv")
    assert {row["updates"] for row in table if row["equal"] == "updates"} == {"90"}
    assert all(float(row["epochs"]) == pytest.approx(1, rel=0.1) for row in table if row["equal"] == "epochs")
    by_key = {(row["equal"], row["rule"], row["batch_size"]): row for row in table}
    rule_rates = [float(by_key["epochs", rule, "512"]["learning_rate"]) for rule in rates.RULES]
    assert rule_rates == pytest.approx([rule_rates[0], rule_rates[0] * 32**0.5, rule_rates[0] * 32], rel=1e-4)
    base = float(by_key["epochs", "searched", "16"]["test_accuracy"])
    for row in table:
        if row["verdict"] != "base" and row["diverged"] == "0":
            assert float(row["difference"]) == pytest.approx(float(row["test_accuracy"]) - base, abs=1e-5)


def test_minima_are_compared_at_the_same_loss(everything, read_csv):
    points = read_csv(everything[0] / "sharpness.csv")
    table = {(row["rule"], row["batch_size"]): row for row in read_csv(everything[0] / "sharpness_table.csv")}
    reached = [row for row in points if float(row["train_loss"]) <= 1.9]
    assert len(reached) == sum(int(row["reached"]) for row in table.values())
    values = [float(r["trace"]) for r in reached if (r["rule"], r["batch_size"]) == ("constant", "256")]
    mean = math.exp(np.mean(np.log(values)))
    assert float(table["constant", "256"]["trace"]) == pytest.approx(mean, rel=1e-4)
    for row in table.values():
        assert float(row["stability_threshold"]) == pytest.approx(2 / float(row["learning_rate"]), rel=1e-4)


def test_the_first_distance_is_the_learning_rate_times_the_gradient(everything, read_csv):
    """The first update of a seed and batch size has the same gradient whatever the rule."""
    rows = [
        row for row in read_csv(everything[0] / "distance.csv") if (row["update"], row["batch_size"]) == ("1", "128")
    ]
    first = {(row["rule"], row["seed"]): float(row["distance"]) for row in rows}
    for seed in ("0", "1"):
        assert first["linear", seed] / first["constant", seed] == pytest.approx(8, rel=1e-4)
        assert first["sqrt", seed] / first["constant", seed] == pytest.approx(8**0.5, rel=1e-4)


def test_the_grid_of_momentums_keeps_the_noise_scale(everything, read_csv):
    table = read_csv(everything[0] / "momentum_table.csv")
    assert len(table) == 4
    rate, size, momentum = (
        np.array([float(row[k]) for row in table]) for k in ("learning_rate", "batch_size", "momentum")
    )
    np.testing.assert_allclose(rate / (size * (1 - momentum)), rate[0] / size[0], rtol=1e-4)


def test_the_extremes_are_really_run(everything, read_csv):
    table = {row["training"]: row for row in read_csv(everything[0] / "extremes_table.csv")}
    assert [table[name]["batch_size"] for name in ("batch 1", "full batch at equal epochs")] == ["1", "1437"]
    assert table["full batch at equal updates"]["updates"] == table["in between"]["updates"]


def test_an_accumulated_batch_needs_the_memory_of_a_microbatch(everything, read_csv):
    """XLA's plan; what a process takes is measured, and not asserted."""
    whole, accumulated = read_csv(everything[0] / "memory_table.csv")
    assert (whole["microbatch_size"], accumulated["microbatch_size"]) == ("128", "32")
    assert 0 < float(accumulated["xla_bytes"]) < float(whole["xla_bytes"]) / 2
    assert float(whole["measured_bytes"]) >= 0


def test_speeds_are_over_those_of_the_neighbours(everything, read_csv):
    [row] = read_csv(everything[0] / "powers_of_two_table.csv")
    before, at, after = (float(point["images_per_second"]) for point in read_csv(everything[0] / "powers_of_two.csv"))
    assert float(row["speed_over_neighbours"]) == pytest.approx(at / (before * after) ** 0.5, rel=1e-4)


def test_both_orders_see_the_same_imbalanced_examples(everything, read_csv):
    table = read_csv(everything[0] / "imbalance_table.csv")
    by_key = {(row["order"], row["batch_size"]): row for row in table}
    assert {order for order, _ in by_key} == {"shuffled", "even"}
    for size in ("16", "64"):
        pair = by_key["shuffled", size], by_key["even", size]
        assert len({(row["learning_rate"], row["updates"]) for row in pair}) == 1
        difference = float(pair[1]["rare"]) - float(pair[0]["rare"])
        assert float(pair[1]["to_shuffled"]) == pytest.approx(difference, abs=1e-5)
    recipes = [json.loads(path.read_text())["recipe"] for path in (everything[0] / "trainings").iterdir()]
    assert {one["data"]["even"] for one in recipes if one["data"]["imbalance"] == 4} == {True, False}


def test_a_stop_is_compared_with_the_base_that_stops_alike(everything, read_csv):
    rows = read_csv(everything[0] / "early_stopping_table.csv")
    table = {(row["equal"], row["stop"], row["batch_size"]): row for row in rows}
    assert len(table) == len(rows) == 8
    for (regime, stop, _), row in table.items():
        assert row["updates"] == "90" or regime == "epochs"
        stops_at = float(row["stop_updates"])
        assert stops_at == float(row["updates"]) if stop == "last" else 1 <= stops_at <= float(row["updates"])
        if row["diverged"] == "0":
            ratio = float(row["test_loss"]) / float(table["epochs", stop, "16"]["test_loss"])
            assert float(row["ratio"]) == pytest.approx(ratio, rel=1e-3)
    assert table["epochs", "early", "16"]["verdict"] == table["updates", "last", "16"]["verdict"] == "base"
    assert "Control, the last parameters at equal epochs: batch 128 has" in " ".join(everything[1].split())


def test_autoencoders_are_compared_with_the_smallest_batch(everything, read_csv):
    rows = read_csv(everything[0] / "autoencoders_table.csv")
    table = {(row["equal"], row["rule"], row["batch_size"]): row for row in rows}
    assert len({key[:2] for key in table}) == 3 and len(table) == len(rows) == 6
    assert len({row["learning_rate"] for (_, rule, _), row in table.items() if rule == "constant"}) == 1
    for (regime, rule, _), row in table.items():
        smallest = table[regime, rule, "16"]
        assert float(row["explained"]) <= 1 and float(row["kept"]) >= 0
        if row["diverged"] == "0":
            ratio = float(row["squared_error"]) / float(smallest["squared_error"])
            assert float(row["ratio"]) == pytest.approx(ratio, rel=1e-3)
            difference = float(row["kept"]) - float(smallest["kept"])
            assert float(row["kept_difference"]) == pytest.approx(difference, abs=1e-5)
    files = list((everything[0] / "trainings").glob("task=autoencoder*"))
    recipes = [json.loads(path.read_text())["recipe"] for path in files]
    assert {(one["data"]["num_examples"], one["probe"]["name"]) for one in recipes} == {(256, "patches")}


def test_contrastive_trainings_see_as_many_examples(everything, read_csv):
    points = read_csv(everything[0] / "contrastive.csv")
    assert all(int(row["updates"]) * int(row["batch_size"]) == int(row["examples_seen"]) for row in points)
    assert {row["examples_seen"] for row in points if row["groups"] == "whole"} == {"64"}
    pixels = {row["probe_loss"] for row in points if row["groups"] == "pixels"}
    assert len(pixels) == 1 < len({row["probe_loss"] for row in points if row["groups"] == "untrained"})
    by_key = {tuple(row[k] for k in ("groups", "batch_size", "examples_seen", "seed")): row for row in points}
    corners = (("fixed", "32"), ("whole", "32"), ("fixed", "8"))
    assert len({by_key[groups, size, "64", "0"]["test_loss"] for groups, size in corners}) == 3
    table = {(row["groups"], row["batch_size"]): row for row in read_csv(everything[0] / "contrastive_table.csv")}
    means = [
        np.mean([float(by_key[groups, size, "64", seed]["probe_accuracy"]) for seed in ("0", "1")])
        for groups, size in corners
    ]
    assert float(table["whole", "32"]["to_fixed"]) == pytest.approx(means[1] - means[0], abs=1e-5)
    assert float(table["whole", "32"]["to_smallest"]) == pytest.approx(means[1] - means[2], abs=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--claim=variances"], "error: --claim is 'variances'; it must be one of variance, "),
        (["--claim=variance", "--quick", "--preset=cifar10"], "error: --preset is 'cifar10'; it must be digits with"),
        (["--claim=variance", "--preset=digit"], "error: --preset is 'digit'; it must be one of digits, "),
        (["--claim=resnet18"], "error: --preset is 'digits'; it must be one of cifar100_small, cifar100 with --claim="),
        (["--claim=variance", "--seeds=0"], "error: --seeds is 0; it must be a whole number >= 1; nearest: 1"),
        ([], "error: --claim is missing"),
    ],
)
def test_bad_flags_are_refused_before_anything_is_written(call, tmp_path, flags, message):
    result = call("effects", *flags, f"--workdir={tmp_path / 'new'}")
    assert result.returncode == 2
    assert result.stderr.startswith(message) and result.stderr.count("\n") == 1
    assert not (tmp_path / "new").exists()
