"""The paper's conversions of a recipe: each enlarges something and keeps the noise at every instant.

A conversion is a value: it prints, compares, hashes and pickles. `Recipe` keeps those that were applied to it. Each
keeps lr / (B^ρ (1 - m)) of the recipe that it converts, where ρ is 1 for the linear scaling rule and 1/2 for the
square-root rule. Batch sizes are whole: a conversion rounds the batch *down*, and the learning rate makes up the
difference.
"""

import abc
import dataclasses
import decimal
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from bsjax.errors import InvalidArgument, check_number, check_positive, check_whole, nearest_multiples
from bsjax.noise import scaling_exponent
from bsjax.schedules import ROUNDING, Hyperparameters, Schedules

# (positions in the example stream, int64[n]; values [n]) -> converted values [n]
Converter = Callable[[np.ndarray, Hyperparameters], Hyperparameters]
Others = dict[str, np.ndarray]  # further hyperparameters [n], by name


class Conversion(abc.ABC):
    """Turns a recipe into another one with the same noise."""

    scaling: str | float = "linear"
    keeps_noise: ClassVar[bool] = True  # False: it leaves learning rate and batch as they are

    @property
    def exponent(self) -> float:
        """ρ of the quantity that it keeps, lr / (B^ρ (1 - m))."""
        return scaling_exponent(self.scaling)

    @abc.abstractmethod
    def fit(self, before: Hyperparameters, own: Schedules) -> Converter:
        """Returns the conversion as a function of the values at any instants.

        Args:
          before: the values to convert, at each update of the unconverted recipe [num_updates].
          own: the unconverted recipe. No batch becomes larger than its data set.

        Raises:
          InvalidArgument: the conversion does not fit this recipe.
        """

    def complete(self, own: Hyperparameters, values: Hyperparameters, others: Others) -> tuple[Hyperparameters, Others]:
        """What the batch that all conversions together lead to does to other hyperparameters; most do nothing.

        Args:
          own: the values of the unconverted recipe at some instants [n].
          values: those after all conversions [n].
          others: the further hyperparameters [n], by name.

        Raises:
          InvalidArgument: a hyperparameter would leave its range at one of these instants.
        """
        return values, others


