"""Recipes from what people have: an optax schedule over updates, PyTorch's milestones, Hugging Face's cosine.

Learning rates that are said in updates stay exactly those of the schedule, update by update; see
`tests/test_recipe_sources.py`. Nothing here imports PyTorch or transformers: the numbers are enough.
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
import optax

from bsjax.errors import InvalidArgument, check_number, check_positive, check_whole, is_finite

if TYPE_CHECKING:
    from bsjax.recipe import Recipe


class RecipeSources:
    """Constructors of `bsjax.Recipe`, its base class."""

    @classmethod
    def from_optax_schedule(
        cls, schedule: optax.Schedule | float, batch_size: int, dataset_size: int, num_updates: int, **fields: Any
    ) -> "Recipe":
        """The recipe of a training loop whose learning rate is an optax schedule of the update count.

        Args:
          schedule: what the loop gives its optimizer: a function of the number of updates so far, or a number.
          batch_size: examples of an update: those of all devices and of all accumulated microbatches.
          dataset_size: N, the number of examples in an epoch.
          num_updates: how long to train.
          **fields: further ones of `Recipe`, such as momentum and hyperparameters; schedules count updates too.

        Raises:
          InvalidArgument: a value is out of range.

        >>> from bsjax import Recipe
        >>> schedule = optax.warmup_cosine_decay_schedule(0.0, 0.4, warmup_steps=500, decay_steps=10_000)
        >>> recipe = Recipe.from_optax_schedule(schedule, batch_size=128, dataset_size=50_000, num_updates=10_000)
        >>> recipe.plan().num_updates, recipe.increase_batch_size(max_batch_size=2048).plan().num_updates
        (10000, 5329)
        """
        return _in_updates(cls, schedule, batch_size, dataset_size, num_updates, fields)

    @classmethod
    def from_milestones(
        cls,
        learning_rate: float,
        milestones: Iterable[float],
        batch_size: int,
        dataset_size: int,
        num_epochs: float | None = None,
        num_updates: int | None = None,
        gamma: float = 0.1,
        **fields: Any,
    ) -> "Recipe":
        r"""The recipe of PyTorch's `MultiStepLR`: the learning rate :math:`\eta \gamma^{k}` after k milestones.

        Either `num_epochs` or `num_updates` is given, and the milestones count the same: epochs where the loop calls
        `scheduler.step()` once an epoch, updates where it calls it after each update. An epoch is N examples: a loader
        that drops the examples of an epoch that fill no batch reaches its milestones a little earlier.

        Args:
          learning_rate: η, that of the optimizer.
          milestones: in any order; the learning rate falls again at one that is repeated, as in PyTorch.
          batch_size: examples of an update: those of all devices and of all accumulated microbatches.
          dataset_size: N, the number of examples in an epoch.
          num_epochs: how long to train, and the unit of the milestones.
          num_updates: the same in updates.
          gamma: γ, the factor at each milestone.
          **fields: further ones of `Recipe`, such as momentum and hyperparameters; schedules count the same unit.

        Raises:
          InvalidArgument: a value is out of range, or not one of the two lengths is given.

        >>> from bsjax import Recipe
        >>> recipe = Recipe.from_milestones(0.1, [60, 120, 160], 128, 50_000, num_epochs=200, gamma=0.2)
        >>> recipe.increase_batch_size(max_batch_size=5120).plan().num_updates
        29142

        Reference: torch.optim.lr_scheduler.MultiStepLR.
        """
        check_positive("learning_rate", learning_rate)
        check_positive("gamma", gamma)
        if (num_epochs is None) == (num_updates is None):
            given = "neither" if num_epochs is None else f"{num_epochs}, and num_updates {num_updates}"
            raise InvalidArgument("num_epochs", given, "given, or num_updates, in the unit of the milestones; not both")
        times = _checked_milestones(milestones, whole=num_updates is not None)
        schedule = Milestones(float(learning_rate), times, float(gamma))
        if num_updates is not None:
            return _in_updates(cls, schedule, batch_size, dataset_size, num_updates, fields)
        make: Any = cls
        return make(schedule, batch_size, dataset_size, num_epochs, **fields)

    @classmethod
    def from_cosine_with_warmup(
        cls,
        learning_rate: float,
        num_warmup_steps: int,
        num_training_steps: int,
        batch_size: int,
        dataset_size: int,
        num_cycles: float = 0.5,
        **fields: Any,
    ) -> "Recipe":
        r"""The recipe of Hugging Face's `get_cosine_schedule_with_warmup`; steps are updates.

        The learning rate of update k, of w warm-up steps, T training steps and c cycles, is

        .. math::
            \eta \frac{k}{w} \text{ for } k < w, \qquad
            \eta \max\left(0, \tfrac12 \left(1 + \cos 2 \pi c \tfrac{k - w}{T - w}\right)\right) \text{ after that.}

        Args:
          learning_rate: η, that of the optimizer, which is reached at the end of the warm-up.
          num_warmup_steps: w.
          num_training_steps: T, how long to train.
          batch_size: examples of an update: `per_device_train_batch_size` times the devices times
            `gradient_accumulation_steps`.
          dataset_size: N, the number of examples in an epoch.
          num_cycles: c; 0.5 ends at zero.
          **fields: further ones of `Recipe`, such as hyperparameters; schedules count updates too.

        Raises:
          InvalidArgument: a value is out of range.

        >>> from bsjax import Recipe
        >>> recipe = Recipe.from_cosine_with_warmup(5e-5, 100, 1_000, batch_size=32, dataset_size=20_000)
        >>> [f"{update.learning_rate:.3g}" for update in (recipe.plan()[k] for k in (0, 50, 100, 550, 999))]
        ['0', '2.5e-05', '5e-05', '2.5e-05', '1.52e-10']

        Reference: transformers.optimization.get_cosine_schedule_with_warmup.
        """
        check_positive("learning_rate", learning_rate)
        steps = check_whole("num_training_steps", num_training_steps)
        warmup = check_whole("num_warmup_steps", num_warmup_steps, minimum=0)
        if warmup > steps:
            raise InvalidArgument("num_warmup_steps", warmup, f"at most num_training_steps {steps}", steps)
        check_number("num_cycles", num_cycles, lambda cycles: cycles >= 0, "a finite number >= 0", 0.5)
        schedule = CosineWithWarmup(float(learning_rate), warmup, steps, float(num_cycles))
        return _in_updates(cls, schedule, batch_size, dataset_size, steps, fields)


@dataclasses.dataclass(frozen=True)
class Milestones:
    """The learning rate of PyTorch's `MultiStepLR` as an optax schedule; see `Recipe.from_milestones`.

    >>> schedule = Milestones(0.1, (2.0, 3.0), 0.5)
    >>> [float(schedule(epoch)) for epoch in (0, 1.9, 2, 3)]
    [0.1, 0.1, 0.05, 0.025]
    """

    learning_rate: float
    milestones: tuple[float, ...]  # sorted
    gamma: float

    def __call__(self, count: Any) -> Any:
        """The learning rate after this many epochs or updates."""
        # One factor after the other, as PyTorch multiplies: η γ^k differs from it in the last bit.
        rates = np.multiply.accumulate([self.learning_rate, *[self.gamma] * len(self.milestones)])
        times, at = jnp.asarray(self.milestones, float), jnp.asarray(count, float)
        return jnp.asarray(rates, float)[jnp.searchsorted(times, at, side="right")]


@dataclasses.dataclass(frozen=True)
class CosineWithWarmup:
    """Hugging Face's cosine as an optax schedule of the update count; see `Recipe.from_cosine_with_warmup`."""

    learning_rate: float
    num_warmup_steps: int
    num_training_steps: int
    num_cycles: float

    def __call__(self, count: Any) -> Any:
        """The learning rate of the update of this number."""
        count, warmup = jnp.asarray(count, float), self.num_warmup_steps
        progress = (count - warmup) / max(1, self.num_training_steps - warmup)
        after = jnp.maximum(0.0, 0.5 * (1.0 + jnp.cos(math.pi * self.num_cycles * 2.0 * progress)))
        return self.learning_rate * jnp.where(count < warmup, count / max(1, warmup), after)


def _in_updates(
    cls: Any, schedule: Any, batch_size: int, dataset_size: int, num_updates: int, fields: dict[str, Any]
) -> "Recipe":
    """A recipe on the clock of updates, with a constant batch."""
    size, updates = check_whole("batch_size", batch_size), check_whole("num_updates", num_updates)
    num_epochs = updates * size / check_whole("dataset_size", dataset_size)
    if "clock" in fields:
        raise InvalidArgument("clock", fields["clock"], "left out: it is updates here", "updates")
    return cls(schedule, size, dataset_size, num_epochs, clock="updates", **fields)


def _checked_milestones(milestones: Iterable[float], whole: bool) -> tuple[float, ...]:
    """The milestones in order."""
    times = list(milestones)
    for time in times:
        if not is_finite(time) or time < 0 or (whole and time != round(time)):
            kind = "whole numbers of updates" if whole else "numbers of epochs"
            nearest = max(0, round(time)) if is_finite(time) else None
            raise InvalidArgument("milestones", time, f"{kind} >= 0", nearest)
    return tuple(sorted(map(float, times)))
