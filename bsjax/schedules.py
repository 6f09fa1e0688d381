"""The values of a recipe's schedules at any number of examples, before a conversion.

Schedules are functions of the recipe's clock; everything here is a function of the position in the example stream.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
import optax

from bsjax.errors import InvalidArgument

# A float32 schedule may give 4.9999998 for 0.1/0.02, and -1e-17 for zero: values this close, relatively, are equal.
ROUNDING = 1e-6

# The units of a schedule's argument.
CLOCKS = ("epochs", "updates", "examples", "tokens")

# Counts that are looked up together: one shape, one compilation.
_BLOCK = 4096
_CORRECTIONS = 16


class Hyperparameters(NamedTuple):
    """The values of a recipe at some instants; arrays of one shape."""

    learning_rate: np.ndarray  # float64
    batch_size: np.ndarray  # int64, in examples
    momentum: np.ndarray  # float64


@dataclasses.dataclass(frozen=True, eq=False)
class Schedules:
    """An unconverted recipe on the clock of examples.

    Args:
      schedules: numbers, which are in range, or schedules, by name: those of `Hyperparameters` and further ones.
      dataset_size, num_examples, clock, tokens_per_example: see `Recipe`.

    Raises:
      InvalidArgument: a schedule has a value that is not possible, at any update of the training.
    """

    schedules: Mapping[str, optax.Schedule | float]
    dataset_size: int
    num_examples: int
    clock: str
    tokens_per_example: int | None = None

    def __post_init__(self):
        count = self.clock_at(self.positions)
        for name, schedule in self.schedules.items():
            if callable(schedule) and name != "batch_size":
                self._check(name, self._functions[name](count))

    def at(self, position: np.ndarray) -> Hyperparameters:
        """Learning rate, batch size and momentum of updates that start at int64 positions [n]."""
        count = self.clock_at(position)
        learning_rate, batch_size, momentum = (self._functions[name](count) for name in Hyperparameters._fields)
        # What is below zero here is a rounding error; the checks refuse all else.
        return Hyperparameters(np.maximum(learning_rate, 0.0), batch_size.astype(np.int64), np.maximum(momentum, 0.0))

    def others_at(self, position: np.ndarray) -> dict[str, np.ndarray]:
        """The further hyperparameters, float64[n], of updates that start at int64 positions [n]."""
        count = self.clock_at(position)
        return {name: at(count) for name, at in self._functions.items() if name not in Hyperparameters._fields}

    def updates_at(self, position: np.ndarray) -> np.ndarray:
        """The number of the last update that starts at or before each of the int64 positions [n]."""
        return np.minimum(self._counts_at(position), len(self.positions) - 1)

    def clock_at(self, position: np.ndarray) -> np.ndarray:
        """The time on the recipe's clock of updates that start at int64 positions [n]."""
        if self.clock == "epochs":
            return position / self.dataset_size
        if self.clock == "tokens":
            return position * self.tokens_per_example
        return position if self.clock == "examples" else self._counts_at(position)

    @property
    def end(self) -> float:
        """The time on the recipe's clock at which training ends."""
        return len(self.positions) if self.clock == "updates" else self.clock_at(np.array([self.num_examples])).item()

    @functools.cached_property
    def max_batch_size(self) -> int:
        """The largest batch size of any update."""
        return int(self._functions["batch_size"](self.clock_at(self.positions)).max())

    @functools.cached_property
    def positions(self) -> np.ndarray:
        """int64[num_updates]: where the updates start."""
        if not callable(size := self.schedules["batch_size"]):
            return np.arange(0, self.num_examples, size, dtype=np.int64)
        if self.clock != "updates":
            sizes = take_batches(lambda at: self._checked_batch_sizes(self.clock_at(at)), self.num_examples)
            return np.cumsum(sizes) - sizes
        positions, seen = np.zeros(0, np.int64), 0
        while seen < self.num_examples:
            counts = np.arange(len(positions), len(positions) + _BLOCK)
            raw = self._functions["batch_size"](counts)
            # Values after the end of the training do not matter.
            ended = np.append(seen + np.cumsum(raw) - raw >= self.num_examples, True).argmax()
            sizes = self._checked_batch_sizes(counts[:ended])
            positions = np.concatenate([positions, seen + np.cumsum(sizes) - sizes])
            seen += int(sizes.sum())
        return positions

    @functools.cached_property
    def _functions(self) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
        """The schedules as functions of an array of counts [n] to float64 [n]."""
        return {name: _vectorize(schedule) for name, schedule in self.schedules.items()}

    def _counts_at(self, position: np.ndarray) -> np.ndarray:
        if not callable(size := self.schedules["batch_size"]):
            return position // int(size)
        return np.searchsorted(self.positions, position, side="right") - 1

    def _checked_batch_sizes(self, count: np.ndarray) -> np.ndarray:
        sizes = self._functions["batch_size"](count)
        bad = ~((sizes >= 1) & (sizes <= self.dataset_size) & (sizes == np.floor(sizes)))
        if bad.any():
            where, value = count[bad.argmax()], sizes[bad.argmax()].item()
            allowed = f"a whole number between 1 and dataset_size {self.dataset_size}"
            nearest = min(max(1, round(value)), self.dataset_size) if math.isfinite(value) else None
            raise InvalidArgument(f"batch_size at {self.clock[:-1]} {where:g}", value, allowed, nearest)
        return sizes.astype(np.int64)

    def _check(self, name: str, values: np.ndarray) -> None:
        finite = np.isfinite(values)
        not_negative = values >= -ROUNDING * np.max(values, where=finite, initial=0.0)
        valid, allowed = {
            "learning_rate": (finite & not_negative, "a number >= 0"),
            "momentum": (not_negative & (values < 1), "in [0, 1)"),
        }.get(name, (finite, "a finite number"))
        if not valid.all():
            update = int((~valid).argmax())
            epoch = self.positions[update] / self.dataset_size
            raise InvalidArgument(f"{name} at update {update} (epoch {epoch:.4g})", values[update].item(), allowed)
        if name == "learning_rate" and not values.max() > 0:
            raise InvalidArgument(name, 0.0, "positive somewhere, not zero at every update")


