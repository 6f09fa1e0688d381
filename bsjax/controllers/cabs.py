"""CABS: the batch size coupled to the learning rate and the loss."""

import dataclasses
import math
from typing import NamedTuple

from bsjax.controllers.adaptive import Adaptive, AdaptiveState, Instant
from bsjax.controllers.protocol import Observation
from bsjax.errors import check_number


@dataclasses.dataclass(frozen=True)
class CabsOptions:
    """Options of `Cabs`.

    Args:
      smoothing: μ in [0, 1), per update; 0.95 in the authors' code.

    Raises:
      InvalidArgument: a value is out of range.
    """

    smoothing: float = 0.95

    def __post_init__(self):
        check_number("smoothing", self.smoothing, lambda mu: 0 <= mu < 1, "in [0, 1)", 0.95)


class SmoothedCosts(NamedTuple):
    """Weighted sums over updates; the weights of both are the same."""

    trace: float = 0.0  # of tr(Σ)
    loss: float = 0.0  # of F


@dataclasses.dataclass(frozen=True)
class Cabs(Adaptive):
    r"""Coupled adaptive batch size.

    .. math:: B = \eta \frac{\mathrm{tr}(\Sigma)}{F}

    with the learning rate η of the recipe, which does *not* follow the batch, and with tr(Σ) and the loss F both
    smoothed over updates by :math:`x \leftarrow \mu x + (1 - \mu) x_k`. Both start at zero, so that the ratio is that
    of weighted means from the first update on (the authors' code starts F at 1, and B too small). tr(Σ) is the unbiased
    estimate over microbatches and devices, and theirs is the estimate over examples with the divisor B. They round to
    the nearest whole number; here the size is rounded down to an allowed one.

    Limits: plain SGD without momentum; a loss whose minimum is near 0, such as a cross-entropy without label
    smoothing; meant for a constant learning rate, because B ∝ η: where the recipe decays η, B falls with it.

    Args:
      recipe, limits: see `Adaptive`; the sizes of the paper are 16 to 2048, without hysteresis.
      options: see `CabsOptions`.

    >>> from bsjax import Recipe
    >>> from bsjax.controllers import Limits
    >>> controller = Cabs(Recipe(0.1, 16, 50_000, num_epochs=1), Limits(16, 2048))
    >>> state = controller.init()._replace(learnt=SmoothedCosts(trace=100.0, loss=0.25))
    >>> controller.decide(state)[0].batch_size
    40

    Reference: Balles, Romero and Hennig, 2017 (https://arxiv.org/abs/1612.05086), Section 3.3 and Algorithm 1.
    """

    optimizers = ("sgd",)
    needs_noise = True
    options_type = CabsOptions

    options: CabsOptions = CabsOptions()

    def init(self) -> AdaptiveState:
        return super().init()._replace(learnt=SmoothedCosts())

    def observe(self, state: AdaptiveState, observation: Observation) -> AdaptiveState:
        trace, loss = float(observation.noise.trace), float(observation.loss)
        if not (math.isfinite(trace) and math.isfinite(loss)):
            return state
        old, new = self.options.smoothing, 1 - self.options.smoothing
        learnt = state.learnt
        return state._replace(learnt=SmoothedCosts(old * learnt.trace + new * trace, old * learnt.loss + new * loss))

    def target(self, state: AdaptiveState, now: Instant) -> float:
        trace, loss = state.learnt
        return now.learning_rate * trace / loss if loss > 0 else math.nan
