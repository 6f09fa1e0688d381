"""Curves, tables and looks of the figures, from results that are made up."""

import itertools
import json
import math
import re

import numpy as np
import pytest
from scipy import stats

from experiments.harness import figures, presets, studies
from experiments.harness.control import Control
from experiments.harness.curves import Curve, curve, curve_rows
from experiments.harness.runs import Result

_ORIGINAL = [0.960, 0.950, 0.970, 0.955]


@pytest.fixture
def study(tmp_path):
    preset = presets.get("digits")
    return studies.Study(preset, preset.config, tmp_path, range(4), jobs=3, control=Control())


def run(accuracy, num_points=3):
    """A run that ended with an accuracy; with NaN, one that diverged."""
    costs = {"wall_time_s": 10.0, "compile_stall_time_s": 4.0, "examples_per_second": 1000.0}
    summary = {"num_updates": 30, "examples_seen": 3000, "completed": not math.isnan(accuracy), **costs}
    if summary["completed"]:
        summary |= {"final_test_accuracy": accuracy, "final_test_loss": 0.1, "final_train_loss": 0.01}
    points = [
        {"epoch": 1.01 * n, "update": 10 * n, "test_accuracy": accuracy - 0.1 * (num_points - n)}
        for n in range(1, num_points + 1)
    ]
    return Result(summary, [{"update": 1, "train_loss": 1.0}, *points])


def group(accuracies):
    return [run(accuracy) for accuracy in accuracies]


def test_tables_compare_with_the_first_row_seed_by_seed(study, capsys):
    near, worse = [0.961, 0.9505, 0.9705, 0.956], [0.93, 0.92, math.nan, 0.915]
    results = {"Original training schedule": group(_ORIGINAL), "near": group(near), "worse": group(worse)}
    first, *rows = figures.print_results(results, study)
    assert {first[name] for name in ("difference", "verdict", "margin")} == {""}
    assert [row["verdict"] for row in rows] == ["equal", "different"]
    expected = stats.ttest_rel([0.93, 0.92, 0.915], [0.960, 0.950, 0.955]).confidence_interval()
    assert (rows[1]["difference_low"], rows[1]["difference_high"]) == pytest.approx(tuple(expected), abs=1e-12)
    assert (rows[1]["seeds"], rows[1]["diverged"]) == (3, 1)
    assert {row["run_time_s"] for row in rows} == {"6.0"}  # without the wait for compilation

    figures.print_notes(study, [first, *rows])
    printed = capsys.readouterr().out
    assert re.search(r"^worse +30 +92.17 ± 0.76 +-3.33 \[-4.77, -1.90\] +different$", printed, re.MULTILINE)
    assert "1 of 4 seeds diverged and are left out: worse." in printed
    assert "±1.0 points" in printed
    assert max(map(len, printed.splitlines())) <= 100


@pytest.mark.parametrize("jobs", [1, 3])
def test_times_are_shown_where_each_run_was_alone_on_the_machine(study, jobs, capsys):
    study = study._replace(jobs=jobs)
    results = {"Original training schedule": group(_ORIGINAL)}
    figures.print_notes(study, figures.print_results(results, study))
    printed = capsys.readouterr().out
    assert bool(re.search(r"^Original training schedule .* 6.0$", printed, re.MULTILINE)) == (jobs == 1)
    assert ("s/run" in printed, "one run at a time" in printed) == (jobs == 1, jobs == 1)


def test_tables_fit_into_a_hundred_columns_with_the_longest_names(study, capsys):
    labels = [*presets.section_5_2(study.preset, study.config), *presets.controls(study.preset, study.config)]
    bad = [0.860, 0.750, 0.470, 0.9]
    figures.print_results({label: group(bad if i else _ORIGINAL) for i, label in enumerate(labels)}, study)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert sum("Control: " in line for line in lines) == 4


def test_one_seed_and_other_data_sets_have_no_verdict_that_means_something(study, capsys):
    results = {"Original training schedule": group(_ORIGINAL[:1]), "other": group([0.9])}
    assert figures.print_results(results, study)[1]["verdict"] == "undecided"
    other = study._replace(config=study.config.replace(dataset="fashion_mnist"))  # whose margin the preset lacks
    row = figures.print_results(results, other)[1]
    assert (row["verdict"], row["margin"]) == ("", "")
    assert "[" not in capsys.readouterr().out
    dead = group([math.nan])
    figures.print_results({"first": dead, "second": dead}, study)
    assert "diverged" in capsys.readouterr().out