@dataclasses.dataclass(frozen=True)
class IncreaseBatchSize(Conversion):
    r"""Increases the batch where the recipe decays its learning rate.

    .. math:: B' = \lfloor B a^{s/\rho} \rfloor, \quad \epsilon' = \epsilon (B'/B)^\rho

    where a is the factor by which the learning rate ε has fallen from its running maximum, s is the share, and the
    brackets round down to the allowed sizes. So ε' never exceeds that maximum. While ε rises to a new maximum, a = 1
    and the batch stays; where ε rises again after a decay, the batch shrinks. While ε does not rise, the batch shrinks
    only if the recipe's own does.

    Args:
      max_batch_size: the cap, in examples, also for batches that earlier conversions enlarged; at the cap the learning
        rate decays instead. None: the data set's size.
      scaling: "linear" (ρ = 1) for SGD and momentum, "sqrt" (ρ = 1/2) for Adam, or ρ itself, in (0, 1].
      share: s in (0, 1], the share of the decay that enlarges the batch. *Seesaw* is `scaling="sqrt", share=0.5`.
      growth: allow only the sizes B₀·growth^k, k = 0, 1, 2, ..., where B₀ is the smallest batch of the recipe, and the
        recipe's own batch where that is larger; None allows every size.
      multiple_of: allow only multiples of this, such as devices × ghost batch size.

    Raises:
      InvalidArgument: an argument is out of range.

    Reference: Smith et al., 2018, Section 5.1; Seesaw: https://arxiv.org/abs/2510.14717.
    """

    max_batch_size: int | None = None
    scaling: str | float = "linear"
    share: float = 1.0
    growth: float | None = None
    multiple_of: int = 1

    def __post_init__(self):
        object.__setattr__(self, "scaling", self.exponent)  # so that equal rules compare equal
        check_number("share", self.share, lambda s: 0 < s <= 1, "in (0, 1]", 1)
        if self.growth is not None:
            check_number("growth", self.growth, lambda g: g > 1, "a number greater than 1, or None", 2)
        check_whole("multiple_of", self.multiple_of)
        if self.max_batch_size is not None:
            check_whole("max_batch_size", self.max_batch_size)

    def fit(self, before: Hyperparameters, own: Schedules) -> Converter:
        exponent = self.exponent
        cap = self._cap(before.batch_size, own.dataset_size, own.max_batch_size)
        smallest = min(before.batch_size.min(), cap)
        maximum_so_far = np.maximum.accumulate(before.learning_rate)

        def convert(position: np.ndarray, values: Hyperparameters) -> Hyperparameters:
            lr, size = values.learning_rate, values.batch_size
            maximum = np.maximum(maximum_so_far[own.updates_at(position)], lr)
            with np.errstate(divide="ignore", over="ignore"):
                # A learning rate of zero is the end of a decay, or the start of a warm-up.
                decay = np.divide(maximum, lr, out=np.where(maximum > 0, np.inf, 1.0), where=lr > 0)
                target = np.minimum(size * decay ** (self.share / exponent), cap)
            new_size = self._round_down(target, np.minimum(size, cap), smallest)
            return values._replace(batch_size=new_size, learning_rate=lr * (new_size / size) ** exponent)

        return convert

    def _round_down(self, target: np.ndarray, size: np.ndarray, smallest: int) -> np.ndarray:
        """The largest allowed batch size up to target, which is at least size; it never falls where these two rise."""
        if self.growth is not None:
            power = np.floor((np.log(target / smallest) + ROUNDING) / np.log(self.growth))
            target = np.minimum(np.maximum(smallest * self.growth**power, size), target)
        return floor_sizes(target / self.multiple_of).clip(1).astype(np.int64) * self.multiple_of

    def _cap(self, sizes: np.ndarray, dataset_size: int, largest: int) -> int:
        """The largest allowed size; refuses a recipe that has none."""
        unit, cap, smallest = self.multiple_of, self.max_batch_size, int(sizes.min())
        # The cap also limits the batches of earlier conversions; only the recipe's own must not exceed it.
        largest = min(int(sizes.max()), largest)
        if np.any(sizes % unit):
            odd = int(sizes[sizes % unit != 0][0])
            near = nearest_multiples(odd, unit, at_most=dataset_size)
            raise InvalidArgument("batch_size", odd, f"a multiple of multiple_of {unit}", near)
        if cap is None:
            cap = dataset_size // unit * unit
        for refused, allowed in (
            (cap < largest, f"at least the recipe's batch_size {largest}"),
            (cap > dataset_size, f"at most dataset_size {dataset_size}"),
            (cap % unit, f"a multiple of multiple_of {unit}"),
        ):
            if refused:
                near = nearest_multiples(cap, unit, at_most=dataset_size, at_least=largest)
                raise InvalidArgument("max_batch_size", cap, allowed, near)
        if self.growth is not None and smallest * self.growth < smallest + unit:
            least = round_significant((smallest + unit) / smallest, decimal.ROUND_CEILING)
            allowed = f"enough to get from {smallest} to a larger allowed size"
            raise InvalidArgument("growth", self.growth, allowed, least)
        return int(cap)


