r"""The gradient noise along the beginning of a training, and the critical batch size that it predicts.

With a gradient noise scale of B, an update of b examples makes the progress of

.. math:: p = \frac{1}{1 + B/b}

updates without noise. The same progress costs one update of a very large batch, or B examples of very small ones. Added
up over the updates k of a training, these are S_min and E_min of the hyperbola between steps and examples, so

.. math:: B_{crit} = \frac{E_{min}}{S_{min}} = \frac{\sum_k p_k B_k}{\sum_k p_k}.

This is the noise scale averaged over progress. It predicts what `bsjax.analysis.critical_batch.fit_pareto` finds from
many trainings, as far as the noise scale of the raw gradient is that of the optimizer's step, see
`bsjax.gradient_noise`.

Reference: McCandlish et al., 2018 (https://arxiv.org/abs/1812.06162), Section 2.3 and Appendix D.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from bsjax import gradient_noise
from bsjax.analysis.critical_batch import Interval, interval_over_seeds
from bsjax.data import ArraySource, Source
from bsjax.engine import Engine, TrainState
from bsjax.engine.devices import first_replica
from bsjax.errors import DivergedError, InvalidArgument, check_whole
from bsjax.plan import Plan, Update
from bsjax.tasks import Task

_BATCH_SIZE = 256  # of the batches that measure the noise, unless groups or the data set ask for another
_NUM_SHARDS = 8  # microbatches in such a batch, at least
_NUM_FITTED = 4  # moments, the last ones, from which the growth of the noise scale is extrapolated
_TINY = 1e-300


class NoiseAlongRun(NamedTuple):
    """|G|² and tr(Σ) at some moments of a training, each from several batches.

    Intervals leave out one batch at a time (`bsjax.analysis.critical_batch.interval_over_seeds`): they are about the
    measurement in this training, not about another seed.
    """

    updates: np.ndarray  # int64 [moments]: how many updates came before each, increasing
    batch_sizes: np.ndarray  # int64 [updates], of the training up to the last moment
    squares: np.ndarray  # float64 [batches, moments, 2]: estimates of |G|² and tr(Σ) without bias

    @property
    def examples_seen(self) -> np.ndarray:
        """int64 [moments]: examples that the training had seen."""
        return np.cumsum(self.batch_sizes)[self.updates - 1]

    def noise_scales(self) -> list[Interval]:
        """B_simple at each moment, in examples; infinite where |G|² is lost in the noise."""
        of_each = np.split(self.squares, len(self.updates), axis=1)
        return [interval_over_seeds(lambda squares: float(_noise_scales(squares)[0]), one) for one in of_each]

    def critical_batch_size(self) -> Interval:
        """The critical batch size of the training so far, by the module's formula, in examples.

        Between moments, 1/B is interpolated over the logarithm of the examples; before the first it is constant.
        """
        starts = np.maximum(np.cumsum(self.batch_sizes) - self.batch_sizes, 1)

        def estimate(squares: np.ndarray) -> float:
            inverse = 1 / np.maximum(_noise_scales(squares), _TINY)
            with np.errstate(divide="ignore"):
                return critical_batch_size(1 / _interpolated(starts, self.examples_seen, inverse), self.batch_sizes)

        return self._interval(estimate)

    def growth(self) -> float:
        """The exponent q of B_simple ∝ examples^q over the last four moments, in [0, 1]."""
        return _power_law(self.examples_seen, _noise_scales(self.squares))[0]

    def extrapolated(self, examples_seen: int) -> Interval:
        """B_simple later in the training, if it goes on growing like a power of the examples.

        Args:
          examples_seen: when.
        """

        def estimate(squares: np.ndarray) -> float:
            exponent, at_one = _power_law(self.examples_seen, _noise_scales(squares))
            return at_one * float(examples_seen) ** exponent

        return self._interval(estimate)

    def up_to(self, num_updates: int) -> "NoiseAlongRun":
        """The moments within the first updates of the training.

        Raises:
          InvalidArgument: there is no moment that early.
        """
        count = int((self.updates <= num_updates).sum())
        if count == 0:
            first = int(self.updates[0])
            raise InvalidArgument("num_updates", num_updates, f"at least {first}, the first moment", first)
        return NoiseAlongRun(self.updates[:count], self.batch_sizes[: self.updates[count - 1]], self.squares[:, :count])

    def _interval(self, statistic: Callable[[np.ndarray], float]) -> Interval:
        return interval_over_seeds(statistic, self.squares)


def critical_batch_size(noise_scales: Any, batch_sizes: Any) -> float:
    """The critical batch size of a training from its gradient noise scale, by the module's formula.

    Args:
      noise_scales: B_simple at each update, positive; infinite where |G|² is lost in the noise.
      batch_sizes: of these updates.

    Returns:
      Examples. For batches far below the noise scale it is their harmonic mean over the updates, for batches far above
      it the arithmetic mean.

    >>> critical_batch_size([100, 100], [8, 8])
    100.0
    >>> round(critical_batch_size([50, 150], [1e-6, 1e-6]), 3), round(critical_batch_size([50, 150], [1e9, 1e9]), 3)
    (75.0, 100.0)
    """
    sizes = np.asarray(batch_sizes, np.float64)
    progress = sizes / (sizes + np.asarray(noise_scales, np.float64))
    with np.errstate(divide="ignore"):
        return float(np.divide(sizes @ (1 - progress), progress.sum()))  # p B = b (1 - p)


def noise_along_run(
    task: Task,
    tx: optax.GradientTransformation,
    train: Source,
    plan: Plan,
    num_updates: int,
    seed: int = 0,
    devices: Sequence[jax.Device] | None = None,
    max_microbatch_size: int = _BATCH_SIZE,
    num_batches: int = 8,
    num_moments: int = 6,
) -> NoiseAlongRun:
    """Trains the first updates of a plan, and measures the gradient noise on the way.

    The moments are after all updates, half of them, a quarter and so on. At each, updates with learning rate 0, on the
    examples that are to come, measure the noise; then the state from before is put back, so the training is the same
    as without. The optimizer must leave the parameters alone at a learning rate of 0.

    Args:
      task: what is trained.
      tx: the optimizer, see `bsjax.engine.Engine`.
      train: the training examples.
      plan: of the training.
      num_updates: how many updates of the plan are made.
      seed: of the training.
      devices: default, all.
      max_microbatch_size: the largest that a device's memory holds.
      num_batches: batches of 256 examples, or of 8 groups, that measure the noise at each moment.
      num_moments: at most.

    Raises:
      InvalidArgument: an argument is out of range, or the data set holds no two groups.
      DivergedError: a gradient is not finite.

    Reference: McCandlish et al., 2018 (https://arxiv.org/abs/1812.06162), Appendix A.1.
    """
    check_whole("num_batches", num_batches, 2)
    check_whole("num_moments", num_moments)
    if check_whole("num_updates", num_updates) > plan.num_updates:
        raise InvalidArgument("num_updates", num_updates, "at most the plan's", plan.num_updates)
    sizes = plan.batch_sizes[:num_updates]
    batch_size, microbatch_size = _sizes(task.group_size, len(train), min(int(sizes.min()), max_microbatch_size))
    test = ArraySource(train.gather(np.arange(1)))  # nothing is evaluated
    engine = Engine(task, tx, train, test, {*sizes.tolist(), batch_size}, seed, microbatch_size, devices=devices)
    moments = np.unique(np.ceil(num_updates / 2.0 ** np.arange(num_moments)).astype(np.int64))
    state, done, squares = engine.init(), 0, []
    for moment in moments.tolist():
        for update in range(done, moment):
            state, _ = engine.update(state, plan[update])
        done = moment
        state, found = _measure(engine, state, plan[moment - 1], batch_size, num_batches)
        squares.append(found)
    return NoiseAlongRun(moments, sizes, np.stack(squares, axis=1))


def _sizes(group_size: int, dataset_size: int, largest: int) -> tuple[int, int]:
    """The batch that measures the noise, and the microbatch: so small that the training's batches waste nothing."""
    if 2 * group_size > dataset_size:
        allowed = f"at most half of the {dataset_size} examples: the noise is measured between two groups"
        raise InvalidArgument("group_size", group_size, allowed, dataset_size // 2 or None)
    wanted = min(max(_BATCH_SIZE, _NUM_SHARDS * group_size), dataset_size // 2)
    num_groups = max(wanted // group_size, 2)
    fitting = max(min(num_groups // _NUM_SHARDS, largest // group_size), 1)
    return num_groups * group_size, group_size * 2 ** (fitting.bit_length() - 1)


def _measure(
    engine: Engine, state: TrainState, last: Update, batch_size: int, num_batches: int
) -> tuple[TrainState, np.ndarray]:
    """The state as it was, which is consumed, and the squares [num_batches, 2] at its parameters."""
    kept, found = jax.tree.map(np.array, first_replica(state)), []  # copies, because the state is consumed
    seen, shards = last.examples_seen + last.batch_size, engine.num_shards(batch_size)
    for _ in range(num_batches):
        update = last._replace(examples_seen=seen, batch_size=batch_size, learning_rate=0.0)
        state, metrics = engine.update(state, update)
        values = metrics.read()
        squares = values["weighted_grad_sq"], values["grad_norm"] ** 2
        noise = gradient_noise.estimate(*squares, batch_size, shards, engine.dataset_size)
        if not np.isfinite([noise.grad_sq, noise.trace]).all():
            raise DivergedError(f"the gradient is not finite after update {last.update}; try a smaller learning rate")
        found.append((noise.grad_sq, noise.trace))
        seen += batch_size
    return engine.place(kept), np.array(found, np.float64)


def _noise_scales(squares: np.ndarray) -> np.ndarray:
    """B_simple at each moment, from the means over batches [batches, moments, 2]."""
    grad_sq, trace = np.moveaxis(squares.mean(axis=0), -1, 0)
    return np.asarray(gradient_noise.gradient_noise_scale(gradient_noise.Estimate(grad_sq, trace, 0, 0)))


def _interpolated(at: np.ndarray, seen: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.interp(np.log(at), np.log(seen), values)


def _power_law(seen: np.ndarray, noise_scales: np.ndarray) -> tuple[float, float]:
    """The exponent, from 0 to 1, and the value at one example, fitted to the last moments that could be measured."""
    known = np.flatnonzero(np.isfinite(noise_scales) & (noise_scales > 0))[-_NUM_FITTED:]
    if not len(known):
        return 0.0, np.inf
    x, y = np.log(seen[known]), np.log(noise_scales[known])
    spread = ((x - x.mean()) ** 2).sum()
    slope = ((x - x.mean()) * y).sum() / spread if spread > 0 else 0.0
    exponent = float(np.clip(slope, 0.0, 1.0))
    return exponent, float(np.exp(y.mean() - exponent * x.mean()))
