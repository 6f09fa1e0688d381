"""The study of critical batch sizes: its search, its branches, and the script from flags to files."""

import json
import math
import re

import jax
import numpy as np
import pytest

from bsjax import InvalidArgument, Update
from bsjax.analysis.critical_batch import steps_to_target, twenty_percent_batch_size
from bsjax.data import TextDataset, cache, load_dataset
from experiments.critical_batch_size import branched_training, study, target_loss
from experiments.critical_batch_size.target_loss import Setup, Trial
from experiments.harness import build
from experiments.harness.control import Control
from experiments.harness.pool import StoppedEarly

_FAST = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiles faster
_CONFIG = study.PRESETS["digits"].config.replace(model_width=8, num_epochs=4, microbatch_size="auto")


@pytest.fixture
def setup():
    return Setup(_CONFIG, (8, 32), num_eval_examples=40, control=Control(devices="1"))


@pytest.mark.parametrize("start", [0.001, 0.1, 1.6, 6.4])
def test_the_search_ends_with_the_fewest_steps_inside_its_grid(setup, tmp_path, start):
    """The steps are a parabola of the log learning rate with its minimum near 0.1; above 2 nothing is reached."""
    tried = []

    def side_by_side(work, tasks):
        trials = []
        for _, config, _, max_steps, _ in tasks:
            tried.append(config.optimizer.learning_rate)
            steps = 100 * math.exp(math.log2(tried[-1] / 0.11) ** 2 / 20) + config.run.seed
            reached = tried[-1] < 2 and steps <= max_steps
            trials.append(Trial(config, [steps], [0.5 if reached else 0.9], diverged=False))
        return trials

    found = target_loss.search(setup, 8, start, 2.0, range(3), 0.6, tmp_path, side_by_side)
    assert 0.11 / 2**0.5 < found.best < 0.11 * 2**0.5
    rates = list(found.trials)
    assert min(rates) < found.best < max(rates)
    assert len(tried) == 3 * len(rates)  # none is tried twice

    def never(work, tasks):
        return [Trial(config, [9], [0.9], diverged=False) for _, config, *_ in tasks]

    hopeless = target_loss.search(setup, 8, start, 2.0, range(3), 0.5, tmp_path, never)
    assert hopeless.best is None and len(hopeless.trials) == 9


def test_a_training_ends_at_the_target_and_is_not_run_again(setup, tmp_path):
    config = _CONFIG.replace(batch_size=8, learning_rate=0.05, seed=1)
    trial = target_loss.train(setup, config, 1.5, 500, tmp_path)
    assert trial.steps_to(1.5) is not None and trial.steps[-1] < 500
    assert steps_to_target(trial.steps[:-1], trial.losses[:-1], 1.5) is None  # the last evaluation told

    [path] = tmp_path.iterdir()
    before = path.stat().st_mtime_ns
    again = target_loss.train(setup, config, 1.5, 500, tmp_path)
    easier = target_loss.train(setup, config, 1.8, 10_000, tmp_path)
    assert again == trial and easier.steps_to(1.8) < trial.steps_to(1.5)
    assert path.stat().st_mtime_ns == before
    harder = target_loss.train(setup, config, 1.2, 500, tmp_path)
    assert harder.losses[: len(trial.losses)] == trial.losses and len(harder.losses) > len(trial.losses)

    other = config.replace(weight_decay=0.1)
    other_setup = setup._replace(config=setup.config.replace(weight_decay=0.1))
    with pytest.raises(InvalidArgument, match=r"it has optimizer.weight_decay 0.0 there, 0.1 here"):
        target_loss.train(other_setup, other, 1.5, 500, tmp_path)
    late = setup._replace(control=Control(devices="1", stop_at=0.0))
    with pytest.raises(StoppedEarly):
        target_loss.train(late, config.replace(seed=2), 1.5, 500, tmp_path)
    wild = target_loss.train(setup, config.replace(learning_rate=1e30), 1.5, 500, tmp_path)
    assert wild.diverged and wild.steps_to(1.5) is None and len(list(tmp_path.iterdir())) == 2


