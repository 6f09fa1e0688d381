"""All examples of a source in microbatches, at fixed parameters: what curvature and gradient variance share.

Losses are those of the evaluation: without augmentation and dropout, and with the running averages of batch
normalisation, so that each example has a loss, a gradient and a Hessian of its own.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bsjax.data import Source
from bsjax.engine.contract import check_losses, in_the_users_words
from bsjax.engine.step import Microbatch, split_keys
from bsjax.errors import InvalidArgument, check_whole
from bsjax.tasks import Task


def check_own_losses(task: Task) -> None:
    """Refuses a task whose examples share losses in the evaluation too, as those of a contrastive group do.

    Raises:
      InvalidArgument: the task is such a one.
    """
    if task.group_size > 1 and not task.groups_may_span_devices:
        allowed = "one whose examples have losses of their own; these come in groups"
        raise InvalidArgument("task", f"{type(task).__name__} with group_size {task.group_size}", allowed)


def microbatches(source: Source, microbatch_size: int) -> Iterator[tuple[Any, np.ndarray]]:
    """Every example of a source once, in microbatches of one shape.

    Args:
      source: of N examples.
      microbatch_size: n examples, at least 1; more than N count as N.

    Yields:
      For each microbatch its examples, a pytree of arrays [n, ...], and their indices, int32 [n], -1 for padding.

    Raises:
      InvalidArgument: microbatch_size is not a whole number of at least 1.

    >>> from bsjax.data import ArraySource
    >>> for examples, index in microbatches(ArraySource(np.arange(3.0)), 2):
    ...     print(examples, index)
    [0. 1.] [0 1]
    [2. 0.] [ 2 -1]
    """
    size = min(check_whole("microbatch_size", microbatch_size), len(source))
    for start in range(0, len(source), size):
        index = np.arange(start, start + size, dtype=np.int32)
        index[index >= len(source)] = -1
        yield source.gather(np.maximum(index, 0)), index


def evaluation_losses(task: Task, params: Any, batch_stats: Any, examples: Any, index: jax.Array) -> jax.Array:
    """The loss of each example of a microbatch in the evaluation, and 0 for padding. Runs inside jit.

    Args:
      task: whose losses they are.
      params: of the model.
      batch_stats: running averages; {} without batch normalisation.
      examples: a pytree of arrays [n, ...].
      index: int32 [n], as `microbatches` yields it. It keys the randomness, if the evaluation has any.

    Returns:
      Losses [n], float32 or float64.
    """
    microbatch = _microbatch(examples, index)
    read_keys, loss_keys = split_keys(microbatch.keys)
    with in_the_users_words(task):
        inputs = task.read(microbatch.examples, read_keys, train=False)
        result = task.losses(params, batch_stats, inputs, loss_keys, train=False)
    losses, _, _ = check_losses(task, result, len(index), batch_stats, train=False)
    return losses.astype(microbatch.weights.dtype) * microbatch.weights


def _microbatch(examples: Any, index: jax.Array) -> Microbatch:
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.maximum(index, 0))
    return Microbatch(examples, (index >= 0).astype(jnp.result_type(float)), keys)
