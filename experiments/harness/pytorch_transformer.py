"""The PyTorch twin of `bsjax.models.Transformer`, and its update in a plain loop: what bsjax is compared with.

Importing this needs PyTorch.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812  (PyTorch's own name for it)
from torch import nn


class _Block(nn.Module):
    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm, self.feed_forward_norm = (nn.LayerNorm(width, bias=False) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.hidden = nn.Linear(width, 4 * width, bias=False)
        self.feed_forward_out = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, length, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [batch, head, position, unit]
        q, k = (_rotate(each, cosine, sine) for each in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attention_out(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.feed_forward_out(F.gelu(self.hidden(self.feed_forward_norm(x)), approximate="tanh"))


class Transformer(nn.Module):
    """The default transformer: rotary positions, GELU by its tanh, no biases, tied embeddings, no dropout.

    Args:
      vocab_size, context_length, depth, width, num_heads: see `bsjax.models.Transformer`.
    """

    def __init__(self, vocab_size: int, context_length: int, depth: int, width: int, num_heads: int):
        super().__init__()
        self.embedding = nn.Parameter(0.02 * torch.randn(vocab_size, width))
        self.blocks = nn.ModuleList(_Block(width, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, bias=False)
        theta = 10_000.0 ** (-np.arange(0, width // num_heads, 2) / (width // num_heads))
        angles = torch.from_numpy(np.outer(np.arange(context_length), theta).astype(np.float32))
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits [batch, length, vocabulary] for the token after each of `tokens` [batch, length]."""
        x, length = F.embedding(tokens, self.embedding), tokens.shape[1]
        for block in self.blocks:
            x = block(x, self.cosine[:length], self.sine[:length])
        return F.linear(self.norm(x), self.embedding)


def copy_parameters(params: Mapping[str, Any], model: Transformer) -> None:
    """Copies a linen transformer's parameters into its twin."""
    arrays = {"embedding": params["embedding"], "norm.weight": params["norm"]["scale"]}
    for i in range(len(model.blocks)):
        for layer, values in params[f"block_{i}"].items():
            (array,) = values.values()
            arrays[f"blocks.{i}.{layer}.weight"] = array.T if array.ndim == 2 else array
    model.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()})  # all, no other


class Trainer:
    """Updates as one writes them in PyTorch: AdamW, weight decay of matrices, clipping by the gradient's norm.

    Args:
      model: the twin.
      tokens: whole numbers [n · context_length + 1], of training.
      context_length: tokens that a window predicts.
      weight_decay: of matrices, decoupled.
      betas: of AdamW.
      max_grad_norm: the gradient's largest norm.
      compiled: whether torch.compile compiles loss and gradient.
    """

    def __init__(
        self,
        model: Transformer,
        tokens: np.ndarray,
        context_length: int,
        weight_decay: float,
        betas: tuple[float, float],
        max_grad_norm: float,
        compiled: bool,
    ):
        self.model, self._max_grad_norm = model, max_grad_norm
        self._windows = torch.from_numpy(tokens.copy()).unfold(0, context_length + 1, context_length)
        matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
        others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, betas=betas, fused=True)
        self._loss = torch.compile(self._loss_of, dynamic=False) if compiled else self._loss_of

    def update(self, index: torch.Tensor, learning_rate: float) -> torch.Tensor:
        """One update on the windows of an index; returns the loss before it."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        loss = self._loss(self._windows[index].long())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._max_grad_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.detach()

    def logits(self, index: torch.Tensor) -> torch.Tensor:
        """Of the windows of an index."""
        with torch.no_grad():
            return self.model(self._windows[index, :-1].long())

    def _loss_of(self, windows: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())


def _rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)
