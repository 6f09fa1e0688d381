"""What changes during a run, and how a checkpoint writes it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from bsjax.controllers import Controller
from bsjax.controllers.protocol import state_from_json, state_to_json
from bsjax.engine import TrainState
from bsjax.plan import Update
from bsjax.run.log import LogState
from bsjax.run.noise import NoiseState


class RunState(NamedTuple):
    """Everything that changes during a run; a checkpoint holds it."""

    train: TrainState  # on the devices
    controller: Any  # its state, after it has decided `update`
    update: Update | None  # the next one; None at the end of the run
    log: LogState
    noise: NoiseState = NoiseState()
    evaluation: Mapping[str, float] = {}  # results of the last one

    def to_json(self) -> dict[str, Any]:
        """All but `train`."""
        return {
            "log": self.log._asdict(),
            "noise": self.noise.to_json(),
            "controller": state_to_json(self.controller),
            "update": self.update,
            "evaluation": self.evaluation,
        }

    @classmethod
    def from_json(cls, train: TrainState, controller: Controller, value: Mapping[str, Any]) -> "RunState":
        return cls(
            train,
            state_from_json(controller, value["controller"]),
            value["update"] and Update(*value["update"]),
            LogState.from_json(value["log"]),
            NoiseState.from_json(value["noise"]),
            value["evaluation"],
        )
