r"""Which batch size should I use? From the times of the steps on a machine, and a short run of the recipe.

Two batch sizes decide. Below the first, the machine idles: an update takes as long as one of more examples. Above the
second, examples are wasted: with a critical batch size of B_crit, a training in batches of B takes

.. math:: E / E_{min} = 1 + B / B_{crit}

times the fewest examples, and :math:`S / S_{min} = 1 + B_{crit} / B` times the fewest updates. The suggested recipe
starts with the largest batch that takes at most 20 % more examples, by doublings of the recipe's own, and grows it
where the recipe decays its learning rate. `advise_batch_size` measures and advises; `advise` is the arithmetic alone;
`bsjax.analysis.advice_in_words` says it in sentences.

References: McCandlish et al., 2018 (https://arxiv.org/abs/1812.06162), Section 2.3; Smith et al., 2018
(https://arxiv.org/abs/1711.00489), Section 5.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
import optax

from bsjax.analysis.critical_batch import Interval
from bsjax.analysis.noise_along_run import NoiseAlongRun, noise_along_run
from bsjax.analysis.time_model import AllReduce, Costs, Prediction, predict
from bsjax.data import ArraySource, Source
from bsjax.engine import Engine, StepTimes
from bsjax.errors import InvalidArgument, RunError, check_number, check_positive, check_whole
from bsjax.noise import scaling_exponent
from bsjax.recipe import Recipe
from bsjax.tasks import Task

_LARGEST_SHARE = 10  # a growing batch stays below the data set's size over this, as in the paper
_MIN_UPDATES = 16  # of a short run, if the recipe has as many
_ALL_REDUCE = AllReduce(latency_s=1e-5, bytes_per_s=2.5e10)  # 10 µs per message and 200 Gbit/s


@dataclasses.dataclass(frozen=True)
class AdviceOptions:
    """What the advice assumes, and how much is measured.

    Args:
      run_share: the short run's length, as a share of the recipe's examples, in (0, 1].
      num_batches: how many batches measure the gradient noise at each moment of the short run.
      excess: the share of examples, beyond the fewest, that the first batch may cost.
      scaling: "linear", "sqrt" (for Adam), or ρ of learning rate ∝ batch^ρ.
      growth_share: how much of the learning rate's decay becomes batch, in (0, 1]; with Adam 0.5.
      device_counts: the numbers of devices to predict for.
      all_reduce: between these, which is not measured.

    Raises:
      InvalidArgument: a value is out of range.
    """

    run_share: float = 0.05
    num_batches: int = 8
    excess: float = 0.2
    scaling: str | float = "linear"
    growth_share: float = 1.0
    device_counts: tuple[int, ...] = (1, 8, 64)
    all_reduce: AllReduce = _ALL_REDUCE

    def __post_init__(self):
        for name in ("run_share", "growth_share"):
            check_number(name, getattr(self, name), lambda share: 0 < share <= 1, "in (0, 1]", 1)
        check_positive("excess", self.excess)
        check_whole("num_batches", self.num_batches, 2)
        scaling_exponent(self.scaling)
        if not self.device_counts:
            raise InvalidArgument("device_counts", self.device_counts, "at least one number of devices", (1,))
        for count in self.device_counts:
            check_whole("device_counts", count)


_DEFAULTS = AdviceOptions()


@dataclasses.dataclass(frozen=True)
class Advice:
    """The answer, and what it rests on; `bsjax.analysis.advice_in_words.text` makes sentences of it.

    Attributes:
      recipe: the one that was asked about.
      suggested: the recipe to start from.
      costs: of an update on a device like this machine's.
      timed: where the step times come from, and why no larger microbatch was timed.
      noise: along the short run.
      options: what was assumed.
    """

    recipe: Recipe
    suggested: Recipe
    costs: Costs
    timed: str
    noise: NoiseAlongRun
    options: AdviceOptions

    @property
    def examples_per_s(self) -> dict[int, float]:
        """The throughput of one device by microbatch size, without `apply_update`."""
        times = self.costs.step_times.accumulate_s
        return {size: size / times[size] for size in sorted(times)}

    @property
    def microbatch_size(self) -> int:
        """The fastest, per device."""
        return max(self.examples_per_s, key=self.examples_per_s.__getitem__)

    @functools.cached_property
    def critical_batch_size(self) -> Interval:
        """That of the training so far, at the end of the short run."""
        return self.noise.critical_batch_size()

    @functools.cached_property
    def later_noise_scale(self) -> Interval:
        """B_simple at the end of the recipe, extrapolated."""
        return self.noise.extrapolated(self.recipe.num_examples)

    def times(self, num_devices: int) -> tuple[Prediction, Prediction]:
        """What the recipe and the suggested one take on a number of devices."""
        plans = self.recipe.plan(), self.suggested.plan()
        before, after = (predict(plan, num_devices, self.costs) for plan in plans)
        return before, after


def suggest(
    recipe: Recipe, critical_batch_size: float, multiple_of: int = 1, options: AdviceOptions = _DEFAULTS
) -> Recipe:
    """A recipe of the same noise that starts with the largest batch that the critical batch size allows.

    The first batch is the recipe's own, doubled while it costs at most `options.excess` more examples than the fewest;
    it is never halved. Where the learning rate decays, the batch grows instead, up to a tenth of the data set.

    Args:
      recipe: what is trained with today.
      critical_batch_size: in examples; if it is infinite, it could not be measured, and the first batch stays.
      multiple_of: a group of the task.
      options: the excess, and the rule for the learning rate.

    >>> steps = optax.piecewise_constant_schedule(0.1, {20: 0.2})
    >>> recipe = Recipe(steps, batch_size=8, dataset_size=10_000, num_epochs=30)
    >>> suggested = suggest(recipe, critical_batch_size=200)  # of which 32 is less than 20 %
    >>> [phase.batch_size for phase in suggested.plan().phases]
    [32, 160]

    Reference: Smith et al., 2018 (https://arxiv.org/abs/1711.00489), Sections 5.1 and 5.2.
    """
    own, doublings = recipe.plan().batch_sizes, 0
    if math.isfinite(critical_batch_size):
        room = min(options.excess * critical_batch_size / int(own[0]), recipe.dataset_size / int(own.max()))
        doublings = math.floor(math.log2(max(room, 1.0)))
    if doublings:
        recipe = recipe.scale_learning_rate(2.0 ** (doublings * scaling_exponent(options.scaling)), options.scaling)
    if not decays(recipe):
        return recipe
    tenth = recipe.dataset_size // _LARGEST_SHARE // multiple_of * multiple_of
    cap = max(int(recipe.plan().batch_sizes.max()), tenth)
    return recipe.increase_batch_size(cap, options.scaling, options.growth_share, multiple_of=multiple_of)


def decays(recipe: Recipe) -> bool:
    """Whether the learning rate ever falls below its largest value.

    >>> decays(Recipe(0.1, 8, 100, num_epochs=1)), decays(Recipe(lambda epoch: 0.1 / (1 + epoch), 8, 100, num_epochs=1))
    (False, True)
    """
    rates = recipe.plan().learning_rates
    return bool(rates[rates.argmax() :].min() < rates.max())


def advise(
    recipe: Recipe, costs: Costs, noise: NoiseAlongRun, timed: str = "given", options: AdviceOptions = _DEFAULTS
) -> Advice:
    """The advice from measurements.

    Args:
      recipe: what is trained with today.
      costs: of an update; `ghost_batch_size` is the task's group.
      noise: along a short run of the recipe.
      timed: where the step times come from.
      options: what to assume.

    Raises:
      InvalidArgument: the recipe's batch does not hold whole groups.
    """
    critical = noise.critical_batch_size().value
    return Advice(recipe, suggest(recipe, critical, costs.ghost_batch_size, options), costs, timed, noise, options)


def advise_batch_size(
    task: Task,
    tx: optax.GradientTransformation,
    train: Source,
    recipe: Recipe,
    options: AdviceOptions = _DEFAULTS,
    seed: int = 0,
    devices: Sequence[jax.Device] | None = None,
    step_times: StepTimes | None = None,
) -> Advice:
    """Times the steps on this machine, makes a short run of the recipe, and advises a batch size.

    Microbatches are timed up to what the memory holds, see `bsjax.engine.measure`; the times are kept in the cache
    folder. The short run leaves no files.

    Args:
      task: what is trained, see `bsjax.tasks`.
      tx: the optimizer, see `bsjax.engine.Engine`.
      train: the training examples.
      recipe: what is trained with today, on these examples.
      options: what to assume, and how much to measure.
      seed: of the short run.
      devices: default, all.
      step_times: of one device; None measures them.

    Raises:
      InvalidArgument: an argument does not fit the others.
      RunError: the memory does not hold the smallest microbatch, or the short run diverges.
    """
    if recipe.dataset_size != len(train):
        allowed = f"{len(train)}, as many as there are training examples"
        raise InvalidArgument("dataset_size", recipe.dataset_size, allowed, len(train))
    plan, timed = recipe.plan(), "given, not measured"
    if step_times is None:
        step_times, timed = measure_step_times(task, tx, train, plan[0].hyperparameters, seed, devices)
    before_the_end = int(np.searchsorted(plan.examples_seen, options.run_share * recipe.num_examples))
    num_updates = min(max(before_the_end, _MIN_UPDATES), plan.num_updates)
    largest = max(step_times.accumulate_s)
    noise = noise_along_run(task, tx, train, plan, num_updates, seed, devices, largest, options.num_batches)
    shapes = jax.eval_shape(task.init, jax.random.PRNGKey(seed), train.gather(np.arange(1)))
    num_bytes = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    # Two all-reduces, forward and backward, of each batch norm, which has a mean and a variance.
    num_shared_means = len(jax.tree.leaves(shapes[1]))
    costs = Costs(step_times, options.all_reduce, num_bytes, task.group_size, num_shared_means)
    return advise(recipe, costs, noise, timed, options)


def measure_step_times(
    task: Task,
    tx: optax.GradientTransformation,
    train: Source,
    hyperparameters: Mapping[str, float],
    seed: int = 0,
    devices: Sequence[jax.Device] | None = None,
) -> tuple[StepTimes, str]:
    """The times of the steps on this machine, and why no larger microbatch was timed.

    Args:
      task: what is trained.
      tx: the optimizer.
      train: the training examples.
      hyperparameters: those of an update, by name.
      seed: of the initial parameters.
      devices: default, all.

    Raises:
      InvalidArgument: the optimizer lacks a hyperparameter.
      RunError: the memory does not hold the smallest microbatch.
    """
    test = ArraySource(train.gather(np.arange(1)))  # nothing is evaluated
    engine = Engine(task, tx, train, test, [task.group_size], seed, microbatch_size="measure", devices=devices)
    engine.check_hyperparameters(hyperparameters)
    try:
        engine.layout(task.group_size)  # measures
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"a device's memory does not hold the smallest microbatch that was tried: {reason}") from None
    measured = engine.layout_choice.measured
    assert measured is not None
    timed = f"timed on {engine.num_devices} × {measured['devices'][0]}; {measured['note']}"
    return StepTimes.from_json(measured["times"]), timed
