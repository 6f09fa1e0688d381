"""Controllers choose the batch size and the learning rate of the next update.

| controller | batch size | optimizers | clock |
|---|---|---|---|
| `Planned` | a plan's | all | examples |
| `GradientNoise` | c·B_simple, or sqrt(B_simple/λ) | all | examples |
| `Cabs` | η·tr(Σ)/F | sgd | examples |
| `AdaScale` | S·B₀, learning rate × gain | sgd, momentum, nesterov | updates of the recipe |
| `AdaBatch` | ×2 every k epochs | all | examples |
| `Plateau` | ×1/factor where the loss has stopped falling | all | examples |
| `CriticalBatch` | ×2 where the critical batch size exceeds twice it | all | examples |

A controller is a frozen dataclass of settings; its methods are functions of a state, see `Controller`.
All but the first take a recipe, whose learning rate is the budget, `Limits` for the batch size, and options; see
`Adaptive` and `Following`.
"""

from bsjax.controllers.adabatch import AdaBatch, AdaBatchOptions
from bsjax.controllers.adaptive import Adaptive, AdaptiveState, Following, FollowingOptions, Instant
from bsjax.controllers.adascale import AdaScale, AdaScaleOptions
from bsjax.controllers.cabs import Cabs, CabsOptions
from bsjax.controllers.create import CONTROLLERS, create_controller, options_from_mapping, scaling_rule
from bsjax.controllers.critical_batch import CriticalBatch, CriticalBatchOptions
from bsjax.controllers.gradient_noise import GradientNoise, GradientNoiseOptions
from bsjax.controllers.limits import Limits
from bsjax.controllers.planned import Planned, PlannedOptions
from bsjax.controllers.plateau import Plateau, PlateauOptions
from bsjax.controllers.protocol import LAG, Controller, Observation, state_from_json, state_to_json

__all__ = [
    "LAG",
    "Controller",
    "Observation",
    "state_to_json",
    "state_from_json",
    "Limits",
    "Adaptive",
    "AdaptiveState",
    "Following",
    "FollowingOptions",
    "Instant",
    "Planned",
    "PlannedOptions",
    "GradientNoise",
    "GradientNoiseOptions",
    "Cabs",
    "CabsOptions",
    "AdaScale",
    "AdaScaleOptions",
    "AdaBatch",
    "AdaBatchOptions",
    "Plateau",
    "PlateauOptions",
    "CriticalBatch",
    "CriticalBatchOptions",
    "CONTROLLERS",
    "create_controller",
    "options_from_mapping",
    "scaling_rule",
]
