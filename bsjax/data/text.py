"""A data set of text: tokens to train on, and to test on."""

import dataclasses
import functools

import numpy as np

from bsjax.data.joined_tokens import JoinedTokens
from bsjax.data.token_windows import TokenWindows


@dataclasses.dataclass(frozen=True, eq=False)
class TextDataset:
    """The tokens of a text, for training and testing.

    Args:
      name: name of the data set.
      train_tokens: whole numbers [n] in [0, vocab_size): an array, a memory map, or several of them.
      test_tokens: those that are held out, of the same dtype.
      vocab_size: the number of different tokens.
      vocabulary: the text of each token; empty where it is not known.
      bytes_per_token: bytes of the text in UTF-8 for each token of `test_tokens`; None where it is not known.
      fingerprints: of `train_tokens` and of `test_tokens`, where they are known.
      context_length: of the examples; see `windows`.

    >>> text = TextDataset("abc", np.arange(90) % 3, np.arange(10) % 3, vocab_size=3, vocabulary=("a", "b", "c"))
    >>> len(text.windows(4).train), len(text.windows(8).test)
    (22, 1)
    """

    name: str
    train_tokens: np.ndarray | JoinedTokens
    test_tokens: np.ndarray | JoinedTokens
    vocab_size: int
    vocabulary: tuple[str, ...] = ()
    bytes_per_token: float | None = None
    fingerprints: tuple[str | None, str | None] = (None, None)
    context_length: int = 64

    def windows(self, context_length: int) -> "TextDataset":
        """The same text in examples of another context length.

        Raises:
          InvalidArgument: a window does not fit the text.
        """
        dataset = dataclasses.replace(self, context_length=context_length)
        _ = dataset.train, dataset.test  # refuse a context that does not fit
        return dataset

    @functools.cached_property
    def train(self) -> TokenWindows:
        """The training examples, see `TokenWindows`."""
        return self._windows_of(self.train_tokens, self.fingerprints[0])

    @functools.cached_property
    def test(self) -> TokenWindows:
        """The test examples."""
        return self._windows_of(self.test_tokens, self.fingerprints[1])

    def _windows_of(self, tokens: np.ndarray | JoinedTokens, fingerprint: str | None) -> TokenWindows:
        # Tokens with a known fingerprint are those of a file, which was checked when it was written.
        max_token = self.vocab_size - 1 if fingerprint else None
        return TokenWindows(tokens, self.context_length, fingerprint, max_token)
