"""What all controllers share that choose the batch size while training runs."""

import abc
import math
import zlib
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from bsjax.controllers.limits import Limits
from bsjax.controllers.protocol import Controller
from bsjax.errors import InvalidArgument, check_choice
from bsjax.optimizers import OPTIMIZERS
from bsjax.plan import Plan, Update
from bsjax.recipe import EXPONENTS, Recipe

_ADAPTIVE_OPTIMIZERS = ("adam", "adamw", "rmsprop")


_BLOCK = 4096


class Instant(NamedTuple):
    """Where training is, and what the recipe says there."""

    examples_seen: int
    learning_rate: float  # the recipe's
    batch_size: int  # the recipe's
    momentum: float


class Adaptive(Controller):
    r"""Chooses the batch size B; the learning rate follows, so that the recipe's noise stays.

    With the recipe's learning rate and batch size at the same number of examples, η and B_r, an update has

    .. math:: \eta' = \eta \left(\frac{B}{B_r}\right)^\rho,

    ρ = 1 by the linear rule of SGD, ½ by the square-root rule of Adam. The momentum is the recipe's. Training ends with
    the first update that reaches the recipe's number of examples, as in a `bsjax.Plan`.

    **With a recipe whose learning rate decays**, `bound_by_decay` lets the controller choose only how much of
    that decay becomes batch: η' stays at or below η_max, the largest η so far, and so
    :math:`B \le B_r (\eta_{max} / \eta)^{1/\rho}`: at most what `Recipe.increase_batch_size` would take. The bound goes
    before `Limits.monotone`: where the recipe's learning rate rises again, the batch shrinks.

    The batch size starts as the recipe's, rounded down to the allowed ones. A subclass says what it wants in
    `target`, what it learns in `observe`, and names the attributes that hold it in `_memory`; their values are JSON.

    Args:
      recipe: the learning rate to follow, and the number of examples.
      limits: which batch sizes, and how they change.
      scaling: "linear" or "sqrt"; `scaling_rule` knows an optimizer's.
      bound_by_decay: whether the learning rate stays at or below the recipe's largest so far.

    Raises:
      InvalidArgument: no such rule; a batch larger than the data set; no allowed size within the bound.

    Attributes:
      optimizers: those it works with, the most likely first.
      exact: whether `target` is decided rather than measured: then there is no hysteresis.
    """

    optimizers: ClassVar[tuple[str, ...]] = OPTIMIZERS
    exact: ClassVar[bool] = False
    _memory: ClassVar[tuple[str, ...]] = ()

    def __init__(self, recipe: Recipe, limits: Limits, scaling: str = "linear", bound_by_decay: bool = False):
        self._exponent = EXPONENTS[check_choice("scaling", scaling, EXPONENTS)]
        check_dataset_size(limits, recipe.dataset_size)
        plan = recipe.plan()
        smallest = int(plan.batch_sizes.min())
        if bound_by_decay and limits.sizes[0] > smallest:
            allowed = f"at most the recipe's batch_size {smallest} with bound_by_decay"
            raise InvalidArgument("min_batch_size", limits.sizes[0], allowed, smallest)
        self.dataset_size = recipe.dataset_size
        self.num_examples = recipe.num_examples
        self.batch_sizes: Sequence[int] = limits.sizes
        self.limits = limits
        self._recipe = recipe
        self._bound_by_decay = bound_by_decay
        self._settings = {
            "recipe": plan_identity(plan),
            "num_examples": recipe.num_examples,
            "limits": limits.identity(),
            "scaling": scaling,
            "bound_by_decay": bound_by_decay,
        }
        self._update = 0
        self._examples_seen = 0
        self._batch_size = limits.round_down(int(plan.batch_sizes[0]))
        self._max_learning_rate = 0.0
        # The recipe's values at the multiples of what all sizes are multiples of, so many at once: as fast as one.
        self._unit = math.gcd(*limits.sizes)
        self._block = -1
        self._values: tuple = ()

    @abc.abstractmethod
    def target(self, now: Instant) -> float:
        """The batch size it wants, in examples, of any size; infinite: the largest; NaN: not known yet, no change."""

    def learning_rate_factor(self) -> float:
        """What the recipe's learning rate is multiplied by before anything else."""
        return 1.0

    @classmethod
    def check_optimizer(cls, optimizer: str) -> None:
        """Refuses an optimizer that it does not work with."""
        check_optimizer(cls.__name__, optimizer, cls.optimizers)

    def next_update(self) -> Update | None:
        if self._examples_seen >= self.num_examples:
            return None
        now = self._at(self._examples_seen)
        self._max_learning_rate = max(self._max_learning_rate, now.learning_rate)
        if self._examples_seen >= self.limits.warmup_examples:
            self._batch_size = self.limits.follow(self._batch_size, self.target(now), self.exact)
        update = self._update_of(now, self._update, self._bounded(now))
        self._update += 1
        self._examples_seen += update.batch_size
        return update

    def state(self) -> dict[str, Any]:
        return {name: getattr(self, f"_{name}") for name in self._names()}

    def restore(self, state: dict[str, Any]) -> None:
        for name in self._names():
            setattr(self, f"_{name}", state[name])

    def identity(self) -> dict[str, Any]:
        return {"controller": type(self).__name__, **self._settings}

    def _names(self) -> tuple[str, ...]:
        return ("update", "examples_seen", "batch_size", "max_learning_rate", *self._memory)

    def _at(self, examples_seen: int) -> Instant:
        # Whatever is asked first, a position is looked up in the same block, so that no bit depends on the order.
        block, offset = divmod(examples_seen, self._unit * _BLOCK)
        index, rest = divmod(offset, self._unit)
        if rest:
            return Instant(examples_seen, *(value.item() for value in self._recipe.at(examples_seen)))
        if block != self._block:
            self._values = self._recipe.at((block * _BLOCK + np.arange(_BLOCK)) * self._unit)
            self._block = block
        return Instant(examples_seen, *(value[index].item() for value in self._values))

    def _update_of(self, now: Instant, number: int, size: int) -> Update:
        followed = self.learning_rate_factor() * now.learning_rate * (size / now.batch_size) ** self._exponent
        return Update(number, now.examples_seen, size, followed, now.momentum)

    def _bounded(self, now: Instant) -> int:
        """The size that was decided, held to what the recipe's decay allows."""
        if not self._bound_by_decay:
            return self._batch_size
        learning_rate = self.learning_rate_factor() * now.learning_rate
        if learning_rate > 0:
            decay = max(self._max_learning_rate / learning_rate, 1.0)
        else:  # it has decayed for ever, or has not begun to warm up
            decay = math.inf if self._max_learning_rate > 0 else 1.0
        bound = now.batch_size * power(decay, 1 / self._exponent)
        return min(self._batch_size, self.limits.round_down(bound))


