r"""How sharp a minimum is: the largest eigenvalues and the trace of the loss's Hessian, without ever forming it.

With the mean loss L over N examples and its Hessian H = ∂²L/∂θ², a product with a vector costs about two gradients,

.. math:: H v = \frac{\partial}{\partial r} \nabla L(\theta + r v) \Big|_{r=0},

and is all that `largest_eigenvalues` (Lanczos) and `trace` (Hutchinson) ask for:

>>> import functools, jax, jax.numpy as jnp, numpy as np
>>> from bsjax.data import ArraySource
>>> from bsjax.tasks import from_loss
>>> source = ArraySource(np.array([[1.0, 2.0], [3.0, 4.0]], np.float32))  # H is the mean of diag(x)
>>> task = from_loss(lambda params, x, keys, train: x @ params**2 / 2, init_fn=lambda key: jnp.ones(2))
>>> params, batch_stats = task.init(jax.random.key(0), source.gather(np.arange(1)))
>>> product = functools.partial(hessian_vector_product(task, source), params, batch_stats)
>>> print(largest_eigenvalues(product, params).values, trace(product, params, num_probes=2).estimate)
[3.] 5.0

Gradient descent on a quadratic is stable while the largest eigenvalue is below `stability_threshold`, 2/ε.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy import linalg

from bsjax.analysis.microbatches import check_own_losses, evaluation_losses, microbatches
from bsjax.analysis.statistics import Interval, mean_interval
from bsjax.data import Source
from bsjax.errors import InvalidArgument, RunError, check_number, check_positive, check_whole
from bsjax.tasks import Task

# Smaller ones than this, relative to the largest Ritz value, end a Krylov space.
_BREAKDOWN = 1e-13


class Eigenvalues(NamedTuple):
    """The largest eigenvalues of a Hessian; see `largest_eigenvalues`."""

    values: np.ndarray  # float64 [count], in decreasing order
    errors: np.ndarray  # float64 [count]: an eigenvalue lies within this distance of each
    num_products: int  # products with the Hessian that they took


def hessian_vector_product(task: Task, source: Source, microbatch_size: int = 256) -> Callable[[Any, Any, Any], Any]:
    r"""A function that multiplies the Hessian of a task's mean loss with a vector.

    .. math:: H v = \frac{1}{N} \sum_{i=1}^N \frac{\partial^2 \ell_i}{\partial\theta^2} v

    Losses are those of the evaluation: batch normalisation uses its running averages, which are held fixed. The
    function is compiled for one microbatch; the host loops over them and waits for none.

    Args:
      task: whose losses they are.
      source: of the N examples.
      microbatch_size: examples at once; changes the memory and, by rounding only, the result.

    Returns:
      `product(params, batch_stats, vector)`: params and vector are pytrees of the same shapes and dtypes, and so is the
      result. It belongs to its arguments alone.

    Raises:
      InvalidArgument: the task's examples have no losses of their own, or microbatch_size is below 1.

    Reference: Pearlmutter, 1994, Fast exact multiplication by the Hessian (https://doi.org/10.1162/neco.1994.6.1.147).
    """
    check_own_losses(task)
    check_whole("microbatch_size", microbatch_size)

    @jax.jit
    def add(total: Any, params: Any, batch_stats: Any, vector: Any, examples: Any, index: jax.Array) -> Any:
        def summed_loss(params: Any) -> jax.Array:
            return evaluation_losses(task, params, batch_stats, examples, index).sum()

        product = jax.jvp(jax.grad(summed_loss), (params,), (vector,))[1]
        return jax.tree.map(jnp.add, total, product)

    def product(params: Any, batch_stats: Any, vector: Any) -> Any:
        total = jax.tree.map(jnp.zeros_like, params)
        for examples, index in microbatches(source, microbatch_size):
            total = add(total, params, batch_stats, vector, examples, index)
        return jax.tree.map(lambda x: x / len(source), total)

    return product


def largest_eigenvalues(
    product: Callable[[Any], Any],
    params: Any,
    count: int = 1,
    tolerance: float = 1e-3,
    max_products: int = 100,
    seed: int = 0,
) -> Eigenvalues:
    r"""The algebraically largest eigenvalues of a symmetric matrix, by Lanczos' method with full reorthogonalisation.

    k products span a Krylov space, in whose orthonormal basis Q the matrix is tridiagonal. An eigenpair (θ, s) of that
    gives u = Qs with

    .. math:: |H u - \theta u| = \beta_k |s_k| \quad\Rightarrow\quad |\lambda - \theta| \le \beta_k |s_k|
       \text{ for some eigenvalue } \lambda \text{ of } H,

    which is the error that is returned. Each new vector is orthogonalised twice against all earlier ones, in float64 on
    the host, so that rounding makes no copies of eigenvalues that have converged. An eigenvalue that occurs several
    times may count once.

    Args:
      product: of the matrix with a pytree like params, such as `hessian_vector_product` with parameters.
      params: a pytree; only its shapes and dtypes count. The basis takes 8 bytes for each parameter and product.
      count: how many eigenvalues.
      tolerance: largest error relative to the eigenvalue's size; float32 products leave about 1e-6.
      max_products: ends the search, at the number of parameters at the latest.
      seed: of the first vector.

    Returns:
      The eigenvalues. Where max_products has ended the search, errors are above the tolerance.

    Raises:
      InvalidArgument: an argument is out of range.
      RunError: a product is not finite.

    >>> matrix = np.diag([5.0, 3.0, 1.0, -7.0]).astype(np.float32)
    >>> found = largest_eigenvalues(lambda vector: matrix @ vector, np.zeros(4, np.float32), count=2)
    >>> found.values, found.num_products
    (array([5., 3.]), 4)

    Reference: Golub and Van Loan, 2013, Matrix Computations, Sections 10.1 and 10.3.
    """
    flat, unravel = ravel_pytree(params)
    size, dtype = flat.size, flat.dtype
    if check_whole("count", count) > size:
        raise InvalidArgument("count", count, f"at most the {size} parameters", size)
    if check_whole("max_products", max_products) < count:
        raise InvalidArgument("max_products", max_products, f"at least count {count}", count)
    check_positive("tolerance", tolerance)
    random = np.random.default_rng(seed)
    basis = np.empty((min(max_products, size), size))
    alphas, betas = np.zeros(len(basis)), np.zeros(len(basis))
    basis[0] = _orthogonal(random.standard_normal(size), basis[:0])
    for k in range(len(basis)):
        image = _flat_product(product, unravel, basis[k], dtype)
        alphas[k] = basis[k] @ image
        rest = _project(_project(image, basis[: k + 1]), basis[: k + 1])
        betas[k] = np.linalg.norm(rest)
        values, vectors = linalg.eigh_tridiagonal(alphas[: k + 1], betas[:k])
        values, errors = values[::-1][:count], betas[k] * np.abs(vectors[-1, ::-1][:count])
        if len(values) == count and (errors <= tolerance * np.abs(values)).all():
            break
        if k + 1 < len(basis):
            if betas[k] <= _BREAKDOWN * np.abs(alphas[: k + 1]).max():  # the Krylov space is invariant: begin another
                betas[k], rest = 0.0, random.standard_normal(size)
            basis[k + 1] = _orthogonal(rest, basis[: k + 1])
    return Eigenvalues(values, errors, k + 1)


def trace(
    product: Callable[[Any], Any], params: Any, num_probes: int = 30, seed: int = 0, confidence: float = 0.95
) -> Interval:
    r"""The trace of a symmetric matrix, by Hutchinson's estimate.

    .. math:: \mathrm{tr}\, H = E[z^T H z], \quad z_i = \pm 1, \qquad
       \mathrm{Var}[z^T H z] = 2 \sum_{i \ne j} H_{ij}^2

    It is without bias, and exact for a diagonal matrix.

    Args:
      product: see `largest_eigenvalues`.
      params: a pytree; only its shapes and dtypes count.
      num_probes: random vectors z; the interval needs two.
      seed: of these.
      confidence: of the interval, in (0, 1).

    Returns:
      The mean over the probes, and its interval by Student's t.

    Raises:
      InvalidArgument: an argument is out of range.
      RunError: a product is not finite.

    >>> matrix = np.array([[2.0, 1.0], [1.0, 3.0]], np.float32)
    >>> estimate, low, high = trace(lambda vector: matrix @ vector, np.zeros(2, np.float32), num_probes=100)
    >>> low < 5 < high
    True

    Reference: Hutchinson, 1989, A stochastic estimator of the trace (https://doi.org/10.1080/03610918908812806).
    """
    check_whole("num_probes", num_probes, minimum=2)
    flat, unravel = ravel_pytree(params)
    random = np.random.default_rng(seed)
    probes = (2.0 * random.integers(0, 2, flat.size) - 1.0 for _ in range(num_probes))
    return mean_interval([z @ _flat_product(product, unravel, z, flat.dtype) for z in probes], confidence)


def stability_threshold(learning_rate: float, momentum: float = 0.0) -> float:
    r"""The largest eigenvalue with which gradient descent on a quadratic does not diverge.

    .. math:: \lambda_{max} < \frac{2 (1 + m)}{\epsilon}

    Args:
      learning_rate: ε, per update.
      momentum: m of heavy-ball momentum, in [0, 1).

    Raises:
      InvalidArgument: an argument is out of range.

    >>> stability_threshold(0.1), stability_threshold(0.1, momentum=0.9)
    (20.0, 38.0)

    Reference: Cohen et al., 2021 (https://arxiv.org/abs/2103.00065), Section 2 and Appendix B.
    """
    check_positive("learning_rate", learning_rate)
    check_number("momentum", momentum, lambda m: 0 <= m < 1, "in [0, 1)", 0.9)
    return 2 * (1 + momentum) / learning_rate


def _flat_product(product: Callable[[Any], Any], unravel: Callable, vector: np.ndarray, dtype: Any) -> np.ndarray:
    """The product with a flat vector: float64 [size]."""
    image = np.asarray(ravel_pytree(product(unravel(jnp.asarray(vector, dtype))))[0], np.float64)
    if not np.isfinite(image).all():
        raise RunError("a product with the Hessian is not finite: are the parameters those of a run that diverged?")
    return image


def _project(vector: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """What is left of a vector without its part in the span of a basis."""
    return vector - basis.T @ (basis @ vector)


def _orthogonal(vector: np.ndarray, basis: np.ndarray) -> np.ndarray:
    vector = _project(_project(vector, basis), basis)
    return vector / np.linalg.norm(vector)