@pytest.mark.parametrize("jobs", [1, 3])
def test_markdown_has_differences_and_verdicts(study, results_table, jobs):
    results = {"Original training schedule": group(_ORIGINAL), "near": group([0.962, 0.9505, 0.9706, 0.956])}
    folder = study.workdir / "digits"
    table = [row for name in ("SGD", "Adam") for row in figures.print_results(results, study, optimizer=name)]
    folder.mkdir()
    studies.write_csv(folder / "figure4_table.csv", table)
    about = {"command": "python", "devices": ["cpu"], "cores": 2, "versions": {"jax": "1"}, "date": "today"}
    (folder / "figure4.json").write_text(json.dumps(about | {"jobs": jobs}))
    page = results_table.tables(study.workdir, ["*/figure4"])
    cells = r"SGD: near \| 30 \| 95.98 ± 0.\d\d % \| 0.10 \[-0.08, 0.28\] \| equal \| 4 \|"
    assert re.search(rf"^\| {cells}{r' 6.0 s . 1,000 .' if jobs == 1 else ''}$", page, re.MULTILINE)
    assert "to the first row of the same optimizer" in page
    assert "margin of ±1.0 points" in page and ("one run at a time" in page) == (jobs == 1)


def test_markdown_of_losses_has_groups_and_predictions(study, results_table):
    columns = ("start", "schedule", "updates", "test_loss_mean", "test_loss_std", "seeds", "diverged")
    columns += ("difference", "difference_low", "difference_high", "verdict", "margin", "examples", "tokens")
    rows = [
        (6, "Cosine decay", 1728, 1.9, 0.01, 3, 0, "", "", "", "", "", 10368, 663552),
        (12, "Cosine decay", 864, 1.92361, 0.0123, 3, 0, "", "", "", "", "", 10368, 663552),
        (12, "Seesaw", 400, 1.93, 0.01, 3, 0, 0.00655, -0.001, 0.014, "equal", 0.02, 10400, 665600),
    ]
    (study.workdir / "text").mkdir()
    studies.write_csv(
        study.workdir / "text" / "seesaw_table.csv", [dict(zip(columns, row, strict=True)) for row in rows]
    )
    about = {"command": "python", "devices": ["cpu"], "cores": 2, "versions": {"jax": "1"}, "date": "today"}
    about["predictions"] = {"Seesaw is equal": True, "it is worse": False, "nothing": None}
    (study.workdir / "text" / "seesaw.json").write_text(json.dumps(about))
    lines = results_table.tables(study.workdir, ["*/seesaw"]).splitlines()
    assert lines[2:8] == [
        *("Start 6:", "", "| schedule | updates | tokens | test loss | seeds |", "| --- | --- | --- | --- | --- |"),
        *("| Cosine decay | 1,728 | 663,552 | 1.9000 ± 0.0100 | 3 |", ""),
    ]
    assert lines[8:14] == [
        *("Start 12:", "", "| schedule | updates | tokens | test loss | difference | verdict | seeds |"),
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| Cosine decay | 864 | 663,552 | 1.9236 ± 0.0123 |  |  | 3 |",
        "| Seesaw | 400 | 665,600 | 1.9300 ± 0.0100 | 0.0066 [-0.0010, 0.0140] | equal | 3 |",
    ]
    assert any("to the first row of each table, in nats" in line and "margin of ±0.02 nats" in line for line in lines)
    assert lines[-3:] == [
        *("| Seesaw is equal | held |", "| it is worse | **did not hold** |"),
        "| nothing | undecided with so few seeds |",
    ]


def test_markdown_of_noise_scales_says_how_the_layer_norms_agree(study, results_table):
    (study.workdir / "text").mkdir()
    row = {"schedule": "Seesaw", "noise_scale_first": 32.5, "last_epoch": math.nan}
    studies.write_csv(study.workdir / "text" / "noise_scale_table.csv", [row])
    about = {"command": "python", "devices": ["cpu"], "cores": 2, "versions": {"jax": "1"}, "date": "today"}
    agreement = {"ratio": 1.2345, "spread": 1.1, "control": 3.0, "correlation": None}
    (study.workdir / "text" / "noise_scale.json").write_text(json.dumps(about | {"agreement": {"Seesaw": agreement}}))
    lines = results_table.tables(study.workdir, ["*/noise_scale"]).splitlines()
    assert "| Seesaw | 32.5 | - |" in lines
    assert lines[-1] == "| Seesaw | 1.23 | 1.1 | 3 | - |"


