"""One update as a plain jitted program of one batch, without the engine: for time and memory by batch size."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bsjax.data import load_dataset
from experiments.harness import build
from experiments.harness.config import Config


class Step(NamedTuple):
    """A compiled update, and what to call it with."""

    compiled: Any
    params: Any
    batch_stats: Any
    examples: Any

    def __call__(self) -> Any:
        """One update; waits for nothing."""
        return self.compiled(self.params, self.batch_stats, self.examples)

    @property
    def temporary_bytes(self) -> int:
        """What XLA plans beyond arguments and results; 0 where it does not say."""
        analysis = self.compiled.memory_analysis()
        return 0 if analysis is None else int(analysis.temp_size_in_bytes)


def create(config: Config, batch_size: int, data_dir: Any = None) -> Step:
    """Compiles an update of the first examples of a data set, repeated if there are fewer.

    Args:
      config: data, model and learning rate; batch normalisation takes the whole batch as one ghost.
      batch_size: B.
      data_dir: of prepared data sets.
    """
    dataset = load_dataset(config.data.dataset, data_dir)
    task = build.task(config.replace(ghost_batch_size=batch_size), dataset)
    examples = dataset.train.gather(np.arange(batch_size) % len(dataset.train))
    keys = jax.random.split(jax.random.key(0), batch_size)

    @functools.partial(jax.jit)
    def update(params: Any, batch_stats: Any, examples: Any) -> tuple[Any, jax.Array]:
        def mean_loss(params: Any) -> jax.Array:
            inputs = task.read(examples, keys, train=True)
            return task.losses(params, batch_stats, inputs, keys, train=True)[0].mean()

        loss, grads = jax.value_and_grad(mean_loss)(params)
        rate = config.optimizer.learning_rate
        return jax.tree.map(lambda p, g: p - jnp.asarray(rate, p.dtype) * g, params, grads), loss

    params, batch_stats = task.init(jax.random.key(0), dataset.train.gather(np.arange(1)))
    placed = jax.tree.map(jnp.asarray, (params, batch_stats, examples))
    return Step(update.lower(*placed).compile(), *placed)
