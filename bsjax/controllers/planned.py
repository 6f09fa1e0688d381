"""A plan as a controller: everything is decided before training starts."""

from typing import Any

import numpy as np

from bsjax.controllers.adaptive import check_optimizer, plan_identity
from bsjax.controllers.protocol import Controller
from bsjax.optimizers import OPTIMIZERS
from bsjax.plan import Plan, Update


class Planned(Controller):
    """The updates of a plan, one after the other.

    Args:
      plan: such as `bsjax.Recipe.plan` makes; it may start in the middle of the example stream.

    >>> from bsjax import Recipe
    >>> planned = Planned(Recipe(0.1, batch_size=40, dataset_size=100, num_epochs=1).plan())
    >>> [planned.next_update().examples_seen for _ in range(3)], planned.next_update()
    ([0, 40, 80], None)
    """

    needs_observations = False

    def __init__(self, plan: Plan):
        self.plan = plan
        self.dataset_size = plan.dataset_size
        self.batch_sizes: list[int] = np.unique(plan.batch_sizes).tolist()
        self.num_examples = plan.num_examples
        self._update = 0

    @classmethod
    def check_optimizer(cls, optimizer: str) -> None:
        """Refuses what is no optimizer."""
        check_optimizer("Planned", optimizer, OPTIMIZERS)

    def next_update(self) -> Update | None:
        if self._update >= self.plan.num_updates:
            return None
        self._update += 1
        return self.plan[self._update - 1]

    def state(self) -> dict[str, Any]:
        return {"update": self._update}

    def restore(self, state: dict[str, Any]) -> None:
        self._update = state["update"]

    def identity(self) -> dict[str, Any]:
        return {"controller": "Planned", "plan": plan_identity(self.plan)}
