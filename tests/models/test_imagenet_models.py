"""ResNet-50 and Inception-ResNet-V2: sizes, stages, forward passes against plain ones, and whole updates.

`BSJAX_LONG_TESTS=1` runs an update of each at full size too, which takes some minutes and 8 GB.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsjax import InvalidArgument, Update
from bsjax.data import ArraySource
from bsjax.engine import Engine
from bsjax.models import InceptionResNetV2, ResNet50, create_model
from bsjax.optimizers import create_optimizer
from bsjax.tasks import Classification

SMALL = {
    "resnet50": ResNet50(10, width=4, num_blocks=(2, 1, 1), ghost_batch_size=2),
    "inception_resnet_v2": InceptionResNetV2(10, width=4, num_blocks=(1, 1, 2), ghost_batch_size=2),
}
PIXELS = {"resnet50": 224, "inception_resnet_v2": 299}
MIN_PIXELS = {"resnet50": 33, "inception_resnet_v2": 79}  # odd, so that every padding matters
IS_LONG = os.environ.get("BSJAX_LONG_TESTS") == "1"


def variables_and_outputs(name):
    """The shapes of a model's variables and of its parts' outputs; nothing is computed."""
    model, pixels = create_model(name, num_classes=1000), PIXELS[name]

    def is_part(module, method):
        return method == "__call__" and len(module.path) == 1

    def forward():
        images = jnp.zeros((1, pixels, pixels, 3))
        key, mutable = jax.random.key(0), ["params", "batch_stats", "intermediates"]
        return model.init_with_output(key, images, False, capture_intermediates=is_part, mutable=mutable)

    logits, variables = jax.eval_shape(forward)
    outputs = {part: found["__call__"][0].shape[1:] for part, found in variables.pop("intermediates").items()}
    assert logits.shape == (1, 1000)
    return variables, outputs


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_resnet50_has_the_published_parameters_and_stages():
    variables, outputs = variables_and_outputs("resnet50")
    assert count(variables["params"]) == 25_557_032
    assert outputs["Conv_0"] == (112, 112, 64)
    for stage, (num_blocks, shape) in enumerate(
        [(3, (56, 56, 256)), (4, (28, 28, 512)), (6, (14, 14, 1024)), (3, (7, 7, 2048))], start=1
    ):
        found = {part: output for part, output in outputs.items() if part.startswith(f"stage{stage}_")}
        assert found == {f"stage{stage}_block{block}": shape for block in range(1, num_blocks + 1)}


def test_inception_resnet_v2_has_the_published_parameters_statistics_and_stages():
    variables, outputs = variables_and_outputs("inception_resnet_v2")
    assert (count(variables["params"]), count(variables["batch_stats"])) == (55_813_192, 60_544)
    expected = {"stem": (35, 35, 192), "mixed_5b": (35, 35, 320), "mixed_6a": (17, 17, 1088)}
    expected |= {"mixed_7a": (8, 8, 2080), "conv_7b": (8, 8, 1536), "Dropout_0": (1536,), "Dense_0": (1000,)}
    for pixels, num_blocks, channels in ((35, 10, 320), (17, 20, 1088), (8, 10, 2080)):
        expected |= {f"block{pixels}_{i}": (pixels, pixels, channels) for i in range(1, num_blocks + 1)}
    assert outputs == expected
    paths = {"/".join(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"])}
    assert not any(path.endswith("scale") for path in paths)
    biases = {path for path in paths if path.endswith("bias") and "GhostBatchNorm" not in path}
    assert biases == {f"{part}/up/bias" for part in outputs if part.startswith("block")} | {"Dense_0/bias"}


class Plain:
    """The layers of a part of a model in evaluation, in the order of their names."""

    def __init__(self, params, stats, epsilon):
        self.params, self.stats, self.epsilon, self.num = params, stats, epsilon, 0

    def part(self, name):
        return Plain(self.params[name], self.stats[name], self.epsilon)

    def conv(self, x, stride=1, padding=None, relu=True):
        """A convolution, normalised; `padding` on each side, default the one that keeps the image's size."""
        kernel, norm = self.params[f"Conv_{self.num}"]["kernel"], f"GhostBatchNorm_{self.num}"
        self.num += 1
        sides = [(size // 2,) * 2 if padding is None else (padding,) * 2 for size in kernel.shape[:2]]
        dimensions = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, kernel, (stride, stride), sides, dimension_numbers=dimensions)
        x = (x - self.stats[norm]["mean"]) / jnp.sqrt(self.stats[norm]["var"] + self.epsilon)
        x = self.params[norm].get("scale", 1.0) * x + self.params[norm]["bias"]
        return jnp.maximum(x, 0) if relu else x

    def dense(self, x):
        return x @ self.params["Dense_0"]["kernel"] + self.params["Dense_0"]["bias"]


def windows(x, stride):
    """The pixels of each 3×3 window inside of the image, [9, n, height, width, channels]."""
    height, width = ((size - 3) // stride * stride + 1 for size in x.shape[1:3])
    return jnp.stack([x[:, i : i + height : stride, j : j + width : stride] for i in range(3) for j in range(3)])


def plain_resnet50(model, x):
    x = model.conv(x, 2)
    x = windows(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 2).max(axis=0)  # not negative, after the ReLU
    for name in ("stage1_block1", "stage1_block2", "stage2_block1", "stage3_block1"):
        block, stride = model.part(name), 1 if name.startswith("stage1") else 2
        y = block.conv(block.conv(block.conv(x), stride), relu=False)
        shortcut = block.conv(x, stride, relu=False) if name.endswith("block1") else x
        x = jnp.maximum(shortcut + y, 0)
    return model.dense(x.mean(axis=(1, 2)))


def plain_inception_resnet_v2(model, x):
    def concatenated(*branches):
        return jnp.concatenate(branches, axis=-1)

    def residual(name, x, scale, *branches):
        part = model.part(name)
        outputs = []
        for num_layers in branches:
            y = x
            for _ in range(num_layers):
                y = part.conv(y)
            outputs.append(y)
        up = part.params["up"]
        return x + scale * (concatenated(*outputs) @ up["kernel"][0, 0] + up["bias"])

    part = model.part("stem")
    x = part.conv(part.conv(part.conv(x, 2, 0), padding=0))
    x = part.conv(part.conv(windows(x, 2).max(axis=0)), padding=0)
    x = windows(x, 2).max(axis=0)
    part = model.part("mixed_5b")
    branches = [part.conv(x), part.conv(part.conv(x)), part.conv(part.conv(part.conv(x)))]
    padded, inside = (jnp.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0))) for y in (x, jnp.ones_like(x)))
    x = concatenated(*branches, part.conv(windows(padded, 1).sum(axis=0) / windows(inside, 1).sum(axis=0)))
    x = jnp.maximum(residual("block35_1", x, 0.17, 1, 2, 3), 0)
    part = model.part("mixed_6a")
    x = concatenated(part.conv(x, 2, 0), part.conv(part.conv(part.conv(x)), 2, 0), windows(x, 2).max(axis=0))
    x = jnp.maximum(residual("block17_1", x, 0.1, 1, 3), 0)
    part = model.part("mixed_7a")
    branches = [part.conv(part.conv(x), 2, 0), part.conv(part.conv(x), 2, 0)]
    branches.append(part.conv(part.conv(part.conv(x)), 2, 0))
    x = concatenated(*branches, windows(x, 2).max(axis=0))
    x = jnp.maximum(residual("block8_1", x, 0.2, 1, 3), 0)
    x = residual("block8_2", x, 1.0, 1, 3)
    return model.dense(model.part("conv_7b").conv(x).mean(axis=(1, 2)))


