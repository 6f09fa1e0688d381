"""Base classes of the controllers that choose the batch size during training."""

import abc
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from bsjax.controllers.limits import Limits
from bsjax.controllers.planned import plan_identity
from bsjax.controllers.protocol import Controller, State
from bsjax.errors import InvalidArgument
from bsjax.plan import Plan, Update
from bsjax.recipe import Hyperparameters, Recipe, scaling_exponent

_BLOCK = 4096


class Instant(NamedTuple):
    """A position in training, and the recipe's values there."""

    examples_seen: int
    learning_rate: float  # the recipe's
    batch_size: int  # the recipe's
    momentum: float
    others: Mapping[str, float] = {}  # its further hyperparameters


class AdaptiveState(NamedTuple):
    """The decisions of an adaptive controller so far, and what it has learnt."""

    update: int  # number of the next one
    examples_seen: int  # before it
    batch_size: int  # as last decided, before any bound
    max_learning_rate: float  # the recipe's largest so far
    learnt: Any = None  # the controller's own NamedTuple


@dataclasses.dataclass(frozen=True)
class FromRecipe(Controller[State]):
    """A controller that follows a recipe, with batches within limits.

    Args:
      recipe: what it adapts.
      limits: which batch sizes, and how they change.
      options: the controller's own.

    Raises:
      InvalidArgument: a batch larger than the data set.
    """

    recipe: Recipe
    limits: Limits
    options: Any = None

    def __post_init__(self):
        self.limits.check_dataset_size(self.dataset_size)

    @property
    def dataset_size(self) -> int:
        return self.recipe.dataset_size

    def identity(self) -> dict[str, Any]:
        return {
            "name": type(self).__name__,
            "recipe": plan_identity(self._plan),
            "num_examples": self.num_examples,
            "limits": self.limits.identity(),
            "options": dataclasses.asdict(self.options),
        }

    @functools.cached_property
    def _plan(self) -> Plan:
        return self.recipe.plan()


@dataclasses.dataclass(frozen=True)
class Adaptive(FromRecipe[AdaptiveState]):
    """Chooses the batch size of every update; the learning rate and all other hyperparameters are the recipe's.

    The batch size starts as the recipe's, rounded down to the allowed ones, and follows `target` within the limits.
    Training ends with the first update that reaches the recipe's number of examples, as in a `bsjax.Plan`. A subclass
    says what it wants in `target`, and what it learns in `observe`: `state.learnt`, which it adds in `init`.

    Args:
      recipe: the learning rate to follow, and the number of examples.
      limits: which batch sizes, and how they change.
      options: the controller's own.

    Raises:
      InvalidArgument: a batch larger than the data set, or options that do not fit the recipe.

    Attributes:
      exact: whether `target` is decided rather than measured: then there is no hysteresis.
    """

    exact: ClassVar[bool] = False

    @abc.abstractmethod
    def target(self, state: AdaptiveState, now: Instant) -> float:
        """The wanted batch size in examples, not rounded; infinity asks for the largest, NaN for no change."""

    def learning_rate(self, state: AdaptiveState, now: Instant, batch_size: int) -> float:
        """The learning rate of an update of `batch_size` examples."""
        return now.learning_rate

    def bounded(self, state: AdaptiveState, now: Instant) -> int:
        """The decided batch size, or the largest that the learning rate allows."""
        return state.batch_size

    @property
    def batch_sizes(self) -> Sequence[int]:
        return self.limits.sizes

    @property
    def num_examples(self) -> int:
        return self.recipe.num_examples

    def init(self) -> AdaptiveState:
        return AdaptiveState(0, 0, self.limits.round_down(int(self._plan.batch_sizes[0])), 0.0)

    def decide(self, state: AdaptiveState) -> tuple[Update | None, AdaptiveState]:
        if state.examples_seen >= self.num_examples:
            return None, state
        now = self.instant(state.examples_seen)
        state = state._replace(max_learning_rate=max(state.max_learning_rate, now.learning_rate))
        if state.examples_seen >= self.limits.warmup_examples:
            size = self.limits.follow(state.batch_size, self.target(state, now), self.exact)
            state = state._replace(batch_size=size)
        update = self.update_of(state, now, state.update, self.bounded(state, now))
        return update, state._replace(update=update.update + 1, examples_seen=now.examples_seen + update.batch_size)

    def instant(self, examples_seen: int) -> Instant:
        """The recipe's values at a position in the example stream."""
        block, offset = divmod(examples_seen, self._unit * _BLOCK)
        index, rest = divmod(offset, self._unit)
        if rest:
            index, (values, others) = 0, self._look_up(np.array([examples_seen]))
        else:
            values, others = self._look_up_block(block)
        learning_rate, batch_size, momentum = (column[index].item() for column in values)
        others_now = {name: column[index].item() for name, column in others.items()}
        return Instant(examples_seen, learning_rate, batch_size, momentum, others_now)

    def update_of(self, state: AdaptiveState, now: Instant, number: int, batch_size: int) -> Update:
        """An update of this batch size."""
        learning_rate = self.learning_rate(state, now, batch_size)
        return Update(number, now.examples_seen, batch_size, learning_rate, now.momentum, now.others)

    def _look_up(self, positions: np.ndarray) -> tuple[Hyperparameters, Mapping[str, np.ndarray]]:
        return self.recipe.at(positions), self.recipe.others_at(positions)

    @functools.cached_property
    def _look_up_block(self) -> Callable[[int], tuple[Hyperparameters, Mapping[str, np.ndarray]]]:
        # A block takes as long as one position, whose values never depend on what was looked up before.
        return functools.lru_cache(2)(lambda block: self._look_up((block * _BLOCK + np.arange(_BLOCK)) * self._unit))

    @functools.cached_property
    def _unit(self) -> int:
        return math.gcd(*self.limits.sizes)