def test_a_page_has_the_verdict_on_each_claim_from_each_folder(study, results_table):
    about = {"command": "python", "devices": ["cpu"], "cores": 2, "versions": {"jax": "1"}, "date": "today"}
    for folder, names in {"effects_digits": ["memory", "rules"], "effects_fashion": ["rules"]}.items():
        (study.workdir / folder).mkdir()
        for name in names:
            one = {"claim": f"|{name}|", "preset": folder[8:], "verdict": "holds", "detail": f"on {folder[8:]}"}
            (study.workdir / folder / f"{name}.json").write_text(json.dumps(about | one))
    mark = "<!-- verdicts: effects_digits effects_fashion (written by scripts/results_table.py) -->\n"
    page = results_table.with_tables(f"before\n{mark}old\n<!-- end of results -->\nafter\n", study.workdir)
    assert page.splitlines() == [
        *("before", mark.rstrip(), "", "|  | claim | digits | fashion |", "| --- | --- | --- | --- |"),
        "| `memory` | &#124;memory&#124; | **holds** on digits |  |",
        "| `rules` | &#124;rules&#124; | **holds** on digits | **holds** on fashion |",
        *("", "* `python` (1 × cpu, 2 cores, jax 1, today)", "", "<!-- end of results -->", "after"),
    ]


def test_curves_pair_seeds_although_one_diverged():
    one, original = curve(group([0.7, math.nan, 0.9]), "test_accuracy"), curve(group([0.5, 0.6, 0.8]), "test_accuracy")
    assert one.values.shape == (3, 3)
    np.testing.assert_allclose(one.spread()[0], [0.6, 0.7, 0.8])
    estimate, low, high = one.difference(original)
    np.testing.assert_allclose(estimate, 0.15)  # of the first and the third seed
    expected = stats.ttest_rel([0.7, 0.9], [0.5, 0.8]).confidence_interval()
    np.testing.assert_allclose([low[-1], high[-1]], expected)
    shorter = curve([run(0.7, num_points=2) for _ in range(3)], "test_accuracy")
    assert shorter.difference(original) is None
    np.testing.assert_allclose(shorter.final_difference(original)[0], 0.7 - np.mean([0.5, 0.6, 0.8]))
    rows = curve_rows({"original": original, "one": one, "shorter": shorter}, "test_accuracy")
    assert [row["difference"] for row in rows] == ["", "", "", *["0.15"] * 3, "", ""]


def test_bands_of_losses_stay_positive_and_ratios_are_paired():
    epochs, random = np.arange(1.0, 4.0), np.random.RandomState(0)
    seeds = np.exp(random.normal(0, 2, (5, 3)))
    one, other = (Curve(epochs, 100 * epochs, factor * seeds) for factor in (1.0, 3.0))
    mean, std = seeds.mean(axis=0), seeds.std(axis=0, ddof=1)
    assert (mean - std).min() < 0 < one.band(log=True)[1].min()
    np.testing.assert_allclose(one.band(log=True)[0], stats.gmean(seeds))
    np.testing.assert_allclose(one.band(log=True)[2], stats.gmean(seeds) * stats.gstd(seeds))
    np.testing.assert_allclose(other.difference(one, log=True), 3.0)  # what the seeds share cancels


def test_each_schedule_has_one_look_and_no_two_look_alike():
    preset = presets.get("digits")
    first, second = (list(of(preset, preset.config)) for of in (presets.section_5_1, presets.section_5_2))
    assert figures.style_of(first[0]) == figures.style_of(second[0])
    main = [*second, "Hybrid"]
    assert len({figures.style_of(label)["color"] for label in main}) == len(main)
    controls = list(presets.controls(preset, preset.config))
    looks = [(figures.style_of(label)["color"], str(figures.style_of(label)["linestyle"])) for label in controls]
    assert all(len(set(column)) == 4 for column in zip(*looks, strict=True))
    for label in controls:
        red, green, blue = (figures.style_of(label)["color"][i : i + 2] for i in (1, 3, 5))
        assert red == green == blue
        assert figures.style_of(label)["linewidth"] < min(figures.style_of(name)["linewidth"] for name in main)
    pairs = itertools.combinations([*main, *controls], 2)
    assert all(figures.marker_of(one) != figures.marker_of(other) for one, other in pairs)


def test_the_window_shows_the_climb_and_leaves_no_empty_side():
    epochs = np.arange(1.0, 61.0)
    climb = 0.99 - 0.3 * np.exp(-epochs / 2) - 0.03 * (epochs < 20)
    fast = Curve(epochs, 10 * epochs, np.stack([climb - 0.05 * (epochs < 20)] * 2))
    slow = Curve(epochs, 180 * epochs, np.stack([climb] * 2))
    figure, panels = figures.draw_schedules(
        {"Original training schedule": slow, "Increased momentum coefficient": fast}, figures.Scale("", 100.0, 0.01)
    )
    panels[0, 1].set_xscale("log")
    figures.zoom(panels[0], {"slow": slow, "fast": fast}, 100.0)
    low, high = panels[0, 0].get_ylim()
    assert low < 100 * fast.spread()[0][18] < high  # before the decay
    left = panels[0, 1].get_xlim()[0]
    visible = fast.update[100 * fast.spread()[0] >= low]
    assert 0.8 * visible[0] < left <= visible[0]
    figures.plt.close(figure)