PLAIN = {"resnet50": (plain_resnet50, 1e-5), "inception_resnet_v2": (plain_inception_resnet_v2, 1e-3)}


@pytest.mark.parametrize("name", SMALL)
def test_logits_are_those_of_a_plain_forward_pass(float64, random_state, name):
    plain, epsilon = PLAIN[name]
    model, pixels = SMALL[name].clone(dtype=jnp.float64), MIN_PIXELS[name]
    state = random_state(model, create_optimizer("sgd"), (pixels, pixels, 3), np.float64)
    images = np.random.RandomState(0).randn(2, pixels, pixels, 3)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits = jax.jit(lambda variables, images: model.apply(variables, images, train=False))(variables, images)
    with jax.numpy_rank_promotion("allow"):
        expected = jax.jit(lambda images: plain(Plain(state.params, state.batch_stats, epsilon), images))(images)
    np.testing.assert_allclose(logits, expected, rtol=1e-10, atol=1e-12)


def test_every_block_of_resnet50_begins_as_its_shortcut():
    def scales():
        params = SMALL["resnet50"].init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False)["params"]
        flat = jax.tree_util.tree_leaves_with_path(params)
        return {jax.tree_util.keystr(path, simple=True): leaf for path, leaf in flat if path[-1].key == "scale"}

    found = jax.jit(scales)()
    assert len(found) == 1 + 3 * 4 + 3  # with those of the shortcuts that change the shape
    for path, scale in found.items():
        is_last = path.startswith("stage") and "GhostBatchNorm_2" in path
        np.testing.assert_array_equal(scale, 0.0 if is_last else 1.0, err_msg=path)


