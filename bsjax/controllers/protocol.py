"""What the training loop asks: how large is the next update, at which learning rate?"""

import abc
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from bsjax.gradient_noise import Averages, Estimate
from bsjax.plan import Update

# Decisions about update k see the observations of the updates up to k - 1 - LAG: always just these, whether or not
# more has been read already, so that decisions do not depend on when a run was interrupted, and the device never waits.
LAG = 2


class Observation(NamedTuple):
    """What an update has shown."""

    update: Update
    loss: float  # mean over its batch, before it
    noise: Estimate  # of its gradient alone; NaN with less than two microbatches × devices
    averages: Averages  # of the estimates up to it


class Controller(abc.ABC):
    """Decides one update after the other, from the observations of earlier ones.

    A call of `next_update` moves on; `observe` gets each update's observation once, in order, `LAG` updates late.
    Everything is a pure function of the observations, so a controller in the state of another one decides alike.

    Attributes:
      dataset_size: N, the number of examples in an epoch.
      batch_sizes: those that may come, for the engine to choose its microbatches; examples.
      num_examples: position in the example stream where training ends, for people to see how far it is.
      needs_observations: whether `observe` is to be called at all.
      needs_noise: whether it needs `Observation.noise`, and so two microbatches × devices in every update.
    """

    dataset_size: int
    batch_sizes: Iterable[int]
    num_examples: int
    needs_observations: bool = True
    needs_noise: bool = False

    @abc.abstractmethod
    def next_update(self) -> Update | None:
        """The next update, or None at the end."""

    def observe(self, observation: Observation) -> None:
        """Takes up what an update has shown."""
        del observation

    def branches(self) -> Sequence[Sequence[Update]] | None:
        """Updates to try before `next_update`; None for nothing.

        The loop runs each branch from the current state, on the examples that its updates name, and throws it away:
        branches are not logged, not observed, and count in no clock. Changes nothing, so it can be asked again.
        """
        return None

    def observe_branches(self, losses: Sequence[Sequence[float]]) -> None:
        """Takes up what the branches have shown: for each, the loss of each of its updates."""
        del losses

    @abc.abstractmethod
    def state(self) -> dict[str, Any]:
        """What it has decided and learnt so far, as JSON."""

    @abc.abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from what `state` returned."""

    @abc.abstractmethod
    def identity(self) -> dict[str, Any]:
        """Its settings, as JSON: a checkpoint of a controller with others is refused."""
