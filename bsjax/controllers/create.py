"""Controllers by name, and what they need of optimizer and microbatches."""

import inspect
from typing import Any

from bsjax.controllers.adabatch import AdaBatch
from bsjax.controllers.adaptive import scaling_rule
from bsjax.controllers.adascale import AdaScale
from bsjax.controllers.cabs import Cabs
from bsjax.controllers.critical_batch import CriticalBatch
from bsjax.controllers.gradient_noise import GradientNoise
from bsjax.controllers.limits import Limits
from bsjax.controllers.planned import Planned
from bsjax.controllers.plateau import Plateau
from bsjax.controllers.protocol import Controller
from bsjax.errors import InvalidArgument, check_choice
from bsjax.layout import Layouts
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


def create_controller(name: str, recipe: Recipe, limits: Limits, optimizer: str, **options: Any) -> Controller:
    """A controller by its name, with the scaling rule of the optimizer.

    Args:
      name: one of `CONTROLLERS`.
      recipe: what it adapts. "planned" takes it as it is, and neither limits nor options.
      limits: which batch sizes it may choose.
      optimizer: one of `bsjax.optimizers.OPTIMIZERS`.
      **options: arguments of the controller's class; `scaling` is the optimizer's if it is not given.

    Raises:
      InvalidArgument: no such controller or option, an optimizer that the controller does not work with, or a value
        that cannot be used.

    >>> recipe, limits = Recipe(0.1, 32, 1000, num_epochs=1), Limits(32, 512)
    >>> create_controller("gradient_noise", recipe, limits, "adam", factor=0.5).identity()["scaling"]
    'sqrt'
    >>> create_controller("gradient_noise", recipe, limits, "adam", factr=0.5)
    Traceback (most recent call last):
    ...
    bsjax.errors.InvalidArgument: option of gradient_noise is 'factr'; it must be one of scaling, bound_by_decay, \
factor, example_price; nearest: factor
    """
    kind = CONTROLLERS[check_choice("controller", name, CONTROLLERS)]
    kind.check_optimizer(optimizer)
    known = [option for option in inspect.signature(kind).parameters if option not in ("recipe", "limits", "plan")]
    for option in options:
        if not known:
            raise InvalidArgument(f"option of {name}", option, "left out: it has none")
        check_choice(f"option of {name}", option, known)
    if kind is Planned:
        return Planned(recipe.plan())
    if "scaling" in known:
        options = {"scaling": scaling_rule(optimizer), **options}
    return kind(recipe, limits, **options)


def check_microbatches(controller: Controller, layouts: Layouts, ghost_batch_size: int) -> None:
    """Refuses layouts in which a controller could not measure the gradient noise.

    Args:
      controller: which batch sizes may come.
      layouts: how each of them runs.
      ghost_batch_size: 1 without batch norm.

    Raises:
      InvalidArgument: an update may come as one microbatch on one device, or all of it in shares of one ghost.

    >>> recipe = Recipe(0.1, 32, 1000, num_epochs=1)
    >>> layouts = Layouts([32], 8, numbers_of_devices=[1], max_microbatch_size=64, microbatch_size=64)
    >>> check_microbatches(GradientNoise(recipe, Limits(32, 512, 8)), layouts, ghost_batch_size=8)
    Traceback (most recent call last):
    ...
    bsjax.errors.InvalidArgument: microbatch_size is 64; it must be small enough for two microbatches × devices in \
a batch of 32: GradientNoise needs the gradient noise; nearest: 16
    """
    if not controller.needs_noise:
        return
    kind = type(controller).__name__
    largest = max(size for sizes in layouts.microbatch_sizes.values() for size in sizes)
    for size in controller.batch_sizes:
        if size < 2 * ghost_batch_size:
            allowed = f"at least two of ghost_batch_size {ghost_batch_size}: {kind} needs the gradient noise"
            raise InvalidArgument("min_batch_size", size, allowed, 2 * ghost_batch_size)
        if size > largest:
            continue
        microbatch_size = layouts(size).microbatch_size
        if microbatch_size >= size:
            allowed = (
                f"small enough for two microbatches × devices in a batch of {size}: {kind} needs the gradient noise"
            )
            nearest = max(size // 2 // ghost_batch_size, 1) * ghost_batch_size
            raise InvalidArgument("microbatch_size", microbatch_size, allowed, nearest)
