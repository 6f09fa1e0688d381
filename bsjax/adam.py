"""What a larger batch does to Adam's constants, and the bound beyond which a growing batch is unstable with Adam.

The conversions of `bsjax.conversions` change the batch and the learning rate. A batch κ times the recipe's averages
more examples in each update, so that what counts updates, such as b2, must change with it.
"""

import dataclasses
import decimal
import warnings
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bsjax.conversions import Conversion, Converter, IncreaseBatchSize, Others, round_significant
from bsjax.errors import InvalidArgument, check_choice, check_number
from bsjax.schedules import ROUNDING, Hyperparameters, Schedules

if TYPE_CHECKING:
    from bsjax.recipe import Recipe

_B2_RULES = ("half_life", "sde")
_USUAL = {"b2": 0.999, "eps": 1e-8, "weight_decay": 0.1}  # for the examples in errors


@dataclasses.dataclass(frozen=True)
class ScaleAdam(Conversion):
    r"""Scales b2, ε and the decoupled weight decay with the batch: κ = B'/B at every instant, B being the recipe's own.

    The rules, and what each keeps at every instant:

    .. math::
        \text{half_life:} \quad & \beta_2' = \beta_2^\kappa & \quad & B / \ln(1/\beta_2) \\
        \text{sde:} \quad & 1 - \beta' = \kappa (1 - \beta) & \quad & (1 - \beta) / B \\
        \text{epsilon:} \quad & \epsilon' = \epsilon / \sqrt\kappa & \quad & \epsilon \sqrt{B} \\
        \text{time_scale:} \quad & \lambda' = \lambda \kappa \, lr / lr' & \quad & \tau = B / (lr \lambda D)

    "half_life" keeps the number of examples after which a squared gradient counts half, B ln 2 / ln(1/β₂), and leaves
    b1, the recipe's momentum, as it is. "sde" keeps the discretisation of a stochastic differential equation; it holds
    for b1 and b2, and the learning rate does not make up for b1. A momentum of 0 stays. The two rules agree to first
    order in 1 - β. τ is the number of epochs, of D examples each, that AdamW's weights average over; where lr is 0,
    nothing decays and λ stays.

    κ is that of all conversions together, so it does not matter where in a recipe this one stands. The values to scale
    are the recipe's hyperparameters "b2", "eps" and "weight_decay". They come out as schedules of the plan. optax
    corrects the bias of Adam's averages as if b2 had always been what it is now, so let them fill, for a few times
    1/(1 - b2) updates, before the batch grows.

    Args:
      b2: the rule for b2: "half_life", "sde" or None, which leaves it as it is.
      epsilon: whether to scale ε.
      weight_decay: the rule for λ: "time_scale" or None.
      b2_floor: the least b2 in [0, 1), at most the recipe's; None: no floor. 0.95 is usual after spikes of the loss.

    Raises:
      InvalidArgument: an argument is out of range.

    References: half-life: https://arxiv.org/abs/2507.07101; sde and ε: https://arxiv.org/abs/2205.10287; τ:
    https://arxiv.org/abs/2405.13698, https://arxiv.org/abs/2505.13738.
    """

    b2: str | None = "half_life"
    epsilon: bool = True
    weight_decay: str | None = "time_scale"
    b2_floor: float | None = None
    keeps_noise: ClassVar[bool] = False

    def __post_init__(self):
        for name, rules in (("b2", _B2_RULES), ("weight_decay", ("time_scale",))):
            if (rule := getattr(self, name)) is not None:
                check_choice(name, rule, rules)
        if not isinstance(self.epsilon, bool):
            raise InvalidArgument("epsilon", self.epsilon, "True or False", bool(self.epsilon))
        if not self._names:
            raise InvalidArgument(
                "b2", None, f"one of {', '.join(_B2_RULES)} where nothing else is scaled", "half_life"
            )
        if self.b2_floor is not None:
            if self.b2 is None:
                raise InvalidArgument("b2_floor", self.b2_floor, "None where b2 stays as it is")
            check_number("b2_floor", self.b2_floor, lambda b2: 0 <= b2 < 1, "in [0, 1), or None", 0.95)

    @property
    def _names(self) -> dict[str, Any]:
        """The hyperparameters to scale, with the argument of this conversion that leaves each as it is."""
        chosen = {"b2": self.b2, "eps": self.epsilon, "weight_decay": self.weight_decay}
        off = {"b2": "b2=None", "eps": "epsilon=False", "weight_decay": "weight_decay=None"}
        return {name: off[name] for name, rule in chosen.items() if rule}

    def fit(self, before: Hyperparameters, own: Schedules) -> Converter:
        others = own.others_at(own.positions)
        if missing := {name: off for name, off in self._names.items() if name not in others}:
            allowed = (
                f"a mapping with {', '.join(missing)}, which scale_adam scales without {', '.join(missing.values())}"
            )
            raise InvalidArgument("hyperparameters", sorted(others), allowed, {n: _USUAL[n] for n in missing})
        for name in self._names:
            bad = ~((others[name] >= 0) & ((others[name] < 1) | (name != "b2")))
            if bad.any():
                allowed = "in [0, 1)" if name == "b2" else "a number >= 0"
                raise InvalidArgument(
                    f"hyperparameters {name}", others[name][bad.argmax()].item(), allowed, _USUAL[name]
                )
        if self.b2_floor is not None and self.b2_floor > (least := others["b2"].min().item()):
            raise InvalidArgument("b2_floor", self.b2_floor, f"at most the recipe's b2 {least}", least)
        return lambda position, values: values

    def complete(self, own: Hyperparameters, values: Hyperparameters, others: Others) -> tuple[Hyperparameters, Others]:
        kappa, others = values.batch_size / own.batch_size, dict(others)
        if self.b2 == "half_life":
            others["b2"] = others["b2"] ** kappa
        elif self.b2 == "sde":
            values = values._replace(momentum=self._scaled_b1(own, values))
            others["b2"] = self._scaled_b2(own, values, others["b2"])
        if self.b2_floor is not None:
            others["b2"] = np.maximum(others["b2"], self.b2_floor)
        if self.epsilon:
            others["eps"] = others["eps"] / np.sqrt(kappa)
        if self.weight_decay is not None:
            decay, lr = others["weight_decay"], values.learning_rate
            factor = np.divide(kappa * own.learning_rate, lr, out=np.ones_like(lr), where=lr > 0)
            others["weight_decay"] = decay * factor
        return values, others

    def _scaled_b1(self, own: Hyperparameters, values: Hyperparameters) -> np.ndarray:
        if not np.array_equal(own.momentum, values.momentum):
            allowed = "another rule together with scale_momentum, which raises b1 with the batch where sde lowers it"
            raise InvalidArgument("b2", "sde", allowed, "half_life")
        has_b1 = own.momentum > 0
        _check_sde("b1", own.momentum, own.batch_size, np.where(has_b1, values.batch_size, own.batch_size))
        return np.where(has_b1, _sde(own.momentum, values.batch_size / own.batch_size), 0.0)

    def _scaled_b2(self, own: Hyperparameters, values: Hyperparameters, b2: np.ndarray) -> np.ndarray:
        if self.b2_floor is None:
            _check_sde("b2", b2, own.batch_size, values.batch_size)
        return _sde(b2, values.batch_size / own.batch_size)


