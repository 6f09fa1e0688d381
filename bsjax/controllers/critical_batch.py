"""The batch doubles whenever the critical batch size allows it: measured by branches, or known."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bsjax.controllers.adaptive import AdaptiveState, Following, FollowingOptions, Instant
from bsjax.errors import InvalidArgument, check_number, check_positive, check_whole
from bsjax.plan import Update


@dataclasses.dataclass(frozen=True)
class CriticalBatchOptions(FollowingOptions):
    """Options of `CriticalBatch`.

    Args:
      scaling, bound_by_decay: see `FollowingOptions`.
      critical_batch_size: B* in examples as a function of the examples seen, such as one fitted on a smaller model; or
        a number; None: measure.
      measure_every_epochs: from one measurement to the next; the first is after the warm-up, or this many epochs.
      branch_examples: examples per branch, rounded up so that all branches take the same; None: 1/20 of an epoch.
      multiples: k, whole, increasing from 1; the largest is above 2, or the batch would never grow.
      tolerance: in units of the loss; the paper's 0.01 is for a cross-entropy in nats.

    Raises:
      InvalidArgument: a value is out of range.
    """

    critical_batch_size: Callable[[int], float] | float | None = None
    measure_every_epochs: float = 1.0
    branch_examples: int | None = None
    multiples: tuple[int, ...] = (1, 2, 4)
    tolerance: float = 0.01

    def __post_init__(self):
        super().__post_init__()
        k = self.multiples
        whole = isinstance(k, tuple) and all(isinstance(each, int) for each in k)
        if not (whole and k[:1] == (1,) and list(k) == sorted(set(k)) and k[-1] > 2):
            raise InvalidArgument("multiples", k, "whole numbers in increasing order, from 1 to more than 2", (1, 2, 4))
        check_positive("measure_every_epochs", self.measure_every_epochs)
        check_number("tolerance", self.tolerance, lambda x: x >= 0, "a number >= 0", 0.01)
        if self.branch_examples is not None:
            check_whole("branch_examples", self.branch_examples)
        if self.critical_batch_size is not None and not callable(self.critical_batch_size):
            check_positive("critical_batch_size", self.critical_batch_size)


class Measured(NamedTuple):
    """The result of the last branches."""

    critical_batch_size: float | None  # in examples; None before the first measurement
    next_measurement: int  # position in the example stream


@dataclasses.dataclass(frozen=True)
class CriticalBatch(Following):
    r"""Batch size warm-up: whenever the critical batch size B* exceeds 2B, doubles B.

    The learning rate follows: ×√2 for Adam, ×2 for SGD. B* is measured by *branches*, or given as a function.

    A branch continues from the current state with batches of kB and the learning rate f(k)η = k^ρ η, for
    `branch_examples` examples, and is dropped. With L_k its loss at the end, smoothed over its updates by
    :math:`L \leftarrow (L + L_i) / 2`, B* is kB for the largest k such that

    .. math:: L_k \le L_j + tolerance \quad\text{for all } j < k.

    **What the loop does**: before each `decide` it calls `branches`. If the result is a list, the loop waits for all
    updates so far. For each branch it copies the training state, runs the branch's updates on the copy, and keeps the
    loss of each. All branches, and the run itself, take the same examples of the stream. Then the loop calls
    `observe_branches` with the losses and continues with the training state from before. Branches write no metrics, are
    not observed, do not move the data stream, and count in no clock. An interrupted run gets the same branches again.

    Limits: any optimizer with its `scaling`. A measurement costs `branch_examples` for each multiple: with the
    defaults, 15 % of the run. It assumes that a branch that catches up within `branch_examples` does not fall behind
    later. The paper's branches are 2 billion tokens, about 500 of its batches; short branches measure little but noise.

    Args:
      recipe, limits: see `Adaptive`. The recipe is that of the smallest batch.
      options: see `CriticalBatchOptions`.

    >>> from bsjax import Recipe
    >>> from bsjax.controllers import Limits
    >>> options = CriticalBatchOptions(critical_batch_size=lambda examples_seen: 20 + examples_seen / 10)
    >>> controller = CriticalBatch(Recipe(0.1, 10, 1000, num_epochs=1), Limits(10, 80), options)
    >>> [controller.decide(controller.init()._replace(examples_seen=seen))[0].batch_size for seen in (0, 10)]
    [10, 20]

    Reference: Merrill, Arora, Groeneveld and Hajishirzi, 2025 (https://arxiv.org/abs/2505.23971), Sections 3.1 and 4.1.
    """

    exact = True
    options_type = CriticalBatchOptions

    options: CriticalBatchOptions = CriticalBatchOptions()

    def init(self) -> AdaptiveState:
        first = self.limits.warmup_examples or self._measure_every_examples
        return super().init()._replace(learnt=Measured(None, first))

    def branches(self, state: AdaptiveState) -> list[list[Update]] | None:
        """The branches to run before the next update; None if it is not time to measure."""
        if self.options.critical_batch_size is not None or state.examples_seen < state.learnt.next_measurement:
            return None
        if state.examples_seen >= self.num_examples or state.batch_size == self.limits.sizes[-1]:
            return None  # training ends, or the batch cannot grow
        size = self.bounded(state, self.instant(state.examples_seen))
        step = math.lcm(*self.options.multiples) * size
        num_examples = -(-self._branch_examples // step) * step
        if state.examples_seen + num_examples > self.num_examples:
            return None  # the recipe says nothing about what comes after its end

        def branch(size: int) -> list[Update]:
            starts = range(state.examples_seen, state.examples_seen + num_examples, size)
            return [self.update_of(state, self.instant(at), state.update + i, size) for i, at in enumerate(starts)]

        return [branch(multiple * size) for multiple in self.options.multiples]

    def observe_branches(self, state: AdaptiveState, losses: Sequence[Sequence[float]]) -> AdaptiveState:
        smoothed = [functools.reduce(lambda x, loss: 0.5 * x + 0.5 * loss, map(float, branch)) for branch in losses]
        critical, best = 1, smoothed[0]
        for multiple, loss in zip(self.options.multiples[1:], smoothed[1:], strict=True):
            if loss <= best + self.options.tolerance:  # best is the smallest loss of all smaller multiples
                critical = multiple
            best = min(best, loss)
        size = self.bounded(state, self.instant(state.examples_seen))
        following = state.examples_seen + self._measure_every_examples
        return state._replace(learnt=Measured(float(critical * size), following))

    def target(self, state: AdaptiveState, now: Instant) -> float:
        is_known = self.options.critical_batch_size is not None
        critical = self._known(now.examples_seen) if is_known else state.learnt.critical_batch_size
        if critical is None:
            return math.nan
        return 2.0 * state.batch_size if critical > 2 * state.batch_size else float(state.batch_size)

    def identity(self) -> dict[str, Any]:
        identity = super().identity()
        resolved = {"branch_examples": self._branch_examples, "multiples": list(self.options.multiples)}
        if self.options.critical_batch_size is not None:  # a function is known by its values
            resolved["critical_batch_size"] = [self._known(self.num_examples * i // 16) for i in range(16)]
        return {**identity, "options": {**identity["options"], **resolved}}

    @functools.cached_property
    def _branch_examples(self) -> int:
        given = self.options.branch_examples
        return max(1, self.dataset_size // 20) if given is None else given

    @functools.cached_property
    def _measure_every_examples(self) -> int:
        return max(1, round(self.options.measure_every_epochs * self.dataset_size))

    def _known(self, examples_seen: int) -> float:
        known: Any = self.options.critical_batch_size
        return float(known(examples_seen) if callable(known) else known)
