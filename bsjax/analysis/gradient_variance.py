r"""The variance of a batch's gradient at fixed parameters: exactly, from the gradient of every example.

With the gradients g_i of N examples, their mean G and

.. math:: \mathrm{tr}\,\Sigma = \frac{1}{N - 1} \sum_{i=1}^N |g_i - G|^2,

the mean gradient of a batch of B examples has

.. math:: E|G_B|^2 = |G|^2 + E|G_B - G|^2, \qquad E|G_B - G|^2 = \begin{cases}
   \frac{\mathrm{tr}\,\Sigma}{B} \left(1 - \frac{B}{N}\right) & \text{without replacement, as in an epoch} \\
   \frac{\mathrm{tr}\,\Sigma}{B} \left(1 - \frac{1}{N}\right) & \text{with replacement.} \end{cases}

The first is 0 for B = N, where the batch is the data set: noise falls as 1/B only while B is a small share of N.
`bsjax.gradient_noise` estimates the same quantities from a few microbatches while training runs.

Gradients are those of the evaluation's losses, see `bsjax.analysis.microbatches`: without augmentation and dropout, and
with the running averages of batch normalisation.

Reference: Cochran, 1977, Sampling Techniques, Section 2.5; McCandlish et al., 2018 (https://arxiv.org/abs/1812.06162),
Appendix A.1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from bsjax.analysis.microbatches import check_own_losses, evaluation_losses, microbatches
from bsjax.data import Source
from bsjax.errors import InvalidArgument, check_whole
from bsjax.tasks import Task


class GradientStatistics(NamedTuple):
    """The moments of the examples' gradients at fixed parameters.

    >>> statistics = GradientStatistics(grad_sq=2.0, trace=10.0, num_examples=5)
    >>> statistics.variance(5), statistics.variance(5, replacement=True), statistics.expected_square(1)
    (0.0, 1.6, 10.0)
    """

    grad_sq: float  # |G|²
    trace: float  # tr(Σ), with the divisor N - 1
    num_examples: int  # N

    def variance(self, batch_size: int, replacement: bool = False) -> float:
        """E|G_B - G|² of a batch of B examples.

        Args:
          batch_size: B; without replacement, at most N.
          replacement: whether an example may be drawn several times.

        Raises:
          InvalidArgument: batch_size is out of range.
        """
        size, last = check_whole("batch_size", batch_size), self.num_examples
        if size > last and not replacement:
            raise InvalidArgument("batch_size", size, f"at most {last} examples without replacement", last)
        return self.trace * (1 / size - 1 / last if not replacement else (1 - 1 / last) / size)

    def expected_square(self, batch_size: int, replacement: bool = False) -> float:
        """E|G_B|² = |G|² + E|G_B - G|²; the arguments are those of `variance`."""
        return self.grad_sq + self.variance(batch_size, replacement)


def gradient_statistics(
    task: Task, source: Source, microbatch_size: int = 64
) -> Callable[[Any, Any], GradientStatistics]:
    """A function that computes |G|² and tr(Σ) over a source exactly.

    It passes over the examples once. The spread within microbatches is summed on the device, and that between them in
    float64, so that nothing cancels where the noise is small beside the gradient.

    Args:
      task: whose gradients they are.
      source: of the N examples, two at least.
      microbatch_size: n examples at once, whose gradients take n times the memory of the parameters.

    Returns:
      `statistics(params, batch_stats)`.

    Raises:
      InvalidArgument: the source has one example, its examples have no losses of their own, or microbatch_size is
        below 1.

    >>> from bsjax.data import ArraySource
    >>> from bsjax.tasks import from_loss
    >>> source = ArraySource(np.array([1.0, 2.0, 6.0], np.float32))
    >>> task = from_loss(lambda params, x, keys, train: params * x, init_fn=lambda key: jnp.ones(()))  # g_i = x_i
    >>> gradient_statistics(task, source)(jnp.ones(()), {})
    GradientStatistics(grad_sq=9.0, trace=7.0, num_examples=3)
    """
    if len(source) < 2:
        raise InvalidArgument("source", "one example", "of two examples or more")
    gradients = _example_gradients(task)
    check_whole("microbatch_size", microbatch_size)

    @jax.jit
    def moments(params: Any, batch_stats: Any, examples: Any, index: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The mean gradient of a microbatch [P], and the sum of squared distances from it."""
        grads = gradients(params, batch_stats, examples, index)
        real = (index >= 0).astype(grads.dtype)[:, None]
        mean = grads.sum(axis=0) / real.sum()
        return mean, jnp.square(real * (grads - mean[None])).sum()

    def statistics(params: Any, batch_stats: Any) -> GradientStatistics:
        count, mean, scatter = 0, np.zeros(()), 0.0
        for examples, index in microbatches(source, microbatch_size):
            size = int((index >= 0).sum())
            part, its_scatter = (np.asarray(x, np.float64) for x in moments(params, batch_stats, examples, index))
            step = part - mean
            scatter += float(its_scatter) + float(step.ravel() @ step.ravel()) * count * size / (count + size)
            count += size
            mean = mean + step * (size / count)
        return GradientStatistics(float(mean @ mean), scatter / (count - 1), count)

    return statistics


