"""Models: sizes, types, and forward passes against plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsjax import InvalidArgument
from bsjax.models import CNN, MLP, MODELS, ResNet18, WideResNet, create_model, ghost_batch_size_of
from bsjax.optimizers import create_optimizer

SMALL = {
    "mlp": MLP(10, width=4),
    "cnn": CNN(10, width=4, ghost_batch_size=2),
    "resnet18": ResNet18(10, width=2, ghost_batch_size=2),
    "wide_resnet": WideResNet(10, depth=16, width=1, ghost_batch_size=2),
}


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


@pytest.mark.parametrize(
    ("depth", "width", "published"), [(16, 4, "2.7M"), (16, 8, "11.0M"), (22, 8, "17.2M"), (28, 10, "36.5M")]
)
def test_wide_resnets_have_the_published_numbers_of_parameters(depth, width, published):
    model = create_model("wide_resnet", 10, depth=depth, width=width)
    assert f"{num_params(model, (32, 32, 3)) / 1e6:.1f}M" == published


def test_numbers_of_parameters():
    assert num_params(create_model("wide_resnet", 10), (32, 32, 3)) == 2_748_890
    assert num_params(create_model("resnet18", 10), (32, 32, 3)) == 11_173_962
    layers = [9 * 4, 2 * 4, 9 * 4 * 8, 2 * 8, 9 * 8 * 16, 2 * 16, 4 * 16 * 3 + 3]  # 16×16 pixels become 2×2
    assert num_params(CNN(3, depth=3, width=4), (16, 16, 1)) == sum(layers)
    assert num_params(MLP(3, depth=2, width=5), (4, 4, 2)) == (32 * 5 + 5) + (5 * 5 + 5) + (5 * 3 + 3)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
def test_types(name, dtype):
    """The layers compute in `dtype`; parameters, statistics and logits are float32 (or float64)."""
    wide = jnp.promote_types(dtype, jnp.float32)
    variables = init_shapes(SMALL[name].clone(dtype=jnp.bfloat16), (8, 8, 1))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}

    def forward(variables, images):
        return SMALL[name].clone(dtype=dtype).apply(variables, images, train=True, mutable=["ghost_stats"])

    with jax.enable_x64(dtype == jnp.float64):
        images = jax.ShapeDtypeStruct((6, 8, 8, 1), wide)
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


def test_mlp(float64, variables_of):
    model, images = MLP(10, depth=2, width=5, dtype=jnp.float64), np.random.RandomState(0).randn(3, 4, 4, 2)
    variables = variables_of(model, (4, 4, 2))
    layers = [variables["params"][f"Dense_{i}"] for i in range(3)]
    x = images.reshape(3, -1)
    for layer in layers[:-1]:
        x = np.maximum(x @ layer["kernel"] + layer["bias"], 0)
    expected = x @ layers[-1]["kernel"] + layers[-1]["bias"]
    np.testing.assert_allclose(model.apply(variables, images, train=True), expected, rtol=1e-12)


def test_wide_resnet(float64, variables_of):
    """Pre-activation blocks; the first of a group projects the activated input, with stride 2 from the second on."""
    model = SMALL["wide_resnet"].clone(dtype=jnp.float64)
    variables = variables_of(model, (8, 8, 3))

    def plain(variables, x):
        params, stats = variables["params"], variables["batch_stats"]
        kernels = (params[f"Conv_{i}"]["kernel"] for i in range(16))
        norms = (f"GhostBatchNorm_{i}" for i in range(13))

        def conv(x, stride=1):
            return jax.lax.conv_general_dilated(
                x, next(kernels), (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )

        def activated(x):
            name = next(norms)
            standard = (x - stats[name]["mean"]) / jnp.sqrt(stats[name]["var"] + 1e-5)
            return jnp.maximum(params[name]["scale"] * standard + params[name]["bias"], 0)

        x = conv(x)
        for stride in (1, 2, 2):
            y = activated(x)
            shortcut = conv(y, stride)
            x = shortcut + conv(activated(conv(y, stride)))
            x = x + conv(activated(conv(activated(x))))
        return activated(x).mean(axis=(1, 2)) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]

    images = np.random.RandomState(0).randn(2, 8, 8, 3)
    logits = jax.jit(lambda variables, images: model.apply(variables, images, train=False))(variables, images)
    np.testing.assert_allclose(logits, jax.jit(plain)(variables, images), rtol=1e-10, atol=1e-12)


def test_resnet18(float64, variables_of):
    """Post-activation blocks; the first of a stage projects the input, with stride 2 from the second on."""
    model = SMALL["resnet18"].clone(dtype=jnp.float64)
    variables = variables_of(model, (16, 16, 3))

    def plain(variables, x):
        params, stats = variables["params"], variables["batch_stats"]
        names = iter(range(20))

        def layer(x, stride=1):
            name = next(names)
            kernel, norm = params[f"Conv_{name}"]["kernel"], params[f"GhostBatchNorm_{name}"]
            x = jax.lax.conv_general_dilated(
                x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            mean, var = (stats[f"GhostBatchNorm_{name}"][moment] for moment in ("mean", "var"))
            return norm["scale"] * (x - mean) / jnp.sqrt(var + 1e-5) + norm["bias"]

        def relu(x):
            return jnp.maximum(x, 0)

        x = relu(layer(x))
        x = relu(x + layer(relu(layer(x))))
        x = relu(x + layer(relu(layer(x))))
        for _ in range(3):
            y = layer(relu(layer(x, 2)))
            x = relu(layer(x, 2) + y)
            x = relu(x + layer(relu(layer(x))))
        assert next(names, None) is None
        return x.mean(axis=(1, 2)) @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]

    images = np.random.RandomState(0).randn(2, 16, 16, 3)
    logits = jax.jit(lambda variables, images: model.apply(variables, images, train=False))(variables, images)
    np.testing.assert_allclose(logits, jax.jit(plain)(variables, images), rtol=1e-10, atol=1e-12)


def test_ghost_batch_sizes():
    models = {name: create_model(name, 10, ghost_batch_size=16) for name in MODELS}
    assert {name: ghost_batch_size_of(model) for name, model in models.items()} == {
        "mlp": 1,
        "cnn": 16,
        "resnet18": 16,
        "wide_resnet": 16,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cn"}, "model is 'cn'; it must be one of mlp, cnn, resnet18, wide_resnet; nearest: cnn"),
        ({"name": "mlp", "width": 0}, "width is 0; it must be a whole number >= 1; nearest: 1"),
        ({"name": "cnn", "ghost_batch_size": 0}, "ghost_batch_size is 0; it must be a whole number >= 1; nearest: 1"),
        (
            {"name": "resnet18", "depth": 34},
            "depth is 34; it must be left out for resnet18, which has one depth only",
        ),
        (
            {"name": "wide_resnet", "depth": 18},
            "depth is 18; it must be 10, 16, 22, 28, ... (4 + 6k) for wide_resnet; nearest: 16",
        ),
        (
            {"name": "wide_resnet", "depth": 4},
            "depth is 4; it must be 10, 16, 22, 28, ... (4 + 6k) for wide_resnet; nearest: 10",
        ),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(InvalidArgument) as refusal:
        create_model(num_classes=10, **arguments)
    assert str(refusal.value) == message
