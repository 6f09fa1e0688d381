"""bsjax: train in JAX with a growing batch instead of a decaying learning rate."""

from bsjax.errors import InvalidArgument
from bsjax.noise import sgd_noise_scale
from bsjax.plan import Phase, Plan, Update
from bsjax.recipe import Hyperparameters, Recipe

__version__ = "0.1.0"

__all__ = ["Hyperparameters", "InvalidArgument", "Phase", "Plan", "Recipe", "Update", "sgd_noise_scale"]
