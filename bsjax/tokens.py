"""Recipes of language models, whose sizes are numbers of tokens."""

from typing import Any

import optax

from bsjax.errors import InvalidArgument, check_whole, nearest_multiples
from bsjax.recipe import Recipe


def recipe_in_tokens(
    learning_rate: optax.Schedule | float,
    batch_tokens: int,
    num_tokens: int,
    tokens_per_example: int,
    dataset_tokens: int | None = None,
    **fields: Any,
) -> Recipe:
    """The recipe of a language model whose sizes are numbers of tokens, on the clock "tokens".

    Its examples are sequences of the context length. What counts examples, such as `max_batch_size`, counts sequences.

    Args:
      learning_rate: a number or a schedule, of tokens.
      batch_tokens: a multiple of the context length.
      num_tokens: how long to train, rounded up to whole sequences.
      tokens_per_example: the context length.
      dataset_tokens: those of an epoch, rounded down to whole sequences; None: one epoch is the training.
      **fields: further ones of `Recipe`, such as momentum, or another clock.

    Raises:
      InvalidArgument: a value is out of range, or the batch does not hold whole sequences.

    >>> recipe = recipe_in_tokens(1e-3, batch_tokens=524_288, num_tokens=10**9, tokens_per_example=1024)
    >>> recipe.batch_size, recipe.dataset_size, recipe.plan().num_updates
    (512, 976563, 1908)
    >>> recipe_in_tokens(1e-3, batch_tokens=500_000, num_tokens=10**9, tokens_per_example=1024)
    Traceback (most recent call last):
    ...
    bsjax.errors.InvalidArgument: batch_tokens is 500000; it must be a multiple of tokens_per_example 1024; \
nearest: 499712 or 500736
    """
    context = check_whole("tokens_per_example", tokens_per_example)
    batch, total = check_whole("batch_tokens", batch_tokens), check_whole("num_tokens", num_tokens)
    if batch % context:
        nearest = nearest_multiples(batch, context, at_least=context)
        raise InvalidArgument("batch_tokens", batch, f"a multiple of tokens_per_example {context}", nearest)
    num_examples = dataset_size = -(-total // context)
    if dataset_tokens is not None:
        dataset_size = check_whole("dataset_tokens", dataset_tokens, minimum=context) // context
    fields = {"clock": "tokens", "tokens_per_example": context, **fields}
    return Recipe(learning_rate, batch // context, dataset_size, num_examples / dataset_size, **fields)
