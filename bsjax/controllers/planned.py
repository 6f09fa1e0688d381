"""A plan as a controller: everything is decided before training starts."""

import dataclasses
import functools
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bsjax.controllers.protocol import Controller
from bsjax.plan import Plan, Update


@dataclasses.dataclass(frozen=True)
class PlannedOptions:
    """A plan has no options."""


class PlannedState(NamedTuple):
    """The position in the plan."""

    update: int  # index of the next one


@dataclasses.dataclass(frozen=True)
class Planned(Controller[PlannedState]):
    """The updates of a plan, one after the other.

    Args:
      plan: such as `bsjax.Recipe.plan` makes; it may start in the middle of the example stream.

    >>> from bsjax import Recipe
    >>> planned = Planned(Recipe(0.1, batch_size=40, dataset_size=100, num_epochs=1).plan())
    >>> update, state = planned.decide(planned.init())
    >>> print(update)
    Update(update=0, examples_seen=0, batch_size=40, learning_rate=0.1, momentum=0.9...)
    """

    needs_observations = False
    options_type = PlannedOptions

    plan: Plan

    @property
    def dataset_size(self) -> int:
        return self.plan.dataset_size

    @functools.cached_property
    def batch_sizes(self) -> Sequence[int]:
        return np.unique(self.plan.batch_sizes).tolist()

    @property
    def num_examples(self) -> int:
        return self.plan.num_examples

    def init(self) -> PlannedState:
        return PlannedState(0)

    def decide(self, state: PlannedState) -> tuple[Update | None, PlannedState]:
        if state.update >= self.plan.num_updates:
            return None, state
        return self.plan[state.update], PlannedState(state.update + 1)

    def identity(self) -> dict[str, Any]:
        return {"name": "Planned", "plan": plan_identity(self.plan)}


def plan_identity(plan: Plan) -> str:
    """A text that differs between different plans."""
    return f"{plan.num_updates:,} updates from example {plan.start:,}, CRC-32 {zlib.crc32(plan.to_json().encode())}"