def _vectorize(schedule: optax.Schedule | float) -> Callable[[np.ndarray], np.ndarray]:
    """A schedule as a function of numpy counts [n] to float64 [n], computed on the host's CPU.

    It traces a schedule in JAX once, and calls one in plain Python, with branches on its argument, for each count.
    """
    if not callable(schedule):
        return lambda counts: np.full(len(counts), schedule, np.float64)
    traced = jax.jit(jax.vmap(schedule))

    def evaluate(counts: np.ndarray) -> np.ndarray:
        padded = np.pad(counts, (0, -len(counts) % _BLOCK), mode="edge").reshape(-1, _BLOCK)
        with jax.numpy_dtype_promotion("standard"):  # optax's schedules need it
            try:
                with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
                    values = [np.asarray(traced(chunk), np.float64) for chunk in padded]
            except TypeError:  # JAX raises it where Python code needs the value of a tracer
                return np.array([float(schedule(count)) for count in counts.tolist()])
        return np.concatenate(values)[: len(counts)]

    return evaluate


def take_batches(batch_size_at: Callable[[np.ndarray], np.ndarray], num_examples: int, start: int = 0) -> np.ndarray:
    """The sizes of a stream's batches, where the size depends on the position.

    Solves e_{k+1} = e_k + B(e_k), e_0 = start, for a block of updates at a time: it guesses the positions, looks up
    their batch sizes, sums these to better positions, and repeats until they agree. Each correction extends the part
    that is exact, so the result equals that of the plain loop.

    Args:
      batch_size_at: maps int64 positions [n] in [0, num_examples) to batch sizes [n] >= 1.
      num_examples: no batch starts at or after this position.
      start: where the first batch starts.

    Returns:
      int64[num_updates].

    >>> take_batches(lambda position: np.where(position < 5, 2, 4), 12).tolist()
    [2, 2, 2, 4, 4]
    """
    blocks = []
    size = int(batch_size_at(np.array([start]))[0])
    while start < num_examples:
        positions = start + size * np.arange(_BLOCK)
        for _ in range(_CORRECTIONS):
            sizes = batch_size_at(np.minimum(positions, num_examples - 1))
            corrected = start + np.concatenate([[0], np.cumsum(sizes)[:-1]])
            differs = np.flatnonzero(corrected != positions)
            if not len(differs) or positions[differs[0] - 1] >= num_examples:
                exact = _BLOCK
                break
            exact = int(differs[0])
            positions = corrected
        sizes = sizes[:exact][corrected[:exact] < num_examples]
        blocks.append(sizes)
        start += int(sizes.sum())
        size = int(sizes[-1])
    return np.concatenate(blocks)
