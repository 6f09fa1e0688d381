"""Trainings that are as long as that of a base batch size: in epochs, or in updates."""

from collections.abc import Mapping, Sequence

from experiments.effects.rates import scaled
from experiments.effects.study import Study
from experiments.effects.training import Data, Training
from experiments.harness.config import Config

REGIMES = ("epochs", "updates")  # which are the same for all batch sizes


def trainings(
    study: Study,
    config: Config,
    batch_sizes: Sequence[int],
    base_batch_size: int,
    num_epochs: float,
    num_examples: int = 0,
) -> dict[tuple[str, int], Training]:
    """A training of each batch size in both regimes, with a learning rate at which a search can begin.

    Args:
      study: has the data set.
      config: of all, but for the batch size, and for the learning rate, which goes with the root of the batch size.
      batch_sizes: of the trainings.
      base_batch_size: of the training that all others are as long as.
      num_epochs: of that training.
      num_examples: the first training examples, which are the data set; 0, all of them.

    Returns:
      Trainings with one evaluation, at the end, by regime and batch size.
    """

    def training(regime: str, size: int) -> Training:
        updates = study.updates(num_epochs, size if regime == "epochs" else base_batch_size, num_examples)
        rate = scaled(config.optimizer.learning_rate, size / config.recipe.batch_size, "sqrt")
        own = config.replace(batch_size=size, learning_rate=rate)
        return Training(own, (updates,), data=Data(num_examples=num_examples))

    return {(regime, size): training(regime, size) for regime in REGIMES for size in batch_sizes}


def largest_stable(num_diverged: Mapping[int, int], above: int) -> int | None:
    """The largest batch size with which no seed diverged; None if it is not above another one.

    Args:
      num_diverged: seeds that diverged, by batch size.
      above: the batch size that others are compared with.

    >>> largest_stable({8: 0, 32: 0, 128: 2}, above=8), largest_stable({8: 0, 32: 1}, above=8)
    (32, None)
    """
    largest = max((size for size, count in num_diverged.items() if not count), default=0)
    return largest if largest > above else None
