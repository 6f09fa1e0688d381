"""A small network, its data, and its exact gradients and Hessian."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.flatten_util import ravel_pytree

from bsjax.data import ArraySource
from bsjax.models import GhostBatchNorm
from bsjax.tasks import Classification


class _Normalised(nn.Module):
    """One hidden layer with ghost batch normalisation."""

    ghost_batch_size: int = 4

    @nn.compact
    def __call__(self, images, train):
        hidden = nn.Dense(3, dtype=images.dtype)(images.reshape(images.shape[0], -1))
        return nn.Dense(3, dtype=images.dtype)(nn.tanh(GhostBatchNorm(4, dtype=images.dtype)(hidden, train)))


class Net(NamedTuple):
    task: Classification
    source: ArraySource
    params: dict
    batch_stats: dict

    def losses(self, flat):
        """The loss of each example as a function of the flat parameters: what the library must agree with."""
        images, labels = self.source.examples["image"], self.source.examples["label"]
        variables = {"params": ravel_pytree(self.params)[1](flat), "batch_stats": self.batch_stats}
        logits = jax.nn.log_softmax(self.task.model.apply(variables, images, train=False))
        return -jnp.take_along_axis(logits, jnp.asarray(labels)[:, None], axis=1)[:, 0]

    @property
    def flat(self):
        return ravel_pytree(self.params)[0]


@pytest.fixture
def net(float64):
    """23 examples, batch normalisation, and running averages of no batch."""
    random = np.random.RandomState(0)
    images, labels = random.normal(size=(23, 2, 2, 1)), random.randint(3, size=23).astype(np.int32)
    source = ArraySource({"image": images, "label": labels})
    task = Classification(_Normalised())
    params, batch_stats = task.init(jax.random.key(1), source.gather(np.arange(1)))
    params, batch_stats = jax.tree.map(
        lambda x: np.asarray(x, np.float64) + random.uniform(0.1, 0.5, x.shape), (params, batch_stats)
    )
    return Net(task, source, params, batch_stats)
