"""The scripts as people call them: their files and output, and one clear line for a wrong flag."""

import json
import os
import pathlib
import re
import statistics
import subprocess
import sys

import pytest

from experiments.harness.config import Config

ROOT = pathlib.Path(__file__).parents[2]
# An mlp compiles fast.
_SMALL = ("--num_epochs=3", "--lr_decay_epochs=1,2", "--model=mlp", "--model_width=8", "--eval_every_epochs=0.5")
_SMALL += ("--microbatch_size=auto",)


@pytest.mark.parametrize(
    ("script", "arguments", "code", "message"),
    [
        ("train", "--learning_rate=-1", 2, "--learning_rate is -1.0; it must be a positive"),
        ("train", "--preset=digit", 2, "--preset is 'digit'; .*; nearest: digits"),
        ("train", "--ghost_batch_size=32", 2, "--batch_size is 8; .* multiple of --ghost_batch_size 32; nearest: 32"),
        ("train", "--scale_learning_rate=1000", 2, "--scale_learning_rate is 1000.0; .*; nearest: 179$"),
        (
            "train",
            "--learning_rate=1e30 --model=mlp --microbatch_size=auto",
            1,
            "train_loss is (nan|inf) at update .*; try a smaller",
        ),
        ("train", "seed=1", 2, "'seed=1' is not a flag; nearest: --seed=1$"),
        ("train", "banana", 2, "'banana' is not a flag$"),
        ("train", "--bath_size=8", 2, "--bath_size is not a flag; nearest: --batch_size$"),
        ("train", "--num_epochs=abc", 2, "--num_epochs is 'abc'; it must be a number$"),
        ("train", "--nomeasure_noise=1", 2, "--nomeasure_noise=1 does not take an argument$"),
        ("train", "", 2, "--workdir is missing$"),
        ("train", "--workdir=", 2, "--workdir is ''; it must be a folder that has a name; nearest: runs/example$"),
        ("train", "--max_batch_size=64", 2, "--max_batch_size is 64; it must be combined with --sched"),
        ("train", "--stop_after_s=0", 2, "--stop_after_s is 0.0; it must be positive"),
        ("train", "--dataset=fashion", 2, "--dataset is 'fashion'; .*; nearest: fashion_mnist"),
        ("train", "--controller=cabs", 2, "--optimizer is 'momentum'; it must be sgd for cabs"),
        ("train", "--keep_checkpoints=0", 2, "--keep_checkpoints is 0; it must be .*; nearest: 1"),
        ("train", "--profile_updates=x", 2, "--profile_updates is 'x'; it must be whole numbers separated by commas"),
        ("train", "--profile_updates=20,10", 2, "--profile_updates is '20,10'; it must be .*; nearest: 20,21$"),
        ("train", "--peak_flops_per_s=0", 2, "--peak_flops_per_s is 0.0; it must be a positive finite number$"),
        (
            "train",
            "--log_to=wndb",
            2,
            "--log_to is 'wndb'; it must be one of tensorboard, wandb, trackio; nearest: wandb$",
        ),
        ("train", "--devices=2", 2, "--devices is '2'; it must be all, auto, or a number up to 1"),
        ("train", "--fork_from=missing", 2, "--fork_from is .*; it must be the folder of a run with ch"),
        ("train", "--num_processes=2", 2, "--multihost is False; it must be set where num_processes"),
        ("train", "--multihost --process_id=0", 2, "--coordinator_address is None; it must be set"),
        ("train", "--multihost", 2, "--multihost is True; it must be on Cloud TPU, Slurm or Kub"),
        ("train", "--multihost --coordinator_address=x:1 --num_processes=2 --process_id=2", 2, "--process_id is 2; it"),
        ("plan", "--batch_size=9", 2, "--batch_size is 9; .* multiple of --ghost_batch_size 8; nearest: 8 or 16$"),
        ("plan", "--num_devices=0", 2, "--num_devices is 0; it must be a whole number >= 1; nearest: 1"),
        ("plan", "--dataset_size=0", 2, "--dataset_size is 0; it must be a whole number >= 1"),
        ("figure5", "--lr_schedule=constant", 2, "schedule is .* the batch would never grow"),
        ("figure5", "--controller=cabs", 2, "--controller is not a flag"),
        ("figure5", "--seeds=0", 2, "--seeds is 0; it must be a whole number >= 1; nearest: 1"),
        (
            "paper_runs",
            "--list --figures=5,6",
            2,
            "--figures is 'figure6'; it must be one of figure5, figure2, .*; near",
        ),
        ("quadratic", "--momentum=1", 2, r"--momentum is 1.0; it must be in \[0, 1\)$"),
        ("quadratic", "--num_runs=1", 2, "--num_runs is 1; it must be a whole number >= 2; nearest: 2$"),
        ("scaling", "--device_counts=x", 2, "--device_counts is 'x'; .* numbers separated by commas; nearest: 1,8,64$"),
        (
            "scaling",
            "--preset=digits --validate --microbatch_size=12",
            2,
            "--microbatch_size is 12; .*ghost_batch_size 8; nearest: 8$",
        ),
        ("critical_batch_size", "--preset=digit", 2, "--preset is 'digit'; .* one of digits, .*, shakespeare_cpu; nea"),
        ("critical_batch_size", "--batch_sizes=8,x", 2, "--batch_sizes is '8,x'; .* separated by commas; nearest: 1,4"),
        ("critical_batch_size", "--batch_sizes=2,4", 2, "--batch_sizes is .2, 4.; it must be at least three; nearest"),
        ("critical_batch_size", "--branch_batch_size=3", 2, "--branch_batch_size is 3; .*--batch_sizes; nearest: 2"),
        ("critical_batch_size", "--branch_factors=2,4", 2, "--branch_factors is .2, 4.; it must be divisors of the"),
        ("critical_batch_size", "--learning_rate_factor=1", 2, "--learning_rate_factor is 1.0; .* greater than 1"),
        ("critical_batch_size", "--target_loss=0", 2, "--target_loss is 0.0; it must be positive"),
        ("critical_batch_size", "--model=cnn", 2, "--batch_sizes is 1; .* --ghost_batch_size 8; nearest: 8"),
        (
            "seesaw",
            "--preset=digits",
            2,
            "--preset is .digits.; it must be one of shakespeare_cpu, shakespeare; nearest: ",
        ),
        (
            "seesaw",
            "--batch_sizes=12,98",
            2,
            "--batch_sizes is 98; it must be a multiple of 4, .*; nearest: 96 or 100$",
        ),
        ("seesaw", "--batch_sizes=96,12", 2, "--batch_sizes is .96,12.; .* increasing order; nearest: 12,96$"),
        ("seesaw", "--learning_rates=1e-3", 2, "--learning_rates is .0.001.; it must be one for each of the 2 batch"),
        ("adam_rules", "--kappas=1,2", 2, "--kappas is .1,2.; .* at least 2, in increasing order; nearest: 2,4,8,16$"),
        ("adam_rules", "--dataset=mine", 2, "--dataset is .mine.; "),
    ],
)
def test_a_wrong_flag_gives_a_line_and_no_traceback(call, tmp_path, script, arguments, code, message):
    workdir = [] if script == "plan" or "workdir" in message else [f"--workdir={tmp_path / 'run'}"]
    result = call(script, *arguments.split(), *workdir)
    assert result.returncode == code
    assert re.search(f"^error: {message}", result.stderr, re.MULTILINE)
    assert "Traceback" not in result.stderr
    if code == 2:
        assert len(result.stderr.splitlines()) == 1
        assert not list(tmp_path.iterdir())


