r"""The gradient noise scale tr(Σ)/|G|²: estimated from the gradients that training computes anyway.

G is the mean gradient of the loss and Σ the covariance of one example's. McCandlish's

.. math:: B_{simple} = \frac{\mathrm{tr}(\Sigma)}{|G|^2}

is the batch size, in examples, at which noise and signal in the mean gradient are equal: much smaller batches
waste updates, much larger ones examples. It is not Smith's temperature `bsjax.sgd_noise_scale`, and is the critical
batch size only where the Hessian is a multiple of the identity. The gradient is the raw one of the loss:
what the optimizer does to it (weight decay, clipping, Adam's division) is not in it.

A batch of n examples comes as k ≥ 2 *shards*: the microbatches of all devices, of any sizes. With shard i's summed
gradient s_i of n_i examples, and ḡ = Σ s_i / n,

.. math:: \widehat{\mathrm{tr}\,\Sigma} = \frac{\sum_i |s_i|^2 / n_i - n |\bar g|^2}{k - 1},
   \qquad \widehat{|G|^2} = |\bar g|^2 - \widehat{\mathrm{tr}\,\Sigma} \left(\frac{1}{n} - \frac{1}{N}\right)

are unbiased at fixed parameters, because :math:`E|s_i|^2/n_i = n_i|G|^2 + \mathrm{tr}\,\Sigma`. The sum over shards is
one more scalar to all-reduce. Without 1/N the examples are independent draws and G is the population's; with it
they are drawn from the N examples of the data set *without* replacement, as in an epoch, G is theirs, and Σ has the
divisor N - 1. The two |G|² differ by tr(Σ)/N, which matters once B_simple nears N.

A ratio of unbiased numbers is biased, and one update's are noisy (|G|² may come out negative), so the two are averaged
separately and then divided. A loop that sums microbatches:

>>> import jax, jax.numpy as jnp
>>> @jax.jit
... def grads_and_noise(params, microbatches):  # [k, n_i, 2]
...     def accumulate(sums, examples):
...         grads = jax.grad(lambda params: ((params[None] - examples) ** 2).sum() / 2)(params)
...         return jax.tree.map(jnp.add, sums, (grads, shard_term(grads, len(examples)))), None
...
...     (grads, weighted_sq), _ = jax.lax.scan(accumulate, (jnp.zeros(2), 0.0), microbatches)
...     num_shards, n = microbatches.shape[0], microbatches.shape[0] * microbatches.shape[1]
...     return grads / n, estimate(weighted_sq, squared_norm(grads / n), n, num_shards)
>>> averages = zero_averages()
>>> for key in jax.random.split(jax.random.key(0), 100):  # |G|² = 25, Σ = 50 I: B = 4
...     examples = jnp.array([[[3.0, 4.0]]]) + 50**0.5 * jax.random.normal(key, (4, 8, 2))
...     _, noise = grads_and_noise(jnp.zeros(2), examples)
...     averages = update_averages(averages, jax.device_get(noise), half_life_examples=100_000)
>>> low, high = confidence_interval(averages)
>>> print(f"{gradient_noise_scale(averages):.1f}, 95 %: {low:.1f} to {high:.1f}")
3.9, 95 %: 3.2 to 4.6

**Ghost batch norm** couples the examples of a ghost, so no example has a gradient of its own, and the gradient of a
small batch depends on the ghost's size m. The independent draws are the ghosts: G is the mean over ghosts of a ghost's
mean gradient (not the gradient with the statistics of the whole data set), and tr(Σ) is m times the variance of that.
The formulas hold as they are if each shard is made of whole ghosts: exactly with replacement; with 1/N, as far as
a ghost's gradient is a sum over its examples. The parts of one ghost are not independent, and as shards
bias the result: where devices share ghosts, sum the parts before squaring.

**Dropout and augmentation** are noise of the example's gradient like any other, but drawn anew in each epoch: with
1/N, |G|² comes out too large by their share of tr(Σ) over N. A batch that runs over the end of an epoch is treated
as if it did not: |G|² comes out too large by at most tr(Σ)/N.

**One microbatch** is one shard, of which nothing can be estimated. But where the gradient of each *example* is known,
each is a shard: `of_each_example` gives those for the parameters of normalisation layers, which are nearly free.

**Float32** costs digits only where a shard is much larger than B_simple: the relative error of tr(Σ) is that
of |s_i|² times 1 + n / (k B_simple).

Reference: McCandlish et al., 2018 (https://arxiv.org/abs/1812.06162), Section 2.2 and Appendix A.1.
"""

from bsjax.gradient_noise.averages import (
    Averages,
    confidence_interval,
    gradient_noise_scale,
    reason,
    update_averages,
    zero_averages,
)
from bsjax.gradient_noise.estimates import Estimate, estimate, shard_term, squared_norm
from bsjax.gradient_noise.layer_norm import is_in_layer_norm, layer_norm_params, of_each_example, zero_offsets
from bsjax.gradient_noise.transformation import GradientNoiseState, measure_gradient_noise

__all__ = [
    "squared_norm",
    "shard_term",
    "Estimate",
    "estimate",
    "Averages",
    "zero_averages",
    "update_averages",
    "gradient_noise_scale",
    "confidence_interval",
    "reason",
    "is_in_layer_norm",
    "layer_norm_params",
    "zero_offsets",
    "of_each_example",
    "GradientNoiseState",
    "measure_gradient_noise",
]
