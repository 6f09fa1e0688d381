"""What a run is: everything that its numbers depend on, and which settings go together."""

import dataclasses
from typing import Any

from bsjax.errors import InvalidArgument, check_choice
from bsjax.optimizers import NO_SCALING_RULE, WITHOUT_SCALING_RULE
from experiments.harness.concerns import (
    ControllerConfig,
    ConversionConfig,
    DataConfig,
    OptimizerConfig,
    RecipeConfig,
    RunConfig,
    TaskConfig,
    text,
)

__all__ = ["CONCERNS", "Config", "text"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that a run's numbers depend on, by concern.

    A field has the name of its flag, and all names differ.

    >>> config = Config().replace(model="mlp", seed=3)
    >>> config.task.model, config.run.seed, config.flat()["batch_size"]
    ('mlp', 3, 8)
    """

    # ruff: noqa: RUF009 - each concern is frozen
    data: DataConfig = DataConfig()
    task: TaskConfig = TaskConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    recipe: RecipeConfig = RecipeConfig()
    conversion: ConversionConfig = ConversionConfig()
    controller: ControllerConfig = ControllerConfig()
    run: RunConfig = RunConfig()

    def __post_init__(self):
        if self.controller.controller != "planned" and self.conversion.schedule != "decay_learning_rate":
            allowed = "decay_learning_rate with a controller, which grows the batch"
            raise InvalidArgument("schedule", self.conversion.schedule, allowed, "decay_learning_rate")
        if self.optimizer.optimizer == "sgd" and self.conversion.scale_momentum is not None:
            allowed = "combined with another optimizer than sgd, which has no momentum"
            raise InvalidArgument("scale_momentum", self.conversion.scale_momentum, allowed, "optimizer=momentum")
        if self.optimizer.ema_decay is not None and self.controller.controller != "planned":
            allowed = "left out with a controller, whose batches the average would not follow"
            raise InvalidArgument("ema_decay", self.optimizer.ema_decay, allowed, "controller=planned")
        self._check_scaling_rule()

    def _check_scaling_rule(self) -> None:
        """Refuses conversions that have no rule for this optimizer."""
        name, conversion, controller = self.optimizer.optimizer, self.conversion, self.controller.controller
        changed = conversion.changed if controller == "planned" else ("controller", *conversion.changed)
        if name in WITHOUT_SCALING_RULE and changed:
            value = controller if changed[0] == "controller" else text(getattr(conversion, changed[0]))
            raise InvalidArgument("optimizer", name, f"{NO_SCALING_RULE}, with {changed[0]}={value}", "momentum")
        if name == "muon" and conversion.changed and conversion.batch_scaling == "linear":
            # The linear rule is that of a step as long as its gradient; Muon's has one length whatever the gradient's.
            allowed = (
                "sqrt, or an exponent below 1, with optimizer=muon; sqrt is its usual rule, which nobody has shown"
            )
            raise InvalidArgument("batch_scaling", "linear", allowed, "sqrt")
        if conversion.scale_adam != "no" and name not in ("adam", "adamw"):
            allowed = f"combined with --optimizer=adam or adamw, not {name}"
            raise InvalidArgument("scale_adam", conversion.scale_adam, allowed, "no")
        if conversion.batch_warmup_epochs and controller != "planned":
            times = text(conversion.batch_warmup_epochs)
            raise InvalidArgument("batch_warmup_epochs", times, "empty with a controller, which sets the batch")

    def replace(self, **fields: Any) -> "Config":
        """A copy with other values of some fields, of any concern.

        Raises:
          InvalidArgument: a value cannot be used, or there is no such field.
        """
        changed: dict[str, dict[str, Any]] = {}
        for name, value in fields.items():
            changed.setdefault(_OWNERS[check_choice("field", name, _OWNERS)], {})[name] = value
        concerns = {owner: dataclasses.replace(getattr(self, owner), **values) for owner, values in changed.items()}
        return dataclasses.replace(self, **concerns)

    def flat(self) -> dict[str, Any]:
        """The value of every field of every concern, by its name."""
        return {name: getattr(getattr(self, owner), name) for name, owner in _OWNERS.items()}


CONCERNS: dict[str, Any] = {one.name: one.type for one in dataclasses.fields(Config)}
_OWNERS = {one.name: owner for owner, concern in CONCERNS.items() for one in dataclasses.fields(concern)}
