"""Language models: each token of a window from those before it."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from bsjax.errors import InvalidArgument, TaskError, check_positive, check_whole
from bsjax.tasks.linen import LinenTask
from bsjax.tasks.protocol import Losses

_LARGEST_EXPONENT = 700.0  # of e, in float64


@dataclasses.dataclass(frozen=True)
class LanguageModel(LinenTask):
    r"""Windows of C + 1 tokens: the cross-entropy of the last C, each given those before it.

    The loss of a window is a mean over its tokens, in nats:

    .. math:: \ell = \frac{1}{C} \sum_{t=1}^{C} -\log p(x_t \mid x_0, \ldots, x_{t-1}).

    The loss, and bits per byte, which are ℓ / (ln 2 · `bytes_per_token`), are means over windows, which all have C
    tokens, and so they are means over tokens. The perplexity is the exponential of that mean, not a mean of
    exponentials: an evaluation computes it from the mean loss of all windows, see `of_means`.

    Examples are {"tokens": whole numbers [n, C + 1]}, as `bsjax.data.TokenWindows` gathers them.

    Args:
      model: maps tokens [n, C] to logits [n, C, vocabulary], such as `bsjax.models.Transformer`. It is called with
        `train` and `keys` [n] as well, if it takes them.
      context_length: C.
      bytes_per_token: of the text; None, where it is not known, leaves out bits per byte.
      batch_stats_decay: of the running averages, per ghost, if the model has batch normalisation.

    Raises:
      InvalidArgument: a value is out of range.

    >>> from bsjax.models import Transformer
    >>> task = LanguageModel(Transformer(vocab_size=256, context_length=32), context_length=32, bytes_per_token=1)
    >>> task.metrics, task.unit, task.units_per_example
    (('bits_per_byte',), 'tokens', 32)
    >>> task.of_means({"loss": 1.5})
    {'perplexity': 4.48}
    """

    model: nn.Module
    context_length: int
    bytes_per_token: float | None = None
    batch_stats_decay: float = 0.99

    needs = ("tokens",)
    unit = "tokens"

    def __post_init__(self):
        check_whole("context_length", self.context_length)
        if self.bytes_per_token is not None:
            check_positive("bytes_per_token", self.bytes_per_token)
        if (longest := getattr(self.model, "context_length", self.context_length)) < self.context_length:
            raise InvalidArgument("context_length", self.context_length, f"at most the model's {longest}", longest)

    @property
    def metrics(self) -> tuple[str, ...]:  # type: ignore[override]
        """Bits per byte, where the bytes of a token are known."""
        return () if self.bytes_per_token is None else ("bits_per_byte",)

    @property
    def units_per_example(self) -> int:  # type: ignore[override]
        """C, the tokens that a window predicts."""
        return self.context_length

    def of_means(self, means: Mapping[str, float]) -> dict[str, float]:
        """The perplexity of a mean loss."""
        loss = means["loss"]
        return {"perplexity": math.inf if loss > _LARGEST_EXPONENT else math.exp(loss)}

    def check_source(self, name: str, source: Any) -> None:
        """Refuses windows of another length, and tokens that are beyond the model's vocabulary.

        It looks at the tokens of `bsjax.data.TokenWindows` and `bsjax.data.ArraySource`, if the model has a field
        `vocab_size`. Any other source answers for its tokens itself.
        """
        example = source.gather(np.zeros(1, np.int32))
        self.check_examples(example)
        length = example["tokens"].shape[-1] - 1
        if length != self.context_length:
            allowed = f"{length}, as the {name} examples have {length + 1} tokens"
            raise InvalidArgument("context_length", self.context_length, allowed, length)
        vocab_size = getattr(self.model, "vocab_size", None)
        if vocab_size is not None and (found := _first_beyond(vocab_size, source)) is not None:
            where, token = found
            raise InvalidArgument(f"the {name} token {where}", token, f"in [0, {vocab_size}), the model's vocabulary")

    def init(self, key: jax.Array, examples: Any) -> tuple[Any, Any]:
        """See `Task`."""
        self.check_examples(examples)
        return self.init_model(key, jnp.zeros((1, self.context_length), jnp.int32))

    def read(self, examples: Any, keys: jax.Array, train: bool) -> Any:
        """The tokens as int32."""
        del keys, train
        return examples["tokens"].astype(jnp.int32)

    def losses(self, params: Any, batch_stats: Any, inputs: Any, keys: jax.Array, train: bool) -> Losses:
        """The mean cross-entropy of each window, in float32 at least."""
        targets = inputs[:, 1:]
        logits, ghost_stats = self.apply(params, batch_stats, inputs[:, :-1], keys, train)
        if logits.shape[:-1] != targets.shape:
            found = f"{list(logits.shape)} for tokens {list(targets.shape)}"
            raise TaskError(f"LanguageModel needs logits [n, tokens, vocabulary], not {found}")
        logits = logits.astype(np.promote_types(logits.dtype, np.float32))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean(axis=1)
        if self.bytes_per_token is None:
            return losses, {}, ghost_stats
        return losses, {"bits_per_byte": losses / (math.log(2) * self.bytes_per_token)}, ghost_stats


def _first_beyond(vocab_size: int, source: Any) -> tuple[str, int] | None:
    """Where the first token that is not in [0, vocab_size) is, and the token; None if there is none."""
    if hasattr(source, "first_beyond"):
        first = source.first_beyond(vocab_size)
        return None if first is None else (str(first), int(source.tokens[first]))
    if not hasattr(source, "examples"):
        return None
    tokens = source.examples["tokens"]
    wrong = np.argwhere((tokens < 0) | (tokens >= vocab_size))
    if not len(wrong):
        return None
    example, position = wrong[0].tolist()
    return f"{position} of example {example}", int(tokens[example, position])
