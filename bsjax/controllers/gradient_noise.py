"""The batch size from the gradient noise scale: signal and noise in balance."""

import dataclasses
import math
from typing import NamedTuple

from bsjax.controllers.adaptive import AdaptiveState, Following, FollowingOptions, Instant
from bsjax.controllers.protocol import Observation
from bsjax.errors import InvalidArgument, check_number, check_positive
from bsjax.gradient_noise import Estimate, gradient_noise_scale


@dataclasses.dataclass(frozen=True)
class GradientNoiseOptions(FollowingOptions):
    """Options of `GradientNoise`.

    Args:
      scaling, bound_by_decay: see `FollowingOptions`.
      factor: c, positive; 1 by the paper.
      example_price: λ, positive, in updates per example; None: by the factor.

    Raises:
      InvalidArgument: a value is out of range, or both a factor and a price are given.
    """

    factor: float = 1.0
    example_price: float | None = None

    def __post_init__(self):
        super().__post_init__()
        check_positive("factor", self.factor)
        if self.example_price is not None:
            allowed = "a positive number of updates, or None"
            check_number("example_price", self.example_price, lambda price: price > 0, allowed)
            if self.factor != 1:
                raise InvalidArgument("factor", self.factor, "1 with an example_price", 1)


class LastAverages(NamedTuple):
    """|G|² and tr(Σ) of the last averages; None before the first. Both are finite where their ratio may not be."""

    grad_sq: float | None = None
    trace: float | None = None


@dataclasses.dataclass(frozen=True)
class GradientNoise(Following):
    r"""A batch as large as the gradient noise scale, or as a price of examples allows.

    .. math:: B = c B_{simple}, \quad\text{or with a price}\quad B = \sqrt{B_{simple} / \lambda},

    where :math:`B_{simple} = \mathrm{tr}(\Sigma) / |G|^2` is that of the loop's averages. With steps
    :math:`S = \int (1 + B_{simple}/B) ds` and examples :math:`E = \int (B + B_{simple}) ds` over the progress s, the
    latter is the B that minimises S + λE: λ is the price of an example in updates (1/λ is the paper's exchange rate r).
    For training time λ is the seconds that an example adds to an update, divided by the seconds that an update takes
    without examples.

    Limits: it works with any optimizer, but B_simple is that of the raw gradient, and equals the critical batch size
    only where the Hessian is near a multiple of the identity: trust its trend over a run more than its size, and tune
    c. In equilibrium B_simple grows in proportion to B/η, so tune the learning rate first. Where |G|² is lost in the
    noise (B_simple infinite) the batch is the largest allowed: give the averages a half-life of many updates and
    `Limits` a warm-up.

    Args:
      recipe, limits: see `Adaptive`.
      options: see `GradientNoiseOptions`.

    >>> from bsjax import Recipe
    >>> from bsjax.controllers import Limits
    >>> controller = GradientNoise(Recipe(0.1, 32, 50_000, num_epochs=1), Limits(32, 1024, growth=2))
    >>> state = controller.init()._replace(learnt=LastAverages(grad_sq=2.0, trace=600.0))
    >>> controller.decide(state)[0].batch_size  # B_simple is 300
    256

    Reference: McCandlish et al., 2018 (https://arxiv.org/abs/1812.06162), Section 2.2 and Appendix D.
    """

    needs_noise = True
    options_type = GradientNoiseOptions

    options: GradientNoiseOptions = GradientNoiseOptions()

    def init(self) -> AdaptiveState:
        return super().init()._replace(learnt=LastAverages())

    def observe(self, state: AdaptiveState, observation: Observation) -> AdaptiveState:
        averages = observation.averages
        if not averages.weight > 0:
            return state
        return state._replace(learnt=LastAverages(float(averages.grad_sq), float(averages.trace)))

    def target(self, state: AdaptiveState, now: Instant) -> float:
        grad_sq, trace = state.learnt
        if grad_sq is None:
            return math.nan
        noise_scale = float(gradient_noise_scale(Estimate(grad_sq, trace, math.nan, math.nan)))
        if self.options.example_price is None:
            return self.options.factor * noise_scale
        return math.sqrt(noise_scale / self.options.example_price)
