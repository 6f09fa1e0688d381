"""A training recipe, and the paper's conversions of it: same noise, larger batches, fewer updates.

Section 5 of the paper on one page:

    decaying learning rate  recipe
    increasing batch size   recipe.increase_batch_size(max_batch_size=5120)
    + larger initial rate   recipe.scale_learning_rate(5).increase_batch_size(max_batch_size=5120)
    + larger momentum       recipe.scale_learning_rate(5).scale_momentum(0.98).increase_batch_size(max_batch_size=5120)

Every conversion keeps lr / (B^ρ (1 - m)) exactly as it was at every instant, where ρ is 1 for the
linear and 1/2 for the square-root scaling rule. Batch sizes are whole, so a conversion rounds the
batch *down* and lets the learning rate take up the rest.
"""

import copy
import dataclasses
import decimal
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from bsjax.errors import InvalidArgument, check_choice, check_positive, check_whole, is_finite
from bsjax.noise import sgd_noise_scale
from bsjax.plan import Plan, take_batches

EXPONENTS = {"linear": 1.0, "sqrt": 0.5}  # ρ: learning rate ∝ B^ρ
_CLOCKS = ("epochs", "updates", "examples")
# A schedule's float32 0.1/0.02 may be 4.9999998: a batch this close to an allowed size is that size.
_ROUNDING = 1e-6


class Hyperparameters(NamedTuple):
    """What a recipe says at some instants; arrays of one shape."""

    learning_rate: np.ndarray  # float64
    batch_size: np.ndarray  # int64, in examples
    momentum: np.ndarray  # float64


class _Schedules(NamedTuple):
    """What an unconverted recipe says, as functions of an array of counts [n] to float64 [n]."""

    learning_rate: Callable[[np.ndarray], np.ndarray]
    batch_size: Callable[[np.ndarray], np.ndarray]
    momentum: Callable[[np.ndarray], np.ndarray]