@dataclasses.dataclass(frozen=True)
class ScaleLearningRate(Conversion):
    r"""Multiplies the learning rate by `factor` and the batch by factor^(1/ρ), at every instant.

    .. math:: B' = \lfloor B f^{1/\rho} \rfloor, \quad \epsilon' = \epsilon (B'/B)^\rho

    Args:
      factor: f, positive; the paper goes from 0.1 to 0.5 with a factor of 5.
      scaling: "linear" (ρ = 1), "sqrt" (ρ = 1/2), or ρ itself, in (0, 1].

    Raises:
      InvalidArgument: an argument is out of range.

    Reference: Smith et al., 2018, Section 5.2.
    """

    factor: float
    scaling: str | float = "linear"

    def __post_init__(self):
        object.__setattr__(self, "scaling", self.exponent)
        check_positive("factor", self.factor)

    def fit(self, before: Hyperparameters, own: Schedules) -> Converter:
        exponent, dataset_size = self.exponent, own.dataset_size
        with np.errstate(over="ignore", invalid="ignore"):  # infinite sizes are refused below
            ratio = np.float64(self.factor) ** (1 / exponent)
            sizes = floor_sizes(before.batch_size * ratio)
        bounds = (1 / before.batch_size.min()) ** exponent, (dataset_size / before.batch_size.max()) ** exponent
        _check_batch_sizes("factor", self.factor, sizes, dataset_size, bounds)

        def convert(position: np.ndarray, values: Hyperparameters) -> Hyperparameters:
            size = floor_sizes(values.batch_size * ratio).clip(1, dataset_size).astype(np.int64)
            learning_rate = values.learning_rate * (size / values.batch_size) ** exponent
            return values._replace(batch_size=size, learning_rate=learning_rate)

        return convert


@dataclasses.dataclass(frozen=True)
class ScaleMomentum(Conversion):
    r"""Sets the momentum and scales the batch by (1 - m) / (1 - momentum), at every instant.

    .. math:: B' = \lfloor B (1 - m) / (1 - m') \rfloor, \quad \epsilon' = \epsilon \frac{B' (1 - m')}{B (1 - m)}

    The accumulator of a larger momentum takes 1/(1-m') updates to build up, and these updates are larger: the paper
    finds a small loss of accuracy.

    Args:
      momentum: m', the new one, in [0, 1).

    Raises:
      InvalidArgument: it is out of range.

    Reference: Smith et al., 2018, Sections 3.2 and 5.2.
    """

    momentum: float

    def __post_init__(self):
        check_momentum(self.momentum)

    def fit(self, before: Hyperparameters, own: Schedules) -> Converter:
        new, dataset_size = self.momentum, own.dataset_size
        product = before.batch_size * (1 - before.momentum)
        bounds = max(0.0, 1 - product.min()), 1 - product.max() / dataset_size
        _check_batch_sizes("momentum", new, floor_sizes(product / (1 - new)), dataset_size, bounds)

        def convert(position: np.ndarray, values: Hyperparameters) -> Hyperparameters:
            size = (
                floor_sizes(values.batch_size * (1 - values.momentum) / (1 - new))
                .clip(1, dataset_size)
                .astype(np.int64)
            )
            kept = (1 - new) / (1 - values.momentum) * (size / values.batch_size)
            return Hyperparameters(values.learning_rate * kept, size, np.full_like(values.momentum, new))

        return convert


def check_momentum(value: Any) -> None:
    """Raises unless value is a number in [0, 1)."""
    check_number("momentum", value, lambda m: 0 <= m < 1, "in [0, 1)")


def floor_sizes(sizes: np.ndarray) -> np.ndarray:
    """The largest whole numbers up to these; one that lies above by a rounding error counts."""
    nearest = np.round(sizes)
    return np.where(np.abs(nearest - sizes) <= ROUNDING * sizes, nearest, np.floor(sizes))


def _check_batch_sizes(
    name: str, value: float, sizes: np.ndarray, dataset_size: int, bounds: tuple[float, float]
) -> None:
    """Refuses a conversion that takes the batch out of [1, dataset_size]; bounds are the nearest values."""
    if sizes.min() < 1:
        nearest = round_significant(bounds[0], decimal.ROUND_CEILING)
        raise InvalidArgument(name, value, "large enough for a batch_size of 1 or more", nearest)
    if sizes.max() > dataset_size:
        allowed = f"small enough for a batch_size of at most dataset_size {dataset_size}, not {sizes.max():.12g}"
        raise InvalidArgument(name, value, allowed, round_significant(bounds[1], decimal.ROUND_FLOOR))


def round_significant(value: float, rounding: str) -> str:
    """Six significant digits of a bound, rounded to the side that is allowed."""
    return f"{float(decimal.Context(prec=6, rounding=rounding).create_decimal_from_float(float(value))):.6g}"
