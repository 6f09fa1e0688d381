"""The contrastive loss, its groups in any layout, its views, and what it refuses."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

import bsjax
from bsjax import InvalidArgument
from bsjax.data import ArraySource
from bsjax.engine import Engine
from bsjax.errors import TaskError
from bsjax.models import CNN, MLP, Projector
from bsjax.optimizers import create_optimizer
from bsjax.tasks import Contrastive, nt_xent

RANDOM = np.random.RandomState(0)
IMAGES = RANDOM.uniform(0, 255, (40, 6, 5, 1)).astype(np.uint8)
TRAIN, TEST = ArraySource({"image": IMAGES}), ArraySource({"image": IMAGES[:20, ::-1]})
ENCODER = MLP(8, depth=1, width=16)
KEYS = jax.random.split(jax.random.key(0), 8)


def task_of(group_size=4, **options):
    options = {"augmentation": "crop", "crop_padding": 1, "mean": 128, "std": 64} | options
    return Contrastive(Projector(ENCODER, width=16, num_outputs=4), group_size, **options)


def make_engine(task, microbatch_size, train=TRAIN, test=TEST):
    options = {"microbatch_size": microbatch_size, "devices": jax.devices()[:1]}
    return Engine(task, create_optimizer("momentum"), train, test, [16], **options)


def init(task):
    return jax.jit(lambda key: task.init(key, {"image": IMAGES[:1]})[0])(jax.random.key(1))


def read(task, images, keys=KEYS, train=True):
    return np.asarray(jax.jit(lambda images, keys: task.read({"image": images}, keys, train))(images, keys))


def losses_of(task, params, views, train=True):
    return np.asarray(jax.jit(lambda *arguments: task.losses(*arguments, train)[0])(params, {}, views, KEYS))


def plain_nt_xent(projections, temperature):
    """Of one group, from its definition: projections [g, 2, d] -> losses and accuracies [g]."""
    z = projections.reshape(-1, projections.shape[-1])
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    losses, is_right = np.zeros(len(z)), np.zeros(len(z))
    for i in range(len(z)):
        partner = i + 1 if i % 2 == 0 else i - 1
        others = [j for j in range(len(z)) if j != i]
        similarities = {j: z[i] @ z[j] for j in others}
        losses[i] = -similarities[partner] / temperature + special.logsumexp(
            [similarities[j] / temperature for j in others]
        )
        is_right[i] = max(others, key=similarities.__getitem__) == partner
    return losses.reshape(-1, 2).mean(axis=1), is_right.reshape(-1, 2).mean(axis=1)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_the_loss_is_that_of_its_definition(float64, temperature):
    projections = RANDOM.standard_normal((3, 4, 2, 5))
    projections[:, :, 1] += projections[:, :, 0]
    loss = jax.jit(nt_xent, static_argnums=1)
    found = loss(projections, temperature)
    expected = zip(*(plain_nt_xent(group, temperature) for group in projections), strict=True)
    for values, own in zip(found, expected, strict=True):
        np.testing.assert_allclose(values, np.array(own), rtol=1e-12)
    assert 0 < found[1].mean() < 1

    swapped = loss(projections[:, :, ::-1], temperature)
    scaled = loss(projections * RANDOM.uniform(0.1, 10, (3, 4, 2, 1)), temperature)
    for losses, accuracy in (swapped, scaled):  # views have no order, and projections no length
        np.testing.assert_allclose(losses, found[0], rtol=1e-12)
        np.testing.assert_array_equal(accuracy, found[1])


def test_a_projection_of_zero_has_a_gradient():
    gradient = jax.jit(jax.grad(lambda z: nt_xent(z, 0.1)[0].sum()))(jnp.zeros((1, 2, 2, 3)))
    assert np.isfinite(gradient).all()


def test_a_group_knows_nothing_of_another_group():
    task = task_of()
    params = init(task)
    views = RANDOM.standard_normal((8, 2, 6, 5, 1)).astype(np.float32)
    losses = losses_of(task, params, views)
    views[5] = -views[5]
    others = losses_of(task, params, views)
    np.testing.assert_array_equal(others[:4], losses[:4])
    assert (others[4:] != losses[4:]).all()
    whole = losses_of(task_of(8), params, views)  # among 15 other views, not 7
    assert (whole > others).all()


def test_views_belong_to_the_keys():
    task = task_of()
    images, order = IMAGES[:8], np.array([3, 1, 7, 0])
    views = read(task, images)
    assert views.shape == (8, 2, 6, 5, 1)
    assert not np.isclose(views[:, 0], views[:, 1]).all(axis=(1, 2, 3)).any()
    np.testing.assert_array_equal(read(task, images[order], KEYS[order]), views[order])
    np.testing.assert_array_equal(read(task, images, train=False), views)
    plain = read(task_of(view_amplitude=0.0, view_noise=0.0), images)
    padded = np.pad((IMAGES[:8] - 128.0) / 64, ((0, 0), (1, 1), (1, 1), (0, 0))).astype(np.float32)
    for image, pair in zip(padded, plain, strict=True):
        crops = [image[top : top + 6, left : left + 5] for top, left in np.ndindex(3, 3)]
        assert all(any(np.allclose(view, crop) for crop in crops) for view in pair)


def test_the_microbatch_and_the_batch_leave_the_objective_alone():
    """An update of four groups, in one microbatch and in four; and the groups as four updates that change nothing."""
    ends, task = [], task_of(augmentation="none")
    for microbatch_size in (4, 16):
        engine = make_engine(task, microbatch_size)
        state, metrics = engine.update(engine.init(), bsjax.Update(0, 0, 16, 0.1, 0.9))
        ends.append((jax.tree.leaves(state.params), metrics.read()))
    (params, metrics), (others, other_metrics) = ends
    for array, other in zip(params, others, strict=True):
        np.testing.assert_allclose(array, other, rtol=1e-4, atol=1e-6)
    assert metrics["loss"] == pytest.approx(other_metrics["loss"], rel=1e-5)

    state, losses = engine.init(), []
    for i in range(4):  # each in a microbatch of 16 with padding
        state, metrics = engine.update(state, bsjax.Update(i, 4 * i, 4, 0.0, 0.9))
        losses.append(metrics.loss)
    assert np.mean(losses) == pytest.approx(other_metrics["loss"], rel=1e-5)


def test_an_evaluation_has_groups_of_its_own_and_no_padding():
    """20 test examples in microbatches of 16, of which the second holds 12 copies, and in those of 8."""
    found = []
    for group_size, microbatch_size in ((8, 8), (16, 16)):
        engine = make_engine(task_of(group_size, eval_group_size=4, augmentation="none"), microbatch_size)
        found.append(engine.evaluate(engine.init()))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert found[0].keys() == {"test_loss", "test_accuracy"}


def test_features_are_those_below_the_head():
    task = task_of()
    params = init(task)
    images = (IMAGES[:3].astype(np.float32) - 128) / 64
    features = jax.jit(task.features)(params, {"image": IMAGES[:3]})
    encoder = jax.jit(lambda params: ENCODER.apply({"params": params}, images, train=False))
    expected = np.maximum(encoder(params["encoder"]), 0)
    np.testing.assert_allclose(features, expected, rtol=1e-6)
    features, hidden, output = jax.device_get((features, params["hidden"], params["output"]))
    expected = np.maximum(features @ hidden["kernel"] + hidden["bias"], 0) @ output["kernel"] + output["bias"]
    projections = jax.jit(lambda params: task.model.apply({"params": params}, images, False))(params)
    np.testing.assert_allclose(projections, expected, rtol=1e-4, atol=1e-5)


def test_dropout_differs_between_views():
    """Of one image many times over; with one mask for both views of an example, these would be the most alike."""
    model = Projector(MLP(5, depth=1, width=50, dropout=0.5))
    task = Contrastive(model, group_size=8)
    params, views = init(task), np.broadcast_to(IMAGES[0].astype(np.float32) / 64, (8, 2, 6, 5, 1))
    np.testing.assert_allclose(losses_of(task, params, views, train=False), np.log(15), rtol=1e-5)
    assert losses_of(task, params, views).mean() > np.log(15)


class Unflattened(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 1}, "group_size is 1; it must be a whole number >= 2; nearest: 2"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be a positive finite number"),
        ({"view_noise": -1.0}, "view_noise is -1.0; it must be 0 or positive; nearest: 0"),
        ({"augmentation": "flip"}, "augmentation is 'flip'; .*; nearest: crop_flip"),
        ({"std": 0.0}, "std is .* positive"),
        (
            {"augmentation": "none", "view_noise": 0.0, "view_amplitude": 0.0},
            "augmentation is 'none'; .*: both views of an example would be the same; nearest: crop",
        ),
        ({"group_size": 12, "eval_group_size": 5}, "eval_group_size is 5; .* divisor of group_size 12, .*: 4"),
        ({"group_size": 12, "eval_group_size": 0}, "eval_group_size is 0; it must be a whole number >= 2; nearest: 2"),
    ],
)
def test_values_that_cannot_be(options, message):
    with pytest.raises(InvalidArgument, match=f"^{message}$"):
        task_of(**options)


def test_examples_that_make_no_whole_groups_are_refused():
    message = "^eval_group_size is 8; it must be a divisor of the 20 test examples, and of group_size 8; nearest: 4$"
    with pytest.raises(InvalidArgument, match=message):
        make_engine(task_of(8), 8)
    odd = ArraySource({"image": IMAGES[:15]})
    with pytest.raises(InvalidArgument, match=r"^eval_group_size is 4; .* and of group_size 4$"):
        make_engine(task_of(), 4, test=odd)
    with pytest.raises(InvalidArgument, match=r"^group_size is 16; it must be at most the 15 training examples$"):
        make_engine(task_of(16, eval_group_size=4), 16, train=odd)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Projector(CNN(5)), "model is 'Projector'; it must be a model without batch normalisation"),
        (Unflattened(), "Contrastive needs projections [n, d] of the model, not [8, 6, 5, 3]"),
    ],
)
def test_a_model_that_breaks_the_contract_is_refused(model, message):
    engine = make_engine(Contrastive(model, 4), 4)
    with pytest.raises((InvalidArgument, TaskError)) as refusal:
        engine.update(engine.init(), bsjax.Update(0, 0, 4, 0.1, 0.0))
    assert message in str(refusal.value)
