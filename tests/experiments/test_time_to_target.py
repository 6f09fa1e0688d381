"""The time to a target, without PyTorch: its runs, its clock, its table, and that finished runs are kept."""

import json
import re

import pytest

from experiments import time_to_target
from experiments.time_to_target import Target, table

_SMALL = ("--presets=digits", "--nopytorch", "--seeds=1", "--num_epochs=4", "--model=mlp", "--model_width=8")
_SMALL += ("--microbatch_size=auto",)


def points(accuracies, seconds_per_epoch=1.0):
    return [[10 * k, k * seconds_per_epoch, 2.0, 1 - a, a] for k, a in enumerate(accuracies, start=1)]


def test_table_has_the_first_evaluation_at_the_target():
    ended = [
        {"contestant": "A", "seed": 10, "points": points([0.1, 0.5, 0.4, 0.6])},
        {"contestant": "A", "seed": 11, "points": points([0.1, 0.2, 0.5, 0.7], 2.0)},
        {"contestant": "A", "seed": 12, "points": points([0.1, 0.1, 0.1, 0.2])},
        {"contestant": "B", "seed": 10, "points": []},
    ]
    expected = [
        "| digits, test accuracy 0.5 | reached | updates | seconds | set-up and compilation, s | whole run, s "
        "| final test accuracy |",
        "|---|---|---|---|---|---|---|",
        "| A | 2 of 3 | 25 | 4.0 (2.0-6.0) | 2.0 | 4.0 | 50.00 % |",
        "| B | 0 of 1 |  |  |  |  | diverged |",
    ]
    assert table("digits", Target("test_accuracy", 0.5), ended).splitlines() == expected
    by_loss = table("digits", Target("test_loss", 0.5), ended).splitlines()
    assert by_loss[2:] == expected[2:]  # the loss here is 1 - accuracy


@pytest.fixture(scope="module")
def first(call, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("time_to_target")
    return call("time_to_target", *_SMALL, f"--workdir={workdir}", "--target=test_accuracy=0.1"), workdir


def test_grown_and_decayed_reach_a_low_target(first):
    result, workdir = first
    assert result.returncode == 0, result.stderr
    found = json.loads((workdir / "digits.json").read_text())
    assert [(run["contestant"], run["seed"]) for run in found["runs"]] == [
        (time_to_target.DECAYED, 10),
        (time_to_target.GROWN, 10),
    ]
    decayed, grown = ([time_to_target.Point(*point) for point in run["points"]] for run in found["runs"])
    assert len(decayed) == len(grown) == 4
    assert decayed[-1].updates == -(-4 * 1437 // 8)
    assert grown[0].updates == decayed[0].updates  # until the first decay they are the same run
    assert (grown[0].test_loss, grown[0].test_accuracy) == (decayed[0].test_loss, decayed[0].test_accuracy)
    assert grown[-1].updates < decayed[-1].updates
    for curve in decayed, grown:
        assert 0 < curve[0].seconds < curve[1].seconds < curve[2].seconds
        assert 0 < curve[0].waited_s <= curve[1].waited_s
    assert re.search(r"^\| Increasing batch size \| 1 of 1 \| \d+ \| [\d.]+ ", result.stdout, re.MULTILINE)


def test_finished_runs_are_kept(first, call):
    _, workdir = first
    before = (workdir / "digits.json").read_text()
    again = call("time_to_target", *_SMALL, f"--workdir={workdir}", "--target=test_loss=0.001")
    assert again.returncode == 0, again.stderr
    assert "| Decaying learning rate | 0 of 1 |" in again.stdout
    assert (workdir / "digits.json").read_text() == before


def test_results_of_another_recipe_are_refused(first, call):
    _, workdir = first
    result = call("time_to_target", *_SMALL, f"--workdir={workdir}", "--learning_rate=0.1")
    assert result.returncode == 2
    assert result.stderr.endswith(
        f"error: --workdir is '{workdir}'; it must be one without a digits.json of other settings\n"
    )


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--target=loss=1", "--target is 'loss'; it must be one of test_loss, test_accuracy; nearest: test_loss"),
        ("--target=test_loss", "--target is 'test_loss'; it must be a metric and a number; nearest: test_loss=0.5"),
        ("--presets=digit", "--presets is 'digit'; it must be one of .*; nearest: digits"),
    ],
)
def test_bad_flags_are_one_line(call, tmp_path, flag, message):
    result = call("time_to_target", flag, f"--workdir={tmp_path}")
    assert result.returncode == 2
    assert re.fullmatch(f"error: {message}\n", result.stderr)
    assert not list(tmp_path.iterdir())
