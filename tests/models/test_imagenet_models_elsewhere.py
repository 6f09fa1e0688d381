"""ResNet-50 and Inception-ResNet-V2 compute what torchvision's and timm's do, with the same weights, in float64.

They run with `BSJAX_LONG_TESTS=1` and the extra "benchmark", which has torchvision and timm; minutes for each model.
"""

import os

import jax
import numpy as np
import pytest

from bsjax.models import create_model

PIXELS = {"resnet50": 224, "inception_resnet_v2": 299}
BATCH_SIZE = 2
PARTS = {  # of our models, in the order of the layers; "" is the model itself
    "resnet50": ["", *(f"stage{i}_block{j}" for i, n in enumerate((3, 4, 6, 3), 1) for j in range(1, n + 1))],
    "inception_resnet_v2": [
        *("stem", "mixed_5b", *(f"block35_{i}" for i in range(1, 11))),
        *("mixed_6a", *(f"block17_{i}" for i in range(1, 21))),
        *("mixed_7a", *(f"block8_{i}" for i in range(1, 11)), "conv_7b"),
    ],
}

pytestmark = [
    pytest.mark.skipif(os.environ.get("BSJAX_LONG_TESTS") != "1", reason="takes minutes; BSJAX_LONG_TESTS=1 runs it"),
    pytest.mark.filterwarnings("default"),  # theirs are not errors
]


def their_model(name):
    """A model with random weights, γ, β and running statistics; timm's γ stays 1, which our model has none of."""
    torch = pytest.importorskip("torch")
    library = pytest.importorskip({"resnet50": "torchvision", "inception_resnet_v2": "timm"}[name])
    torch.manual_seed(0)
    model = (library.models.resnet50() if name == "resnet50" else library.create_model(name)).double()
    random = np.random.RandomState(1)
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            drawn = {"bias": (-0.3, 0.3), "running_mean": (-0.3, 0.3), "running_var": (0.7, 1.3), "weight": (0.7, 1.3)}
            for key in list(drawn)[: 4 if name == "resnet50" else 3]:
                getattr(norm, key).data = torch.from_numpy(random.uniform(*drawn[key], norm.num_features))
    return torch, model


def layers_of(torch, model):
    """Their convolutions, batch norms and linear layers, in the order of their definition."""
    kinds = (torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.Linear)
    return [[layer for layer in model.modules() if isinstance(layer, kind)] for kind in kinds]


def carried_over(torch, model, shapes, parts):
    """Our variables with their values; every one of theirs is used once."""
    convs, norms, (dense,) = (iter(layers) for layers in layers_of(torch, model))
    params, stats = {}, {}
    for part in parts:
        ours = shapes["params"][part] if part else shapes["params"]
        our_params, our_stats = (tree.setdefault(part, {}) if part else tree for tree in (params, stats))
        for name in sorted((key for key in ours if key.startswith("Conv_")), key=lambda key: int(key[5:])):
            conv, norm, of_norm = next(convs), next(norms), f"GhostBatchNorm_{name[5:]}"
            our_params[name] = {"kernel": conv.weight.permute(2, 3, 1, 0)}
            scale = {"scale": norm.weight} if "scale" in ours[of_norm] else {}
            our_params[of_norm] = {**scale, "bias": norm.bias}
            our_stats[of_norm] = {"mean": norm.running_mean, "var": norm.running_var}
        if "up" in ours:
            conv = next(convs)
            our_params["up"] = {"kernel": conv.weight.permute(2, 3, 1, 0), "bias": conv.bias}
    params["Dense_0"] = {"kernel": dense.weight.T, "bias": dense.bias}
    assert not list(convs) + list(norms)
    variables = jax.tree.map(lambda x: x.detach().numpy().copy(), {"params": params, "batch_stats": stats})
    assert jax.tree.map(lambda x: x.shape, variables) == jax.tree.map(lambda x: x.shape, shapes)
    return variables


def error(found, expected):
    """The largest difference, relative to the largest value."""
    return np.abs(np.asarray(found) - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("name", PIXELS)
def test_logits_and_batch_statistics_are_theirs(float64, name):
    torch, theirs = their_model(name)
    ours = create_model(name, num_classes=1000, ghost_batch_size=BATCH_SIZE, dtype=np.float64)
    images = np.random.RandomState(2).randn(BATCH_SIZE, PIXELS[name], PIXELS[name], 3)
    shapes = dict(jax.eval_shape(lambda: ours.init(jax.random.key(0), images, train=False)))
    variables = carried_over(torch, theirs, shapes, PARTS[name])
    their_images = torch.from_numpy(images).permute(0, 3, 1, 2)

    with torch.no_grad():
        expected = theirs.eval()(their_images).numpy()
    logits = jax.jit(lambda variables, images: ours.apply(variables, images, train=False))(variables, images)
    found = error(logits, expected)
    print(f"\n{name}, evaluation: logits up to {np.abs(expected).max():.3g}, largest difference {found:.1e} of this")
    assert found < 1e-10

    # In training, with a momentum of 1, their running statistics are the batch's; their variance has n - 1 below.
    counts = {}
    for norm in layers_of(torch, theirs)[1]:
        norm.momentum = 1.0
        norm.register_forward_hook(lambda norm, x, y: counts.update({norm: x[0].numel() // norm.num_features}))
    with torch.no_grad():
        expected = theirs.train()(their_images).numpy()
    for norm, count in counts.items():
        norm.running_var *= (count - 1) / count
    train = jax.jit(lambda variables, images: ours.apply(variables, images, train=True, mutable=["ghost_stats"]))
    logits, state = train(variables, images)
    expected_stats = carried_over(torch, theirs, shapes, PARTS[name])["batch_stats"]
    stats = jax.tree.map(lambda x: x[0], state["ghost_stats"])
    errors = jax.tree.map(error, stats, expected_stats)
    found = {"logits": float(error(logits, expected)), "statistics": float(max(jax.tree.leaves(errors)))}
    print(f"{name}, training: logits up to {np.abs(expected).max():.3g}, largest differences {found}")
    assert max(found.values()) < 1e-8
