"""AdaScale: a large batch, with a learning rate that grows by as much as the batch gains."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bsjax.controllers.adaptive import FromRecipe
from bsjax.controllers.protocol import Observation
from bsjax.errors import InvalidArgument, check_number
from bsjax.plan import Update

_MIN_VARIANCE = 1e-6  # the paper's, for the gradient of a batch of B₀


@dataclasses.dataclass(frozen=True)
class AdaScaleOptions:
    """Options of `AdaScale`.

    Args:
      scale: S >= 1; None: the largest that the limits allow.
      smoothing: θ in [0, 1), per update; None: the paper's.

    Raises:
      InvalidArgument: a value is out of range.
    """

    scale: float | None = None
    smoothing: float | None = None

    def __post_init__(self):
        if self.scale is not None:
            check_number("scale", self.scale, lambda s: s >= 1, "a number >= 1, or None", 1)
        if self.smoothing is not None:
            check_number("smoothing", self.smoothing, lambda theta: 0 <= theta < 1, "in [0, 1), or None", 0.999)


class AdaScaleState(NamedTuple):
    """AdaScale's decisions so far, and its smoothed estimates."""

    update: int = 0  # number of the next one
    examples_seen: int = 0  # before it
    clock: float = 0.0  # τ, in updates of the recipe
    num_estimates: int = 0  # so far
    grad_sq: float = 1.0  # μ²
    trace: float = 0.0  # B₀σ²: unlike σ² it keeps its meaning where B₀ changes


