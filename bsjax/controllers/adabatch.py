"""AdaBatch: the batch doubles every k epochs."""

import dataclasses
import math

from bsjax.controllers.adaptive import AdaptiveState, Following, FollowingOptions, Instant, power
from bsjax.errors import check_number, check_positive


@dataclasses.dataclass(frozen=True)
class AdaBatchOptions(FollowingOptions):
    """Options of `AdaBatch`.

    Args:
      scaling, bound_by_decay: see `FollowingOptions`.
      every_epochs: k, positive.
      factor: f, greater than 1.

    Raises:
      InvalidArgument: a value is out of range.
    """

    every_epochs: float = 20.0
    factor: float = 2.0

    def __post_init__(self):
        super().__post_init__()
        check_positive("every_epochs", self.every_epochs)
        check_number("factor", self.factor, lambda f: f > 1, "a number greater than 1", 2)


@dataclasses.dataclass(frozen=True)
class AdaBatch(Following):
    r"""Multiplies the batch by a factor every k epochs, and the learning rate with it.

    .. math:: B = B_r f^{\lfloor epoch / k \rfloor}, \qquad \eta' = \eta (B / B_r)^\rho

    The paper's runs: f = 2 and k = 20 on CIFAR-10, where the baseline's learning rate falls by 0.375 every
    20 epochs and AdaBatch's by 2 · 0.375 = 0.75; k = 30 on ImageNet. So the recipe is the baseline with its decay.
    At the largest allowed size the batch stays, and the learning rate follows the recipe's decay.

    Limits: it works with any optimizer and measures nothing. The learning rate rises above the recipe's where this
    decays by less than f^ρ: `bound_by_decay` prevents this, and the result is `Recipe.increase_batch_size` in steps.

    Args:
      recipe, limits: see `Adaptive`.
      options: see `AdaBatchOptions`.

    >>> from bsjax import Recipe
    >>> from bsjax.controllers import Limits
    >>> controller = AdaBatch(Recipe(0.1, 10, 100, num_epochs=2), Limits(10, 20), AdaBatchOptions(every_epochs=1))
    >>> state = controller.init()._replace(examples_seen=100)
    >>> update, state = controller.decide(state)
    >>> update.batch_size, update.learning_rate
    (20, 0.2)

    Reference: Devarakonda, Naumov and Garland, 2017 (https://arxiv.org/abs/1712.02029), Sections 3 and 4.
    """

    exact = True
    options_type = AdaBatchOptions

    options: AdaBatchOptions = AdaBatchOptions()

    def target(self, state: AdaptiveState, now: Instant) -> float:
        every_examples = max(1, math.floor(self.options.every_epochs * self.dataset_size + 0.5))
        return now.batch_size * power(self.options.factor, now.examples_seen // every_examples)
