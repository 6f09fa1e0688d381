"""bsjax: train in JAX with a growing batch instead of a decaying learning rate."""

from bsjax.conversions import IncreaseBatchSize, ScaleLearningRate, ScaleMomentum
from bsjax.errors import InvalidArgument
from bsjax.noise import kept_noise, sgd_noise_scale
from bsjax.plan import Phase, Plan, Update
from bsjax.recipe import Recipe
from bsjax.schedules import Hyperparameters

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
    "sgd_noise_scale",
    "kept_noise",
    "InvalidArgument",
]