def test_ctrl_c_before_the_script_has_begun(tmp_path):
    (tmp_path / "jax.py").write_text("import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(60)")
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(pathlib.Path(__file__).parents[2])])}
    command = [sys.executable, "-m", "experiments.train", f"--workdir={tmp_path / 'run'}"]
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=50)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "error: interrupted\n")


def test_memory_that_runs_out_is_a_line():
    code = "import jax; from experiments.harness import cli; cli.run(lambda: jax.numpy.zeros(2**50))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert re.fullmatch(r"error: a device's memory .*RESOURCE_EXHAUSTED.*--microbatch_size=measure.*\n", result.stderr)


@pytest.mark.parametrize("arguments", [("train", "--help"), ("plan",)])
def test_a_reader_that_has_gone_ends_the_script_quietly(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    script, *flags = arguments
    command = [sys.executable, "-m", f"experiments.{script}", *flags]
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (result.returncode, result.stderr) == (141, "")


def test_the_full_help_has_every_knob_and_the_presets_defaults(call):
    printed = call("train", "--helpfull", "--preset=cifar10").stdout
    assert re.search(r"--num_epochs: [^(]*\(default: '200.0'\)", printed)
    for name in (*Config().flat(), "workdir", "preset", "data_dir", "stop_after_s", "compilation_cache"):
        assert re.search(rf"--(\[no\])?{name}:", printed), name


@pytest.mark.parametrize("script", ["train", "critical_batch_size", "quadratic"])
def test_the_help_is_a_screen_that_names_every_flag(call, script):
    result = call(script, "--help")
    lines = result.stdout.splitlines()
    assert (result.returncode, result.stderr) == (0, "")
    assert len(lines) <= 40 and max(map(len, lines)) <= 80
    assert any(line.startswith(f"    python -m experiments.{script} ") for line in lines)
    full = call(script, "--helpfull").stdout
    names = set(re.findall(r"^  --(?:\[no\])?(\w+):", full, re.MULTILINE))
    assert len(names) > 5 and names <= set(re.findall(r"--(?:\[no\])?(\w+)", result.stdout))


def test_experiments_lists_the_scripts(run_python):
    printed = run_python("-m", "experiments").stdout
    assert max(map(len, printed.splitlines())) <= 120
    for path in (ROOT / "experiments").glob("*.py"):
        if not path.stem.startswith("__"):
            summary = path.read_text(encoding="utf-8").removeprefix('"""').split("\n")[0]
            assert re.search(rf"^  {path.stem} +{re.escape(summary[:20])}", printed, re.MULTILINE)
    assert re.search("^  critical_batch_size +The critical", printed, re.MULTILINE)


def test_train_and_train_again(call, tmp_path):
    measured = "--microbatch_size=measure"
    result = call("train", *_SMALL, "--schedule=increase_batch_size", measured, f"--workdir={tmp_path}")
    assert result.returncode == 0, result.stderr
    evaluations = [line for line in result.stderr.splitlines() if line.startswith("epoch ")]
    assert len(evaluations) == 6
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert f"test accuracy {100 * summary['final_test_accuracy']:.2f} %" in result.stdout

    stopped = call("train", *_SMALL, "--stop_after_s=1e-9", f"--workdir={tmp_path / 'stopped'}")
    assert (stopped.returncode, stopped.stdout) == (0, f"{tmp_path / 'stopped'} stopped; the same command continues.\n")

    again = call("train", *_SMALL, "--schedule=increase_batch_size", measured, f"--workdir={tmp_path}")
    assert again.stdout == f"{tmp_path} is complete.\n{result.stdout}"


def test_plan_prints_the_papers_numbers(call):
    arguments = ["--preset=cifar10", "--schedule=increase_batch_size", "--max_batch_size=5120"]
    printed = call("plan", *arguments).stdout
    assert re.search(r"391 +160.01 +5,120 +0.032 +0.9 +2.805\n29,142 updates", printed)
    assert "2.68 times fewer updates than the 78,125 of the recipe" in printed
    printed = call("plan", *arguments, "--num_devices=8").stdout
    assert re.search(r"23,438 +0.00 +128 .* 8 +16\n", printed)
    assert re.search(r"391 +160.01 +5,120 .* 8 +640\n", printed)
    assert sum(count for count, _ in json.loads(call("plan", *arguments, "--json").stdout)["batch_sizes"]) == 29_142


def test_figure1_of_cifar10(call, read_csv, tmp_path):
    result = call("figure1", "--preset=cifar10", f"--workdir={tmp_path}")
    assert result.returncode == 0, result.stderr
    rows = [
        (row["schedule"], round(float(row["epoch"])), float(row["learning_rate"]), int(row["batch_size"]))
        for row in read_csv(tmp_path / "figure1.csv")
    ]
    decaying, hybrid, increasing = "Decaying learning rate", "Hybrid", "Increasing batch size"
    result = call("train", f"--workdir={tmp_path}")  # figures and runs do not share a folder
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert "it must be empty or of this run: it is the folder of a study" in result.stderr
    assert rows == [
        *((decaying, epoch, rate, 128) for epoch, rate in ((0, 0.1), (60, 0.02), (120, 0.004), (160, 0.0008))),
        *((hybrid, 0, 0.1, 128), (hybrid, 60, 0.1, 640), (hybrid, 120, 0.02, 640), (hybrid, 160, 0.004, 640)),
        *((increasing, epoch, 0.1, size) for epoch, size in ((0, 128), (60, 640), (120, 3200), (160, 16_000))),
    ]


def test_figure5_end_to_end(call, read_csv, tmp_path):
    flags = ("--num_epochs=2", "--lr_decay_epochs=0.7,1.4", "--seeds=2", "--jobs=1")
    arguments = (*_SMALL, *flags, f"--workdir={tmp_path}")
    result = call("figure5", *arguments)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "figure5.png").stat().st_size > 10_000
    assert "</svg>" in (tmp_path / "figure5.svg").read_text()

    # The last point of the figure is the mean and deviation of the runs' summaries.
    def finals(pattern):
        folders = sorted((tmp_path / "runs").glob(pattern))
        assert len(folders) == 2
        return [json.loads((folder / "summary.json").read_text())["final_test_accuracy"] for folder in folders]

    rows = read_csv(tmp_path / "figure5.csv")
    accuracies = finals("*scale_momentum=0.95*")
    last = [row for row in rows if row["schedule"] == "Increased momentum coefficient"][-1]
    assert float(last["test_accuracy_mean"]) == pytest.approx(statistics.mean(accuracies), rel=1e-5)
    assert float(last["test_accuracy_std"]) == pytest.approx(statistics.stdev(accuracies), rel=1e-2)
    table = re.findall(r"^([^\d\n]+?) {2,}([\d,]+) +([\d.]+) ± ([\d.]+)", result.stdout, re.MULTILINE)
    labels = list(dict.fromkeys(row["schedule"] for row in rows))
    assert [row[0] for row in table] == [label.removesuffix(", small batch") for label in labels]
    assert float(table[3][2]) == pytest.approx(100 * statistics.mean(accuracies), abs=0.01)
    assert max(map(len, result.stdout.split("\nPicture")[0].split("\nschedule")[1].splitlines())) <= 100

    # The differences are paired by seed, and those of the picture end as those of the table do.
    found = {row["schedule"]: row for row in read_csv(tmp_path / "figure5_table.csv")}
    constant = found["Control: constant learning rate"]
    same_seed = zip(
        finals("*lr_schedule=constant*"), finals("*num_epochs=2.0,lr_decay_epochs=0.7+1.4,microbatch*"), strict=True
    )
    difference = statistics.mean(one - other for one, other in same_seed)
    assert float(constant["difference"]) == pytest.approx(difference, abs=1e-5)
    last = [row for row in rows if row["schedule"] == constant["schedule"]][-1]
    for end in ("difference", "difference_low", "difference_high"):
        assert float(last[end]) == pytest.approx(float(constant[end]), rel=1e-2)

    # Figures share runs, and runs that are complete are not run again.
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/summary.json")}
    assert len(times) == 2 * (4 + 4)
    svg = (tmp_path / "figure5.svg").read_bytes()
    again = call("figure5", *arguments)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/summary.json")} == times
    assert (tmp_path / "figure5.svg").read_bytes() == svg
    assert again.stdout.split("Picture")[0] in result.stdout


