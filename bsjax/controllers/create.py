"""Controllers and their options by name."""

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from bsjax.controllers.adabatch import AdaBatch
from bsjax.controllers.adaptive import FollowingOptions
from bsjax.controllers.adascale import AdaScale
from bsjax.controllers.cabs import Cabs
from bsjax.controllers.critical_batch import CriticalBatch
from bsjax.controllers.gradient_noise import GradientNoise
from bsjax.controllers.limits import Limits
from bsjax.controllers.planned import Planned
from bsjax.controllers.plateau import Plateau
from bsjax.controllers.protocol import Controller
from bsjax.errors import InvalidArgument, check_choice
from bsjax.optimizers import NO_SCALING_RULE, OPTIMIZERS, WITHOUT_SCALING_RULE
from bsjax.recipe import Recipe

CONTROLLERS: dict[str, Any] = {
    "planned": Planned,
    "gradient_noise": GradientNoise,
    "cabs": Cabs,
    "adascale": AdaScale,
    "adabatch": AdaBatch,
    "plateau": Plateau,
    "critical_batch": CriticalBatch,
}

# Muon's rule is what its users do; nobody has shown it.
_SQRT_OPTIMIZERS = ("adam", "adamw", "rmsprop", "muon")


def create_controller(name: str, recipe: Recipe, limits: Limits, optimizer: str, options: Any = None) -> Controller:
    """A controller by its name, with the scaling rule of the optimizer.

    Args:
      name: one of `CONTROLLERS`.
      recipe: what it adapts. "planned" takes it as it is, without limits.
      limits: which batch sizes it may choose.
      optimizer: one of `bsjax.optimizers.OPTIMIZERS`; its scaling rule holds where the options have None.
      options: of the controller's `options_type`; None: the defaults.

    Raises:
      InvalidArgument: no such controller, options of another one, an optimizer that the controller does not work with,
        or a value that cannot be used.

    >>> from bsjax.controllers import GradientNoiseOptions
    >>> recipe, limits = Recipe(0.1, 32, 1000, num_epochs=1), Limits(32, 512)
    >>> create_controller("gradient_noise", recipe, limits, "adam", GradientNoiseOptions(factor=0.5)).exponent
    0.5
    >>> create_controller("cabs", recipe, limits, "momentum")
    Traceback (most recent call last):
    ...
    bsjax.errors.InvalidArgument: optimizer is 'momentum'; it must be sgd for cabs; nearest: sgd
    """
    kind = CONTROLLERS[check_choice("controller", name, CONTROLLERS)]
    check_choice("optimizer", optimizer, OPTIMIZERS)
    if optimizer not in kind.optimizers:
        raise InvalidArgument("optimizer", optimizer, f"{' or '.join(kind.optimizers)} for {name}", kind.optimizers[0])
    if options is None:
        options = kind.options_type()
    if type(options) is not kind.options_type:
        raise InvalidArgument("options", options, f"{kind.options_type.__name__} for {name}", kind.options_type())
    if kind is Planned:
        return Planned(recipe.plan())
    if isinstance(options, FollowingOptions) and options.scaling is None:
        options = dataclasses.replace(options, scaling=scaling_rule(optimizer))
    return kind(recipe, limits, options)


def options_from_mapping(name: str, mapping: Mapping[str, Any]) -> Any:
    """The options of a controller, from names and values as a command line or a file has them.

    Args:
      name: one of `CONTROLLERS`.
      mapping: values by the names of the options: JSON values, or their text. A list becomes a tuple.

    Returns:
      An instance of the controller's `options_type`.

    Raises:
      InvalidArgument: no such controller or option, or a value of the wrong type or out of range.

    >>> options_from_mapping("adabatch", {"every_epochs": "7.5", "bound_by_decay": "true", "scaling": "sqrt"})
    AdaBatchOptions(scaling='sqrt', bound_by_decay=True, every_epochs=7.5, factor=2.0)
    >>> options_from_mapping("plateau", {"patince": 3})
    Traceback (most recent call last):
    ...
    bsjax.errors.InvalidArgument: controller_options is 'patince'; it must be one of scaling, bound_by_decay, factor, \
patience, rtol, atol, cooldown, accumulation_size, min_scale; nearest: patience
    """
    options_type = CONTROLLERS[check_choice("controller", name, CONTROLLERS)].options_type
    names = [field.name for field in dataclasses.fields(options_type)]
    for option in mapping:
        if not names:
            raise InvalidArgument("controller_options", option, f"empty: {name} has no options")
        check_choice("controller_options", option, names)
    return options_type(**{option: _parse(value) for option, value in mapping.items()})


def scaling_rule(optimizer: str) -> str:
    """How an optimizer's learning rate follows the batch size.

    Raises:
      InvalidArgument: no such optimizer, or lars or lamb, for which no rule is known.

    >>> scaling_rule("momentum"), scaling_rule("adamw")
    ('linear', 'sqrt')
    """
    check_choice("optimizer", optimizer, OPTIMIZERS)
    if optimizer in WITHOUT_SCALING_RULE:
        raise InvalidArgument("optimizer", optimizer, NO_SCALING_RULE, "momentum")
    return "sqrt" if optimizer in _SQRT_OPTIMIZERS else "linear"


def _parse(value: Any) -> Any:
    """The JSON value of a text, or the text itself where it is none; a list as a tuple."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    return tuple(value) if isinstance(value, list) else value
