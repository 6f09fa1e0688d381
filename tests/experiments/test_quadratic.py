"""The noisy quadratic model: three ways to one expected loss, and where two schedules agree on it."""

import numpy as np
import optax
import pytest

import bsjax
from experiments.quadratic import __main__ as quadratic
from experiments.quadratic.model import Quadratic, at_epochs, expected_losses, simulated_losses, stationary_losses

MODEL = Quadratic(np.array([0.05, 0.3, 1.0]), np.array([1.0, 0.5, 2.0]), np.array([1.0, -2.0, 0.5]))
# Changes of everything, a batch that is the data set, and an uneven momentum.
PLAN = bsjax.Plan(32, [1, 4, 4, 16, 32, 8, 2, 2] * 5, [0.1, 0.4, 0.05, 0.3] * 10, [0.9, 0.5, 0.0, 0.8, 0.9] * 8)


@pytest.mark.parametrize("replacement", [False, True])
def test_recursion_is_that_of_the_full_covariance(replacement):
    size = len(MODEL.curvature)
    moments = np.zeros((2 * size, 2 * size))  # E zzᵀ of z = (θ, v), with every correlation between directions
    moments[:size, :size] = np.outer(MODEL.start, MODEL.start)
    h, c, eye = np.diag(MODEL.curvature), np.diag(MODEL.noise), np.eye(size)
    losses = [0.5 * MODEL.curvature * np.diag(moments)[:size]]
    for update in PLAN:
        lr, m, batch_size = update.learning_rate, update.momentum, update.batch_size
        transition = np.block([[eye - lr * h, -lr * m * eye], [h, m * eye]])
        gain = np.vstack([-lr * eye, eye])
        q = c / batch_size * (1 if replacement else (32 - batch_size) / (32 - 1))
        moments = transition @ moments @ transition.T + gain @ q @ gain.T
        losses.append(0.5 * MODEL.curvature * np.diag(moments)[:size])
    np.testing.assert_allclose(expected_losses(PLAN, MODEL, replacement), losses, rtol=1e-12)


@pytest.mark.parametrize("replacement", [False, True])
def test_expected_loss_is_that_of_training_on_a_finite_data_set(replacement):
    random = np.random.default_rng(0)
    num_runs, size = 4000, len(MODEL.curvature)
    # 32 examples: each has the gradient hθ plus a vector; over the data set, these have mean 0 and covariance diag(c).
    examples = random.normal(size=(PLAN.dataset_size, size))
    examples -= examples.mean(axis=0)
    examples = examples @ np.linalg.inv(np.linalg.cholesky(np.cov(examples.T, bias=True)).T) * np.sqrt(MODEL.noise)
    theta, velocity = np.tile(MODEL.start, (num_runs, 1)), np.zeros((num_runs, size))
    expected = expected_losses(PLAN, MODEL, replacement).sum(axis=1)
    for update, after in zip(PLAN, expected[1:], strict=True):
        if replacement:
            batch = random.integers(PLAN.dataset_size, size=(num_runs, update.batch_size))
        else:
            batch = random.random((num_runs, PLAN.dataset_size)).argsort(axis=1)[:, : update.batch_size]
        velocity = update.momentum * velocity + MODEL.curvature * theta + examples[batch].mean(axis=1)
        theta -= update.learning_rate * velocity
        losses = 0.5 * (MODEL.curvature * theta**2).sum(axis=1)
        error = losses.std(ddof=1) / num_runs**0.5
        assert abs(losses.mean() - after) < 4 * error + 1e-12