def test_the_other_figures_end_to_end(call, read_csv, tmp_path):
    """In one folder, so that they share runs; figure 3 is made like figure 4."""
    groups = {}
    for figure, controls in (("figure2", False), ("figure4", False), ("figure8", True)):
        flags = ["--num_epochs=1", "--lr_decay_epochs=0.4,0.8", "--seeds=1", "--jobs=1"]
        result = call(figure, *_SMALL, *flags, f"--controls={controls}", f"--workdir={tmp_path}")
        assert result.returncode == 0, result.stderr
        assert (tmp_path / f"{figure}.png").stat().st_size > 10_000
        keys = ("optimizer", "schedule", "learning_rate")
        rows = read_csv(tmp_path / f"{figure}.csv")
        groups[figure] = {tuple(row[key] for key in keys if key in row) for row in rows}
    assert {figure: len(group) for figure, group in groups.items()} == {"figure2": 3, "figure4": 6, "figure8": 8}


def test_a_fork_tries_a_larger_batch_from_there_on(call, tmp_path):
    flags = ["--model=mlp", "--model_width=8", "--num_epochs=2", "--lr_decay_epochs=1", "--microbatch_size=auto"]
    parent, child = tmp_path / "parent", tmp_path / "child"
    assert call("train", *flags, f"--workdir={parent}").returncode == 0
    longer = ["--num_epochs=3", "--batch_size=80", "--learning_rate=0.1", f"--fork_from={parent}", f"--workdir={child}"]
    result = call("train", *flags, *longer)
    assert result.returncode == 0, result.stderr
    summary = json.loads((child / "summary.json").read_text())
    assert summary["num_updates"] == 18  # one epoch, 1,437 examples from 2,880 on
    assert summary["examples_seen"] == 2880 + 18 * 80
    assert json.loads((child / "config.json").read_text())["config"]["fork_from"] == str(parent)
    assert call("train", *flags, *longer).stdout == f"{child} is complete.\n{result.stdout}"

    result = call("train", *flags, f"--fork_from={parent}", f"--workdir={tmp_path / 'over'}")
    assert result.returncode == 2
    assert "--num_epochs is 2.0; it must be above the 2.00418 epochs that" in result.stderr
    result = call("train", *flags, *longer[:-2], f"--workdir={child}")
    assert result.returncode == 2
    assert re.search("it has fork_from .* there, None here", result.stderr)
    result = call("train", *flags, *longer[:-1], "--model_width=9", f"--workdir={tmp_path / 'other'}")
    assert result.returncode == 1
    assert "is float32[8] there, float32[9] here" in result.stderr