def weighted_gradients(
    task: Task, source: Source, microbatch_size: int = 64
) -> Callable[[Any, Any, np.ndarray], np.ndarray]:
    r"""A function that computes weighted sums of the examples' gradients, such as those of many batches at once.

    .. math:: G_r = \sum_{i=1}^N w_{ri} \, g_i

    Args:
      task: whose gradients they are.
      source: of the N examples.
      microbatch_size: n examples at once, whose gradients take n times the memory of the parameters.

    Returns:
      `gradients(params, batch_stats, weights)`: weights [R, N] give float64 [R, P], with all P parameters in the order
      of `jax.flatten_util.ravel_pytree`. `sampling_weights` makes those of batches.

    Raises:
      InvalidArgument: the task's examples have no losses of their own, or microbatch_size is below 1. The function:
        weights are not [R, N].

    >>> from bsjax.data import ArraySource
    >>> from bsjax.tasks import from_loss
    >>> source = ArraySource(np.array([1.0, 2.0, 6.0], np.float32))
    >>> task = from_loss(lambda params, x, keys, train: params * x, init_fn=lambda key: jnp.ones(()))  # g_i = x_i
    >>> weighted_gradients(task, source)(jnp.ones(()), {}, np.array([[1, 1, 1], [0, 1, 1]]) / [[3], [2]])
    array([[3.],
           [4.]])
    """
    gradients = _example_gradients(task)
    check_whole("microbatch_size", microbatch_size)

    @jax.jit
    def add(total: Any, params: Any, batch_stats: Any, weights: jax.Array, examples: Any, index: jax.Array) -> Any:
        grads = gradients(params, batch_stats, examples, index)
        return total + jnp.matmul(weights.astype(grads.dtype), grads, precision=jax.lax.Precision.HIGHEST)

    def of_weights(params: Any, batch_stats: Any, weights: np.ndarray) -> np.ndarray:
        weights = np.asarray(weights)
        if weights.ndim != 2 or weights.shape[1] != len(source):
            allowed = f"[R, {len(source)}], a column for each example"
            raise InvalidArgument("weights", f"of shape {list(weights.shape)}", allowed)
        flat = ravel_pytree(params)[0]
        total = jnp.zeros((len(weights), flat.size), flat.dtype)
        for examples, index in microbatches(source, microbatch_size):
            # Gradients of padding are 0, so that any column will do.
            total = add(total, params, batch_stats, weights[:, np.maximum(index, 0)], examples, index)
        return np.asarray(total, np.float64)

    return of_weights


def sampling_weights(
    batch_size: int, num_batches: int, num_examples: int, random: np.random.Generator, replacement: bool = False
) -> np.ndarray:
    """The weights of the examples in random batches: how often each was drawn, over B.

    Args:
      batch_size: B; without replacement, at most N.
      num_batches: R, independent of each other.
      num_examples: N.
      random: the generator that draws.
      replacement: whether an example may be drawn several times.

    Returns:
      float64 [R, N], rows that sum to 1.

    Raises:
      InvalidArgument: a number is out of range.

    >>> sampling_weights(2, 3, num_examples=4, random=np.random.default_rng(0))
    array([[0. , 0.5, 0.5, 0. ],
           [0. , 0. , 0.5, 0.5],
           [0.5, 0. , 0.5, 0. ]])
    """
    for name, number in (("num_batches", num_batches), ("num_examples", num_examples), ("batch_size", batch_size)):
        check_whole(name, number)
    if replacement:
        return random.multinomial(batch_size, np.full(num_examples, 1 / num_examples), num_batches) / batch_size
    if batch_size > num_examples:
        raise InvalidArgument("batch_size", batch_size, f"at most {num_examples} without replacement", num_examples)
    weights = np.zeros((num_batches, num_examples))
    weights[:, :batch_size] = 1 / batch_size
    return random.permuted(weights, axis=1)


def _example_gradients(task: Task) -> Callable[[Any, Any, Any, jax.Array], jax.Array]:
    """A function for the gradients of a microbatch's examples, flat: [n, P], 0 for padding."""
    check_own_losses(task)

    def gradients(params: Any, batch_stats: Any, examples: Any, index: jax.Array) -> jax.Array:
        def gradient(one: Any, i: jax.Array) -> jax.Array:
            def loss(params: Any) -> jax.Array:
                row = jax.tree.map(lambda x: x[None], one)
                return evaluation_losses(task, params, batch_stats, row, i[None]).sum()

            return ravel_pytree(jax.grad(loss)(params))[0]

        return jax.vmap(gradient)(examples, index)

    return gradients