Conversion = Callable[[np.ndarray, Hyperparameters], Hyperparameters]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What somebody trains with today, as functions of the number of examples seen.

    Immutable: each conversion returns a new recipe, and conversions compose. They apply in the order
    in which they are written, so put the one with the cap (`increase_batch_size`) last. The fields stay
    those of the recipe that was converted; `at` and `plan` say what it has become.

    Args:
      learning_rate: a positive number or an optax schedule.
      batch_size: in examples; a whole number or a schedule.
      dataset_size: N, the number of examples in an epoch.
      num_epochs: how long to train; may be a fraction.
      momentum: m in [0, 1), a number or a schedule; for Adam its b1.
      clock: the unit of the schedules' argument: "epochs" (a float), "updates" of this recipe or
        "examples" seen (integers). As in optax, a boundary belongs to what follows it.

    Raises:
      InvalidArgument: a value is not possible, at any instant of the training.

    >>> import optax
    >>> steps = optax.piecewise_constant_schedule(0.1, {60: 0.2, 120: 0.2, 160: 0.2})
    >>> recipe = Recipe(steps, batch_size=128, dataset_size=50_000, num_epochs=200, clock="epochs")
    >>> print(recipe.plan().num_updates)
    78125
    >>> print(recipe.increase_batch_size(max_batch_size=5120).plan())
    updates  from epoch  batch size  learning rate  momentum  noise scale
     23,438        0.00         128            0.1       0.9        389.6
      4,688       60.00         640            0.1       0.9        77.13
        625      120.01       3,200            0.1       0.9        14.63
        391      160.01       5,120          0.032       0.9        2.805
    29,142 updates, 10,002,304 examples, 200.05 epochs

    Reference: Smith et al., 2018 (https://arxiv.org/abs/1711.00489), Section 5.
    """

    learning_rate: optax.Schedule | float
    batch_size: optax.Schedule | int
    dataset_size: int
    num_epochs: float
    momentum: optax.Schedule | float = 0.9
    clock: str = "epochs"
    _conversions: tuple[Conversion, ...] = dataclasses.field(default=(), init=False, repr=False)
    _history: tuple[str, ...] = dataclasses.field(default=(), init=False, repr=False)

    def __post_init__(self):
        check_choice("clock", self.clock, _CLOCKS)
        check_whole("dataset_size", self.dataset_size)
        check_positive("num_epochs", self.num_epochs)
        if not callable(self.learning_rate):
            check_positive("learning_rate", self.learning_rate)
        if not callable(self.momentum):
            _check_momentum(self.momentum)
        if not callable(self.batch_size):
            check_whole("batch_size", self.batch_size)
            if self.batch_size > self.dataset_size:
                allowed = f"at most dataset_size {self.dataset_size}"
                raise InvalidArgument("batch_size", self.batch_size, allowed, self.dataset_size)
        self._check_schedules()

    # What the recipe says.

    def at(self, examples_seen: Any) -> Hyperparameters:
        """Learning rate, batch size and momentum of an update that starts at `examples_seen`.

        Args:
          examples_seen: whole numbers of examples, of any shape.

        >>> recipe = Recipe(0.1, batch_size=32, dataset_size=1000, num_epochs=3).scale_learning_rate(2)
        >>> recipe.at(500).batch_size.item(), recipe.at(500).learning_rate.item()
        (64, 0.2)
        """
        shape = np.shape(examples_seen)
        position = np.atleast_1d(np.asarray(examples_seen, np.int64)).ravel()
        values = self._unconverted_at(position)
        for conversion in self._conversions:
            values = conversion(position, values)
        return Hyperparameters(*(value.reshape(shape) for value in values))

    def noise_scale(self, examples_seen: Any, exact: bool = True) -> Any:
        """`sgd_noise_scale` at an instant: g = lr/(1-m)·(N/B - 1); `exact=False` leaves out the -1.

        >>> recipe = Recipe(0.1, batch_size=128, dataset_size=50_000, num_epochs=200)
        >>> print(recipe.noise_scale(0).round(3), recipe.noise_scale(0, exact=False).round(3))
        389.625 390.625
        """
        values = self.at(examples_seen)
        return sgd_noise_scale(values.learning_rate, values.batch_size, self.dataset_size, values.momentum, exact)

    @property
    def num_examples(self) -> int:
        """The examples in `num_epochs` epochs."""
        return max(1, round(self.num_epochs * self.dataset_size))

    def plan(self, start: int = 0) -> Plan:
        """The concrete list of updates.

        Args:
          start: examples seen before the first one, where a run goes on from another's state.

        Raises:
          InvalidArgument: the recipe has ended by then.

        >>> Recipe(0.1, batch_size=10, dataset_size=100, num_epochs=3).plan(start=250).num_updates
        5
        """
        if not 0 <= start < self.num_examples:
            raise InvalidArgument("start", start, f"in [0, {self.num_examples}), the recipe's examples")
        batch_sizes = take_batches(lambda position: self.at(position).batch_size, self.num_examples, start)
        values = self.at(start + np.cumsum(batch_sizes) - batch_sizes)
        return Plan(self.dataset_size, values.batch_size, values.learning_rate, values.momentum, start)

    # Conversions.

    def increase_batch_size(
        self,
        max_batch_size: int | None = None,
        scaling: str = "linear",
        share: float = 1.0,
        growth: float | None = None,
        multiple_of: int = 1,
    ) -> "Recipe":
        r"""Increases the batch where the recipe decays its learning rate.

        Where the learning rate has fallen by a factor a from its running maximum, the batch becomes
        B·a^(share/ρ), rounded down to the allowed sizes and capped. The learning rate is multiplied by
        (B'/B)^ρ, so it never exceeds that maximum. While it warms up to a new maximum, a = 1 and the batch stays;
        where it rises again after a decay, the batch shrinks.

        Args:
          max_batch_size: the cap, in examples, also of what earlier conversions scaled; beyond it the learning
            rate decays. None: the data set.
          scaling: "linear" (ρ = 1) for SGD and momentum, "sqrt" (ρ = 1/2) for Adam.
          share: in (0, 1], how much of the decay becomes batch. *Seesaw* is `scaling="sqrt", share=0.5`.
          growth: allow only the sizes B·growth^k, k = 0, 1, 2, ...; None allows every size.
          multiple_of: allow only multiples of this, such as devices × ghost batch size.

        Raises:
          InvalidArgument: an argument is out of range, or no allowed size fits.

        >>> recipe = Recipe(optax.cosine_decay_schedule(0.1, 10), 64, 50_000, num_epochs=10)
        >>> recipe.increase_batch_size(max_batch_size=1024, growth=2).plan().batch_sizes.max().item()
        1024
        >>> recipe.increase_batch_size(max_batch_size=50)
        Traceback (most recent call last):
        ...
        bsjax.errors.InvalidArgument: max_batch_size is 50; it must be at least the recipe's batch_size 64; nearest: 64

        Reference: Smith et al., 2018, Section 5.1; Seesaw: https://arxiv.org/abs/2510.14717.
        """
        exponent = EXPONENTS[check_choice("scaling", scaling, EXPONENTS)]
        if not (is_finite(share) and 0 < share <= 1):
            raise InvalidArgument("share", share, "in (0, 1]", 1)
        if growth is not None and not (is_finite(growth) and growth > 1):
            raise InvalidArgument("growth", growth, "a number greater than 1, or None", 2)
        check_whole("multiple_of", multiple_of)

        grid = self._update_positions
        before = self.at(grid)
        cap = self._check_allowed_sizes(before.batch_size, max_batch_size, growth, multiple_of)
        maximum_so_far = np.maximum.accumulate(before.learning_rate)

        def convert(position: np.ndarray, values: Hyperparameters) -> Hyperparameters:
            lr, size = values.learning_rate, values.batch_size
            update = np.searchsorted(grid, position, side="right") - 1
            maximum = np.maximum(maximum_so_far[update], lr)
            with np.errstate(divide="ignore", over="ignore"):
                # A learning rate of zero has decayed for ever, or has not begun to warm up.
                decay = np.divide(maximum, lr, out=np.where(maximum > 0, np.inf, 1.0), where=lr > 0)
                target = np.minimum(size * decay ** (share / exponent), cap)
            new_size = _round_down(target, np.minimum(size, cap), growth, multiple_of)
            return values._replace(batch_size=new_size, learning_rate=lr * (new_size / size) ** exponent)

        options = f"max_batch_size={max_batch_size}, {scaling=}, {share=}, {growth=}, {multiple_of=}"
        return self._converted(convert, f"increase_batch_size({options})")

    def scale_learning_rate(self, factor: float, scaling: str = "linear") -> "Recipe":
        """Multiplies the learning rate by `factor` and the batch by factor^(1/ρ), at every instant.

        Where factor^(1/ρ)·B is not whole it is rounded down, and the learning rate follows.

        Args:
          factor: positive; the paper goes from 0.1 to 0.5 with a factor of 5.
          scaling: "linear" (ρ = 1) or "sqrt" (ρ = 1/2).

        Raises:
          InvalidArgument: the factor is not positive, or the batch would leave [1, dataset_size].

        >>> recipe = Recipe(0.1, batch_size=128, dataset_size=50_000, num_epochs=200)
        >>> recipe.scale_learning_rate(5).at(0).batch_size.item()
        640

        Reference: Smith et al., 2018, Section 5.2.
        """
        exponent = EXPONENTS[check_choice("scaling", scaling, EXPONENTS)]
        check_positive("factor", factor)
        ratio = factor ** (1 / exponent)
        before = self.at(self._update_positions).batch_size
        bounds = (1 / before.min()) ** exponent, (self.dataset_size / before.max()) ** exponent
        self._check_batch_sizes("factor", factor, _floor(before * ratio), bounds)

        def convert(position: np.ndarray, values: Hyperparameters) -> Hyperparameters:
            size = _floor(values.batch_size * ratio).clip(1, self.dataset_size)
            learning_rate = values.learning_rate * (size / values.batch_size) ** exponent
            return values._replace(batch_size=size, learning_rate=learning_rate)

        return self._converted(convert, f"scale_learning_rate({factor}, {scaling=})")

    def scale_momentum(self, momentum: float) -> "Recipe":
        """Sets the momentum and scales the batch by (1 - m_before) / (1 - momentum).

        The accumulator of a larger momentum takes 1/(1-m) updates to build up, and these updates are
        larger: the paper finds a small loss of accuracy. Where the new batch is not whole it is rounded
        down, and the learning rate follows.

        Args:
          momentum: the new one, in [0, 1).

        Raises:
          InvalidArgument: out of range, or the batch would leave [1, dataset_size].

        >>> recipe = Recipe(0.1, batch_size=128, dataset_size=50_000, num_epochs=200, momentum=0.9)
        >>> recipe.scale_momentum(0.98).at(0).batch_size.item()
        640

        Reference: Smith et al., 2018, Sections 3.2 and 5.2.
        """
        _check_momentum(momentum)
        before = self.at(self._update_positions)
        product = before.batch_size * (1 - before.momentum)
        bounds = max(0.0, 1 - product.min()), 1 - product.max() / self.dataset_size
        self._check_batch_sizes("momentum", momentum, _floor(product / (1 - momentum)), bounds)

        def convert(position: np.ndarray, values: Hyperparameters) -> Hyperparameters:
            size = _floor(values.batch_size * (1 - values.momentum) / (1 - momentum)).clip(1, self.dataset_size)
            kept = (1 - momentum) / (1 - values.momentum) * (size / values.batch_size)
            return Hyperparameters(values.learning_rate * kept, size, np.full_like(values.momentum, momentum))

        return self._converted(convert, f"scale_momentum({momentum})")

    def __str__(self) -> str:
        return "\n  .".join([repr(self), *self._history])

    # Inside.

    def _converted(self, conversion: Conversion, description: str) -> "Recipe":
        recipe = copy.copy(self)  # shares what has been computed about the unconverted recipe
        object.__setattr__(recipe, "_conversions", (*self._conversions, conversion))
        object.__setattr__(recipe, "_history", (*self._history, description))
        return recipe

    @functools.cached_property
    def _schedules(self) -> _Schedules:
        return _Schedules(*map(_vectorize, (self.learning_rate, self.batch_size, self.momentum)))

    @functools.cached_property
    def _update_positions(self) -> np.ndarray:
        """int64[num_updates]: where the updates of the unconverted recipe start."""
        if not callable(self.batch_size):
            return np.arange(0, self.num_examples, self.batch_size, dtype=np.int64)
        if self.clock != "updates":
            sizes = take_batches(lambda at: self._checked_batch_sizes(self._clock_at(at)), self.num_examples)
            return np.cumsum(sizes) - sizes
        positions, seen = np.zeros(0, np.int64), 0
        while seen < self.num_examples:
            counts = np.arange(len(positions), len(positions) + 4096)
            raw = self._schedules.batch_size(counts)
            # What the schedule says after the end of the training does not matter.
            ended = np.append(seen + np.cumsum(raw) - raw >= self.num_examples, True).argmax()
            sizes = self._checked_batch_sizes(counts[:ended])
            positions = np.concatenate([positions, seen + np.cumsum(sizes) - sizes])
            seen += int(sizes.sum())
        return positions

    def _clock_at(self, position: np.ndarray) -> np.ndarray:
        if self.clock == "epochs":
            return position / self.dataset_size
        if self.clock == "examples":
            return position
        if not callable(self.batch_size):
            return position // self.batch_size
        return np.searchsorted(self._update_positions, position, side="right") - 1

    def _unconverted_at(self, position: np.ndarray) -> Hyperparameters:
        count = self._clock_at(position)
        learning_rate, batch_size, momentum = (schedule(count) for schedule in self._schedules)
        return Hyperparameters(learning_rate, batch_size.astype(np.int64), momentum)

    def _checked_batch_sizes(self, count: np.ndarray) -> np.ndarray:
        sizes = self._schedules.batch_size(count)
        bad = ~((sizes >= 1) & (sizes <= self.dataset_size) & (sizes == np.floor(sizes)))
        if bad.any():
            where, value = count[bad.argmax()], sizes[bad.argmax()].item()
            allowed = f"a whole number between 1 and dataset_size {self.dataset_size}"
            nearest = min(max(1, round(value)), self.dataset_size) if math.isfinite(value) else None
            raise InvalidArgument(f"batch_size at {self.clock[:-1]} {where:g}", value, allowed, nearest)
        return sizes.astype(np.int64)

    def _check_schedules(self) -> None:
        positions = self._update_positions
        count = self._clock_at(positions)
        if callable(self.learning_rate):
            rates = self._schedules.learning_rate(count)
            self._check_everywhere("learning_rate", rates, np.isfinite(rates) & (rates >= 0), "a number >= 0")
            if not rates.max() > 0:
                raise InvalidArgument("learning_rate", 0.0, "positive somewhere, not zero at every update")
        if callable(self.momentum):
            momentums = self._schedules.momentum(count)
            self._check_everywhere("momentum", momentums, (momentums >= 0) & (momentums < 1), "in [0, 1)")

    def _check_everywhere(self, name: str, values: np.ndarray, valid: np.ndarray, allowed: str) -> None:
        if not valid.all():
            update = int((~valid).argmax())
            epoch = self._update_positions[update] / self.dataset_size
            raise InvalidArgument(f"{name} at update {update} (epoch {epoch:.4g})", values[update].item(), allowed)

    def _check_allowed_sizes(
        self, sizes: np.ndarray, max_batch_size: int | None, growth: float | None, multiple_of: int
    ) -> int:
        """Refuses arguments of `increase_batch_size` that leave no allowed size; returns the cap."""
        smallest = int(sizes.min())
        # Earlier conversions may have gone above the cap, and are held to it; the recipe itself may not.
        largest = int(min(sizes.max(), self._unconverted_at(self._update_positions).batch_size.max()))
        if np.any(sizes % multiple_of):
            odd = int(sizes[sizes % multiple_of != 0][0])
            near = [size for size in _nearest_multiples(odd, multiple_of) if size <= self.dataset_size]
            raise InvalidArgument("batch_size", odd, f"a multiple of multiple_of {multiple_of}", _either(near))
        if max_batch_size is None:
            cap = self.dataset_size // multiple_of * multiple_of
        else:
            cap = check_whole("max_batch_size", max_batch_size)
            if cap < largest:
                raise InvalidArgument("max_batch_size", cap, f"at least the recipe's batch_size {largest}", largest)
            if cap > self.dataset_size:
                nearest = self.dataset_size // multiple_of * multiple_of
                raise InvalidArgument("max_batch_size", cap, f"at most dataset_size {self.dataset_size}", nearest)
            if cap % multiple_of:
                near = [size for size in _nearest_multiples(cap, multiple_of) if largest <= size <= self.dataset_size]
                raise InvalidArgument("max_batch_size", cap, f"a multiple of multiple_of {multiple_of}", _either(near))
        if growth is not None and smallest * growth < smallest + multiple_of:
            least = _round_significant((smallest + multiple_of) / smallest, decimal.ROUND_CEILING)
            raise InvalidArgument("growth", growth, f"enough to get from {smallest} to a larger allowed size", least)
        return cap

    def _check_batch_sizes(self, name: str, value: float, sizes: np.ndarray, bounds: tuple[float, float]) -> None:
        """Refuses a conversion that takes the batch out of [1, dataset_size]; bounds are the nearest values."""
        if sizes.min() < 1:
            nearest = _round_significant(bounds[0], decimal.ROUND_CEILING)
            raise InvalidArgument(name, value, "large enough for a batch_size of 1 or more", nearest)
        if sizes.max() > self.dataset_size:
            allowed = f"small enough for a batch_size of at most dataset_size {self.dataset_size}, not {sizes.max()}"
            raise InvalidArgument(name, value, allowed, _round_significant(bounds[1], decimal.ROUND_FLOOR))


def _vectorize(schedule: optax.Schedule | float) -> Callable[[np.ndarray], np.ndarray]:
    """A schedule as a function of numpy counts [n] to float64 [n], computed on the host's CPU.

    Schedules in jax are traced once; those in plain Python, with branches on their argument, are called
    for one count after the other.
    """
    if not callable(schedule):
        return lambda counts: np.full(len(counts), schedule, np.float64)
    traced = jax.jit(jax.vmap(schedule))
    block = 4096  # one shape, one compilation

    def evaluate(counts: np.ndarray) -> np.ndarray:
        padded = np.pad(counts, (0, -len(counts) % block), mode="edge").reshape(-1, block)
        try:
            with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
                values = [np.asarray(traced(chunk), np.float64) for chunk in padded]
        except TypeError:  # all of jax's errors about a tracer in Python's hands are TypeErrors
            return np.array([float(schedule(count)) for count in counts.tolist()])
        return np.concatenate(values)[: len(counts)]

    return evaluate


def _floor(sizes: np.ndarray) -> np.ndarray:
    nearest = np.round(sizes)
    return np.where(np.abs(nearest - sizes) <= _ROUNDING * sizes, nearest, np.floor(sizes)).astype(np.int64)


def _round_down(target: np.ndarray, size: np.ndarray, growth: float | None, multiple_of: int) -> np.ndarray:
    """The largest allowed batch size up to target; growth counts from size."""
    if growth is not None:
        power = np.floor((np.log(target / size) + _ROUNDING) / np.log(growth))
        target = np.minimum(size * growth**power, target)
    return _floor(target / multiple_of).clip(1) * multiple_of


def _nearest_multiples(value: int, unit: int) -> list[int]:
    below = value // unit * unit
    return [below, below + unit] if below else [unit]


def _either(values: list[int]) -> str | None:
    return " or ".join(map(str, values)) or None


def _round_significant(value: float, rounding: str) -> str:
    """Six significant digits of a bound, rounded to the side that is allowed."""
    return f"{float(decimal.Context(prec=6, rounding=rounding).create_decimal_from_float(float(value))):.6g}"


def _check_momentum(value: Any) -> None:
    if not (is_finite(value) and 0 <= value < 1):
        raise InvalidArgument("momentum", value, "in [0, 1)")