def _sde(beta: np.ndarray, kappa: np.ndarray) -> np.ndarray:
    return beta - (kappa - 1) * (1 - beta)  # exactly beta where kappa is 1


def _check_sde(name: str, beta: np.ndarray, own_size: np.ndarray, size: np.ndarray) -> None:
    """Refuses batches with κ(1 - β) >= 1, whose β would not be positive; names the largest batch that is not one."""
    limits = own_size * (1 - ROUNDING) / (1 - beta)
    bad = (size > own_size) & (size >= limits)
    if bad.any():
        first, largest = int(bad.argmax()), max(own_size.min(), np.ceil(limits[bad].min()) - 1)
        kappa, complement = size[first] / own_size[first], 1 - beta[first]
        allowed = (
            f"half_life for a batch of {size[first]}: sde needs κ(1 - {name}) < 1, and here it is "
            f"{kappa:g} · {complement:.6g} = {kappa * complement:.4g}"
        )
        raise InvalidArgument("b2", "sde", allowed, f"half_life, or a batch of at most {int(largest)}")


class AdamStabilityWarning(UserWarning):
    """A batch grows faster than Adam's bound of stability allows."""


def check_adam_stability(converted: "Recipe | Conversion") -> None:
    r"""Warns once for each conversion of a recipe, or for this one, if it grows the batch faster than Adam stands.

    Where a recipe divides its learning rate by a, `increase_batch_size` divides it by α and multiplies the batch by β:

    .. math:: \alpha = a^{1 - s}, \quad \beta = a^{s/\rho}, \qquad
        \alpha \ge \sqrt\beta \iff s \le \frac{2\rho}{1 + 2\rho}

    where s is the share and ρ the scaling's exponent. Adam divides the gradient by its size, which noise makes ∝ 1/√B:
    so its step is ∝ lr √B, and beyond the bound, as where the batch replaces all of the decay (s = 1), it grows. Such a
    run is expected to diverge or to end with a larger loss. A recipe does not know its optimizer: call this for Adam.

    Warns:
      AdamStabilityWarning: with the numbers, and the largest share within the bound.

    >>> import optax
    >>> from bsjax import Recipe
    >>> recipe = Recipe(optax.cosine_decay_schedule(1e-3, 10), 32, 20_000, num_epochs=10)
    >>> with warnings.catch_warnings(record=True, action="always") as caught:
    ...     check_adam_stability(recipe.increase_batch_size(scaling="sqrt", share=0.5))  # Seesaw
    ...     check_adam_stability(recipe.increase_batch_size(scaling="sqrt"))
    >>> print(*(warning.message for warning in caught))
    share is 1; for Adam it must be at most 0.5 with scaling 0.5: ... stable only for α >= √β = 2; nearest: 0.5

    Reference: Seesaw, https://arxiv.org/abs/2510.14717.
    """
    for conversion in (converted,) if isinstance(converted, Conversion) else converted.conversions:
        if not isinstance(conversion, IncreaseBatchSize):
            continue
        share, rho = conversion.share, conversion.exponent
        largest = 2 * rho / (1 + 2 * rho)
        if share > largest * (1 + ROUNDING):
            alpha, beta, limit = 2 ** (1 - share), 2 ** (share / rho), round_significant(largest, decimal.ROUND_FLOOR)
            message = (
                f"share is {share:g}; for Adam it must be at most {limit} with scaling {rho:g}: where the recipe's "
                f"learning rate halves, it falls by α = {alpha:.4g} and the batch grows by β = {beta:.4g}, but Adam is "
                f"stable only for α >= √β = {beta**0.5:.4g}; nearest: {limit}"
            )
            warnings.warn(message, AdamStabilityWarning, stacklevel=2)
