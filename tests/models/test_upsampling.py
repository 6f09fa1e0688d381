"""The upsampling of the autoencoder against linen's transposed convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from bsjax.models.upsampling import Upsample


@pytest.mark.parametrize("shape", [(2, 4, 5, 3), (1, 1, 2, 1), (3, 7, 7, 2)])
def test_outputs_and_gradients_are_linens(float64, shape):
    random = np.random.RandomState(0)
    x = random.standard_normal(shape)
    params = {"kernel": random.standard_normal((3, 3, shape[-1], 4)), "bias": random.standard_normal(4)}

    def outputs_and_gradients(layer):
        y, gradient = jax.vjp(lambda x, params: layer.apply({"params": params}, x), x, params)
        cotangent = np.random.RandomState(1).standard_normal(y.shape)
        return {"y": y, "gradients": gradient(jnp.asarray(cotangent))}

    linens = nn.ConvTranspose(4, (3, 3), strides=(2, 2), dtype=jnp.float64)
    found, expected = outputs_and_gradients(Upsample(4, jnp.float64)), outputs_and_gradients(linens)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), found, expected)


def test_initial_parameters_are_linens():
    init, x = nn.initializers.he_normal(), jnp.zeros((1, 2, 2, 3))
    linens = nn.ConvTranspose(4, (3, 3), strides=(2, 2), kernel_init=init).init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, Upsample(4, kernel_init=init).init(jax.random.key(0), x), linens)