@dataclasses.dataclass(frozen=True)
class AdaScale(FromRecipe[AdaScaleState]):
    r"""Steps of S times the recipe's batch B₀, each of which counts as r ≤ S of the recipe's updates.

    .. math:: r = \frac{\sigma^2 + \mu^2}{\sigma^2 / S + \mu^2} \in [1, S], \qquad
       \eta' = r\, \eta(\lfloor\tau\rfloor), \qquad \tau \leftarrow \tau + r, \quad\text{until } \tau \ge T,

    where σ² = tr(Σ)/B₀ is the variance of the recipe's gradient, μ² = |G|², and η, B₀ and T are the recipe's learning
    rate, batch size and number of updates. The clock τ is in updates of the recipe, not in examples: where noise
    dominates (r = S) the run takes the recipe's examples, where it does not it takes up to S times as many.

    Each update's estimates of σ² (at least 1e-6) and μ² (at least 0) are smoothed: a plain mean at first, and from the
    1/(1 - θ)-th on :math:`x \leftarrow \theta x + (1 - \theta) x_k`, θ = max(1 - S/1000, 0). With n shards of one size
    `bsjax.gradient_noise.Estimate` without a data set size is the paper's Appendix B.3 with n sub-gradients. The paper
    has n = S; here θ does not depend on n, so that decisions do not depend on the devices. Until the first estimate r =
    1, as without noise. The paper uses the estimate of the update itself; here an estimate arrives `LAG` updates later.

    Limits: SGD, also with momentum and Nesterov, for which the paper's theory does not hold but its experiments do;
    not Adam. The learning rate needs no warm-up of its own: the gain starts small and grows.

    Args:
      recipe: its batch size may grow; S multiplies every size.
      limits: S·B₀ is rounded down to the allowed sizes; its hysteresis, monotone and warm-up have no effect.
      options: see `AdaScaleOptions`.

    Raises:
      InvalidArgument: the limits leave no batch of `scale` times the recipe's.

    >>> from bsjax import Recipe
    >>> from bsjax.controllers import Limits
    >>> controller = AdaScale(Recipe(0.1, 32, 50_000, num_epochs=1), Limits(32, 256))
    >>> update, state = controller.decide(controller.init())
    >>> update.batch_size, update.learning_rate, state.clock
    (256, 0.1, 1.0)

    Reference: Johnson, Agrawal, Gu and Guestrin, 2020 (https://arxiv.org/abs/2007.05105), Algorithm 1 and Appendix B.3.
    """

    optimizers = ("momentum", "nesterov", "sgd")
    needs_noise = True
    options_type = AdaScaleOptions

    options: AdaScaleOptions = AdaScaleOptions()

    def __post_init__(self):
        super().__post_init__()
        bases, sizes = np.unique(self._plan.batch_sizes).tolist(), self.limits.sizes
        if sizes[-1] < bases[-1]:
            allowed = f"at least the recipe's batch_size {bases[-1]}"
            raise InvalidArgument("max_batch_size", sizes[-1], allowed, bases[-1])
        most = sizes[-1] / bases[-1]
        if not self.scale <= most * (1 + 1e-9):
            allowed = f"in [1, {most:g}], by the recipe's batch_size {bases[-1]} and max_batch_size {sizes[-1]}"
            raise InvalidArgument("scale", self.scale, allowed, f"{most:.17g}")
        for base, size in self._sizes.items():
            if not base <= size <= self.scale * base * (1 + 1e-6):
                above = next((other for other in sizes if other >= self.scale * base), sizes[-1])
                allowed = f"large enough to get from {base} to an allowed size"
                raise InvalidArgument("scale", self.scale, allowed, f"{above / base:.17g}")

    @functools.cached_property
    def scale(self) -> float:
        """S, before sizes are rounded."""
        most = self.limits.sizes[-1] / int(self._plan.batch_sizes.max())
        return most if self.options.scale is None else self.options.scale

    @property
    def batch_sizes(self) -> Sequence[int]:
        return sorted(set(self._sizes.values()))

    @functools.cached_property
    def num_examples(self) -> int:
        """Where training ends at the latest: with a gain of 1 throughout."""
        return sum(self._sizes[base] for base in self._plan.batch_sizes.tolist())

    def gain(self, state: AdaScaleState, base_batch_size: int) -> float:
        """r for the recipe's batch size B₀, from the estimates so far."""
        scale = self._sizes[base_batch_size] / base_batch_size
        variance = state.trace / base_batch_size
        return (variance + state.grad_sq) / (variance / scale + state.grad_sq)

    def init(self) -> AdaScaleState:
        return AdaScaleState()

    def decide(self, state: AdaScaleState) -> tuple[Update | None, AdaScaleState]:
        if state.clock >= self._plan.num_updates:
            return None, state
        there = self._plan[int(state.clock)]
        gain, size = self.gain(state, there.batch_size), self._sizes[there.batch_size]
        learning_rate = gain * there.learning_rate
        update = Update(state.update, state.examples_seen, size, learning_rate, there.momentum, there.others)
        seen, clock = state.examples_seen + size, state.clock + gain
        return update, state._replace(update=state.update + 1, examples_seen=seen, clock=clock)

    def observe(self, state: AdaScaleState, observation: Observation) -> AdaScaleState:
        trace, grad_sq = float(observation.noise.trace), float(observation.noise.grad_sq)
        if not (math.isfinite(trace) and math.isfinite(grad_sq)):
            return state
        num_estimates = state.num_estimates + 1
        smoothing = max(1 - self.scale / 1000, 0.0) if self.options.smoothing is None else self.options.smoothing
        if num_estimates * (1 - smoothing) < 1:
            smoothing = 1 - 1 / num_estimates
        least = _MIN_VARIANCE * observation.update.batch_size / self.scale
        return state._replace(
            num_estimates=num_estimates,
            trace=smoothing * state.trace + (1 - smoothing) * max(trace, least),
            grad_sq=smoothing * state.grad_sq + (1 - smoothing) * max(grad_sq, 0.0),
        )

    @functools.cached_property
    def _sizes(self) -> dict[int, int]:
        """S·B₀ as an allowed size, by B₀."""
        bases = np.unique(self._plan.batch_sizes).tolist()
        return {base: self.limits.round_down(self.scale * base) for base in bases}
