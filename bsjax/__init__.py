"""bsjax: train in JAX with a growing batch instead of a decaying learning rate."""

from bsjax.adam import AdamStabilityWarning, ScaleAdam, check_adam_stability
from bsjax.batch_schedule import BatchSchedule, from_batch_schedule
from bsjax.conversions import IncreaseBatchSize, ScaleLearningRate, ScaleMomentum
from bsjax.ema import ScaleEma
from bsjax.errors import InvalidArgument
from bsjax.noise import kept_noise, sgd_noise_scale
from bsjax.plan import Phase, Plan, Update
from bsjax.recipe import Recipe
from bsjax.schedules import Hyperparameters
from bsjax.tokens import recipe_in_tokens
from bsjax.warm_up import WarmUpBatchSize

__version__ = "0.1.0"

__all__ = [
    "Recipe",
    "Plan",
    "Phase",
    "Update",
    "Hyperparameters",
    "IncreaseBatchSize",
    "ScaleLearningRate",
    "ScaleMomentum",
    "WarmUpBatchSize",
    "ScaleAdam",
    "ScaleEma",
    "check_adam_stability",
    "AdamStabilityWarning",
    "BatchSchedule",
    "from_batch_schedule",
    "recipe_in_tokens",
    "sgd_noise_scale",
    "kept_noise",
    "InvalidArgument",
]
