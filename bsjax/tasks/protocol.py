"""What the engine asks of a task."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax

Losses = tuple[jax.Array, dict[str, jax.Array], Any]


class Task(Protocol):
    r"""What is trained: pure functions that see one microbatch of n examples on one device.

    A task returns a loss *per example*, and the engine does the rest: it weighs examples, leaves out padding, sums over
    microbatches and devices, and divides once, so that

    .. math:: L = \frac{1}{B} \sum_{i=1}^{B} \ell_i

    whatever the microbatch and the number of devices. Subclass it for the defaults, or write a class of your own; for
    most models `bsjax.tasks.from_loss` is shorter.

    Attributes:
      group_size: how many consecutive examples share one function, such as the ghosts of batch normalisation or the
        groups of a contrastive loss; 1 where each example has a loss of its own. The engine keeps groups whole.
      groups_may_span_devices: whether neighbouring devices may hold parts of one group. The task then communicates
        over the mapped axis "batch" itself, as `bsjax.models.GhostBatchNorm` does.
      batch_stats_decay: d of the running averages: an update of G groups keeps d^G of the old ones.
      metrics: names of what `losses` returns beside the loss, such as ("accuracy",). Reports show the first one, or the
        loss if there is none.
      unit: what people count, such as "images" or "tokens".
      units_per_example: how many of them an example has.
    """

    group_size: int = 1
    groups_may_span_devices: bool = False
    batch_stats_decay: float = 0.99
    metrics: tuple[str, ...] = ()
    unit: str = "examples"
    units_per_example: int = 1

    @property
    def identity(self) -> dict[str, Any]:
        """What the numbers depend on, as JSON: a checkpoint of another task is refused."""
        raise NotImplementedError

    def of_means(self, means: Mapping[str, float]) -> dict[str, float]:
        """Further results of an evaluation, which are no means of something of each example, such as a perplexity.

        Args:
          means: of the loss, "loss", and of the metrics, over all examples.
        """
        del means
        return {}

    def check_source(self, name: str, source: Any) -> None:
        """Raises InvalidArgument if a source, "train" or "test", holds examples that the task has no use for."""
        del name, source

    def init(self, key: jax.Array, examples: Any) -> tuple[Any, Any]:
        """Initial parameters and running statistics.

        Args:
          key: of their randomness.
          examples: one example, for its shapes: a pytree of arrays [1, ...].

        Returns:
          Parameters, and the running averages of group statistics: pytrees; {} without statistics.
        """
        raise NotImplementedError

    def read(self, examples: Any, keys: jax.Array, train: bool) -> Any:
        """Makes the model's inputs from examples: casts, standardises, augments. Runs inside jit.

        Args:
          examples: a pytree of arrays [n, ...], as the source gathers them.
          keys: [n], one per example, each a function of the seed and the position in the stream.
          train: False in the evaluation, which does not augment.

        Returns:
          A pytree of arrays [n, ...].
        """
        del keys, train
        return examples

    def losses(self, params: Any, batch_stats: Any, inputs: Any, keys: jax.Array, train: bool) -> Losses:
        """Losses and metrics of each example. Runs inside jit, and is differentiated.

        Args:
          params: of the model.
          batch_stats: running averages, for the evaluation.
          inputs: of `read`.
          keys: [n], one per example and others than those of `read`, for dropout and the like.
          train: False in the evaluation.

        Returns:
          Losses, float [n]; metrics, a float [n] for each name in `metrics`; and in training the groups' statistics, a
          pytree like `batch_stats` with a leading axis of n / group_size groups (or one group, if n is smaller).
        """
        raise NotImplementedError