def test_the_first_branch_is_the_run_itself(setup, tmp_path):
    config = _CONFIG.replace(batch_size=8, learning_rate=0.05, seed=1)
    near, far = branched_training.measure(setup, config, [80, 160], [1, 2], tmp_path)
    assert (near.examples_seen, far.examples_seen) == (80, 160)

    engine, momentum = target_loss.create_engine(setup, 1)
    state, logs = engine.init(), []
    updates = branched_training.BRANCH_UPDATES  # each of batch size 16 for the second branch
    for step in range((160 + 16 * updates) // 8):
        state, _ = engine.update(state, Update(step, 8 * step, 8, 0.05, momentum))
        if 8 * (step + 1) in range(160 + 16 * (updates // 2 + 1), 160 + 16 * updates + 1, 16):
            logs.append(math.log(engine.evaluate(state)["test_loss"]))
    assert far.losses[0] == pytest.approx(math.exp(np.mean(logs)), rel=1e-5)
    assert far.losses[1] != far.losses[0]


def test_the_noise_scale_is_that_of_the_examples_gradients(setup):
    """Of all examples, drawn with replacement or not, chunks being shards of 8 of them."""
    engine, _ = target_loss.create_engine(setup, 0)
    state = engine.init()
    params = jax.tree.map(lambda x: np.asarray(x)[0].copy(), state.params)
    noise = branched_training.gradient_noise(engine, state, 0, 8)
    assert noise.num_examples == 8 * 32 * 8

    dataset, model = load_dataset("digits"), build.model(_CONFIG, 10)
    size, examples = len(dataset.train), dataset.train.examples
    images = (examples["image"].astype(np.float32) - dataset.mean) / dataset.std

    def loss(params, image, label):
        return -jax.nn.log_softmax(model.apply({"params": params}, image[None], train=False)[0])[label]

    grads = jax.jit(jax.vmap(jax.grad(loss), (None, 0, 0)))(params, images, examples["label"])
    flat = np.concatenate([np.reshape(x, (size, -1)) for x in jax.tree.leaves(grads)], axis=1).astype(np.float64)
    trace = flat.var(axis=0, ddof=1).sum()
    assert noise.trace == pytest.approx(trace, rel=0.1)
    assert noise.grad_sq == pytest.approx((flat.mean(axis=0) ** 2).sum(), rel=0.2)


def test_the_script_end_to_end(call, read_csv, tmp_path):
    flags = ["--seeds=2", "--batch_sizes=4,32,256", "--target_loss=1", "--model_width=16", "--num_eval_examples=100"]
    flags += ["--branch_batch_size=4", "--branch_factors=1,4,16", "--branch_points=0.5,1"]
    flags += ["--microbatch_size=auto", "--jobs=1"]
    result = call("critical_batch_size", *flags, f"--workdir={tmp_path}", **_FAST)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "critical_batch_size.png").stat().st_size > 10_000
    assert "</svg>" in (tmp_path / "critical_batch_size.svg").read_text()

    # Steps are those of the trainings that it left, and the fit and the 20 % are those of the steps.
    rows = read_csv(tmp_path / "critical_batch_size.csv")
    assert [int(row["batch_size"]) for row in rows] == [4, 32, 256]
    for row in rows:
        found = [
            steps_to_target(trial["steps"], trial["losses"], 1.0)
            for trial in map(json.loads, (path.read_text() for path in (tmp_path / "runs").iterdir()))
            if (str(trial["recipe"]["recipe"]["batch_size"]), f"{trial['recipe']['optimizer']['learning_rate']:g}")
            == (row["batch_size"], row["learning_rate"])
        ]
        assert len(found) == 2
        assert float(row["steps"]) == pytest.approx(math.exp(np.mean(np.log(found))), rel=1e-3)
        assert float(row["examples"]) == pytest.approx(int(row["batch_size"]) * float(row["steps"]), rel=1e-3)
    table = {row["quantity"]: float(row["value"]) for row in read_csv(tmp_path / "critical_batch_size_table.csv")}
    fitted = table["S_min, steps"] * (1 + table["B_crit = E_min / S_min"] / 32)
    assert float(rows[1]["fit_steps"]) == pytest.approx(fitted, rel=1e-3)
    steps = [float(row["steps"]) for row in rows]
    expected = twenty_percent_batch_size([4, 32, 256], steps)
    assert table["20 % above linear scaling"] == pytest.approx(expected, rel=1e-2)
    assert re.search(r"^20 % above linear scaling +[\d.]+ \(", result.stdout, re.MULTILINE)
    along = read_csv(tmp_path / "critical_batch_size_along_training.csv")
    assert [int(row["examples_seen"]) % 4 for row in along] == [0, 0]
    assert {"loss_4", "loss_16", "loss_64", "gradient_noise_scale"} <= set(along[0])

    # Nothing is trained again, also with more processes.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.json")}
    again = call("critical_batch_size", *flags[:-1], "--jobs=2", f"--workdir={tmp_path}", **_FAST)
    assert again.stdout == result.stdout
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.json")} == before


def test_a_target_that_is_not_reached_is_said(call, tmp_path):
    flags = ["--batch_sizes=32,64,128", "--branch_batch_size=32", "--model_width=8", "--num_epochs=0.1", "--jobs=1"]
    flags.append("--microbatch_size=auto")
    result = call("critical_batch_size", *flags, "--seeds=1", "--target_loss=0.01", f"--workdir={tmp_path}", **_FAST)
    assert result.returncode == 1
    assert result.stdout.count("not reached") == 3
    assert re.search("^error: 0 batch sizes reached test loss 0.01 with all seeds, not three: try", result.stderr)


def test_a_text_is_evaluated_on_its_first_windows(tmp_path):
    tokens = (np.arange(800) % 7).astype(np.uint8)
    cache.write(TextDataset("count", tokens, tokens[:200], 7, tuple("abcdefg"), 1.0), tmp_path)
    small = {"dataset": "count", "context_length": 8, "model_depth": 1, "model_width": 8, "microbatch_size": "auto"}
    config = study.PRESETS["shakespeare_cpu"].config.replace(**small)
    control = Control(devices="1", data_dir=str(tmp_path))
    engine, momentum = target_loss.create_engine(Setup(config, (8, 32), num_eval_examples=5, control=control), 0)
    assert (engine.identity["train"]["examples"], engine.identity["test"]["examples"], momentum) == (99, 5, 0.9)


def test_results_along_a_text_are_in_tokens():
    measured = [[branched_training.Point(16, [1.0, 1.0, scale], 2.0, 6.0 * scale)] for scale in (2.0, 3.0)]
    [plain], [tokens] = (branched_training.along_training(measured, [2, 4, 8], 0.1, size) for size in (1, 64))
    assert (plain["examples_seen"], tokens["examples_seen"]) == (16, 1024)
    assert plain["gradient_noise_scale"].value == pytest.approx(7.5)
    for name in ("branched", "gradient_noise_scale"):
        np.testing.assert_allclose(tokens[name], 64 * np.array(plain[name]), rtol=1e-12)
