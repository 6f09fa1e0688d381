"""A decoder-only transformer, which predicts each next token of a sequence.

The names of arrays end with the names of their axes:

    B  sequences     D  width            F  hidden units of a feed-forward layer
    T  positions     H  heads            V  tokens of the vocabulary
    S  positions that are looked at      K  width of a head, D / H
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bsjax.errors import InvalidArgument, check_choice, check_whole, nearest_multiples
from bsjax.models.dropout import Dropout

POSITIONS = ("rope", "learned")
ACTIVATIONS = ("gelu", "swiglu")
_ROPE_BASE = 10_000.0
_EPSILON = 1e-5  # added to the variance


class Transformer(nn.Module):
    r"""Pre-norm blocks between an embedding of the tokens and a linear layer to logits.

    With LN for layer normalisation, block l computes

    .. math:: y = x + \mathrm{Attention}(\mathrm{LN}(x)), \quad x' = y + \mathrm{FeedForward}(\mathrm{LN}(y)),

    and the logits are a linear function of LN of the last x. The feed-forward layer is W₂ gelu(W₁ x) with 4 × `width`
    hidden units, or W₂ (silu(W₁ x) ⊙ W₃ x) with 8/3 × `width`, rounded up to a multiple of 8, for "swiglu". Dropout
    comes after the embedding, the attention and the feed-forward layer, and drops no attention weights. Weights begin
    normal with deviation 0.02, those that add to x with 0.02 / √(2 `depth`), as in GPT-2.

    With 50,257 tokens, context 1,024, depth 12, width 768, 12 heads, learned positions and biases it has the
    124,439,808 parameters of GPT-2 small.

    Attributes:
      vocab_size: V, the number of tokens.
      context_length: the largest T; the number of learned positions.
      depth: number of blocks.
      width: D, a multiple of `num_heads`.
      num_heads: H.
      positions: "rope" rotates queries and keys (see `rotate`), and needs an even width of a head; "learned" adds a
        vector for each position.
      activation: "gelu" (by its tanh) or "swiglu".
      use_bias: whether linear layers and layer normalisations have biases.
      tie_embeddings: whether the embedding is also the last layer's matrix.
      dropout: probability that a unit is zeroed in training, in [0, 1).
      remat: whether the backward pass computes the blocks again, which saves memory.
      dtype: of the computation; parameters are float32, and so are sums within a normalisation and the softmax.

    Raises:
      InvalidArgument: a value is out of range.

    >>> model = Transformer(vocab_size=65, context_length=64)
    >>> params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64), jnp.int32))["params"]
    >>> sum(leaf.size for leaf in jax.tree.leaves(params))
    795904

    References: Vaswani et al., 2017 (https://arxiv.org/abs/1706.03762); Radford et al., 2019, *Language Models are
    Unsupervised Multitask Learners*; Su et al., 2021 (https://arxiv.org/abs/2104.09864) for "rope"; Shazeer, 2020
    (https://arxiv.org/abs/2002.05202) for "swiglu".
    """

    vocab_size: int
    context_length: int = 64
    depth: int = 4
    width: int = 128
    num_heads: int = 4
    positions: str = "rope"
    activation: str = "gelu"
    use_bias: bool = False
    tie_embeddings: bool = True
    dropout: float = 0.0
    remat: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self):
        for name in ("vocab_size", "context_length", "depth", "width", "num_heads"):
            check_whole(name, getattr(self, name))
        check_choice("positions", self.positions, POSITIONS)
        check_choice("activation", self.activation, ACTIVATIONS)
        if not 0 <= self.dropout < 1:
            raise InvalidArgument("dropout", self.dropout, "in [0, 1)", 0)
        unit = self.num_heads * (2 if self.positions == "rope" else 1)
        if self.width % unit:
            allowed = f"a multiple of num_heads {self.num_heads}"
            if self.positions == "rope":
                allowed = f"a multiple of twice num_heads {self.num_heads}, because rope turns pairs of a head's units"
            raise InvalidArgument("width", self.width, allowed, nearest_multiples(self.width, unit, at_least=unit))
        super().__post_init__()

    @nn.compact
    def __call__(self, tokens_BxT: jax.Array, train: bool = False, keys: jax.Array | None = None) -> jax.Array:
        """Logits for the token after each one.

        Args:
          tokens_BxT: whole numbers in [0, V), T at most `context_length`.
          train: whether dropout drops.
          keys: [B], one per sequence, for dropout in training.

        Returns:
          Logits [B, T, V], float32 at least.
        """
        length = tokens_BxT.shape[1]
        if length > self.context_length:
            raise InvalidArgument("context_length", self.context_length, f"at least the {length} tokens given", length)
        init = nn.initializers.normal(0.02)
        embedding_VxD = self.param("embedding", init, (self.vocab_size, self.width), jnp.float32)
        x_BxTxD = jnp.take(embedding_VxD, tokens_BxT, axis=0).astype(self.dtype)
        if self.positions == "learned":
            positions_TxD = self.param("positions", init, (self.context_length, self.width), jnp.float32)
            x_BxTxD = x_BxTxD + positions_TxD[None, :length].astype(self.dtype)
        x_BxTxD = Dropout(self.dropout, name="dropout")(x_BxTxD, train, keys)
        block = nn.remat(_Block, static_argnums=(2,)) if self.remat else _Block
        for layer in range(self.depth):
            x_BxTxD = block(_Sizes.of(self), name=f"block_{layer}")(x_BxTxD, train, keys)
        x_BxTxD = _Norm(_Sizes.of(self), name="norm")(x_BxTxD)
        if not self.tie_embeddings:
            embedding_VxD = self.param("head", init, (self.vocab_size, self.width), jnp.float32)
        logits_BTxV = x_BxTxD.reshape(-1, self.width) @ embedding_VxD.astype(self.dtype).T
        logits_BxTxV = logits_BTxV.reshape(*tokens_BxT.shape, self.vocab_size)
        return logits_BxTxV.astype(np.promote_types(self.dtype, np.float32))


def rotate(x_BxTxHxK: jax.Array) -> jax.Array:
    r"""Rotary positions: turns each pair of units by an angle that grows with the position.

    .. math:: (x_j, x_{j + K/2}) \mapsto R(t\,\theta_j)\,(x_j, x_{j + K/2}), \quad \theta_j = 10000^{-2j/K}

    at position t, where R is a rotation of the plane. The product of a rotated query and a rotated key depends on their
    positions by the difference alone.

    Args:
      x_BxTxHxK: queries or keys at the positions 0 to T - 1; K is even.

    Returns:
      The rotated array, of the same shape and dtype.

    >>> rotate(jnp.ones((1, 2, 1, 2)))[0, :, 0].round(3).tolist()  # position 1 turns by one radian
    [[1.0, 1.0], [-0.301, 1.382]]
    """
    _, length, _, head_width = x_BxTxHxK.shape
    wide = np.promote_types(x_BxTxHxK.dtype, np.float32)
    theta_K = _ROPE_BASE ** (-np.arange(0, head_width, 2) / head_width)
    angles = jnp.asarray(np.outer(np.arange(length), theta_K)[None, :, None], wide)
    cosine, sine = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x_BxTxHxK.astype(wide), 2, axis=-1)
    rotated = jnp.concatenate([first * cosine - second * sine, first * sine + second * cosine], axis=-1)
    return rotated.astype(x_BxTxHxK.dtype)


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """What the layers need of a model."""

    depth: int
    width: int
    num_heads: int
    positions: str
    activation: str
    use_bias: bool
    dropout: float
    dtype: Any

    @classmethod
    def of(cls, model: Transformer) -> "_Sizes":
        return cls(**{field.name: getattr(model, field.name) for field in dataclasses.fields(cls)})


class _Block(nn.Module):
    """Attention and a feed-forward layer, each added to its input."""

    sizes: _Sizes

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array, train: bool, keys: jax.Array | None) -> jax.Array:
        y_BxTxD = self._attention(_Norm(self.sizes, name="attention_norm")(x_BxTxD))
        x_BxTxD = x_BxTxD + Dropout(self.sizes.dropout, name="attention_dropout")(y_BxTxD, train, keys)
        y_BxTxD = self._feed_forward(_Norm(self.sizes, name="feed_forward_norm")(x_BxTxD))
        return x_BxTxD + Dropout(self.sizes.dropout, name="feed_forward_dropout")(y_BxTxD, train, keys)

    def _attention(self, x_BxTxD: jax.Array) -> jax.Array:
        batch, length, width = x_BxTxD.shape
        qkv_BxTx3xHxK = self._dense("qkv", 3 * width)(x_BxTxD).reshape(batch, length, 3, self.sizes.num_heads, -1)
        q_BxTxHxK, k_BxSxHxK, v_BxSxHxK = (qkv_BxTx3xHxK[:, :, i] for i in range(3))
        if self.sizes.positions == "rope":
            q_BxTxHxK, k_BxSxHxK = rotate(q_BxTxHxK), rotate(k_BxSxHxK)
        y_BxTxHxK = _attend(q_BxTxHxK, k_BxSxHxK, v_BxSxHxK)
        return self._dense("attention_out", width, adds=True)(y_BxTxHxK.reshape(x_BxTxD.shape))

    def _feed_forward(self, x_BxTxD: jax.Array) -> jax.Array:
        width = x_BxTxD.shape[-1]
        if self.sizes.activation == "swiglu":
            hidden = -(-8 * width // 24) * 8
            y_BxTxF = nn.silu(self._dense("gate", hidden)(x_BxTxD)) * self._dense("hidden", hidden)(x_BxTxD)
        else:
            y_BxTxF = nn.gelu(self._dense("hidden", 4 * width)(x_BxTxD))
        return self._dense("feed_forward_out", width, adds=True)(y_BxTxF)

    def _dense(self, name: str, features: int, adds: bool = False) -> nn.Dense:
        """A linear layer; `adds`: its output is added to the block's input."""
        deviation = 0.02 / np.sqrt(2 * self.sizes.depth) if adds else 0.02
        init = nn.initializers.normal(deviation)
        return _Dense(features, self.sizes.use_bias, dtype=self.sizes.dtype, kernel_init=init, name=name)


class _Dense(nn.Dense):
    """A linear layer of a matrix with a row per token.

    XLA would copy one with two axes of rows into a transposed array for the kernel's gradient, and on a CPU compute
    there, column by column, all that is fused with the copy, such as GELU's gradient (docs/speed.md).
    """

    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        y_BTxF = super().__call__(x_BxTxD.reshape(-1, x_BxTxD.shape[-1]))
        return y_BTxF.reshape(*x_BxTxD.shape[:-1], self.features)


class _Norm(nn.Module):
    """Layer normalisation; linen's does not compute in bfloat16 under strict promotion of dtypes."""

    sizes: _Sizes

    @nn.compact
    def __call__(self, x_BxTxD: jax.Array) -> jax.Array:
        x = x_BxTxD.astype(np.promote_types(x_BxTxD.dtype, np.float32))
        x = x - x.mean(axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + _EPSILON)
        x = x * self._param("scale", nn.initializers.ones, x)
        if self.sizes.use_bias:
            x = x + self._param("bias", nn.initializers.zeros, x)
        return x.astype(self.sizes.dtype)

    def _param(self, name: str, init: nn.initializers.Initializer, x: jax.Array) -> jax.Array:
        return self.param(name, init, x.shape[-1:], jnp.float32).astype(x.dtype)[None, None]


def _attend(q_BxTxHxK: jax.Array, k_BxSxHxK: jax.Array, v_BxSxHxK: jax.Array) -> jax.Array:
    """Each position's mean of the values up to it, weighted by softmax(q·k / √K)."""
    if q_BxTxHxK.dtype != jnp.float64:
        with jax.numpy_dtype_promotion("standard"):  # which it needs for bfloat16
            return jax.nn.dot_product_attention(q_BxTxHxK, k_BxSxHxK, v_BxSxHxK, is_causal=True)
    # JAX's rounds the weights to float32.
    scores_BxHxTxS = jnp.einsum("bthk,bshk->bhts", q_BxTxHxK, k_BxSxHxK) / np.sqrt(q_BxTxHxK.shape[-1])
    is_seen_TxS = np.tri(q_BxTxHxK.shape[1], dtype=bool)
    weights_BxHxTxS = jax.nn.softmax(jnp.where(is_seen_TxS[None, None], scores_BxHxTxS, -jnp.inf))
    return jnp.einsum("bhts,bshk->bthk", weights_BxHxTxS, v_BxSxHxK)
