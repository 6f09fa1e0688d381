"""Max pooling against linen's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from bsjax.models.max_pool import max_pool


def linens(x):
    return nn.max_pool(x, (2, 2), strides=(2, 2))


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (3, 7, 9, 1), (1, 2, 3, 4), (2, 1, 4, 1)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_values_and_gradients_are_linens(shape, dtype):
    random = np.random.RandomState(0)
    x = jnp.asarray(random.permutation(np.prod(shape)).reshape(shape) - 20, dtype)  # no two are equal
    (y, gradient), (expected, expected_gradient) = (jax.vjp(pool, x) for pool in (max_pool, linens))
    np.testing.assert_array_equal(y, expected, strict=True)
    cotangent = jnp.asarray(random.standard_normal(y.shape), dtype)
    np.testing.assert_array_equal(gradient(cotangent)[0], expected_gradient(cotangent)[0], strict=True)


def test_equal_maxima_share_the_gradient_on_a_cpu():
    x = jnp.array([[3.0, 3.0, 1.0, 2.0], [0.0, 1.0, 1.0, 2.0]]).reshape(1, 2, 4, 1)
    shares = jax.grad(lambda x: max_pool(x).sum())(x)[0, ..., 0]
    np.testing.assert_array_equal(shares, [[0.5, 0.5, 0, 0.5], [0, 0, 0, 0.5]])
    after_relu = jax.grad(lambda x: max_pool(nn.relu(x)).sum())(-x)
    np.testing.assert_array_equal(after_relu, jax.grad(lambda x: linens(nn.relu(x)).sum())(-x))


def test_what_is_not_a_number_is_seen():
    for position in range(4):
        x = jnp.zeros(4).at[position].set(jnp.nan).reshape(1, 2, 2, 1)
        assert jnp.isnan(max_pool(x)).all()
