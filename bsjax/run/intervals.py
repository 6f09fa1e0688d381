"""How often a run evaluates, logs and writes checkpoints, on a clock of examples; which of its updates it traces."""

import dataclasses
import math

from bsjax.errors import InvalidArgument, check_positive, check_whole, is_finite
from bsjax.plan import Update
from bsjax.run.profile import check_range

# A checkpoint is written before the batch size changes, if that size lasted for at least this share of the run.
_LONG_PHASE = 0.01


@dataclasses.dataclass(frozen=True)
class Intervals:
    """How often a run evaluates, logs and writes checkpoints, in epochs unless the name says otherwise.

    Something is due after the first update that ends at or past each multiple of its interval. Evaluation, log and
    checkpoint are always due after the last update.

    Attributes:
      eval_every_epochs: between evaluations on the test split.
      log_every_epochs: between lines of means over the updates.
      checkpoint_every_epochs: between checkpoints; infinite for none of these.
      checkpoint_min_s: the shortest time between checkpoints, and before the first one, so that short runs do not
        spend their time on them. It does not apply to many processes, whose clocks differ.
      keep_checkpoints: how many of the newest checkpoints stay.
      noise_half_life_epochs: of the averages behind the gradient noise scale.
      profile_updates: first and end of the updates whose trace is written to the folder `profile`, see
        `bsjax.run.profile.Profile`; None for no trace.

    Raises:
      InvalidArgument: a value is out of range.

    >>> Intervals(keep_checkpoints=0)
    Traceback (most recent call last):
    ...
    bsjax.errors.InvalidArgument: keep_checkpoints is 0; it must be a whole number >= 1; nearest: 1
    """

    eval_every_epochs: float = 1.0
    log_every_epochs: float = 1.0
    checkpoint_every_epochs: float = math.inf
    checkpoint_min_s: float = 0.0
    keep_checkpoints: int = 2
    noise_half_life_epochs: float = 0.5
    profile_updates: tuple[int, int] | None = None

    def __post_init__(self):
        for name in ("eval_every_epochs", "log_every_epochs", "checkpoint_every_epochs"):
            every = getattr(self, name)
            if not ((is_finite(every) or every == math.inf) and every > 0):
                raise InvalidArgument(name, every, "a positive number of epochs", 1.0)
        least = self.checkpoint_min_s
        if not ((is_finite(least) or least == math.inf) and least >= 0):
            raise InvalidArgument("checkpoint_min_s", least, "a number >= 0", 0.0)
        check_whole("keep_checkpoints", self.keep_checkpoints)
        check_positive("noise_half_life_epochs", self.noise_half_life_epochs)
        if self.profile_updates is not None:
            check_range(self.profile_updates)


def is_due(num_examples: float, update: Update) -> bool:
    """Whether an update is the first to end at or past another multiple of this many examples.

    >>> [is_due(12, Update(k, 8 * k, 8, 0.1, 0.9)) for k in range(6)]
    [False, True, True, False, True, True]
    """

    def multiples(examples_seen: int) -> int:
        # The small number corrects rounding, such as of 3 × 0.1 epochs to slightly more than 0.3.
        return int(examples_seen / num_examples + 1e-9)

    return multiples(update.examples_seen + update.batch_size) > multiples(update.examples_seen)


class CheckpointClock:
    """When checkpoints are due.

    Args:
      intervals: of the run.
      dataset_size: N.
      num_examples: of the whole run.
      examples_seen: when the run begins or continues.
      now_s: when the run begins or continues, in seconds by any clock.

    >>> clock = CheckpointClock(Intervals(checkpoint_every_epochs=2.0, checkpoint_min_s=10.0), 8, 40, 0, now_s=0.0)
    >>> updates = [Update(k, 8 * k, 8, 0.1, 0.9) for k in range(5)]
    >>> [clock.is_due(updates[k], updates[k + 1], now_s=4.0 * (k + 1)) for k in range(4)]
    [False, False, True, True]
    >>> clock.is_due(updates[-1], None, now_s=0.0)  # the last one
    True
    """

    def __init__(self, intervals: Intervals, dataset_size: int, num_examples: int, examples_seen: int, now_s: float):
        self._every = intervals.checkpoint_every_epochs * dataset_size
        self._min_s = intervals.checkpoint_min_s
        self._long_phase = _LONG_PHASE * num_examples
        self._phase_start, self._saved_at_s, self._is_due = examples_seen, now_s, False

    def is_due(self, update: Update, following: Update | None, now_s: float) -> bool:
        """Whether to write one between an update and the following one, which is None at the end of the run."""
        if following is None:
            return True
        self._is_due |= is_due(self._every, update)
        if following.batch_size != update.batch_size:
            self._is_due |= following.examples_seen - self._phase_start >= self._long_phase
            self._phase_start = following.examples_seen
        return self._is_due and now_s - self._saved_at_s >= self._min_s

    def saved(self, now_s: float) -> None:
        """Notes that a checkpoint was written."""
        self._saved_at_s, self._is_due = now_s, False
