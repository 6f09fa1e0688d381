"""A batch that is small early and grows to the recipe's, as language models are trained."""

import dataclasses
from typing import Any

import numpy as np

from bsjax.conversions import Conversion, Converter, floor_sizes
from bsjax.errors import InvalidArgument, check_whole, is_finite
from bsjax.schedules import ROUNDING, Hyperparameters, Schedules


@dataclasses.dataclass(frozen=True)
class WarmUpBatchSize(Conversion):
    r"""Makes the batch smaller until some time, and the learning rate with it.

    .. math:: B' = \lfloor f B \rfloor, \quad lr' = lr (B'/B)^\rho

    where f(t) is `factors[i]` until the time `until[i]`, and 1 from the last of these times on. So lr / (B^ρ (1 - m))
    stays the recipe's at every instant. With `linear=True`, f rises in straight lines instead: from `factors[0]` at the
    start through `factors[i]` at `until[i - 1]` to 1 at the last time; B' is rounded down to the allowed sizes.

    Args:
      factors: the shares of the recipe's batch, in increasing order in (0, 1); one number or several.
      until: when each ends, on the recipe's clock, in increasing order; as many.
      scaling: "linear" (ρ = 1), "sqrt" (ρ = 1/2), or ρ itself, in (0, 1].
      linear: whether the batch ramps.
      multiple_of: allow only multiples of this, such as devices × ghost batch size.

    Raises:
      InvalidArgument: an argument is out of range.

    Reference: Merrill et al., 2025 (https://arxiv.org/abs/2505.23971): the batch that training can use grows early.
    """

    factors: tuple[float, ...]
    until: tuple[float, ...]
    scaling: str | float = "sqrt"
    linear: bool = False
    multiple_of: int = 1

    def __post_init__(self):
        object.__setattr__(self, "scaling", self.exponent)
        for name in ("factors", "until"):
            object.__setattr__(self, name, _increasing(name, getattr(self, name)))
        if self.factors[-1] >= 1:
            below = tuple(factor for factor in self.factors if factor < 1) or (0.5,)
            raise InvalidArgument("factors", self.factors, "below 1, the recipe's own batch", below)
        if len(self.until) != len(self.factors):
            allowed = f"one time for each of the {len(self.factors)} factors"
            raise InvalidArgument("until", self.until, allowed)
        check_whole("multiple_of", self.multiple_of)

    def fit(self, before: Hyperparameters, own: Schedules) -> Converter:
        if self.until[-1] > own.end * (1 + 0.5 / own.num_examples):  # num_epochs is rounded to examples
            nearest = (*(time for time in self.until[:-1] if time < own.end), own.end)
            raise InvalidArgument("until", self.until, f"at most {own.end:g} {own.clock}, the end of training", nearest)
        self._check_sizes(before.batch_size, self._fraction(own.clock_at(own.positions)))
        exponent, unit = self.exponent, self.multiple_of

        def convert(position: np.ndarray, values: Hyperparameters) -> Hyperparameters:
            size, fraction = values.batch_size, self._fraction(own.clock_at(position))
            smaller = floor_sizes(fraction * size / unit).clip(1).astype(np.int64) * unit
            new_size = np.where(fraction < 1, np.minimum(smaller, size), size)
            return values._replace(
                batch_size=new_size, learning_rate=values.learning_rate * (new_size / size) ** exponent
            )

        return convert

    def _fraction(self, clock: np.ndarray) -> np.ndarray:
        """f at some times, float64[n]."""
        levels = np.array([*self.factors, 1.0])
        if self.linear:
            return np.interp(clock, [0.0, *self.until], levels)
        return levels[np.searchsorted(self.until, clock, side="right")]

    def _check_sizes(self, sizes: np.ndarray, fraction: np.ndarray) -> None:
        """Refuses a size that is no multiple; a ramp is rounded, so only its first must be large enough."""
        unit, targets = self.multiple_of, fraction * sizes
        multiples = floor_sizes(targets / unit) * unit
        bad = (fraction < 1) & (multiples < unit if self.linear else multiples < targets * (1 - ROUNDING))
        if not bad.any():
            return
        first = int(bad.argmax())
        size, factor = int(sizes[first]), fraction[first].item()
        what = "at least" if self.linear else "a multiple of"
        allowed = f"such that batch_size {size} · {factor:g} = {targets[first]:g} is {what} multiple_of {unit}"
        raise InvalidArgument("factors", self.factors, allowed, self._nearest(size, factor))

    def _nearest(self, size: int, factor: float) -> tuple[float, ...] | None:
        """The factors with another one in the place of this, of which the size is a multiple; None if there is none."""
        index = max(i for i, one in enumerate(self.factors) if one <= factor)
        below, above = (0.0, *self.factors)[index], (*self.factors, 1.0)[index + 1]
        multiple = self.multiple_of * np.arange(1, size // self.multiple_of + 1)
        possible = multiple[(multiple > below * size) & (multiple < above * size)] / size
        if not len(possible):
            return None
        nearest = possible[np.abs(possible - factor).argmin()].item()
        return (*self.factors[:index], nearest, *self.factors[index + 1 :])


def _increasing(name: str, given: Any) -> tuple[float, ...]:
    """A number or several as a tuple; refuses what is not positive or does not increase."""
    try:
        values = tuple(given) if np.ndim(given) else (given,)
    except ValueError:  # parts of different lengths
        values = ()
    numbers = [value for value in values if is_finite(value) and value > 0]
    if not values or list(values) != sorted(set(numbers)):
        nearest = tuple(sorted(set(numbers))) or None
        raise InvalidArgument(name, given, "a positive number, or several in increasing order", nearest)
    return values
