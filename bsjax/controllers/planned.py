"""The updates of a plan."""

import zlib
from typing import Any

from bsjax.controllers.protocol import Controller
from bsjax.plan import Plan, Update


class Planned(Controller):
    """Walks through a plan; observations change nothing.

    >>> import numpy as np
    >>> planned = Planned(Plan(10, batch_sizes=[2, 4], learning_rates=[0.1, 0.2], momentums=[0, 0]))
    >>> planned.next_update()
    Update(update=0, examples_seen=0, batch_size=2, learning_rate=0.1, momentum=0.0)
    >>> planned.next_update().batch_size, planned.next_update()
    (4, None)
    """

    def __init__(self, plan: Plan):
        self.plan = plan
        self.dataset_size = plan.dataset_size
        self.batch_sizes = set(plan.batch_sizes.tolist())
        self.num_examples = plan.num_examples
        self._num_updates = 0

    def next_update(self) -> Update | None:
        if self._num_updates == self.plan.num_updates:
            return None
        self._num_updates += 1
        return self.plan[self._num_updates - 1]

    def state(self) -> dict[str, Any]:
        return {"num_updates": self._num_updates}

    def restore(self, state: dict[str, Any]) -> None:
        self._num_updates = state["num_updates"]

    def identity(self) -> dict[str, Any]:
        plan = self.plan
        checksum = zlib.crc32(plan.to_json().encode())
        return {"plan": f"{plan.num_updates:,} updates from example {plan.start:,}, CRC-32 {checksum}"}
