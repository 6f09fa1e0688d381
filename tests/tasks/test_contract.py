"""What a task, an optimizer and an update owe each other, and the words in which it is said."""

import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bsjax
from bsjax import run
from bsjax.data import ArraySource
from bsjax.engine import Engine
from bsjax.errors import TaskError
from bsjax.models import MLP
from bsjax.optimizers import create_optimizer
from bsjax.tasks import Classification, from_loss

SOURCE = ArraySource({"x": np.ones((16, 3), np.float32)})
LABELLED = ArraySource({"image": np.ones((16, 4, 4, 1), np.uint8), "label": np.zeros(16, np.int32)})


def init_fn(key):
    return {"w": jnp.zeros(3)}


def make_engine(task, tx=None, source=SOURCE, **options):
    tx = create_optimizer("sgd") if tx is None else tx
    return Engine(task, tx, source, source, [8], devices=jax.devices()[:1], **options)


def update_once(task, tx=None, momentum=0.0, **others):
    engine = make_engine(task, tx)
    return engine.update(engine.init(), bsjax.Update(0, 0, 8, 0.1, momentum, others))


def mean_loss(params, examples, keys, train):
    return jnp.square(examples["x"] @ params["w"]).mean()


def whole_numbers(params, examples, keys, train):
    return jnp.ones(len(examples["x"]), jnp.int32)


def unnamed_metric(params, examples, keys, train):
    losses = jnp.square(examples["x"] @ params["w"])
    return losses, {"size": losses}


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (mean_loss, "losses must be floats of shape [8], one per example, not float32[]: the engine takes the mean"),
        (whole_numbers, "losses must be floats of shape [8], one per example, not int32[8]: the engine takes the mean"),
        (unnamed_metric, "the metrics are named ('size',); the task announces metrics=()"),
    ],
)
def test_a_loss_that_breaks_the_contract_is_refused(loss_fn, message):
    with pytest.raises(TaskError) as refusal:
        update_once(from_loss(loss_fn, init_fn))
    assert str(refusal.value) == message


def wrong_shapes(params, examples, keys, train):
    x = examples["x"]
    return jnp.square(x @ params["v"])


def failing_init(key):
    raise FloatingPointError("not today")


@pytest.mark.parametrize(
    ("task", "function", "line", "last"),
    [
        (from_loss(wrong_shapes, init_fn), wrong_shapes, 'return jnp.square(x @ params["v"])', "  KeyError: 'v'"),
        (
            from_loss(mean_loss, failing_init),
            failing_init,
            'raise FloatingPointError("not today")',
            "  FloatingPointError: not today",
        ),
    ],
    ids=["loss", "init"],
)
def test_an_error_in_a_users_function_begins_with_the_users_line(task, function, line, last):
    with pytest.raises(TaskError) as error:
        update_once(task)
    lines, first = inspect.getsourcelines(function)
    number = first + next(i for i, text in enumerate(lines) if line in text)
    assert str(error.value).splitlines() == [f"{__file__}:{number}, in {function.__name__}: {line}", last]