@pytest.mark.parametrize("name", SMALL)
def test_remat_computes_the_inside_of_each_block_again(name):
    images = jnp.zeros((2, MIN_PIXELS[name], MIN_PIXELS[name], 3))

    def num_remats(model):
        shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))

        def forward(variables):
            return model.apply(variables, images, train=True, mutable=["ghost_stats"])

        return str(jax.make_jaxpr(forward)(shapes)).count("remat"), shapes

    (plain, shapes), (again, shapes_again) = (num_remats(SMALL[name].clone(remat=remat)) for remat in (False, True))
    assert (plain, again) == (0, 4)
    assert shapes == shapes_again


def test_inception_resnet_v2_drops_in_training_alone():
    model = SMALL["inception_resnet_v2"].clone(dropout=0.5)
    images = jnp.zeros((2, 79, 79, 3))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))

    def program(train, keys):
        def forward(variables, keys):
            return model.apply(variables, images, train=train, keys=keys, mutable=["ghost_stats"])[0]

        return str(jax.make_jaxpr(forward)(shapes, keys))

    keys = jax.random.split(jax.random.key(0), 2)
    assert "random_bits" in program(True, keys)
    assert "random_bits" not in program(False, keys)
    with pytest.raises(ValueError, match="dropout needs keys"):
        program(True, None)


def engine_of(model, pixels, ghost_batch_size=2, num_examples=4):
    random = np.random.RandomState(0)
    images = random.randint(256, size=(num_examples, pixels, pixels, 3)).astype(np.uint8)
    source = ArraySource({"image": images, "label": np.arange(num_examples, dtype=np.int32)})
    task = Classification(model.clone(ghost_batch_size=ghost_batch_size), mean=127.5, std=127.5)
    tx = create_optimizer("momentum")
    return Engine(task, tx, source, source, [num_examples], devices=jax.devices()[:1]), tx


@pytest.mark.parametrize("name", SMALL)
def test_an_update_lowers_the_loss_as_its_gradient_says(random_state, name):
    """A small step ε of gradient descent lowers the loss by ε |g|²."""
    model = SMALL[name].clone(num_blocks=(1, 1, 1), remat=name == "resnet50")
    pixels = {"resnet50": 33, "inception_resnet_v2": 107}[name]  # four images of few pixels have no variance at the end
    engine, tx = engine_of(model, pixels, ghost_batch_size=4)
    state = engine.place(random_state(model, tx, (pixels, pixels, 3)))
    small, losses = 1e-5, []
    for k, learning_rate in enumerate([small, 0.05, 0.05]):
        state, metrics = engine.update(state, Update(k, 4 * k, 4, learning_rate, 0.0))
        losses.append(metrics.loss)
        if k == 0:
            predicted = small * metrics.grad_norm**2
    assert losses[0] - losses[1] == pytest.approx(predicted, rel=0.05)
    assert losses[2] < losses[1]
    assert engine.num_compilations == 1


@pytest.mark.skipif(not IS_LONG, reason="takes minutes; BSJAX_LONG_TESTS=1 runs it")
@pytest.mark.parametrize("name", SMALL)
def test_an_update_at_full_size(name):
    engine, _ = engine_of(create_model(name, num_classes=1000, remat=True), PIXELS[name], num_examples=2)
    state, metrics = engine.update(engine.init(), Update(0, 0, 2, 0.01, 0.9))
    assert np.isfinite([metrics.loss, metrics.grad_norm]).all()
    assert metrics.grad_norm > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state)))


def test_small_images_are_refused():
    with pytest.raises(InvalidArgument) as refusal:
        jax.eval_shape(lambda: SMALL["inception_resnet_v2"].init(jax.random.key(0), jnp.zeros((1, 80, 64, 3)), False))
    assert str(refusal.value) == (
        "image size is '80×64'; it must be at least 75 pixels in height and width for inception_resnet_v2; nearest: 75"
    )
