"""The batch size from the gradient noise scale: signal and noise in balance."""

import math

from bsjax.controllers.adaptive import Adaptive, Instant
from bsjax.controllers.limits import Limits
from bsjax.controllers.protocol import Observation
from bsjax.errors import InvalidArgument, check_positive, is_finite
from bsjax.gradient_noise import Estimate, gradient_noise_scale
from bsjax.recipe import Recipe


class GradientNoise(Adaptive):
    r"""A batch as large as the gradient noise scale, or as a price of examples allows.

    .. math:: B = c B_{simple}, \quad\text{or with a price}\quad B = \sqrt{B_{simple} / \lambda},

    where :math:`B_{simple} = \mathrm{tr}(\Sigma) / |G|^2` is that of the loop's averages. With steps
    :math:`S = \int (1 + B_{simple}/B) ds` and examples :math:`E = \int (B + B_{simple}) ds` over the progress s,
    the latter is the B that minimises S + λE: λ is the price of an example in updates (1/λ is the paper's exchange
    rate r). For training time it is the seconds an example adds to an update over those an update takes anyway.

    Limits: any optimizer, but B_simple is of the raw gradient, and stands for the critical batch size only where the
    Hessian is near a multiple of the identity: the trend over a run is more to be trusted than the size, so c is
    worth tuning. B_simple grows in proportion to B/η in equilibrium, which is why the learning rate must be well
    tuned to begin with. Where |G|² is lost in the noise (B_simple infinite) the batch is the largest allowed: give the
    averages a half-life of many updates and `Limits` a warm-up.

    Args:
      recipe, limits, scaling, bound_by_decay: see `Adaptive`.
      factor: c, positive; 1 by the paper.
      example_price: λ, positive, in updates per example; None: by the factor.

    Raises:
      InvalidArgument: a value is out of range, or both a factor and a price are given.

    >>> controller = GradientNoise(Recipe(0.1, 32, 50_000, num_epochs=1), Limits(32, 1024, growth=2))
    >>> controller.next_update().batch_size
    32

    Reference: McCandlish et al., 2018 (https://arxiv.org/abs/1812.06162), Section 2.2 and Appendix D.
    """

    needs_noise = True
    _memory = ("estimate",)

    def __init__(
        self,
        recipe: Recipe,
        limits: Limits,
        scaling: str = "linear",
        bound_by_decay: bool = False,
        factor: float = 1.0,
        example_price: float | None = None,
    ):
        super().__init__(recipe, limits, scaling, bound_by_decay)
        check_positive("factor", factor)
        if example_price is not None:
            if not (is_finite(example_price) and example_price > 0):
                raise InvalidArgument("example_price", example_price, "a positive number of updates, or None")
            if factor != 1:
                raise InvalidArgument("factor", factor, "1 with an example_price", 1)
        self._factor = factor
        self._example_price = example_price
        self._estimate: list[float] | None = None  # |G|², tr(Σ): finite, where their ratio may not be
        self._settings |= {"factor": factor, "example_price": example_price}

    def observe(self, observation: Observation) -> None:
        averages = observation.averages
        if averages.weight > 0:
            self._estimate = [float(averages.grad_sq), float(averages.trace)]

    def target(self, now: Instant) -> float:
        if self._estimate is None:
            return math.nan
        grad_sq, trace = self._estimate
        noise_scale = float(gradient_noise_scale(Estimate(grad_sq, trace, math.nan, math.nan)))
        if self._example_price is None:
            return self._factor * noise_scale
        return math.sqrt(noise_scale / self._example_price)
