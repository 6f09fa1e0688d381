"""A training recipe, and the paper's conversions of it: same noise, larger batches, fewer updates.

Section 5 of the paper on one page:

    decaying learning rate  recipe
    increasing batch size   recipe.increase_batch_size(max_batch_size=5120)
    + larger initial rate   recipe.scale_learning_rate(5).increase_batch_size(max_batch_size=5120)
    + larger momentum       recipe.scale_learning_rate(5).scale_momentum(0.98).increase_batch_size(max_batch_size=5120)

Every one of these keeps lr / (B^ρ (1 - m)) exactly as it was at every instant, where ρ is 1 for the
linear and 1/2 for the square-root scaling rule. So does `warm_up_batch_size`, which makes early batches smaller;
`scale_adam` and `scale_ema` let Adam's other constants and an average of the parameters follow. Their mathematics is in
`bsjax.conversions`, `bsjax.warm_up`, `bsjax.adam` and `bsjax.ema`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import optax

from bsjax import plan_plots
from bsjax.adam import ScaleAdam
from bsjax.batch_schedule import BatchSchedule
from bsjax.conversions import Conversion, Converter, IncreaseBatchSize, ScaleLearningRate, ScaleMomentum, check_momentum
from bsjax.ema import ScaleEma
from bsjax.errors import InvalidArgument, check_choice, check_positive, check_whole, is_finite
from bsjax.noise import scaling_exponent as scaling_exponent
from bsjax.noise import sgd_noise_scale
from bsjax.plan import Plan, check_names
from bsjax.recipe_sources import RecipeSources
from bsjax.schedules import CLOCKS, Hyperparameters, Schedules, take_batches
from bsjax.warm_up import WarmUpBatchSize


@dataclasses.dataclass(frozen=True)
class Recipe(RecipeSources):
    """Hyperparameters of a training run, as functions of the number of examples seen.

    A recipe is immutable: each conversion returns a new recipe, and conversions compose. They apply in the order
    in which they are written, so put the one with the cap (`increase_batch_size`) last. The other fields stay
    those of the unconverted recipe; `at` and `plan` give the converted values. So
    `dataclasses.replace(converted, num_epochs=100)` converts the longer recipe in the same way.

    Each conversion but `scale_adam` and `scale_ema` keeps lr / (B^ρ (1 - m)) with its own ρ; where they differ,
    `scaling` is the last one's.

    `from_optax_schedule`, `from_milestones` (PyTorch) and `from_cosine_with_warmup` (Hugging Face) make a recipe from
    what another training loop has.

    Args:
      learning_rate: a positive number or an optax schedule.
      batch_size: in examples; a whole number or a schedule.
      dataset_size: N, the number of examples in an epoch.
      num_epochs: how long to train; may be a fraction.
      momentum: m in [0, 1), a number or a schedule; for Adam its b1.
      clock: the unit of the schedules' argument: "epochs" (a float), "updates" of this recipe or
        "examples" or "tokens" seen (integers). As in optax, the value after a boundary holds from the boundary on.
      hyperparameters: further ones by optax's names, such as "b2", "eps" and "weight_decay": numbers or schedules
        on the same clock. Only `scale_adam` and `scale_ema` change them. Kept as pairs in the order of their names.
      conversions: those applied, in this order.
      tokens_per_example: the context length of a language model, whose examples are sequences; the clock "tokens" needs
        it. `bsjax.recipe_in_tokens` makes a recipe from numbers of tokens.

    Raises:
      InvalidArgument: a value is out of range, at any instant of the training.

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
    hyperparameters: Mapping[str, optax.Schedule | float] | tuple[tuple[str, optax.Schedule | float], ...] = ()
    conversions: tuple[Conversion, ...] = ()
    tokens_per_example: int | None = None
    # Derived from the fields above: the unconverted values, and the conversions as functions of these.
    _schedules: Schedules = dataclasses.field(init=False, repr=False, compare=False)
    _converters: tuple[Converter, ...] = dataclasses.field(default=(), init=False, repr=False, compare=False)

    def __post_init__(self):
        self._check_clock()
        check_whole("dataset_size", self.dataset_size)
        check_positive("num_epochs", self.num_epochs)
        if not callable(self.learning_rate):
            check_positive("learning_rate", self.learning_rate)
        if not callable(self.momentum):
            check_momentum(self.momentum)
        if not callable(self.batch_size):
            check_whole("batch_size", self.batch_size)
            if self.batch_size > self.dataset_size:
                allowed = f"at most dataset_size {self.dataset_size}"
                raise InvalidArgument("batch_size", self.batch_size, allowed, self.dataset_size)
        others = _checked_others(self.hyperparameters)
        if not (isinstance(self.conversions, tuple) and all(isinstance(each, Conversion) for each in self.conversions)):
            allowed = "a tuple of conversions, such as IncreaseBatchSize()"
            raise InvalidArgument("conversions", self.conversions, allowed)
        own = {name: getattr(self, name) for name in Hyperparameters._fields}
        clock = self.clock, self.tokens_per_example
        schedules = Schedules(own | others, self.dataset_size, self.num_examples, *clock)
        self.__dict__.update(hyperparameters=tuple(others.items()), _schedules=schedules)  # a tuple can be hashed
        if isinstance(self.batch_size, BatchSchedule):
            self.batch_size.check_reached(schedules.end)
        for conversion in self.conversions:
            self.__dict__["_converters"] = (*self._converters, self._fit(conversion))
        self._check_completed()

    def __reduce__(self) -> Any:  # without the derived fields
        return Recipe, tuple(getattr(self, field.name) for field in dataclasses.fields(self) if field.init)

    def at(self, examples_seen: Any) -> Hyperparameters:
        """Learning rate, batch size and momentum of an update that starts at `examples_seen`.

        Args:
          examples_seen: whole numbers of examples, of any shape.

        >>> recipe = Recipe(0.1, batch_size=32, dataset_size=1000, num_epochs=3).scale_learning_rate(2)
        >>> recipe.at(500).batch_size.item(), recipe.at(500).learning_rate.item()
        (64, 0.2)
        """
        values, _ = self._at(_flat(examples_seen))
        return Hyperparameters(*(value.reshape(np.shape(examples_seen)) for value in values))

    def others_at(self, examples_seen: Any) -> dict[str, np.ndarray]:
        """The further hyperparameters of an update that starts at `examples_seen`, by name, after all conversions.

        Args:
          examples_seen: whole numbers of examples, of any shape.

        >>> recipe = Recipe(0.1, 32, 1000, num_epochs=3, hyperparameters={"b2": optax.linear_schedule(0.9, 0.99, 2)})
        >>> recipe.others_at([0, 1000])["b2"].round(3).tolist()
        [0.9, 0.945]
        """
        _, others = self._at(_flat(examples_seen))
        return {name: values.reshape(np.shape(examples_seen)) for name, values in others.items()}

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

    @property
    def scaling(self) -> float:
        """ρ of the last conversion that has one; 1 without one."""
        exponents = [conversion.exponent for conversion in self.conversions if conversion.keeps_noise]
        return exponents[-1] if exponents else 1.0

    def plan(self, start: int = 0) -> Plan:
        """The recipe's updates.

        Args:
          start: examples seen before the first update; not 0 where a run continues from the state of another.

        Raises:
          InvalidArgument: the recipe has ended by then.

        >>> Recipe(0.1, batch_size=10, dataset_size=100, num_epochs=3).plan(start=250).num_updates
        5
        """
        if not 0 <= start < self.num_examples:
            raise InvalidArgument("start", start, f"in [0, {self.num_examples}), the recipe's examples")
        batch_sizes = take_batches(lambda position: self.at(position).batch_size, self.num_examples, start)
        starts = start + np.cumsum(batch_sizes) - batch_sizes
        values, others = self._at(starts)
        columns = batch_sizes, values.learning_rate, values.momentum
        return Plan(self.dataset_size, *columns, start, others, self.scaling, self.tokens_per_example)

    def plot(self, ax: Any = None) -> np.ndarray:
        """Draws learning rate, batch size and noise scale before and after the conversions; needs matplotlib.

        Args:
          ax: axes [2, 3] that this function has returned, to draw into; None makes a figure.

        Returns:
          Matplotlib axes [2, 3]: a row for epochs and one for updates.
        """
        before = {"recipe": dataclasses.replace(self, conversions=()).plan()}
        return plan_plots.plot_plans(before | ({"converted": self.plan()} if self.conversions else {}), ax)

    def increase_batch_size(
        self,
        max_batch_size: int | None = None,
        scaling: str | float = "linear",
        share: float = 1.0,
        growth: float | None = None,
        multiple_of: int = 1,
    ) -> "Recipe":
        """Increases the batch where the recipe decays its learning rate: B·a^(share/ρ) after a decay by a factor a.

        The arguments are those of `bsjax.IncreaseBatchSize`.

        Raises:
          InvalidArgument: an argument is out of range, or no allowed size fits.

        >>> recipe = Recipe(optax.cosine_decay_schedule(0.1, 10), 64, 50_000, num_epochs=10)
        >>> recipe.increase_batch_size(max_batch_size=1024, growth=2).plan().batch_sizes.max().item()
        1024
        >>> recipe.increase_batch_size(max_batch_size=50)
        Traceback (most recent call last):
        ...
        bsjax.errors.InvalidArgument: max_batch_size is 50; it must be at least the recipe's batch_size 64; nearest: 64

        Reference: Smith et al., 2018, Section 5.1.
        """
        return self._converted(IncreaseBatchSize(max_batch_size, scaling, share, growth, multiple_of))

    def scale_learning_rate(self, factor: float, scaling: str | float = "linear") -> "Recipe":
        """Multiplies the learning rate by `factor` and the batch by factor^(1/ρ), at every instant.

        The arguments are those of `bsjax.ScaleLearningRate`.

        Raises:
          InvalidArgument: an argument is out of range, or the batch would leave [1, dataset_size].

        >>> recipe = Recipe(0.1, batch_size=128, dataset_size=50_000, num_epochs=200)
        >>> recipe.scale_learning_rate(5).at(0).batch_size.item()
        640

        Reference: Smith et al., 2018, Section 5.2.
        """
        return self._converted(ScaleLearningRate(factor, scaling))

    def scale_momentum(self, momentum: float) -> "Recipe":
        """Sets the momentum and scales the batch by (1 - m_before) / (1 - momentum), at every instant.

        The argument is that of `bsjax.ScaleMomentum`.

        Raises:
          InvalidArgument: out of range, or the batch would leave [1, dataset_size].

        >>> recipe = Recipe(0.1, batch_size=128, dataset_size=50_000, num_epochs=200, momentum=0.9)
        >>> recipe.scale_momentum(0.98).at(0).batch_size.item()
        640

        Reference: Smith et al., 2018, Sections 3.2 and 5.2.
        """
        return self._converted(ScaleMomentum(momentum))

    def warm_up_batch_size(
        self,
        factors: float | tuple[float, ...],
        until: float | tuple[float, ...],
        scaling: str | float = "sqrt",
        linear: bool = False,
        multiple_of: int = 1,
    ) -> "Recipe":
        """Makes the batch smaller until some time of the recipe's clock, and the learning rate with it, as B^ρ.

        The arguments are those of `bsjax.WarmUpBatchSize`.

        Raises:
          InvalidArgument: an argument is out of range, a size is not allowed, or training ends before.

        >>> recipe = Recipe(0.1, batch_size=128, dataset_size=1000, num_epochs=100)
        >>> warm = recipe.warm_up_batch_size(factors=(0.25, 0.5), until=(3, 10))  # shares of the batch, epochs
        >>> warm.at([0, 3000, 10_000]).batch_size.tolist(), warm.at(0).learning_rate.item()
        ([32, 64, 128], 0.05)
        """
        conversion: Any = WarmUpBatchSize  # which takes one number as well
        return self._converted(conversion(factors, until, scaling, linear, multiple_of))

    def scale_adam(
        self,
        b2: str | None = "half_life",
        epsilon: bool = True,
        weight_decay: str | None = "time_scale",
        b2_floor: float | None = None,
    ) -> "Recipe":
        """Scales b2, ε and the decoupled weight decay of Adam with the batch, wherever in the recipe it stands.

        The arguments are those of `bsjax.ScaleAdam`.

        Raises:
          InvalidArgument: an argument is out of range, a hyperparameter is missing, or the batch grows too large for
            "sde".

        >>> recipe = Recipe(0.1, 128, 50_000, num_epochs=200, hyperparameters={"b2": 0.999, "eps": 1e-8})
        >>> larger = recipe.scale_learning_rate(2, scaling="sqrt").scale_adam(weight_decay=None)
        >>> larger.at(0).batch_size.item(), {name: float(value) for name, value in larger.others_at(0).items()}
        (512, {'b2': 0.996005996001, 'eps': 5e-09})
        """
        return self._converted(ScaleAdam(b2, epsilon, weight_decay, b2_floor))

    def scale_ema(self) -> "Recipe":
        """Scales the hyperparameter "ema_decay" with the batch, so that the average spans as many examples.

        Raises:
          InvalidArgument: the recipe has no "ema_decay" in [0, 1).

        >>> recipe = Recipe(0.1, 128, 50_000, num_epochs=200, hyperparameters={"ema_decay": 0.999})
        >>> recipe.scale_learning_rate(2).scale_ema().others_at(0)["ema_decay"].item()
        0.998001

        Reference: `bsjax.ScaleEma`.
        """
        return self._converted(ScaleEma())

    def _at(self, position: np.ndarray) -> tuple[Hyperparameters, dict[str, np.ndarray]]:
        """All values at int64 positions [n]."""
        own, others = self._schedules.at(position), self._schedules.others_at(position)
        values = self._convert(position, own)
        for conversion in self.conversions:
            values, others = conversion.complete(own, values, others)
        return values, others

    def _convert(self, position: np.ndarray, values: Hyperparameters) -> Hyperparameters:
        for convert in self._converters:
            values = convert(position, values)
        return values

    def _converted(self, conversion: Conversion) -> "Recipe":
        """As `dataclasses.replace`, without evaluating the schedules again."""
        converters = (*self._converters, self._fit(conversion))
        recipe = object.__new__(Recipe)
        recipe.__dict__.update(self.__dict__, conversions=(*self.conversions, conversion), _converters=converters)
        recipe._check_completed()
        return recipe

    def _fit(self, conversion: Conversion) -> Converter:
        positions = self._schedules.positions
        return conversion.fit(self._convert(positions, self._schedules.at(positions)), self._schedules)

    def _check_clock(self) -> None:
        check_choice("clock", self.clock, CLOCKS)
        if self.tokens_per_example is not None:
            check_whole("tokens_per_example", self.tokens_per_example)
        elif self.clock == "tokens":
            raise InvalidArgument("tokens_per_example", None, "the context length with clock='tokens'", 1024)
        if isinstance(self.batch_size, BatchSchedule) and self.batch_size.unit != self.clock:
            unit = self.batch_size.unit
            raise InvalidArgument("clock", self.clock, f"{unit}, the unit of the batch schedule", unit)

    def _check_completed(self) -> None:
        """Refuses conversions that do not go together, at any of the recipe's own updates."""
        for kind in (ScaleAdam, ScaleEma):
            several = [conversion for conversion in self.conversions if isinstance(conversion, kind)]
            if len(several) > 1:
                raise InvalidArgument("conversions", several, f"of one {kind.__name__} at most", several[0])
        if any(isinstance(conversion, ScaleAdam) for conversion in self.conversions):
            self._at(self._schedules.positions)


def _flat(examples_seen: Any) -> np.ndarray:
    return np.atleast_1d(np.asarray(examples_seen, np.int64)).ravel()


def _checked_others(given: Any) -> dict[str, Any]:
    try:
        others = dict(given)
    except (TypeError, ValueError):
        raise InvalidArgument("hyperparameters", given, "a mapping of names to numbers or schedules") from None
    check_names(others)
    for name, value in others.items():
        if not (callable(value) or is_finite(value)):
            raise InvalidArgument(f"hyperparameters {name}", value, "a finite number or a schedule")
    return dict(sorted(others.items(), key=lambda pair: pair[0]))
