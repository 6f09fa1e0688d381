"""The batch grows, instead of a cut of the learning rate, when the loss stops falling."""

import dataclasses
import math
from typing import NamedTuple

from bsjax.controllers.adaptive import AdaptiveState, Following, FollowingOptions, Instant, power
from bsjax.controllers.protocol import Observation
from bsjax.errors import InvalidArgument, check_number, check_whole


@dataclasses.dataclass(frozen=True)
class PlateauOptions(FollowingOptions):
    """Options of `Plateau`; the names are those of `optax.contrib.reduce_on_plateau`.

    Args:
      scaling, bound_by_decay: see `FollowingOptions`.
      factor: in (0, 1).
      patience: values without improvement until s is cut.
      rtol: relative improvement that counts, in [0, 1].
      atol: absolute one, in units of the loss; one of the two is positive.
      cooldown: values to wait after a cut.
      accumulation_size: losses (updates) per value.
      min_scale: the smallest s, in [0, 1].

    Raises:
      InvalidArgument: a value is out of range.
    """

    factor: float = 0.1
    patience: int = 10
    rtol: float = 1e-4
    atol: float = 0.0
    cooldown: int = 0
    accumulation_size: int = 1
    min_scale: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        check_number("factor", self.factor, lambda x: 0 < x < 1, "in (0, 1)", 0.1)
        check_number("rtol", self.rtol, lambda x: 0 <= x <= 1, "in [0, 1]", 1e-4)
        check_number("atol", self.atol, lambda x: x >= 0, "a number >= 0", 0)
        if self.rtol == self.atol == 0:
            raise InvalidArgument("rtol", self.rtol, "positive where atol is 0", 1e-4)
        check_number("min_scale", self.min_scale, lambda x: 0 <= x <= 1, "in [0, 1]", 0)
        check_whole("patience", self.patience)
        check_whole("cooldown", self.cooldown, minimum=0)
        check_whole("accumulation_size", self.accumulation_size)


class PlateauMemory(NamedTuple):
    """The fields of optax's state."""

    scale: float = 1.0  # s
    best_value: float | None = None  # None: infinity, which JSON does not have
    plateau_count: int = 0  # values in a row without an improvement
    cooldown_count: int = 0  # values to wait
    num_losses: int = 0  # in mean_value
    mean_value: float = 0.0


@dataclasses.dataclass(frozen=True)
class Plateau(Following):
    r"""Where `optax.contrib.reduce_on_plateau` cuts its scale s by a factor, the batch grows instead.

    .. math:: B = \lfloor B_r s^{-1/\rho} \rfloor, \qquad \eta' = s \eta (B / B_r)^\rho

    So the learning rate is the recipe's until the batch reaches the largest size, and decays afterwards; η'/B^ρ is
    always the same as with a constant batch and a learning rate that is cut. The decisions equal optax's: a value is
    the mean of `accumulation_size` losses; it is an improvement if it is below
    (1 - rtol) · best - atol; at the `patience`-th value in a row without one, s becomes max(factor · s, min_scale), and
    the next `cooldown` values do not count.

    Limits: any optimizer; the loss is the training loss of single updates, so `accumulation_size` should span an epoch
    or so. All counts are of updates, which take more examples as the batch grows.

    Args:
      recipe, limits: see `Adaptive`.
      options: see `PlateauOptions`.

    >>> from bsjax import Recipe
    >>> from bsjax.controllers import Limits
    >>> plateau = Plateau(Recipe(0.1, 32, 50_000, num_epochs=1), Limits(32, 512), PlateauOptions(patience=2))
    >>> state = plateau.init()
    >>> for loss in (1.0, 1.0, 1.0):
    ...     state = plateau.observe(state, Observation(None, loss, noise=None, averages=None))
    >>> update, state = plateau.decide(state)
    >>> update.batch_size, update.learning_rate  # 320 examples at the learning rate of 32: a tenth of the noise
    (320, 0.1)
    """

    exact = True
    options_type = PlateauOptions

    options: PlateauOptions = PlateauOptions()

    def init(self) -> AdaptiveState:
        return super().init()._replace(learnt=PlateauMemory())

    def observe(self, state: AdaptiveState, observation: Observation) -> AdaptiveState:
        memory = state.learnt
        mean_value = (memory.num_losses * memory.mean_value + float(observation.loss)) / (memory.num_losses + 1)
        memory = memory._replace(num_losses=memory.num_losses + 1, mean_value=mean_value)
        if memory.num_losses >= self.options.accumulation_size:
            memory = self._after(memory._replace(num_losses=0, mean_value=0.0), mean_value)
        return state._replace(learnt=memory)

    def target(self, state: AdaptiveState, now: Instant) -> float:
        return now.batch_size * power(state.learnt.scale, -1 / self.exponent)

    def learning_rate_factor(self, state: AdaptiveState) -> float:
        return state.learnt.scale

    def _after(self, memory: PlateauMemory, value: float) -> PlateauMemory:
        """The memory after one more value."""
        best = math.inf if memory.best_value is None else memory.best_value
        if value < (1 - self.options.rtol) * best - self.options.atol:
            memory = memory._replace(best_value=value, plateau_count=0)
        else:
            memory = memory._replace(plateau_count=memory.plateau_count + 1)
        if memory.cooldown_count > 0:
            return memory._replace(plateau_count=0, cooldown_count=memory.cooldown_count - 1)
        if memory.plateau_count < self.options.patience:
            return memory
        scale = max(memory.scale * self.options.factor, self.options.min_scale)
        return memory._replace(plateau_count=0, cooldown_count=self.options.cooldown, scale=scale)
