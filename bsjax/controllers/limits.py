"""Which batch sizes a controller may choose, and when it changes from one to another."""

import bisect
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

from bsjax.errors import InvalidArgument, check_number, check_whole, nearest_multiples

# A target this close below an allowed size is that size: 128 / 0.1**0.5**2 may be 1279.9999999999998.
_ROUNDING = 1e-6


@dataclasses.dataclass(frozen=True)
class Limits:
    r"""Which sizes are allowed, and how far a target must move before the size follows.

    A target T (examples) is rounded *down* to the allowed sizes: :math:`\lfloor T \rfloor`. The size B becomes
    :math:`\lfloor T \rfloor` when

    .. math:: \lfloor T / (1 + h) \rfloor > B \quad\text{or}\quad \lfloor T (1 + h) \rfloor < B,

    where h is the hysteresis, and stays otherwise. So it never oscillates on a noisy constant: if all targets lie in an
    interval [a, a(1 + h)], such as c(1 ± δ) with δ = h/(2 + h), the size changes at most once. (After a change to
    ⌊T₁⌋ every other T has T/(1 + h) ≤ T₁ ≤ T(1 + h), and rounding keeps the order.) The price is a size that may lag
    the target by the factor 1 + h.

    Args:
      min_batch_size: the smallest size, in examples.
      max_batch_size: the largest.
      multiple_of: all sizes are multiples of it, such as devices × ghost batch size.
      growth: only the sizes min·growth^k, k = 0, 1, 2, ..., rounded down to multiples; None: all multiples.
      allowed_batch_sizes: only these, in place of `growth`.
      monotone: the target never makes the size smaller.
      hysteresis: h >= 0; for targets that are measured, not for those that are decided (`Adaptive.exact`).
      warmup_examples: up to this position in the stream the size stays what it is at the start.

    Raises:
      InvalidArgument: a value is out of range, or two contradict each other.

    >>> limits = Limits(32, 256, growth=2, hysteresis=0.25)
    >>> list(limits.sizes)
    [32, 64, 128, 256]
    >>> [limits.follow(64, target) for target in (70, 130, 150, 160, 1000, 60, 50, math.nan)]
    [64, 64, 64, 128, 256, 64, 32, 64]
    >>> Limits(32, 100, multiple_of=32)
    Traceback (most recent call last):
    ...
    bsjax.errors.InvalidArgument: max_batch_size is 100; it must be a multiple of multiple_of 32; nearest: 96 or 128
    """

    min_batch_size: int
    max_batch_size: int
    multiple_of: int = 1
    growth: float | None = None
    allowed_batch_sizes: tuple[int, ...] | None = None
    monotone: bool = False
    hysteresis: float = 0.2
    warmup_examples: int = 0

    def __post_init__(self):
        smallest, largest, unit = self.min_batch_size, self.max_batch_size, self.multiple_of
        for name in ("multiple_of", "min_batch_size", "max_batch_size"):
            check_whole(name, getattr(self, name))
        self._check_multiple("max_batch_size", largest)
        if smallest > largest:
            raise InvalidArgument("min_batch_size", smallest, f"at most max_batch_size {largest}", largest)
        self._check_multiple("min_batch_size", smallest, at_most=largest)
        if self.allowed_batch_sizes is not None:
            self._check_allowed(self.allowed_batch_sizes)
        if self.growth is not None:
            check_number("growth", self.growth, lambda g: g > 1, "a number greater than 1, or None", 2)
            if smallest * self.growth * (1 + _ROUNDING) < smallest + unit:
                allowed = f"enough to get from {smallest} to a larger allowed size"
                raise InvalidArgument("growth", self.growth, allowed, (smallest + unit) / smallest)
        check_number("hysteresis", self.hysteresis, lambda h: h >= 0, "a number >= 0", 0)
        check_whole("warmup_examples", self.warmup_examples, minimum=0)

    @functools.cached_property
    def sizes(self) -> Sequence[int]:
        """The allowed sizes, in increasing order."""
        if self.allowed_batch_sizes is not None:
            return sorted(set(self.allowed_batch_sizes))
        if self.growth is None:
            return range(self.min_batch_size, self.max_batch_size + 1, self.multiple_of)
        sizes, size = [], float(self.min_batch_size)
        while size <= self.max_batch_size:
            sizes.append(int(size * (1 + _ROUNDING)) // self.multiple_of * self.multiple_of)
            size *= self.growth
        return sorted(set(sizes))

    def round_down(self, target: float) -> int:
        """The largest allowed size up to target; the smallest of all if there is none."""
        return self.sizes[max(bisect.bisect_right(self.sizes, target * (1 + _ROUNDING)) - 1, 0)]

    def follow(self, size: int, target: float, exact: bool = False) -> int:
        """The size that comes after `size`.

        Args:
          size: so far, an allowed one.
          target: wanted, in examples; may be infinite; NaN if it is not known.
          exact: without hysteresis.
        """
        band = 1.0 if exact else 1 + self.hysteresis
        if math.isnan(target):
            return size
        grows = self.round_down(target / band) > size
        shrinks = not self.monotone and self.round_down(target * band) < size
        return self.round_down(target) if grows or shrinks else size

    def check_dataset_size(self, dataset_size: int) -> None:
        """Refuses batches larger than the data set, as a recipe does."""
        for name, size in (("min_batch_size", self.min_batch_size), ("max_batch_size", self.max_batch_size)):
            if size > dataset_size:
                nearest = dataset_size // self.multiple_of * self.multiple_of or None
                raise InvalidArgument(name, size, f"at most dataset_size {dataset_size}", nearest)

    def identity(self) -> dict[str, Any]:
        """The settings, as JSON."""
        settings = dataclasses.asdict(self)
        if self.allowed_batch_sizes is not None:
            settings["allowed_batch_sizes"] = list(self.sizes)
        return settings

    def _check_allowed(self, sizes: tuple[int, ...]) -> None:
        smallest, largest = self.min_batch_size, self.max_batch_size
        if self.growth is not None:
            raise InvalidArgument("growth", self.growth, "None where allowed_batch_sizes are given")
        if not sizes:
            raise InvalidArgument("allowed_batch_sizes", (), "at least one size, or None", (smallest,))
        for size in sizes:
            check_whole("allowed_batch_sizes", size)
            self._check_multiple("allowed_batch_sizes", size, at_most=largest, at_least=smallest)
            if not smallest <= size <= largest:
                allowed = f"between min_batch_size {smallest} and max_batch_size {largest}"
                raise InvalidArgument("allowed_batch_sizes", size, allowed, min(max(size, smallest), largest))

    def _check_multiple(self, name: str, size: int, **bounds: int) -> None:
        if size % self.multiple_of:
            near = nearest_multiples(size, self.multiple_of, **bounds)
            raise InvalidArgument(name, size, f"a multiple of multiple_of {self.multiple_of}", near)
