"""The gradient of every example for the parameters of normalisation layers, in the backward pass of training."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_IS_NORM = re.compile(r"norm|^ln(?![a-z])", re.IGNORECASE)


def is_in_layer_norm(path: str) -> bool:
    """Whether a parameter belongs to a normalisation layer, by the name of the module that holds it.

    Args:
      path: such as "block_0/attention_norm/scale".

    Returns:
      Whether the module's name contains "norm", or is "ln" with or without a number or a suffix.

    >>> [is_in_layer_norm(path) for path in ("block_0/attention_norm/scale", "LayerNorm_0/bias", "ln_f/weight")]
    [True, True, True]
    >>> [is_in_layer_norm(path) for path in ("block_0/qkv/kernel", "norm/dense/kernel", "embedding")]
    [False, False, False]
    """
    return bool(_IS_NORM.search(path.rpartition("/")[0].rpartition("/")[2]))


def layer_norm_params(tree: Any) -> dict[str, Any]:
    """The parameters of normalisation layers, or their gradients.

    Args:
      tree: a pytree of arrays: all parameters of a model, or their gradients.

    Returns:
      An array for each path, such as "norm/scale".

    >>> params = {"norm": {"scale": jnp.ones(2)}, "head": jnp.ones((2, 3))}
    >>> layer_norm_params(params)
    {'norm/scale': Array([1., 1.], dtype=float32)}
    """
    named = ((_path(path), x) for path, x in jax.tree_util.tree_leaves_with_path(tree))
    return {path: x for path, x in named if is_in_layer_norm(path)}


def zero_offsets(params: Any, num_examples: int) -> dict[str, jax.Array]:
    """A zero for each example and each number of the normalisation layers: what `of_each_example` adds.

    Args:
      params: a pytree of arrays.
      num_examples: n.

    Returns:
      An array [n, ...] for each array of `layer_norm_params`, of its dtype.

    >>> zero_offsets({"norm": {"scale": jnp.ones(2)}, "head": jnp.ones((2, 3))}, num_examples=3)["norm/scale"].shape
    (3, 2)
    """
    found = layer_norm_params(params)
    return {path: jnp.zeros((num_examples, *jnp.shape(x)), jnp.result_type(x)) for path, x in found.items()}


def of_each_example(
    function: Callable[[Any, Any], Any], params: Any, offsets: dict[str, jax.Array], examples: Any
) -> Any:
    r"""A function of a batch, in which each example has normalisation layers of its own.

    Example i sees :math:`\gamma + o_i` in place of the scale γ, and likewise for a bias, where all :math:`o_i` are 0.
    So the values are those of `function`, and so is the gradient for the parameters; the gradient for :math:`o_i` is
    that of example i alone. With the normalised input x̂ at each position t, and δ the gradient for the layer's output,

    .. math:: \frac{\partial \ell_i}{\partial o_i} = \sum_t \delta_{it} \odot \hat x_{it},
       \qquad \frac{\partial}{\partial \gamma} \sum_i \ell_i = \sum_i \frac{\partial \ell_i}{\partial o_i}.

    The backward pass has δ and x̂ anyway, and sums over positions before it sums over examples: that is nearly free.

    An example is a shard of one for `estimate`: with :math:`\sum_i |g_i|^2` as `weighted_sq`, n examples and n shards,
    it returns

    .. math:: \widehat{\mathrm{tr}\,\Sigma} = \frac{n}{n - 1} \left(\overline{|g_i|^2} - |\bar g|^2\right),
       \qquad \widehat{|G|^2} = \frac{n |\bar g|^2 - \overline{|g_i|^2}}{n - 1}

    of these parameters alone. In transformers their ratio follows that of all parameters (Gray et al., 2024).

    Args:
      function: `function(params, examples)` returns a pytree of arrays [n, ...], in which no example depends on
        another, such as the losses [n].
      params: a pytree of arrays.
      offsets: of `zero_offsets`, for n examples.
      examples: a pytree of arrays [n, ...].

    Returns:
      What `function` returns.

    >>> from bsjax.gradient_noise import estimate, squared_norm
    >>> def losses(params, x):  # of n examples [T, D]
    ...     return jnp.square(x * params["norm"]["scale"][None, None]).sum(axis=(1, 2)) / 2
    >>> x = jnp.array([[[1.0, 2.0], [0.0, 1.0]], [[3.0, 0.0], [0.0, 1.0]]])
    >>> def summed_loss(params, offsets):
    ...     return of_each_example(losses, params, offsets, x).sum()
    >>> params = {"norm": {"scale": jnp.ones(2)}}
    >>> grads, example_grads = jax.grad(summed_loss, argnums=(0, 1))(params, zero_offsets(params, 2))
    >>> print(example_grads["norm/scale"].tolist(), grads["norm"]["scale"].tolist())
    [[1.0, 5.0], [9.0, 1.0]] [10.0, 6.0]
    >>> noise = estimate(squared_norm(example_grads), squared_norm(grads) / 2**2, num_examples=2, num_shards=2)
    >>> print(noise.trace, noise.grad_sq)
    40.0 14.0

    Reference: Gray et al., 2024 (https://arxiv.org/abs/2411.00999), Section 3.
    """

    def of_one(offset: dict[str, jax.Array], example: Any) -> Any:
        row = jax.tree.map(lambda x: x[None], example)
        return jax.tree.map(lambda x: x[0], function(_moved(params, offset), row))

    return jax.vmap(of_one)(offsets, examples)


def _moved(params: Any, offset: dict[str, jax.Array]) -> Any:
    """The parameters with an offset added to each array that has one."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x + offset[_path(path)] if _path(path) in offset else x, params
    )


def _path(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