@dataclasses.dataclass(frozen=True)
class FollowingOptions:
    """Options of all controllers whose learning rate follows the batch.

    Args:
      scaling: "linear" (ρ = 1), "sqrt" (ρ = ½) or ρ itself in (0, 1]; None: the optimizer's in `create_controller`,
        otherwise "linear".
      bound_by_decay: whether the learning rate stays at or below the recipe's largest so far.

    Raises:
      InvalidArgument: no such scaling.
    """

    scaling: str | float | None = None  # ρ: learning rate ∝ B^ρ
    bound_by_decay: bool = False

    def __post_init__(self):
        if self.scaling is not None:
            scaling_exponent(self.scaling)
        if not isinstance(self.bound_by_decay, bool):
            raise InvalidArgument("bound_by_decay", self.bound_by_decay, "True or False", bool(self.bound_by_decay))


@dataclasses.dataclass(frozen=True)
class Following(Adaptive):
    r"""Chooses the batch size B; the learning rate follows it and keeps the recipe's noise.

    With the recipe's learning rate and batch size at the same number of examples, η and B_r, an update has

    .. math:: \eta' = s \eta \left(\frac{B}{B_r}\right)^\rho,

    ρ = 1 by the linear rule of SGD, ½ by the square-root rule of Adam; s is `learning_rate_factor`, usually 1.

    **With a recipe whose learning rate decays**, `bound_by_decay` lets the controller choose only which share of that
    decay enlarges the batch: η' stays at or below η_max, the largest η so far, and so
    :math:`B \le B_r (\eta_{max} / (s \eta))^{1/\rho}`: at most what `Recipe.increase_batch_size` would take. The bound
    takes precedence over `Limits.monotone`: where the recipe's learning rate rises again, the batch shrinks.

    Args:
      recipe, limits: see `Adaptive`.
      options: `FollowingOptions` and the controller's own.

    Raises:
      InvalidArgument: a batch larger than the data set; no allowed size within the bound.
    """

    options: FollowingOptions = FollowingOptions()

    def __post_init__(self):
        super().__post_init__()
        smallest = int(self._plan.batch_sizes.min())
        if self.options.bound_by_decay and self.limits.sizes[0] > smallest:
            allowed = f"at most the recipe's batch_size {smallest} with bound_by_decay"
            raise InvalidArgument("min_batch_size", self.limits.sizes[0], allowed, smallest)

    def learning_rate_factor(self, state: AdaptiveState) -> float:
        """s: the factor of the recipe's learning rate."""
        return 1.0

    @functools.cached_property
    def exponent(self) -> float:
        """ρ."""
        return scaling_exponent("linear" if self.options.scaling is None else self.options.scaling)

    def learning_rate(self, state: AdaptiveState, now: Instant, batch_size: int) -> float:
        factor = self.learning_rate_factor(state)
        return factor * now.learning_rate * (batch_size / now.batch_size) ** self.exponent

    def bounded(self, state: AdaptiveState, now: Instant) -> int:
        if not self.options.bound_by_decay:
            return state.batch_size
        learning_rate = self.learning_rate_factor(state) * now.learning_rate
        if learning_rate > 0:
            decay = max(state.max_learning_rate / learning_rate, 1.0)
        else:  # the end of a decay, or the start of a warm-up
            decay = math.inf if state.max_learning_rate > 0 else 1.0
        bound = now.batch_size * power(decay, 1 / self.exponent)
        return min(state.batch_size, self.limits.round_down(bound))

    def identity(self) -> dict[str, Any]:
        identity = super().identity()
        return {**identity, "options": {**identity["options"], "scaling": self.exponent}}


def power(base: float, exponent: float) -> float:
    """base^exponent; infinite where the result does not fit into a float.

    >>> power(0.0, -2.0), power(10.0, 400.0), power(2.0, 3.0)
    (inf, inf, 8.0)
    """
    with np.errstate(over="ignore", divide="ignore"):
        return float(np.float64(base) ** exponent)