def scaling_rule(optimizer: str) -> str:
    """How an optimizer's learning rate follows the batch size.

    >>> scaling_rule("momentum"), scaling_rule("adamw")
    ('linear', 'sqrt')
    """
    check_choice("optimizer", optimizer, OPTIMIZERS)
    return "sqrt" if optimizer in _ADAPTIVE_OPTIMIZERS else "linear"


def check_optimizer(controller: str, optimizer: str, optimizers: Sequence[str]) -> None:
    """Refuses an optimizer that a controller does not work with."""
    check_choice("optimizer", optimizer, OPTIMIZERS)
    if optimizer not in optimizers:
        raise InvalidArgument("optimizer", optimizer, f"{' or '.join(optimizers)} for {controller}", optimizers[0])


def check_dataset_size(limits: Limits, dataset_size: int) -> None:
    """Refuses batches larger than the data set, as a recipe does."""
    if limits.max_batch_size > dataset_size:
        nearest = dataset_size // limits.multiple_of * limits.multiple_of or None
        raise InvalidArgument("max_batch_size", limits.max_batch_size, f"at most dataset_size {dataset_size}", nearest)


def plan_identity(plan: Plan) -> str:
    """What tells one plan from another."""
    return f"{plan.num_updates:,} updates from example {plan.start:,}, CRC-32 {zlib.crc32(plan.to_json().encode())}"


def power(base: float, exponent: float) -> float:
    """base^exponent; infinite where a float ends.

    >>> power(0.0, -2.0), power(10.0, 400.0), power(2.0, 3.0)
    (inf, inf, 8.0)
    """
    with np.errstate(over="ignore", divide="ignore"):
        return float(np.float64(base) ** exponent)