def three_results(params, examples, keys, train):
    return examples["x"][:, 0], {}, {}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: from_loss(lambda params, examples: 0, init_fn),
            bsjax.InvalidArgument,
            "it must be a function that takes (params, examples, keys, train)",
        ),
        (lambda: from_loss(mean_loss, lambda: {}), bsjax.InvalidArgument, "it must be a function that takes (key)"),
        (
            lambda: update_once(from_loss(three_results, init_fn)),
            TaskError,
            "three_results must return losses [n], or (losses [n], {name: [n]})",
        ),
        (
            lambda: update_once(from_loss(mean_loss, lambda key: {"w": jnp.zeros(3, int)})),
            TaskError,
            "the parameter['w'] must be of floats, not int32: it is trained",
        ),
        (
            lambda: make_engine(from_loss(mean_loss, init_fn, metrics="loss")),
            bsjax.InvalidArgument,
            "metrics is 'loss'; it must be another name: the engine has a metric of this one; nearest: loss_",
        ),
        (
            lambda: make_engine(from_loss(mean_loss, init_fn), source={"x": 1}),
            bsjax.InvalidArgument,
            "train is 'dict'; it must be a source of examples, such as bsjax.data.ArraySource makes",
        ),
        (
            lambda: make_engine(from_loss(mean_loss, init_fn), "sgd"),
            bsjax.InvalidArgument,
            "tx is 'sgd'; it must be an",
        ),
        (
            lambda: Engine(from_loss(mean_loss, init_fn), create_optimizer("sgd"), SOURCE, LABELLED, [8]),
            bsjax.InvalidArgument,
            "it must be of examples like those of train, {'x': 'float32[3]'}",
        ),
        (
            lambda: make_engine(Classification("mlp"), source=LABELLED).init(),
            bsjax.InvalidArgument,
            "model is 'mlp'; it must be a linen module",
        ),
        (
            lambda: run.train(make_engine(from_loss(mean_loss, init_fn)), bsjax.Recipe(0.1, 8, 16, 1), "unused"),
            bsjax.InvalidArgument,
            "plan is 'Recipe'; it must be a plan or a controller; nearest: recipe.plan()",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_arguments_that_cannot_be_what_they_should_are_refused(make, error, message):
    with pytest.raises(error) as refusal:
        make()
    assert message in str(refusal.value)


class FlaxBatchNorm(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(3)(nn.BatchNorm(use_running_average=not train)(x.reshape(len(x), -1)))


def test_flax_batch_norm_is_refused():
    engine = make_engine(Classification(FlaxBatchNorm()), source=LABELLED)
    with pytest.raises(bsjax.InvalidArgument, match=r"^model is 'FlaxBatchNorm'; .*bsjax.models.GhostBatchNorm"):
        engine.init()


def test_a_classification_needs_images_and_labels():
    with pytest.raises(bsjax.InvalidArgument) as refusal:
        make_engine(Classification(MLP(3))).init()
    message = 'examples is [\'x\']; it must be a dict with "image" and "label" for Classification'
    assert str(refusal.value) == message


class FlaxDropout(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x.reshape(len(x), -1)))


class LogitsOfPixels(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (FlaxDropout(), "model is 'FlaxDropout'; it must be a model whose dropout is bsjax.models.Dropout"),
        (LogitsOfPixels(), "needs logits [n, classes] and labels int[n], not logits [8, 4, 4, 3] and labels int32[8]"),
    ],
)
def test_a_model_that_breaks_the_contract_is_refused(model, message):
    engine = make_engine(Classification(model), source=LABELLED)
    with pytest.raises((bsjax.InvalidArgument, TaskError)) as refusal:
        engine.update(engine.init(), bsjax.Update(0, 0, 8, 0.1, 0.0))
    assert message in str(refusal.value)


def square_loss(params, examples, keys, train):
    return jnp.square(examples["x"] @ params["w"] - 1)


@pytest.mark.parametrize(
    ("tx", "given", "message"),
    [
        (
            create_optimizer("sgd"),
            {"momentum": 0.9},
            "momentum is 0.9; it must be a hyperparameter (or b1) of the optimizer, which has learning_rate; nearest: "
            "0, or an optimizer made with optax.inject_hyperparams and a number for it",
        ),
        (
            create_optimizer("adam"),
            {"momentum": 0.9, "b2": 0.95},
            "b2 is 0.95; it must be a hyperparameter of the optimizer, which has learning_rate, momentum",
        ),
        (
            optax.inject_hyperparams(optax.adam)(learning_rate=0.0),
            {"momentum": 0.9, "b1": 0.5},
            "b1 is 0.5; it must be left out: the momentum, 0.9, is the optimizer's b1",
        ),
    ],
)
def test_a_hyperparameter_that_the_optimizer_lacks_is_refused(tx, given, message):
    with pytest.raises(bsjax.InvalidArgument) as refusal:
        update_once(from_loss(square_loss, init_fn), tx, **given)
    assert str(refusal.value) == message


