"""Errors of one line: bad input, with the value, what is allowed and the nearest choice; and what ends a run."""

import difflib
import math
import numbers
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np


class InvalidArgument(ValueError):  # noqa: N818  (reads as what it says)
    """An argument or flag whose value cannot be used.

    Args:
      name: the argument's name, which is also the flag's.
      value: what was given.
      allowed: what is allowed, as a phrase that follows "must be".
      nearest: the nearest valid choice, where there is one.

    >>> print(InvalidArgument("num_epochs", 0, "a positive number", nearest=1))
    num_epochs is 0; it must be a positive number; nearest: 1
    """

    def __init__(self, name: str, value: Any, allowed: str, nearest: Any = None):
        self.name, self.value, self.allowed, self.nearest = name, value, allowed, nearest
        hint = "" if nearest is None else f"; nearest: {nearest}"
        super().__init__(f"{name} is {value!r}; it must be {allowed}{hint}")

    def __reduce__(self):  # keeps the fields of an error that a worker process raised
        return InvalidArgument, (self.name, self.value, self.allowed, self.nearest)

    def renamed(self, name: str) -> "InvalidArgument":
        """The same error for an argument that the caller knows by another name."""
        return InvalidArgument(name, self.value, self.allowed, self.nearest)


class RunError(RuntimeError):
    """A run with valid arguments cannot continue: a file is damaged, a folder is in use, the loss is not finite."""


class DivergedError(RunError):
    """The loss, or its gradient, is not finite any more."""


class TaskError(TypeError):
    """A task, such as a user's loss function, fails or breaks its contract."""


def check_choice(name: str, value: str, choices: Iterable[str]) -> str:
    """Returns value if it is one of choices, else raises and names the most similar choice.

    >>> check_choice("scaling", "linaer", ["linear", "sqrt"])
    Traceback (most recent call last):
    ...
    bsjax.errors.InvalidArgument: scaling is 'linaer'; it must be one of linear, sqrt; nearest: linear
    """
    choices = list(choices)
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.0)
        raise InvalidArgument(name, value, f"one of {', '.join(choices)}", *near)
    return value


def check_whole(name: str, value: Any, minimum: int = 1) -> int:
    """Returns value if it is a whole number of at least `minimum`, else raises."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
        nearest = max(minimum, round(value)) if isinstance(value, int | float) and math.isfinite(value) else None
        raise InvalidArgument(name, value, f"a whole number >= {minimum}", nearest)
    return int(value)


def nearest_multiples(value: float, unit: int, at_most: int | None = None, at_least: int = 1) -> str | None:
    """The multiples of `unit` next to value, none of them outside [at_least, at_most]; None if there is none.

    >>> nearest_multiples(100, 32), nearest_multiples(100, 32, at_most=120), nearest_multiples(10**6, 8, at_most=1437)
    ('96 or 128', '96', '1432')
    """
    near = max(value, at_least) if at_most is None else min(max(value, at_least), at_most)
    sizes = sorted({int(near // unit) * unit, -int(-near // unit) * unit})
    return " or ".join(str(size) for size in sizes if at_least <= size <= (at_most or size)) or None


def check_number(name: str, value: Any, is_valid: Callable[[Any], bool], allowed: str, nearest: Any = None) -> None:
    """Raises unless value is a finite number and `is_valid` is true of it."""
    if not (is_finite(value) and is_valid(value)):
        raise InvalidArgument(name, value, allowed, nearest)


def check_positive(name: str, value: Any) -> None:
    """Raises unless value is a positive finite number."""
    check_number(name, value, lambda x: x > 0, "a positive finite number")


def is_finite(value: Any) -> bool:
    """Whether value is a finite number."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
