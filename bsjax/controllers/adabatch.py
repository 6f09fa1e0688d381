"""AdaBatch: the batch doubles every so many epochs."""

import math

from bsjax.controllers.adaptive import Adaptive, Instant, power
from bsjax.controllers.limits import Limits
from bsjax.errors import InvalidArgument, check_positive, is_finite
from bsjax.recipe import Recipe


class AdaBatch(Adaptive):
    r"""Multiplies the batch by a factor every k epochs, and the learning rate with it.

    .. math:: B = B_r f^{\lfloor epoch / k \rfloor}, \qquad \eta' = \eta (B / B_r)^\rho

    The paper's runs: f = 2 and k = 20 on CIFAR-10, where the baseline's learning rate falls by 0.375 every
    20 epochs and AdaBatch's by 2 · 0.375 = 0.75; k = 30 on ImageNet. So the recipe is the baseline, decay and all.
    From the largest allowed size on the batch stays, and the learning rate follows the recipe's decay.

    Limits: any optimizer; nothing is measured. The learning rate rises above the recipe's where this decays by less
    than f^ρ: `bound_by_decay` prevents it, and is then `Recipe.increase_batch_size` in steps.

    Args:
      recipe, limits, scaling, bound_by_decay: see `Adaptive`.
      every_epochs: k, positive.
      factor: f, greater than 1.

    Raises:
      InvalidArgument: a value is out of range.

    >>> controller = AdaBatch(Recipe(0.1, 10, 100, num_epochs=3), Limits(10, 20), every_epochs=1)
    >>> updates = list(iter(controller.next_update, None))
    >>> [(update.batch_size, update.learning_rate) for update in (updates[0], updates[10], updates[-1])]
    [(10, 0.1), (20, 0.2), (20, 0.2)]

    Reference: Devarakonda, Naumov and Garland, 2017 (https://arxiv.org/abs/1712.02029), Sections 3 and 4.
    """

    exact = True

    def __init__(
        self,
        recipe: Recipe,
        limits: Limits,
        scaling: str = "linear",
        bound_by_decay: bool = False,
        every_epochs: float = 20.0,
        factor: float = 2.0,
    ):
        super().__init__(recipe, limits, scaling, bound_by_decay)
        check_positive("every_epochs", every_epochs)
        if not (is_finite(factor) and factor > 1):
            raise InvalidArgument("factor", factor, "a number greater than 1", 2)
        self._every_examples = max(1, math.floor(every_epochs * recipe.dataset_size + 0.5))
        self._factor = factor
        self._settings |= {"every_epochs": every_epochs, "factor": factor}

    def target(self, now: Instant) -> float:
        return now.batch_size * power(self._factor, now.examples_seen // self._every_examples)
