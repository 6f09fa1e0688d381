"""The batch doubles whenever the critical batch size allows it: measured by branches, or known."""

import math
from collections.abc import Callable, Sequence

from bsjax.controllers.adaptive import Adaptive, Instant
from bsjax.controllers.limits import Limits
from bsjax.errors import InvalidArgument, check_positive, check_whole, is_finite
from bsjax.plan import Update
from bsjax.recipe import Recipe

_LOSS_SMOOTHING = 0.5  # the paper's


class CriticalBatch(Adaptive):
    r"""Batch size warm-up: whenever the critical batch size B* exceeds 2B, doubles B.

    The learning rate follows: ×√2 for Adam, ×2 for SGD. B* is measured by *branches*, or given as a function.

    A branch goes on from the current state with batches of kB and the learning rate f(k)η = k^ρ η, for
    `branch_examples` examples, and is thrown away. With L_k its loss at the end, smoothed over its updates by
    :math:`L \leftarrow (L + L_i) / 2`, B* is kB for the largest k such that

    .. math:: L_k \le L_j + tolerance \quad\text{for all } j < k.

    **What the loop does**: before each `next_update`, it calls `branches`. If that is a list, it first waits for all
    updates so far; then for each branch it copies the state, runs the branch's updates on the copy, on the very
    examples of the stream that they name (which the run itself, and all other branches, take too), and keeps the
    loss of each; last it calls `observe_branches` with these, and goes on with the state from before. Branches write
    no metrics, are not observed, do not move the data stream, and count in no clock. A run that is interrupted
    meanwhile gets the same branches again: `branches` changes nothing, `observe_branches` does.

    Limits: any optimizer with its `scaling`. A measurement costs `branch_examples` for each multiple: with the
    defaults, 15 % of the run. It takes for granted that a branch which catches up within `branch_examples` would stay
    so. The paper's are 2 billion tokens, some 500 of its batches; short branches see little but noise.

    Args:
      recipe, limits, scaling, bound_by_decay: see `Adaptive`. The recipe is that of the smallest batch.
      critical_batch_size: B* in examples as a function of the examples seen, such as one fitted on a smaller model; or
        a number; None: measure.
      measure_every_epochs: from one measurement to the next; the first is after the warm-up, or so many epochs.
      branch_examples: examples per branch, rounded up so that all branches take the same; None: 1/20 of an epoch.
      multiples: k, whole, increasing from 1; the largest is above 2, or the batch would never grow.
      tolerance: in units of the loss; the paper's 0.01 is for a cross-entropy in nats.

    Raises:
      InvalidArgument: a value is out of range.

    >>> recipe = Recipe(0.1, 10, 1000, num_epochs=1)
    >>> controller = CriticalBatch(recipe, Limits(10, 80), critical_batch_size=lambda seen: 20 + seen / 10)
    >>> updates = list(iter(controller.next_update, None))
    >>> [update.examples_seen for last, update in zip(updates, updates[1:]) if update.batch_size == 2 * last.batch_size]
    [10, 210, 610]

    Reference: Merrill, Arora, Groeneveld and Hajishirzi, 2025 (https://arxiv.org/abs/2505.23971), Sections 3.1 and 4.1.
    """

    exact = True
    _memory = ("critical_batch_size", "next_measurement")

    def __init__(
        self,
        recipe: Recipe,
        limits: Limits,
        scaling: str = "linear",
        bound_by_decay: bool = False,
        critical_batch_size: Callable[[int], float] | float | None = None,
        measure_every_epochs: float = 1.0,
        branch_examples: int | None = None,
        multiples: Sequence[int] = (1, 2, 4),
        tolerance: float = 0.01,
    ):
        super().__init__(recipe, limits, scaling, bound_by_decay)
        multiples = [check_whole("multiples", multiple) for multiple in multiples]
        if multiples[:1] != [1] or multiples != sorted(set(multiples)) or multiples[-1] <= 2:
            allowed = "whole numbers in increasing order, from 1 to more than 2"
            raise InvalidArgument("multiples", tuple(multiples), allowed, (1, 2, 4))
        check_positive("measure_every_epochs", measure_every_epochs)
        if not (is_finite(tolerance) and tolerance >= 0):
            raise InvalidArgument("tolerance", tolerance, "a number >= 0", 0.01)
        if branch_examples is None:
            branch_examples = max(1, recipe.dataset_size // 20)
        self._known = critical_batch_size
        if critical_batch_size is not None and not callable(critical_batch_size):
            check_positive("critical_batch_size", critical_batch_size)
        self._multiples = multiples
        self._tolerance = tolerance
        self._branch_examples = check_whole("branch_examples", branch_examples)
        self._measure_every = max(1, round(measure_every_epochs * recipe.dataset_size))
        self._critical_batch_size: float | None = None  # measured
        self._next_measurement = limits.warmup_examples or self._measure_every
        self._settings |= {
            # A function is known by what it says.
            "critical_batch_size": None
            if self._known is None
            else [self._given(at) for at in self._sample_positions()],
            "measure_every_epochs": measure_every_epochs,
            "branch_examples": branch_examples,
            "multiples": multiples,
            "tolerance": tolerance,
        }

    def branches(self) -> list[list[Update]] | None:
        """The branches to run before the next update; None if it is not time to measure."""
        is_over = self._examples_seen >= self.num_examples
        if self._known is not None or is_over or self._examples_seen < self._next_measurement:
            return None
        if self._batch_size == self.limits.sizes[-1]:
            return None  # it cannot grow any more
        size = self._bounded(self._at(self._examples_seen))
        step = math.lcm(*self._multiples) * size
        num_examples = -(-self._branch_examples // step) * step
        if self._examples_seen + num_examples > self.num_examples:
            return None  # the recipe says nothing about what comes after its end
        return [self._branch(multiple * size, num_examples) for multiple in self._multiples]

    def observe_branches(self, losses: Sequence[Sequence[float]]) -> None:
        """Takes up what the branches have shown.

        Args:
          losses: for each branch, in their order, the loss of each of its updates, in their order.
        """
        size = self._bounded(self._at(self._examples_seen))
        smoothed = [_smooth(branch) for branch in losses]
        critical, best = self._multiples[0], smoothed[0]
        for multiple, loss in zip(self._multiples[1:], smoothed[1:], strict=True):
            if loss <= best + self._tolerance:  # the least of all smaller ones
                critical = multiple
            best = min(best, loss)
        self._critical_batch_size = float(critical * size)
        self._next_measurement = self._examples_seen + self._measure_every

    def target(self, now: Instant) -> float:
        critical = self._critical_batch_size if self._known is None else self._given(now.examples_seen)
        if critical is None:
            return math.nan
        return 2.0 * self._batch_size if critical > 2 * self._batch_size else float(self._batch_size)

    def _given(self, examples_seen: int) -> float:
        known = self._known(examples_seen) if callable(self._known) else self._known
        return float(known)  # type: ignore[arg-type]

    def _sample_positions(self) -> list[int]:
        return [self.num_examples * i // 16 for i in range(16)]

    def _branch(self, size: int, num_examples: int) -> list[Update]:
        starts = range(self._examples_seen, self._examples_seen + num_examples, size)
        return [self._update_of(self._at(at), self._update + i, size) for i, at in enumerate(starts)]


def _smooth(losses: Sequence[float]) -> float:
    smoothed = float(losses[0])
    for loss in losses[1:]:
        smoothed = _LOSS_SMOOTHING * smoothed + (1 - _LOSS_SMOOTHING) * float(loss)
    return smoothed
