"""Anybody's model: a task from a loss function."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax

from bsjax.constants import describe_code, describe_constants
from bsjax.errors import InvalidArgument, TaskError, check_whole
from bsjax.tasks.protocol import Losses, Task


def from_loss(
    loss_fn: Callable[..., Any],
    init_fn: Callable[[jax.Array], Any],
    metrics: tuple[str, ...] = (),
    unit: str = "examples",
    units_per_example: int = 1,
    group_size: int = 1,
    name: str = "",
) -> "FromLoss":
    """A task from a loss function and an initialiser, in linen, NNX, Equinox, Haiku or plain JAX.

    Args:
      loss_fn: `loss_fn(params, examples, keys, train) -> losses [n]`, or `(losses [n], {name: [n]})`: a value *per
        example*; the engine takes the mean. `examples` is the pytree of arrays [n, ...] that the source gathers, `keys`
        [n] are for randomness, one per example, and `train` is False in the evaluation.
      init_fn: `init_fn(key) -> params`, a pytree of float arrays, all of which are trained.
      metrics: the names that loss_fn returns beside the losses; reports show the first.
      unit: what people count, such as "tokens".
      units_per_example: how many of them an example has.
      group_size: how many consecutive examples loss_fn needs together, as a contrastive loss does; the engine keeps
        these on one device, and batches are multiples of it.
      name: what a checkpoint knows the loss by, such as "my loss, version 2". Default, loss_fn's own name and its code:
        a changed loss is refused, see `bsjax.constants.describe_code`. So is a change that leaves the numbers as they
        are, and another minor version of Python, which compiles the same loss to other code; a name is not.

    Raises:
      InvalidArgument: a number is out of range, or a function takes other arguments.

    >>> import jax.numpy as jnp
    >>> def loss_fn(params, examples, keys, train):
    ...     return jnp.square(examples["x"] @ params["w"] - examples["y"])
    >>> task = from_loss(loss_fn, init_fn=lambda key: {"w": jnp.zeros(3)})
    >>> task.identity["loss_fn"], task.group_size
    ('loss_fn', 1)
    """
    for argument, function, arguments in (
        ("loss_fn", loss_fn, ("params", "examples", "keys", "train")),
        ("init_fn", init_fn, ("key",)),
    ):
        try:
            inspect.signature(function).bind(*arguments)
        except (TypeError, ValueError):
            allowed = f"a function that takes ({', '.join(arguments)})"
            raise InvalidArgument(argument, getattr(function, "__qualname__", function), allowed) from None
    check_whole("group_size", group_size)
    check_whole("units_per_example", units_per_example)
    if isinstance(metrics, str):
        metrics = (metrics,)
    return FromLoss(loss_fn, init_fn, name, tuple(metrics), unit, units_per_example, group_size)


@dataclasses.dataclass(frozen=True)
class FromLoss(Task):
    """What `from_loss` makes."""

    loss_fn: Callable[..., Any]
    init_fn: Callable[[jax.Array], Any]
    name: str
    metrics: tuple[str, ...]
    unit: str
    units_per_example: int
    group_size: int

    @property
    def identity(self) -> dict[str, Any]:
        """The name of the loss, its code, the constants that it closes over, the metrics, and the group size."""
        constants, code = describe_constants(self.loss_fn), {} if self.name else {"code": describe_code(self.loss_fn)}
        about = {"loss_fn": self._known_by, **code, "constants": constants}
        return {**about, "metrics": self.metrics, "group_size": self.group_size}

    @property
    def _known_by(self) -> str:
        return self.name or getattr(self.loss_fn, "__qualname__", type(self.loss_fn).__name__)

    def init(self, key: jax.Array, examples: Any) -> tuple[Any, Any]:
        """See `Task`."""
        del examples
        return self.init_fn(key), {}

    def losses(self, params: Any, batch_stats: Any, inputs: Any, keys: jax.Array, train: bool) -> Losses:
        """See `Task`."""
        result = self.loss_fn(params, inputs, keys, train)
        if not isinstance(result, tuple):
            return result, {}, {}
        if len(result) != 2 or not isinstance(result[1], dict):
            raise TaskError(f"{self._known_by} must return losses [n], or (losses [n], {{name: [n]}})")
        return *result, {}
