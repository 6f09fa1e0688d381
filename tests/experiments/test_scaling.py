"""The script that predicts times: its output and its files. No test depends on how long anything takes."""

import json
import re

import pytest

from bsjax import Plan
from bsjax.analysis.time_model import AllReduce, Costs, StepTimes, best_num_devices, predict
from experiments.harness import build, presets
from experiments.scaling import step_times

_FAST = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiles faster
_SMALL = ("--preset=digits", "--model=mlp", "--model_width=8")


@pytest.fixture(scope="module")
def predicted(call, tmp_path_factory):
    """The folder and the output of the paper's CIFAR-10 on a few numbers of devices."""
    folder = tmp_path_factory.mktemp("scaling")
    arguments = ["--device_counts=1,16,4", "--flops_per_s=1e12", "--microbatch_s=0.002", "--apply_update_s=0.001"]
    arguments += ["--latency_s=0.0001", "--bytes_per_s=1e9", "--min_gain=0.2"]
    result = call("scaling", "--preset=cifar10", *arguments, f"--workdir={folder}", **_FAST)
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def test_numbers_are_those_of_the_library(read_csv, predicted):
    folder, _ = predicted
    assert (folder / "scaling.png").read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in (folder / "scaling.svg").read_text(encoding="utf-8")
    assert "experiments.scaling" in json.loads((folder / "scaling.json").read_text())["command"]
    preset = presets.get("cifar10")
    # As XLA counts WRN-16-4; its parameters, and the means and variances of 13 batch norms.
    times = StepTimes.affine(0.002, 2.154556416e9 / 1e12, 0.001)
    num_bytes = 4 * (2_748_890 + 3616)
    costs = Costs(times, AllReduce(1e-4, 1e9), num_bytes, ghost_batch_size=128, num_shared_means=26)
    rows = read_csv(folder / "scaling.csv")
    by_line = {tuple(row.values())[:4]: row for row in rows}
    assert len(by_line) == len(rows) == 2 * 4 * 2 * 3
    for label, config in presets.section_5_2(preset, preset.config).items():
        plan = build.recipe(config, 50_000).plan()
        for count in (1, 4, 16):
            choices = [choice for choice in (1, 4, 16) if choice <= count]
            growing = best_num_devices(plan, choices, costs, min_gain=0.2)
            for devices, num_devices in (("fixed", count), ("growing", growing)):
                expected = predict(plan, num_devices, costs)
                row = by_line["cifar10, wide_resnet", label, devices, str(count)]
                for name in ("wall_time_s", "device_hours", "all_reduce_s"):
                    assert float(row[name]) == pytest.approx(getattr(expected, name), rel=1e-3, abs=1e-9)


def test_it_says_what_is_assumed_and_where_each_phase_stops(read_csv, predicted):
    folder, output = predicted
    assert output.count("ASSUMED, not measured") == 2
    assert "2.15 GFLOP per example at 1e+12 FLOP/s and 0.002 s per microbatch; apply_update 0.001 s" in output
    assert "All-reduce of 11 MB: 0.0001 s per message, 1e+09 bytes/s." in output
    assert re.search(r"^Increased momentum coefficient +2,305 +16 +[\d.]+ +[\d.]+ +[\d.]+%$", output, re.MULTILINE)
    stops = read_csv(folder / "scaling_table.csv")
    momentum = [row for row in stops if row["schedule"] == "Increased momentum coefficient"]
    assert [row["batch_size"] for row in momentum] == ["3200", "5120"]
    printed = ", ".join(f"batch {int(row['batch_size']):,} at {int(row['stops_at_devices']):,}" for row in momentum)
    assert f"stops speeding up: {printed}\n" in output
    imagenet = [row for row in stops if row["workload"].startswith("ImageNet")]
    sizes = {label: [row["batch_size"] for row in imagenet if row["schedule"] == label] for label in
             ("Decaying learning rate", "Increasing batch size", "Momentum 0.975")}  # fmt: skip
    assert list(sizes.values()) == [["8192"], ["8192", "65536"], ["32768", "65536"]]


