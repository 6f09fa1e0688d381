"""Controllers: how large is the next update, at which learning rate?

| controller | batch size | optimizers | clock |
|---|---|---|---|
| `Planned` | a plan's | all | examples |
| `GradientNoise` | c·B_simple, or sqrt(B_simple/λ) | all | examples |
| `Cabs` | η·tr(Σ)/F | sgd | examples |
| `AdaScale` | S·B₀, learning rate × gain | sgd, momentum, nesterov | updates of the recipe |
| `AdaBatch` | ×2 every k epochs | all | examples |
| `Plateau` | ×1/factor where the loss has stopped falling | all | examples |
| `CriticalBatch` | ×2 where the critical batch size exceeds twice it | all | examples |

All but the first take a recipe, whose learning rate is the budget, and `Limits` for the batch size; see `Adaptive`.
"""

from bsjax.controllers.adabatch import AdaBatch
from bsjax.controllers.adaptive import Adaptive, Instant, scaling_rule
from bsjax.controllers.adascale import AdaScale
from bsjax.controllers.cabs import Cabs
from bsjax.controllers.create import CONTROLLERS, check_microbatches, create_controller
from bsjax.controllers.critical_batch import CriticalBatch
from bsjax.controllers.gradient_noise import GradientNoise
from bsjax.controllers.limits import Limits
from bsjax.controllers.planned import Planned
from bsjax.controllers.plateau import Plateau
from bsjax.controllers.protocol import LAG, Controller, Observation

__all__ = [
    "LAG",
    "Controller",
    "Observation",
    "Limits",
    "Adaptive",
    "Instant",
    "scaling_rule",
    "Planned",
    "GradientNoise",
    "Cabs",
    "AdaScale",
    "AdaBatch",
    "Plateau",
    "CriticalBatch",
    "CONTROLLERS",
    "create_controller",
    "check_microbatches",
]
