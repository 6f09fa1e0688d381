"""The script that advises a batch size, from flags to files, and its comparison with sweeps."""

import json
import re

import numpy as np
import pytest

from bsjax.analysis.critical_batch import Interval
from bsjax.analysis.noise_along_run import NoiseAlongRun
from experiments import which_batch_size_check
from experiments.critical_batch_size import study

_SMALL = [
    "--model=mlp",
    "--model_width=4",
    "--augmentation=none",
    "--num_epochs=2",
    "--lr_decay_epochs=1",
    "--run_share=0.1",
]


@pytest.fixture(scope="module")
def advised(call, tmp_path_factory):
    """The folder and the output of the script."""
    folder = tmp_path_factory.mktemp("advice")
    flags = [*_SMALL, "--num_batches=3", "--device_counts=4,1", "--learning_rate=0.01", f"--workdir={folder}"]
    result = call("which_batch_size", *flags)
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def test_the_script_leaves_its_answer_and_its_numbers(advised, read_csv):
    folder, stdout = advised
    assert (folder / "which_batch_size.png").read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in (folder / "which_batch_size.svg").read_text(encoding="utf-8")
    answer = json.loads((folder / "which_batch_size.json").read_text())["answer"]
    speeds = {int(row["microbatch_size"]): float(row["examples_per_s"]) for row in
              read_csv(folder / "which_batch_size_microbatches.csv")}  # fmt: skip
    assert answer["microbatch_size"] == max(speeds, key=speeds.__getitem__)
    assert f"The fastest microbatch has {answer['microbatch_size']} examples per device" in stdout
    noise = read_csv(folder / "which_batch_size.csv")
    assert [int(row["update"]) for row in noise] == [2, 3, 5, 9, 18, 36]  # of 360 in all
    assert [int(row["examples_seen"]) for row in noise] == [8 * int(row["update"]) for row in noise]
    times = read_csv(folder / "which_batch_size_table.csv")
    assert [(row["num_devices"], row["recipe"]) for row in times] == [
        (count, name) for count in "14" for name in ("own", "suggested")
    ]
    assert times[0]["updates"] == "360" and int(times[1]["updates"]) == answer["num_updates"] < 360
    assert f"{answer['num_updates']:,} updates instead of 360" in stdout
    assert set(answer["smallest_batch_size"]) == {"1", "4"}


def test_the_first_batch_follows_from_the_critical_batch_size(advised):
    answer = json.loads((advised[0] / "which_batch_size.json").read_text())["answer"]
    critical, first = answer["critical_batch_size"][0], answer["batch_size"]
    assert first == 8 or first <= 0.2 * critical
    assert 2 * first > 0.2 * critical and answer["learning_rate"] == pytest.approx(0.01 * first / 8)
    text = " ".join(advised[1].split())
    for sentence in answer["uncertain"]:
        assert sentence in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--run_share=0", r"--run_share is 0.0; it must be in \(0, 1\]; nearest: 1$"),
        ("--device_counts=1,x", "--device_counts is '1,x'; .* separated by commas; nearest: 1,8,64$"),
        ("--device_counts=0", "--device_counts is '0'; it must be whole numbers >= 1; nearest: 1,8,64$"),
        ("--bytes_per_s=0", "--bytes_per_s is 0.0; it must be positive$"),
        ("--batch_share=2", r"--batch_share is 2.0; it must be in \(0, 1\]; nearest: 1$"),
        ("--optimizer=lars", "--optimizer is 'lars'; it must be one whose learning rate has a known rule .*momentum$"),
        ("--schedule=increase_batch_size", "--schedule is not a flag"),
        ("--preset=digit", "--preset is 'digit'; .*; nearest: digits$"),
    ],
)
def test_a_wrong_flag_is_one_line_and_leaves_nothing(call, tmp_path, arguments, message):
    result = call("which_batch_size", arguments, f"--workdir={tmp_path / 'advice'}")
    assert result.returncode == 2
    assert re.search(f"^error: {message}", result.stderr, re.MULTILINE) and len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_sweep_is_read_and_compared():
    """Two seeds whose noise scales are 50 and 200 all along, against the sweep's 98."""
    name = "critical_batch_size_digits"
    sweep = which_batch_size_check.SWEEPS[name]
    found = which_batch_size_check.read(which_batch_size_check.RESULTS / name, sweep)
    assert found.critical_batch_size == Interval(97.992, 69.961, 137.25)
    assert (found.config.optimizer.learning_rate, found.num_updates) == (0.141421, 467)
    assert found.config.replace(learning_rate=0.1) == study.PRESETS["digits"].config

    def noise(early, late):
        squares = np.array([[(1.0, early), (1.0, late)]] * 3)
        return NoiseAlongRun(np.array([117, 467]), np.full(467, 8), squares)

    row = which_batch_size_check.compare(sweep, found, [noise(50, 50), noise(200, 200)])
    assert row["predicted_whole"] == pytest.approx(100) and row["factor_whole"] == pytest.approx(100 / 97.992)
    assert (row["smallest_factor_whole"], row["largest_factor_whole"]) == pytest.approx((50 / 97.992, 200 / 97.992))
    assert row["within_whole"] and row["allowed_whole"] == pytest.approx(20)
    early = which_batch_size_check.compare(sweep, found, [noise(10, 300)] * 2)
    assert early["predicted_quarter"] == pytest.approx(10) and not early["within_quarter"]
    assert early["predicted_quarter"] < early["predicted_whole"] < 300
    figure = which_batch_size_check.draw([row, early])
    [bars, quarter] = [container.lines[0].get_ydata() for container in figure.axes[0].containers]
    assert list(bars) == pytest.approx([100, early["predicted_whole"]]) and quarter[1] == pytest.approx(10)


def test_the_comparison_end_to_end(call, read_csv, tmp_path):
    flags = ["--sweeps=critical_batch_size_digits_loss_0.3", "--seeds=2", f"--workdir={tmp_path}"]
    result = call("which_batch_size_check", *flags)
    assert result.returncode == 0, result.stderr
    [row] = read_csv(tmp_path / "which_batch_size_check.csv")
    lines = re.findall(r"^digits, to test loss 0.3, seed \d: ([\d.]+)$", result.stdout, re.MULTILINE)
    assert float(row["predicted_whole"]) == pytest.approx(np.exp(np.log(np.array(lines, float)).mean()), rel=0.01)
    assert float(row["factor_guess"]) == 1  # of one sweep
    [line] = read_csv(tmp_path / "which_batch_size_check_table.csv")
    assert line["factor at the target, and of one seed"].startswith(f"{float(row['factor_whole']):.2f} (")
    wrong = call("which_batch_size_check", "--sweeps=digits", f"--workdir={tmp_path}")
    assert wrong.returncode == 2 and "--sweeps is 'digits'; it must be one of critical_batch_size_d" in wrong.stderr
