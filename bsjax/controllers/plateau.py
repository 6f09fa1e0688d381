"""The batch grows where the learning rate would be cut because the loss has stopped falling."""

import math

from bsjax.controllers.adaptive import Adaptive, Instant, power
from bsjax.controllers.limits import Limits
from bsjax.controllers.protocol import Observation
from bsjax.errors import InvalidArgument, check_whole, is_finite
from bsjax.recipe import Recipe


class Plateau(Adaptive):
    r"""Where `optax.contrib.reduce_on_plateau` cuts its scale s by a factor, the batch grows instead.

    .. math:: B = \lfloor B_r s^{-1/\rho} \rfloor, \qquad \eta' = s \eta (B / B_r)^\rho

    So the learning rate is the recipe's until the batch is at its largest, and decays from there on, and
    η'/B^ρ is at each instant what it would be with the batch held and the learning rate cut. The decisions are
    optax's, one for one: a value is the mean of `accumulation_size` losses; it is an improvement if it is below
    (1 - rtol) · best - atol; at the `patience`-th value in a row without one, s becomes max(factor · s, min_scale), and
    the next `cooldown` values do not count.

    Limits: any optimizer; the loss is the training loss of single updates, so `accumulation_size` should span an epoch
    or so. All counts are of updates, which take more examples as the batch grows.

    Args:
      recipe, limits, scaling, bound_by_decay: see `Adaptive`.
      factor: in (0, 1).
      patience: values without improvement until s is cut.
      rtol: relative improvement that counts, in [0, 1].
      atol: absolute one; one of the two is positive.
      cooldown: values to wait after a cut.
      accumulation_size: losses per value.
      min_scale: where s ends.

    Raises:
      InvalidArgument: a value is out of range.

    >>> limits = Limits(32, 512)
    >>> plateau = Plateau(Recipe(0.1, 32, 50_000, num_epochs=1), limits, factor=0.1, patience=2)
    >>> for loss in (1.0, 1.0, 1.0):
    ...     plateau.observe(Observation(plateau.next_update(), loss, noise=None, averages=None))
    >>> print(plateau.next_update())  # 320 examples at the learning rate of 32: a tenth of the noise
    Update(update=3, examples_seen=96, batch_size=320, learning_rate=0.1, momentum=0.9)
    """

    exact = True
    _memory = ("scale", "best_value", "plateau_count", "cooldown_count", "count", "mean_value")

    def __init__(
        self,
        recipe: Recipe,
        limits: Limits,
        scaling: str = "linear",
        bound_by_decay: bool = False,
        factor: float = 0.1,
        patience: int = 10,
        rtol: float = 1e-4,
        atol: float = 0.0,
        cooldown: int = 0,
        accumulation_size: int = 1,
        min_scale: float = 0.0,
    ):
        super().__init__(recipe, limits, scaling, bound_by_decay)
        if not (is_finite(factor) and 0 < factor < 1):
            raise InvalidArgument("factor", factor, "in (0, 1)", 0.1)
        if not (is_finite(rtol) and 0 <= rtol <= 1):
            raise InvalidArgument("rtol", rtol, "in [0, 1]", 1e-4)
        if not (is_finite(atol) and atol >= 0):
            raise InvalidArgument("atol", atol, "a number >= 0", 0)
        if rtol == atol == 0:
            raise InvalidArgument("rtol", rtol, "positive where atol is 0", 1e-4)
        if not (is_finite(min_scale) and 0 <= min_scale <= 1):
            raise InvalidArgument("min_scale", min_scale, "in [0, 1]", 0)
        self._factor, self._rtol, self._atol, self._min_scale = factor, rtol, atol, min_scale
        self._patience = check_whole("patience", patience)
        self._cooldown = check_whole("cooldown", cooldown, minimum=0)
        self._accumulation_size = check_whole("accumulation_size", accumulation_size)
        self._scale = 1.0
        self._best_value: float | None = None  # infinite, which JSON does not know
        self._plateau_count = 0
        self._cooldown_count = 0
        self._count = 0
        self._mean_value = 0.0
        self._settings |= {
            "factor": factor,
            "patience": patience,
            "rtol": rtol,
            "atol": atol,
            "cooldown": cooldown,
            "accumulation_size": accumulation_size,
            "min_scale": min_scale,
        }

    def observe(self, observation: Observation) -> None:
        self._mean_value = (self._count * self._mean_value + float(observation.loss)) / (self._count + 1)
        self._count += 1
        if self._count == self._accumulation_size:
            self._take(self._mean_value)
            self._count, self._mean_value = 0, 0.0

    def target(self, now: Instant) -> float:
        return now.batch_size * power(self._scale, -1 / self._exponent)

    def learning_rate_factor(self) -> float:
        return self._scale

    def _take(self, value: float) -> None:
        best = math.inf if self._best_value is None else self._best_value
        if value < (1 - self._rtol) * best - self._atol:
            self._best_value, self._plateau_count = value, 0
        else:
            self._plateau_count += 1
        if self._cooldown_count > 0:
            self._plateau_count = 0
            self._cooldown_count -= 1
        elif self._plateau_count == self._patience:
            self._plateau_count, self._cooldown_count = 0, self._cooldown
            self._scale = max(self._scale * self._factor, self._min_scale)