def test_measured_step_times(call, read_csv, tmp_path):
    arguments = ["--measure", "--microbatch_sizes=2,8", "--repeats=1", "--measure_s=0", "--device_counts=1"]
    result = call("scaling", *_SMALL, *arguments, f"--workdir={tmp_path}", **_FAST)
    assert result.returncode == 0, result.stderr
    assert re.search(r"digits, mlp\. Step times measured on cpu: StepTimes\(accumulate_s=\{2: .*, 8: ", result.stdout)
    assert result.stdout.count("ASSUMED, not measured") == 1  # ImageNet's
    assert "Microbatches of 8 at most" in result.stdout  # the largest that was measured
    assert "stops speeding up: batch 8,192 at ≥ 64, batch 65,536 at ≥ 64\n" in result.stdout  # none larger was tried
    assert all(float(row["wall_time_s"]) > 0 for row in read_csv(tmp_path / "scaling.csv"))


def test_validation_compares_every_training(call, read_csv, tmp_path):
    arguments = ["--validate", "--repeats=1", "--measure_s=0", "--num_microbatches=16", "--microbatch_size=4"]
    result = call("scaling", *_SMALL, *arguments, f"--workdir={tmp_path}", **_FAST)
    assert result.returncode == 0, result.stderr
    rows = read_csv(tmp_path / "validation.csv")
    labels = ["1", "2", "4", "8", "16", "1 to 16"]
    assert [(row["devices"], row["microbatches"]) for row in rows] == [(d, label) for d in "12" for label in labels]
    assert [row["updates"] for row in rows[:6]] == ["16", "8", "4", "2", "1", "7"]  # 3, 1, 1, 1 and 1 of the last
    for row in rows:
        for origin in ("from_one_device", "from_as_many"):
            error = float(row[f"{origin}_s"]) / float(row["measured_s"]) - 1
            assert float(row[f"{origin}_error"]) == pytest.approx(error, abs=0.01 * (2 + abs(error)))
        assert float(row["measured_s"]) <= float(row["measured_median_s"])


def test_step_times_come_out_of_updates_that_follow_the_model():
    accumulate_s, apply_update_s = {4: 0.3, 16: 0.9}, 0.25
    saving_s = {1: 0.125, 2: 0.0, 6: 0.0}
    measured = step_times.UpdateSeconds(
        *(
            {size: count * seconds + apply_update_s - saved for size, seconds in accumulate_s.items()}
            for count, saved in saving_s.items()
        )
    )
    disturbed = step_times.UpdateSeconds(*({size: 3 * seconds for size, seconds in one.items()} for one in measured))
    times = step_times.step_times([disturbed, measured])
    assert times.accumulate_s == pytest.approx(accumulate_s)
    assert times.apply_update_s == pytest.approx(apply_update_s)
    assert times.single_saving_s == pytest.approx(0.125)
    # And back.
    plan = Plan(100, [4, 8, 24], [0.1] * 3, [0.9] * 3)
    costs = Costs(times, AllReduce(0.0, 1.0), 0, microbatch_size=4)
    assert predict(plan, 1, costs).wall_time_s == pytest.approx(sum(seconds[4] for seconds in measured))


def test_all_reduce_comes_out_of_sums_that_follow_the_model():
    model = AllReduce(latency_s=0.01, bytes_per_s=1e6)
    for num_devices in (2, 3, 8):
        seconds = [model.seconds(size, num_devices) for size in (0, 10**6)]
        measured = step_times.AllReduceSeconds(num_devices, 10**6, *seconds)
        fitted = step_times.all_reduce([measured, measured._replace(single=1.0, full=9.0)])
        assert (fitted.latency_s, fitted.bytes_per_s) == pytest.approx((0.01, 1e6))
