"""Models: sizes, types, and forward passes against plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from bsjax import InvalidArgument
from bsjax.models import (
    CLASSIFIERS,
    CNN,
    MLP,
    MODELS,
    ConvAutoencoder,
    InceptionResNetV2,
    ResNet9,
    ResNet18,
    ResNet50,
    WideResNet,
    create_model,
    ghost_batch_size_of,
)
from bsjax.optimizers import create_optimizer

SMALL = {
    "mlp": MLP(10, width=4),
    "cnn": CNN(10, width=4, ghost_batch_size=2),
    "resnet9": ResNet9(10, width=2, ghost_batch_size=2),
    "resnet18": ResNet18(10, width=2, ghost_batch_size=2),
    "wide_resnet": WideResNet(10, depth=16, width=1, ghost_batch_size=2),
    "resnet50": ResNet50(10, width=2, num_blocks=(1, 2), ghost_batch_size=2),
    "inception_resnet_v2": InceptionResNetV2(10, width=2, num_blocks=(1, 1, 2), ghost_batch_size=2),
}
PIXELS = dict.fromkeys(SMALL, 8) | {"inception_resnet_v2": 75}


def init_shapes(model, image_shape):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *image_shape)), train=False))


def num_params(model, image_shape):
    return sum(leaf.size for leaf in jax.tree.leaves(init_shapes(model, image_shape)["params"]))


@pytest.fixture
def variables_of(random_state):
    """A function that draws parameters and running averages in float64."""

    def draw(model, image_shape):
        state = random_state(model, create_optimizer("sgd"), image_shape, np.float64)
        return {"params": state.params, "batch_stats": state.batch_stats}

    return draw


@pytest.mark.parametrize(("depth", "width", "published"), [(16, 8, "11.0M"), (22, 8, "17.2M"), (28, 10, "36.5M")])
def test_wide_resnets_have_the_published_numbers_of_parameters(depth, width, published):
    model = create_model("wide_resnet", 10, depth=depth, width=width)
    assert f"{num_params(model, (32, 32, 3)) / 1e6:.1f}M" == published


def test_numbers_of_parameters():
    assert num_params(create_model("wide_resnet", 10), (32, 32, 3)) == 2_748_890
    assert num_params(create_model("resnet18", 10), (32, 32, 3)) == 11_173_962
    assert num_params(create_model("resnet9", 10), (32, 32, 3)) == 346_810
    layers = [9 * 4, 2 * 4, 9 * 4 * 8, 2 * 8, 9 * 8 * 16, 2 * 16, 4 * 16 * 3 + 3]  # 16×16 pixels become 2×2
    assert num_params(CNN(3, depth=3, width=4), (16, 16, 1)) == sum(layers)
    assert num_params(MLP(3, depth=2, width=5), (4, 4, 2)) == (32 * 5 + 5) + (5 * 5 + 5) + (5 * 3 + 3)


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
def test_types(name, dtype):
    """The layers compute in `dtype`; parameters, statistics and logits are float32 (or float64)."""
    wide = np.promote_types(dtype, np.float32)
    image_shape = (PIXELS[name], PIXELS[name], 1)
    variables = init_shapes(SMALL[name].clone(dtype=jnp.bfloat16), image_shape)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}

    def forward(variables, images):
        return SMALL[name].clone(dtype=dtype).apply(variables, images, train=True, mutable=["ghost_stats"])

    with jax.enable_x64(dtype == jnp.float64):
        images = jax.ShapeDtypeStruct((6, *image_shape), wide)
        variables = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, wide), variables)
        jaxpr, (logits, updated) = jax.make_jaxpr(forward, return_shape=True)(variables, images)
    assert (logits.shape, logits.dtype) == ((6, 10), wide)
    assert ("ghost_stats" in updated) == (name != "mlp")
    for leaf in jax.tree.leaves(updated):
        assert (leaf.shape[0], leaf.dtype) == (3, wide)  # three ghosts of two
    layers = [eqn for eqn in jaxpr.eqns if eqn.primitive.name in ("conv_general_dilated", "dot_general")]
    *hidden, last = [eqn.outvars[0].aval.dtype for eqn in layers]
    assert set(hidden) == {jnp.dtype(dtype)}
    assert last == wide


@pytest.mark.parametrize("image_shape", [(8, 8, 1), (7, 9, 3), (28, 28, 1)])
def test_an_autoencoder_gives_back_the_shape(image_shape):
    model, images = ConvAutoencoder(depth=3, width=2, latent=5), jnp.zeros((2, *image_shape))
    outputs, variables = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images))
    assert outputs.shape == images.shape
    assert variables["params"]["Dense_0"]["kernel"].shape[1] == 5


def test_mlp(float64, variables_of):
    model, images = MLP(10, depth=2, width=5, dtype=jnp.float64), np.random.RandomState(0).randn(3, 4, 4, 2)
    variables = variables_of(model, (4, 4, 2))
    layers = [variables["params"][f"Dense_{i}"] for i in range(3)]
    x = images.reshape(3, -1)
    for layer in layers[:-1]:
        x = np.maximum(x @ layer["kernel"] + layer["bias"], 0)
    expected = x @ layers[-1]["kernel"] + layers[-1]["bias"]
    np.testing.assert_allclose(model.apply(variables, images, train=True), expected, rtol=1e-12)


class PlainLayers:
    """Convolutions, normalisations in evaluation and the last layer of a model, in the order of their names."""

    def __init__(self, variables):
        self.params, self.stats = variables["params"], variables["batch_stats"]
        self.num_convs = self.num_norms = 0

    def conv(self, x, stride=1):
        kernel = self.params[f"Conv_{self.num_convs}"]["kernel"]
        self.num_convs += 1
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=dimensions)

    def norm(self, x):
        name = f"GhostBatchNorm_{self.num_norms}"
        self.num_norms += 1
        standard = (x - self.stats[name]["mean"]) / jnp.sqrt(self.stats[name]["var"] + 1e-5)
        return self.params[name]["scale"] * standard + self.params[name]["bias"]

    def logits(self, features):
        names = {f"Conv_{i}" for i in range(self.num_convs)} | {f"GhostBatchNorm_{i}" for i in range(self.num_norms)}
        assert names | {"Dense_0"} == self.params.keys()
        return features @ self.params["Dense_0"]["kernel"] + self.params["Dense_0"]["bias"]


def plain_wide_resnet(layers, x):
    """Pre-activation blocks; the first of a group projects the activated input, with stride 2 from the second on."""
    conv = layers.conv

    def activated(x):
        return jax.nn.relu(layers.norm(x))

    x = conv(x)
    for stride in (1, 2, 2):
        y = activated(x)
        shortcut = conv(y, stride)
        x = shortcut + conv(activated(conv(y, stride)))
        x = x + conv(activated(conv(activated(x))))
    return activated(x).mean(axis=(1, 2))


def plain_resnet18(layers, x):
    """Post-activation blocks; the first of a stage projects the input, with stride 2 from the second on."""
    relu = jax.nn.relu

    def layer(x, stride=1):
        return layers.norm(layers.conv(x, stride))

    x = relu(layer(x))
    for stride in (1, 2, 2, 2):
        y = layer(relu(layer(x, stride)))
        x = relu((x if stride == 1 else layer(x, stride)) + y)
        x = relu(x + layer(relu(layer(x))))
    return x.mean(axis=(1, 2))


def plain_resnet9(layers, x):
    """Blocks of 2×2 pixels first; pooling precedes the normalisation; the blocks add what they have activated."""
    relu = jax.nn.relu

    def layer(x):
        return relu(layers.norm(layers.conv(x)))

    def pooled(x):
        return relu(layers.norm(nn.max_pool(layers.conv(x), (2, 2), (2, 2))))

    pixels = [x[:, i::2, j::2] for i in range(2) for j in range(2)]
    x = jnp.stack(pixels, axis=-1).reshape(x.shape[0], x.shape[1] // 2, x.shape[2] // 2, -1)
    x = pooled(layer(x))
    x = x + layer(layer(x))
    x = layer(pooled(x))
    return (x + layer(layer(x))).max(axis=(1, 2))


PLAIN = {"wide_resnet": plain_wide_resnet, "resnet18": plain_resnet18, "resnet9": plain_resnet9}


@pytest.mark.parametrize(("name", "plain"), PLAIN.items())
def test_residual_networks(float64, variables_of, name, plain):
    model, images = SMALL[name].clone(dtype=jnp.float64), np.random.RandomState(0).randn(2, 16, 16, 3)
    variables = variables_of(model, images.shape[1:])

    def expected(variables, images):
        layers = PlainLayers(variables)
        return layers.logits(plain(layers, images)) / (8 if name == "resnet9" else 1)

    logits = jax.jit(lambda variables, images: model.apply(variables, images, train=False))(variables, images)
    with jax.numpy_rank_promotion("allow"):
        np.testing.assert_allclose(logits, jax.jit(expected)(variables, images), rtol=1e-10, atol=1e-12)


def test_ghost_batch_sizes():
    sizes = [ghost_batch_size_of(create_model(name, 10, ghost_batch_size=16)) for name in CLASSIFIERS]
    assert sizes == [1 if name == "mlp" else 16 for name in CLASSIFIERS]


WRN_DEPTHS = "it must be 10, 16, 22, 28, ... (4 + 6k) for wide_resnet"


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        (
            "cn",
            {},
            f"model is 'cn'; it must be one of {', '.join(MODELS)}; nearest: cnn",
        ),
        ("mlp", {"width": 0}, "width is 0; it must be a whole number >= 1; nearest: 1"),
        ("cnn", {"ghost_batch_size": 0}, "ghost_batch_size is 0; it must be a whole number >= 1; nearest: 1"),
        ("resnet18", {"depth": 34}, "depth is 34; it must be left out for resnet18, which has one depth only"),
        ("wide_resnet", {"depth": 18}, f"depth is 18; {WRN_DEPTHS}; nearest: 16"),
        ("wide_resnet", {"depth": 4}, f"depth is 4; {WRN_DEPTHS}; nearest: 10"),
        (
            "resnet18",
            {"remat": True},
            "remat is True; it must be False for resnet18, which lacks it; nearest: False",
        ),
    ],
)
def test_bad_input(name, size, message):
    with pytest.raises(InvalidArgument) as refusal:
        create_model(name, num_classes=10, **size)
    assert str(refusal.value) == message
