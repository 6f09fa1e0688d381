"""CABS: the batch size coupled to the learning rate and the loss."""

import math

from bsjax.controllers.adaptive import Adaptive, Instant
from bsjax.controllers.limits import Limits
from bsjax.controllers.protocol import Observation
from bsjax.errors import InvalidArgument
from bsjax.recipe import Recipe


class Cabs(Adaptive):
    r"""Coupled adaptive batch size.

    .. math:: B = \eta \frac{\mathrm{tr}(\Sigma)}{F}

    with the learning rate η of the recipe, which does *not* follow the batch, and with tr(Σ) and the loss F both
    smoothed over updates by :math:`x \leftarrow \mu x + (1 - \mu) x_k`. Both start at zero, so that the ratio is
    that of weighted means from the first update on (the authors' code starts F at 1, and B too small). tr(Σ) is the
    unbiased estimate over microbatches and devices, where theirs is over examples with the divisor B. They
    round to the nearest whole number, we down to an allowed size.

    Limits: plain SGD without momentum; a loss whose minimum is near 0, such as a cross-entropy without label
    smoothing; meant for a constant learning rate, because B ∝ η: where the recipe decays η, B falls with it.

    Args:
      recipe, limits: see `Adaptive`; the sizes of the paper are 16 to 2048, without hysteresis.
      smoothing: μ in [0, 1); 0.95 in the authors' code.

    Raises:
      InvalidArgument: a value is out of range.

    >>> controller = Cabs(Recipe(0.1, 16, 50_000, num_epochs=1), Limits(16, 2048))
    >>> controller.next_update()
    Update(update=0, examples_seen=0, batch_size=16, learning_rate=0.1, momentum=0.9)
    >>> Cabs.check_optimizer("momentum")
    Traceback (most recent call last):
    ...
    bsjax.errors.InvalidArgument: optimizer is 'momentum'; it must be sgd for Cabs; nearest: sgd

    Reference: Balles, Romero and Hennig, 2017 (https://arxiv.org/abs/1612.05086), Section 3.3 and Algorithm 1.
    """

    optimizers = ("sgd",)
    needs_noise = True
    _memory = ("trace", "loss")

    def __init__(self, recipe: Recipe, limits: Limits, smoothing: float = 0.95):
        super().__init__(recipe, limits)
        self._exponent = 0.0  # the learning rate is the recipe's
        if not 0 <= smoothing < 1:
            raise InvalidArgument("smoothing", smoothing, "in [0, 1)", 0.95)
        self._smoothing = smoothing
        self._trace = 0.0
        self._loss = 0.0
        self._settings |= {"smoothing": smoothing}

    def observe(self, observation: Observation) -> None:
        trace, loss = float(observation.noise.trace), float(observation.loss)
        if math.isfinite(trace) and math.isfinite(loss):
            self._trace = self._smoothing * self._trace + (1 - self._smoothing) * trace
            self._loss = self._smoothing * self._loss + (1 - self._smoothing) * loss

    def target(self, now: Instant) -> float:
        return now.learning_rate * self._trace / self._loss if self._loss > 0 else math.nan
