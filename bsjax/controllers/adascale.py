"""AdaScale: a large batch, with a learning rate that grows by as much as the batch gains."""

import math
from typing import Any

import numpy as np

from bsjax.controllers.adaptive import check_dataset_size, check_optimizer, plan_identity
from bsjax.controllers.limits import Limits
from bsjax.controllers.protocol import Controller, Observation
from bsjax.errors import InvalidArgument, is_finite
from bsjax.plan import Update
from bsjax.recipe import Recipe

_MIN_VARIANCE = 1e-6  # the paper's, for the gradient of a batch of B0


class AdaScale(Controller):
    r"""Steps of S times the recipe's batch B₀, each of which counts as r ≤ S of the recipe's updates.

    .. math:: r = \frac{\sigma^2 + \mu^2}{\sigma^2 / S + \mu^2} \in [1, S], \qquad
       \eta' = r\, \eta(\lfloor\tau\rfloor), \qquad \tau \leftarrow \tau + r, \quad\text{until } \tau \ge T,

    where σ² = tr(Σ)/B₀ is the variance of the recipe's gradient, μ² = |G|², and η, B₀ and T are the recipe's learning
    rate, batch size and number of updates. The clock τ is in updates of the recipe, not in examples: where noise
    dominates (r = S) the run takes the recipe's examples, where it does not it takes up to S times as many.

    Each update's estimates of σ² (at least 1e-6) and μ² (at least 0) are smoothed: a plain mean at first, and from the
    1/(1 - θ)-th on :math:`x \leftarrow \theta x + (1 - \theta) x_k`, θ = max(1 - S/1000, 0). With n shards of one size
    `bsjax.gradient_noise.Estimate` without a data set size is the paper's Appendix B.3 with n sub-gradients. The paper
    has n = S; here θ does not depend on n, so that decisions do not depend on the devices. Until the first
    estimate r = 1, as if there were no noise; the paper has an estimate at each update before it is made, here
    those of the last `LAG` updates are still missing.

    Limits: SGD, also with momentum and Nesterov, for which the paper's theory does not hold but its experiments do;
    not Adam. The learning rate needs no warm-up of its own: the gain starts small and grows.

    Args:
      recipe: it may have a batch size that grows: all of it is S times as large.
      limits: S·B₀ is rounded down to the allowed sizes; its hysteresis, monotone and warm-up have no meaning here.
      scale: S >= 1; None: the largest that `limits` allow.
      smoothing: θ in [0, 1); None: the paper's.

    Raises:
      InvalidArgument: a value is out of range.

    >>> controller = AdaScale(Recipe(0.1, 32, 50_000, num_epochs=1), Limits(32, 256))
    >>> controller.next_update()
    Update(update=0, examples_seen=0, batch_size=256, learning_rate=0.1, momentum=0.9)

    Reference: Johnson, Agrawal, Gu and Guestrin, 2020 (https://arxiv.org/abs/2007.05105), Algorithm 1 and Appendix B.3.
    """

    optimizers = ("momentum", "nesterov", "sgd")
    needs_noise = True

    def __init__(self, recipe: Recipe, limits: Limits, scale: float | None = None, smoothing: float | None = None):
        check_dataset_size(limits, recipe.dataset_size)
        self._plan = recipe.plan()
        largest = int(self._plan.batch_sizes.max())
        if limits.sizes[-1] < largest:
            allowed = f"at least the recipe's batch_size {largest}"
            raise InvalidArgument("max_batch_size", limits.sizes[-1], allowed, largest)
        most = limits.sizes[-1] / largest
        self._scale = most if scale is None else scale
        if not (is_finite(self._scale) and 1 <= self._scale <= most * (1 + 1e-9)):
            allowed = f"in [1, {most:g}], by the recipe's batch_size {largest} and max_batch_size {limits.sizes[-1]}"
            raise InvalidArgument("scale", scale, allowed, 1 if is_finite(scale) and self._scale < 1 else f"{most:g}")
        if smoothing is not None and not 0 <= smoothing < 1:
            raise InvalidArgument("smoothing", smoothing, "in [0, 1), or None", 0.999)
        self._limits = limits
        self._sizes = {
            base: limits.round_down(self._scale * base) for base in np.unique(self._plan.batch_sizes).tolist()
        }
        for base, size in self._sizes.items():
            if not base <= size <= self._scale * base * (1 + 1e-6):
                above = next((other for other in limits.sizes if other >= self._scale * base), limits.sizes[-1])
                allowed = f"large enough to get from {base} to an allowed size"
                raise InvalidArgument("scale", self._scale, allowed, f"{above / base:g}")
        self.dataset_size = recipe.dataset_size
        self.batch_sizes = sorted(set(self._sizes.values()))
        self._smoothing = smoothing
        self._settings = {
            "recipe": plan_identity(self._plan),
            "limits": limits.identity(),
            "scale": scale,
            "smoothing": smoothing,
        }
        self._update = 0
        self._examples_seen = 0
        self._clock = 0.0  # τ
        self._count = 0  # of estimates
        self._grad_sq = 1.0
        self._trace = 0.0

    @classmethod
    def check_optimizer(cls, optimizer: str) -> None:
        """Refuses an optimizer that it does not work with."""
        check_optimizer("AdaScale", optimizer, cls.optimizers)

    @property
    def num_examples(self) -> int:  # type: ignore[override]
        """Where training would end if the gain stayed as it is."""
        if self._clock >= self._plan.num_updates:
            return self._examples_seen
        base = int(self._plan.batch_sizes[int(self._clock)])
        updates = math.ceil((self._plan.num_updates - self._clock) / self.gain(base))
        return self._examples_seen + updates * self._sizes[base]

    def gain(self, base_batch_size: int) -> float:
        """r for the recipe's batch size B₀, from the estimates so far."""
        scale = self._sizes[base_batch_size] / base_batch_size
        variance = self._trace / base_batch_size
        return (variance + self._grad_sq) / (variance / scale + self._grad_sq)

    def next_update(self) -> Update | None:
        if self._clock >= self._plan.num_updates:
            return None
        there = self._plan[int(self._clock)]
        gain, size = self.gain(there.batch_size), self._sizes[there.batch_size]
        update = Update(self._update, self._examples_seen, size, gain * there.learning_rate, there.momentum)
        self._update += 1
        self._examples_seen += size
        self._clock += gain
        return update

    def observe(self, observation: Observation) -> None:
        trace, grad_sq = float(observation.noise.trace), float(observation.noise.grad_sq)
        if not (math.isfinite(trace) and math.isfinite(grad_sq)):
            return
        smoothing = max(1 - self._scale / 1000, 0.0) if self._smoothing is None else self._smoothing
        self._count += 1
        if self._count * (1 - smoothing) < 1:
            smoothing = 1 - 1 / self._count
        least = _MIN_VARIANCE * observation.update.batch_size / self._scale
        # tr(Σ) is smoothed, not σ²: it keeps its meaning where B₀ changes.
        self._trace = smoothing * self._trace + (1 - smoothing) * max(trace, least)
        self._grad_sq = smoothing * self._grad_sq + (1 - smoothing) * max(grad_sq, 0.0)

    def state(self) -> dict[str, Any]:
        return {name: getattr(self, f"_{name}") for name in self._names()}

    def restore(self, state: dict[str, Any]) -> None:
        for name in self._names():
            setattr(self, f"_{name}", state[name])

    def identity(self) -> dict[str, Any]:
        return {"controller": "AdaScale", **self._settings}

    def _names(self) -> tuple[str, ...]:
        return "update", "examples_seen", "clock", "count", "grad_sq", "trace"
