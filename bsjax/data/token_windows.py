"""Windows of a long sequence of tokens, such as a text: the examples of a language model."""

import functools

import numpy as np

from bsjax.data.joined_tokens import JoinedTokens
from bsjax.data.sources import crc32, describe
from bsjax.errors import InvalidArgument, check_whole

_BLOCK = 1 << 20  # tokens that are looked at at a time


class TokenWindows:
    r"""Windows of C + 1 tokens, C being the context length, so that each of C tokens has a next one.

    Window i holds the tokens

    .. math:: [\,i C,\ i C + C\,], \quad 0 \le i < \lfloor (n - 1) / C \rfloor,

    both ends included. So the windows of an epoch predict each of the n tokens exactly once, except for the first one
    and for the last (n - 1) mod C, which do not fill a window. Examples are {"tokens": [C + 1]} in the tokens' dtype.

    Args:
      tokens: whole numbers [n], n > C: an array; a memory map, which stays on the disk; or several, `JoinedTokens`.
      context_length: C.
      fingerprint: of all the tokens, if it is known; default, computed on first use.
      max_token: no token is larger, if that is known.

    Raises:
      InvalidArgument: the tokens are not whole numbers [n], or a window does not fit.

    >>> source = TokenWindows(np.arange(10, dtype=np.uint8), context_length=4)
    >>> len(source), source.nbytes
    (2, 10)
    >>> source.gather(np.array([1, 0]))["tokens"].tolist()
    [[4, 5, 6, 7, 8], [0, 1, 2, 3, 4]]
    """

    def __init__(
        self,
        tokens: np.ndarray | JoinedTokens,
        context_length: int,
        fingerprint: str | None = None,
        max_token: int | None = None,
    ):
        found = f"{getattr(tokens, 'dtype', type(tokens).__name__)} {list(np.shape(tokens))}"
        is_array = isinstance(tokens, np.ndarray | JoinedTokens) and tokens.ndim == 1
        if not is_array or tokens.dtype.kind not in "iu" or not tokens.dtype.isnative:
            raise InvalidArgument("tokens", found, "a numpy array [n] of whole numbers in this machine's byte order")
        check_whole("context_length", context_length)
        if (largest := len(tokens) - 1) < context_length:
            allowed = f"less than the {len(tokens):,} tokens, because a window has one token more"
            raise InvalidArgument("context_length", context_length, allowed, largest if largest > 0 else None)
        self.context_length = context_length
        # JAX takes no np.memmap.
        self.tokens = tokens if isinstance(tokens, JoinedTokens) else np.asarray(tokens)
        self.nbytes: int | None = len(self) * (context_length + 1) * tokens.dtype.itemsize
        if fingerprint is not None:
            self._checksum = fingerprint
        if max_token is not None:
            self.max_token = max_token

    def __len__(self) -> int:
        """The number of windows."""
        return (len(self.tokens) - 1) // self.context_length

    def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The windows of integer indices of any shape: {"tokens": [*indices.shape, C + 1]}, a copy."""
        starts = np.asarray(indices, np.int64)[..., None] * self.context_length
        return {"tokens": self.tokens[starts + np.arange(self.context_length + 1)]}

    @property
    def fingerprint(self) -> str:
        """The context length, and a checksum of the tokens."""
        return f"windows of {self.context_length}, {self._checksum}"

    @functools.cached_property
    def _checksum(self) -> str:
        return describe("tokens", self.tokens, crc32(self.tokens))

    @functools.cached_property
    def max_token(self) -> int:
        """No token is larger; reads all of them unless it is known."""
        return max(int(self.tokens[start : start + _BLOCK].max()) for start in range(0, len(self.tokens), _BLOCK))

    def first_beyond(self, vocab_size: int) -> int | None:
        """The index of the first token that is not in [0, vocab_size); None if all are.

        >>> TokenWindows(np.array([3, 0, 9, 9]), context_length=2).first_beyond(9)
        2
        """
        if self.tokens.dtype.kind == "u" and self.max_token < vocab_size:
            return None
        for start in range(0, len(self.tokens), _BLOCK):
            block = self.tokens[start : start + _BLOCK]
            if (wrong := (block < 0) | (block >= vocab_size)).any():
                return start + int(wrong.argmax())
        return None