def test_simulation_agrees_within_its_standard_error():
    expected = expected_losses(PLAN, MODEL).sum(axis=1)
    losses = simulated_losses(PLAN, MODEL, seed=0, num_runs=4000)
    error = losses.std(axis=0, ddof=1) / 4000**0.5
    np.testing.assert_array_less(np.abs(losses.mean(axis=0) - expected), 4 * error + 1e-6)
    assert not np.allclose(losses[0, 1:], losses[1, 1:])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_stationary_losses_are_where_the_recursion_ends(momentum):
    model = MODEL._replace(curvature=np.array([0.3, 3.0, 9.5]))
    plan = bsjax.Recipe(0.2, 8, 1000, 100, momentum).plan()
    losses = expected_losses(plan, model, replacement=True)[-1]
    np.testing.assert_allclose(losses, stationary_losses(plan[-1], model), rtol=1e-9)


# Where the theory holds, decayed learning rate and grown batch give one expected loss at every epoch: lr·h « 1, also
# within the memory of the momentum, lr·h/(1-m)² « 1. The difference is of that order, here 0.01 and 0.001; half
# a percent is left for the learning rate's and the batch's moving at different updates.


def largest_deviation(schedule, curvature, momentum=0.0, replacement=True, **options):
    recipe = bsjax.Recipe(schedule, 64, 20_000, 40, momentum)
    model = Quadratic(np.array([curvature]), np.array([curvature]), np.ones(1))
    curves = []
    for plan in (recipe.plan(), recipe.increase_batch_size(**options).plan()):
        curves.append(at_epochs(plan, expected_losses(plan, model, replacement), np.arange(1.0, 41.0)))
    return np.abs(np.log(curves[1] / curves[0])).max()


SCHEDULES = {
    "step": lambda lr: optax.piecewise_constant_schedule(lr, {12: 0.2, 24: 0.2, 32: 0.2}),
    "cosine": lambda lr: optax.cosine_decay_schedule(lr, 40, alpha=0.01),
    "exponential": lambda lr: optax.exponential_decay(lr, 10, 0.3),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("options", [{}, {"max_batch_size": 640}, {"growth": 2}], ids=["uncapped", "cap", "growth"])
def test_decayed_rate_and_grown_batch_have_one_expected_loss(name, momentum, options):
    schedule = SCHEDULES[name](1 - momentum)
    for smallness in (1e-2, 1e-3):
        curvature = smallness * (1 - momentum)
        assert largest_deviation(schedule, curvature, momentum, **options) < 2 * smallness + 0.005


def test_they_differ_where_the_theory_does_not_hold():
    schedule = SCHEDULES["step"](1.0)
    assert largest_deviation(schedule, 1e-2) < 0.01
    assert largest_deviation(schedule, 1.0) > 0.5  # near the limit of stability, 2
    assert largest_deviation(SCHEDULES["step"](0.01), 1e-2, momentum=0.99) > 0.5  # the memory of the momentum
    assert largest_deviation(schedule, 0.1) < 0.06
    assert largest_deviation(schedule, 0.1, replacement=False) > 0.3  # a largest batch of 8,000 out of 20,000
    assert largest_deviation(schedule, 0.1, replacement=False, max_batch_size=640) < 0.06


def test_script_writes_its_picture_and_numbers(call, read_csv, tmp_path):
    result = call("quadratic", "--num_epochs=1", "--num_runs=4", f"--workdir={tmp_path}")
    assert result.returncode == 0, result.stderr
    recipe = quadratic.make_recipe(quadratic.Config(num_epochs=1))
    for label, schedule in quadratic.make_schedules(recipe).items():
        row = next(line for line in result.stdout.splitlines() if line.startswith(label))
        assert f" {schedule.plan().num_updates:,} " in row
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "identity.json",  # marks the folder of a study
        *(f"quadratic.{suffix}" for suffix in ("csv", "json", "png", "svg")),
    ]
    assert (tmp_path / "quadratic.png").read_bytes().startswith(b"\x89PNG")
    rows = read_csv(tmp_path / "quadratic.csv")
    assert {row["panel"] for row in rows} == {"epochs", "updates", "batch size", "curvature", "momentum"}
    last = {row["line"]: float(row["expected"]) for row in rows if row["panel"] == "epochs"}
    assert len(last) == 5
    assert last["Hybrid"] == pytest.approx(last["Decaying learning rate"], rel=0.1)