def test_hyperparameters_go_to_the_optimizer_by_name():
    """The momentum is Adam's b1; b2, eps and weight decay follow the update too."""
    tx = optax.inject_hyperparams(optax.adamw)(learning_rate=0.0, weight_decay=1e-4)
    given = {"b2": 0.95, "eps": 1e-3, "weight_decay": 0.5}
    state, _ = update_once(from_loss(square_loss, init_fn), tx, momentum=0.8, **given)
    found = {name: float(values[0]) for name, values in state.opt_state.hyperparams.items()}
    assert found == pytest.approx({"learning_rate": 0.1, "b1": 0.8, "eps_root": 0.0, **given}, rel=1e-6)

    adam = optax.adamw(0.1, b1=0.8, **given)
    params = init_fn(None)
    grads = jax.grad(lambda params: square_loss(params, {"x": jnp.ones((8, 3))}, None, True).mean())(params)
    with jax.numpy_dtype_promotion("standard"):  # which optax relies on
        updates, _ = adam.update(grads, adam.init(params), params)
    np.testing.assert_allclose(state.params["w"][0], optax.apply_updates(params, updates)["w"], rtol=1e-6)


def test_our_optimizers_inject_what_a_plan_schedules():
    tx = create_optimizer("adamw", weight_decay=0.1, scheduled=["b2", "weight_decay"])
    state, _ = update_once(from_loss(square_loss, init_fn), tx, momentum=0.8, b2=0.9, weight_decay=0.0)
    assert float(state.opt_state.hyperparams["b2"][0]) == pytest.approx(0.9)
    with pytest.raises(bsjax.InvalidArgument, match=r"^scheduled is 'b3'; it must be one of weight_decay, b2, eps; "):
        create_optimizer("adam", scheduled=["b3"])


def test_later_updates_set_the_same_hyperparameters():
    engine = make_engine(from_loss(square_loss, init_fn), optax.inject_hyperparams(optax.adam)(learning_rate=0.0))
    state, _ = engine.update(engine.init(), bsjax.Update(0, 0, 8, 0.1, 0.9))
    with pytest.raises(bsjax.InvalidArgument, match=r"^b2 is 0.9; it must be left out, since the first update sets"):
        engine.update(state, bsjax.Update(1, 8, 8, 0.1, 0.9, {"b2": 0.9}))


def test_metrics_have_names():
    _, metrics = update_once(from_loss(square_loss, init_fn))
    assert metrics.read().keys() == {"loss", "grad_norm", "weighted_grad_sq", "num_stops"}
    assert metrics.loss == metrics.read()["loss"] == 1.0
    with pytest.raises(AttributeError, match=r"^no metric is named 'accuracy'; there are loss, grad_norm"):
        _ = metrics.accuracy


def test_groups_that_may_not_span_devices_stay_on_one():
    """A loss of four examples at a time, on two devices: a microbatch of two is refused."""

    def grouped(params, examples, keys, train):
        scores = (examples["x"] @ params["w"]).reshape(-1, 4)
        return (scores - scores.mean(axis=1, keepdims=True)).ravel() ** 2

    task, devices = from_loss(grouped, init_fn, group_size=4), jax.devices()[:2]
    with pytest.raises(bsjax.InvalidArgument) as refusal:
        Engine(task, create_optimizer("sgd"), SOURCE, SOURCE, [8], microbatch_size=2, devices=devices)
    assert str(refusal.value) == "microbatch_size is 2; it must be a multiple of the group size 4; nearest: 4"
    engine = Engine(task, create_optimizer("sgd"), SOURCE, SOURCE, [8], devices=devices)
    assert engine.layout(8) == (2, 4)
