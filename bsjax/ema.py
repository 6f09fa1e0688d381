"""An exponential moving average (EMA) of the parameters, whose horizon in examples stays when the batch grows.

`ScaleEma` gives a recipe the decay of each update; `bsjax.optimizers.average_parameters` keeps the average.
"""

import dataclasses
from typing import ClassVar

from bsjax.conversions import Conversion, Converter, Others
from bsjax.errors import InvalidArgument
from bsjax.schedules import Hyperparameters, Schedules


@dataclasses.dataclass(frozen=True)
class ScaleEma(Conversion):
    r"""Scales the decay d of an average of the parameters with the batch: κ = B'/B, B being the recipe's own.

    .. math:: d' = d^\kappa, \quad \text{which keeps} \quad B / \ln(1/d)

    at every instant: the number of examples after which the weight of old parameters in the average has fallen by e.
    κ is that of all conversions together, so it does not matter where in a recipe this one stands. d is the recipe's
    hyperparameter "ema_decay", and comes out as a schedule of the plan.

    Raises:
      InvalidArgument: the recipe has no "ema_decay", or one outside [0, 1).

    Reference: Busbridge et al., 2023 (https://arxiv.org/abs/2307.13813), Definition 1.2.
    """

    keeps_noise: ClassVar[bool] = False

    def fit(self, before: Hyperparameters, own: Schedules) -> Converter:
        others = own.others_at(own.positions)
        if "ema_decay" not in others:
            allowed = "a mapping with ema_decay, which scale_ema scales"
            raise InvalidArgument("hyperparameters", sorted(others), allowed, {"ema_decay": 0.999})
        decays = others["ema_decay"]
        bad = ~((decays >= 0) & (decays < 1))
        if bad.any():
            raise InvalidArgument("hyperparameters ema_decay", decays[bad.argmax()].item(), "in [0, 1)", 0.999)
        return lambda position, values: values

    def complete(self, own: Hyperparameters, values: Hyperparameters, others: Others) -> tuple[Hyperparameters, Others]:
        return values, others | {"ema_decay": others["ema_decay"] ** (values.batch_size / own.batch_size)}
