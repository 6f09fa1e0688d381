"""What all tasks with a linen model share."""

import dataclasses
import functools
import inspect
from typing import Any, ClassVar

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bsjax.errors import InvalidArgument
from bsjax.tasks.protocol import Task


class LinenTask(Task):
    """A task whose field `model` is a linen module, and whose group is the model's ghost of batch normalisation.

    The model is called with `train` (bool) and `keys` [n] as well, if it takes them.
    """

    model: nn.Module
    needs: ClassVar[tuple[str, ...]] = ("image",)  # what examples, which are dicts, must hold
    groups_may_span_devices = True

    @property
    def group_size(self) -> int:  # type: ignore[override]
        """The model's `ghost_batch_size`, or 1."""
        return getattr(self.model, "ghost_batch_size", 1)

    @property
    def identity(self) -> dict[str, Any]:
        """The name of the task, and every field."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {"task": type(self).__name__, **values, "model": repr(self.model)}

    def init(self, key: jax.Array, examples: Any) -> tuple[Any, Any]:
        """See `Task`.

        Raises:
          InvalidArgument: something is missing in the examples, or the model has statistics that depend on the
            microbatch, such as those of `flax.linen.BatchNorm`.
        """
        self.check_examples(examples)
        return self.init_model(key, jnp.zeros((1, *examples["image"].shape[1:])))

    def check_examples(self, examples: Any) -> None:
        """Refuses examples without what the task needs, and a model that is none."""
        if not isinstance(self.model, nn.Module):
            raise InvalidArgument("model", self.model, "a linen module, such as bsjax.models.create_model makes")
        if not isinstance(examples, dict) or not set(self.needs) <= set(examples):
            found = sorted(examples) if isinstance(examples, dict) else type(examples).__name__
            needed = " and ".join(f'"{name}"' for name in self.needs)
            raise InvalidArgument("examples", found, f"a dict with {needed} for {type(self).__name__}")

    def init_model(self, key: jax.Array, inputs: jax.Array) -> tuple[Any, Any]:
        """The model's initial parameters and running averages, for inputs like these; see `init`."""
        variables = self.model.init(key, inputs, **self._options(train=False, keys=None))
        if "batch_stats" in variables and not hasattr(self.model, "ghost_batch_size"):
            allowed = (
                "a model with bsjax.models.GhostBatchNorm and a field ghost_batch_size: the statistics of flax's "
                "BatchNorm would depend on the microbatch and the number of devices"
            )
            raise InvalidArgument("model", type(self.model).__name__, allowed)
        return variables["params"], variables.get("batch_stats", {})

    def apply(self, params: Any, batch_stats: Any, inputs: Any, keys: jax.Array, train: bool) -> tuple[jax.Array, Any]:
        """The model's output; and, in training, the collection "ghost_stats" that `GhostBatchNorm` leaves."""
        variables = {"params": params, "batch_stats": batch_stats}
        try:
            output, updated = self.model.apply(variables, inputs, **self._options(train, keys), mutable=["ghost_stats"])
        except flax.errors.InvalidRngError:
            allowed = "a model whose dropout is bsjax.models.Dropout, which takes a key of each example"
            raise InvalidArgument("model", type(self.model).__name__, allowed) from None
        return output, updated.get("ghost_stats", {})

    def _options(self, train: bool, keys: jax.Array | None) -> dict[str, Any]:
        accepted = _parameters(type(self.model))  # type: ignore[arg-type]
        return {name: value for name, value in (("train", train), ("keys", keys)) if accepted & {name, "**"}}


@functools.cache
def _parameters(model_type: type) -> set[str]:
    parameters = inspect.signature(model_type.__call__).parameters.values()
    return {"**" if parameter.kind is parameter.VAR_KEYWORD else parameter.name for parameter in parameters}


def set_mean_and_std(task: Any) -> None:
    """Makes tuples of a task's `mean` and `std`, each a number or one per channel.

    Raises:
      InvalidArgument: a standard deviation is not positive.
    """
    for name in ("mean", "std"):
        values = np.atleast_1d(np.asarray(getattr(task, name), np.float64))
        object.__setattr__(task, name, tuple(values.tolist()))
    if not all(std > 0 for std in task.std):
        raise InvalidArgument("std", task.std, "positive")


def standardise(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """Images [n, height, width, channels] less the mean and over the standard deviation of the channels, as floats."""
    images = images.astype(jnp.result_type(float))
    mean_array, std_array = (jnp.asarray(values, images.dtype).reshape(1, 1, 1, -1) for values in (mean, std))
    return (images - mean_array) / std_array
