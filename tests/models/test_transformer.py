"""The transformer: sizes, a plain forward pass, causality, rotary positions, dropout and types."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from bsjax import InvalidArgument
from bsjax.models import Transformer, create_model
from bsjax.models.transformer import rotate

GPT2 = {"context_length": 1024, "depth": 12, "width": 768, "num_heads": 12, "positions": "learned", "use_bias": True}
NANOGPT = {"context_length": 256, "depth": 6, "width": 384, "num_heads": 6, "positions": "learned"}
SMALL = {"vocab_size": 7, "context_length": 6, "depth": 2, "width": 8, "num_heads": 2}
OTHER = {"positions": "learned", "activation": "swiglu", "use_bias": True, "tie_embeddings": False}
TOKENS = np.random.RandomState(0).randint(7, size=(3, 6)).astype(np.int32)


def shapes_of(model):
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 4), jnp.int32))["params"]


def num_params(model):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes_of(model)))


def draw(model, dtype=np.float32):
    """Parameters at random; scales are near one."""
    random = np.random.RandomState(1)

    def one(path, shape):
        center = 1.0 if path[-1].key == "scale" else 0.0
        return (center + 0.5 * random.uniform(-1, 1, shape.shape)).astype(dtype)

    return jax.tree.map_with_path(one, shapes_of(model))


@functools.cache
def apply_of(model, train):
    return jax.jit(lambda params, tokens, keys: model.apply({"params": params}, tokens, train, keys))


def logits_of(model, params, tokens, keys=None):
    """In training where keys are given."""
    return np.asarray(apply_of(model, keys is not None)(params, tokens, keys))


def test_numbers_of_parameters_are_the_published_ones():
    assert num_params(Transformer(50_257, **GPT2)) == 124_439_808
    medium = GPT2 | {"depth": 24, "width": 1024, "num_heads": 16}
    assert num_params(Transformer(50_257, **medium)) == 354_823_168
    # nanoGPT prints 10.65M, in which it does not count the positions.
    assert f"{(num_params(Transformer(65, **NANOGPT)) - 256 * 384) / 1e6:.2f}M" == "10.65M"


def test_numbers_of_parameters_by_hand():
    norms, attention, swiglu = 2 * (8 + 8), 8 * 24 + 24 + 8 * 8 + 8, 2 * (8 * 24 + 24) + 24 * 8 + 8
    expected = 7 * 8 + 6 * 8 + 2 * (norms + attention + swiglu) + 16 + 7 * 8
    assert num_params(Transformer(**SMALL | OTHER)) == expected


def plain_logits(params, tokens, config):
    """The same model, one sequence and one position at a time."""
    heads, learned = config["num_heads"], config.get("positions") == "learned"

    def norm(x, name, owner):
        variance = np.mean(x**2) - np.mean(x) ** 2
        return (x - np.mean(x)) / np.sqrt(variance + 1e-5) * owner[name]["scale"] + owner[name].get("bias", 0.0)

    def linear(x, name, owner):
        return x @ owner[name]["kernel"] + owner[name].get("bias", 0.0)

    def turned(x, position):
        half = len(x) // 2
        turns = np.exp(1j * position * 10_000.0 ** (-np.arange(half) / half))
        turned = (x[:half] + 1j * x[half:]) * turns
        return np.concatenate([turned.real, turned.imag])

    def attention(inputs, block):
        q, k, v = (np.stack(part) for part in zip(*(np.split(linear(x, "qkv", block), 3) for x in inputs), strict=True))
        outputs = []
        for t in range(len(inputs)):
            parts = []
            for head in np.split(np.arange(q.shape[1]), heads):
                query, keys = q[t, head], k[: t + 1, head]
                if not learned:
                    query, keys = turned(query, t), np.stack([turned(key, s) for s, key in enumerate(keys)])
                parts.append(special.softmax(keys @ query / np.sqrt(len(head))) @ v[: t + 1, head])
            outputs.append(linear(np.concatenate(parts), "attention_out", block))
        return outputs

    def feed_forward(x, block):
        hidden = linear(x, "hidden", block)
        if config.get("activation") == "swiglu":
            gate = linear(x, "gate", block)
            return linear(gate / (1 + np.exp(-gate)) * hidden, "feed_forward_out", block)
        gelu = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
        return linear(gelu, "feed_forward_out", block)

    stream = [params["embedding"][token] for token in tokens]
    if learned:
        stream = [x + params["positions"][t] for t, x in enumerate(stream)]
    for layer in range(config["depth"]):
        block = params[f"block_{layer}"]
        added = attention([norm(x, "attention_norm", block) for x in stream], block)
        stream = [x + y for x, y in zip(stream, added, strict=True)]
        stream = [x + feed_forward(norm(x, "feed_forward_norm", block), block) for x in stream]
    head = params.get("head", params["embedding"])
    return np.stack([head @ norm(x, "norm", params) for x in stream])


@pytest.mark.parametrize("options", [{}, OTHER], ids=["rope, gelu", "learned, swiglu"])
def test_the_forward_pass_is_the_plain_one(options):
    with jax.enable_x64(True):
        model = Transformer(**SMALL, **options, dtype=jnp.float64)
        params = draw(model, np.float64)
        logits = logits_of(model, params, TOKENS)
    expected = np.stack([plain_logits(params, tokens, SMALL | options) for tokens in TOKENS])
    np.testing.assert_allclose(logits, expected, rtol=1e-12, atol=1e-12)
    assert np.abs(expected).max() > 0.3
    # In float32 the attention is JAX's.
    narrow = Transformer(**SMALL, **options)
    np.testing.assert_allclose(logits_of(narrow, draw(narrow), TOKENS), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, OTHER], ids=["rope, gelu", "learned, swiglu"])
def test_no_logit_before_a_token_depends_on_it(options):
    model = Transformer(**SMALL, **options)
    changed = np.repeat(TOKENS[:1], 7, axis=0)
    for t in range(6):
        changed[t, t] = (changed[t, t] + 1) % 7
    *logits, before = logits_of(model, draw(model), changed)
    for t, after in enumerate(logits):
        np.testing.assert_allclose(after[:t], before[:t], rtol=1e-6, atol=1e-6)
        assert (np.abs(after[t:] - before[t:]).max(axis=1) > 1e-3).all()


def test_rotary_products_depend_on_the_distance_alone(float64):
    q, k = np.random.RandomState(0).standard_normal((2, 10))
    same = [np.asarray(jax.jit(rotate)(np.broadcast_to(x, (1, 40, 1, 10))))[0, :, 0] for x in (q, k)]
    products = same[0] @ same[1].T
    for distance in range(-39, 40):
        diagonal = np.diagonal(products, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(np.diagonal(products), q @ k, rtol=1e-12)
    assert len(set(products[0].round(6))) == 40  # other distances, other products


def test_dropout_has_masks_of_the_examples_and_remat_changes_nothing():
    keys = jax.random.split(jax.random.key(0), 3)
    plain, dropping, again = (Transformer(**SMALL, dropout=rate, remat=remat) for rate, remat in
                              ((0.0, False), (0.5, False), (0.5, True)))  # fmt: skip
    params = draw(plain)
    dropped, expected = logits_of(dropping, params, TOKENS, keys), logits_of(plain, params, TOKENS)
    assert (dropped != expected).any(axis=(1, 2)).all()
    np.testing.assert_array_equal(logits_of(dropping, params, TOKENS), expected)
    backwards = logits_of(dropping, params, TOKENS[::-1], keys[::-1])
    np.testing.assert_allclose(backwards[::-1], dropped, rtol=1e-5, atol=1e-6)

    def gradient(model):
        def loss(params):
            return jnp.square(model.apply({"params": params}, TOKENS, True, keys)).sum()

        return jax.jit(jax.grad(loss))(params)

    tolerance = {"rtol": 1e-4, "atol": 1e-4}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), gradient(dropping), gradient(again))


def test_layers_compute_in_bfloat16_with_float32_parameters():
    model = Transformer(**SMALL, dtype=jnp.bfloat16)
    shapes = shapes_of(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    jaxpr = jax.make_jaxpr(model.apply)({"params": shapes}, jax.ShapeDtypeStruct((2, 6), jnp.int32))
    assert jaxpr.out_avals[0].dtype == jnp.float32
    products = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general"]
    assert len(products) >= 2 * 4 + 1  # and those of JAX's attention
    assert {var.aval.dtype for eqn in products for var in eqn.invars} == {jnp.dtype(jnp.bfloat16)}

    def mean_square(params):
        return jnp.square(model.apply({"params": params}, np.zeros((2, 6), np.int32))).mean()

    with jax.numpy_dtype_promotion("standard"):  # which the gradient of JAX's attention needs
        grads = jax.eval_shape(jax.grad(mean_square), shapes)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("changes", [{}, OTHER], ids=["default", "other"])
def test_no_gradient_of_a_matrix_sums_over_two_axes(changes):
    """XLA would make a transposed copy of its operand first. Attention's products, which are batched, are its own."""
    model = Transformer(**SMALL | changes)
    loss = jax.grad(lambda params, tokens: model.apply({"params": params}, tokens).mean())
    program = jax.jit(loss).lower(shapes_of(model), TOKENS).as_text()
    single = [line for line in program.splitlines() if "dot_general" in line and "batching_dims" not in line]
    summed = {re.search(r"contracting_dims = (\[.*?\]) x", line)[1] for line in single}
    assert "[0]" in summed  # the gradient of a kernel
    assert not any("," in axes for axes in summed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "vocab_size is 0; it must be a whole number >= 1; nearest: 1"),
        ({"depth": 0}, "depth is 0; it must be a whole number >= 1; nearest: 1"),
        ({"dropout": 1.0}, "dropout is 1.0; it must be in [0, 1); nearest: 0"),
        ({"positions": "rop"}, "positions is 'rop'; it must be one of rope, learned; nearest: rope"),
        ({"activation": "gel"}, "activation is 'gel'; it must be one of gelu, swiglu; nearest: gelu"),
        ({"width": 9, "positions": "learned"}, "width is 9; it must be a multiple of num_heads 2; nearest: 8 or 10"),
        ({"width": 10}, "width is 10; it must be a multiple of twice num_heads 2, because rope turns pairs of a head's "
         "units; nearest: 8 or 12"),
    ],
)  # fmt: skip
def test_bad_input(changes, message):
    with pytest.raises(InvalidArgument) as refusal:
        Transformer(**SMALL | changes)
    assert str(refusal.value) == message


def test_too_many_tokens():
    with pytest.raises(InvalidArgument, match=r"^context_length is 6; it must be at least the 7 tokens given; near"):
        Transformer(**SMALL).init(jax.random.key(0), jnp.zeros((1, 7), jnp.int32))


def test_by_name():
    model = create_model("transformer", 65, depth=2, width=16, num_heads=4, context_length=8, positions="learned")
    assert model == Transformer(65, 8, depth=2, width=16, num_heads=4, positions="learned")
    with pytest.raises(InvalidArgument, match=r"^num_heads is 4; it must be left out for mlp"):
        create_model("mlp", 10, num_heads=4)
