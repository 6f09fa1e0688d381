"""Recipes in tokens: lengths, clocks, tables, and batches that hold no whole sequences."""

import dataclasses
import pickle

import numpy as np
import optax
import pytest

import bsjax


def test_a_recipe_in_tokens_is_the_one_in_sequences():
    cosine = optax.cosine_decay_schedule
    tokens = bsjax.recipe_in_tokens(cosine(1e-3, 64_000), 512, 64_000, 64, momentum=0.95)
    examples = bsjax.Recipe(cosine(1e-3, 1000), 8, 1000, 1, momentum=0.95, clock="examples")
    assert (tokens.batch_size, tokens.dataset_size, tokens.num_examples) == (8, 1000, 1000)
    for convert in (lambda r: r, lambda r: r.increase_batch_size(64, "sqrt", share=0.5)):
        plan = convert(tokens).plan()
        same = dataclasses.replace(plan, tokens_per_example=None)
        np.testing.assert_array_equal(plan.batch_sizes, convert(examples).plan().batch_sizes)
        np.testing.assert_allclose(plan.learning_rates, convert(examples).plan().learning_rates, rtol=1e-5)
        assert same != plan == bsjax.Plan.from_json(plan.to_json()) == pickle.loads(pickle.dumps(plan))


def test_lengths_are_rounded_to_whole_sequences():
    recipe = bsjax.recipe_in_tokens(1e-3, 640, num_tokens=100_001, tokens_per_example=64, dataset_tokens=10_000)
    assert (recipe.num_examples, recipe.dataset_size) == (1563, 156)
    assert recipe.num_epochs == pytest.approx(1563 / 156)


def test_the_table_names_its_units():
    recipe = bsjax.Recipe(
        optax.piecewise_constant_schedule(0.1, {64_000: 0.25}),
        10,
        1000,
        2,
        0.0,
        clock="tokens",
        tokens_per_example=64,
    )
    assert str(recipe.increase_batch_size().plan()) == (
        "updates  from token  batch in examples  in tokens  learning rate  momentum  noise scale\n"
        "    100           0                 10        640            0.1         0          9.9\n"
        "     25      64,000                 40      2,560            0.1         0          2.4\n"
        "125 updates, 2,000 examples of 64 tokens, 128,000 tokens, 2.00 epochs"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (500_000, 10**9, 1024),
            "batch_tokens is 500000; .* a multiple of tokens_per_example 1024; .*: 499712 or 500736",
        ),
        ((1000, 10**9, 1024), "batch_tokens is 1000; .* a multiple of tokens_per_example 1024; nearest: 1024"),
        ((1024, 0, 1024), "num_tokens is 0; it must be a whole number >= 1; nearest: 1"),
        ((1024, 1e9, 1024), "num_tokens is 1000000000.0; it must be a whole number >= 1; nearest: 1000000000"),
        ((1024, 10**9, 0), "tokens_per_example is 0; it must be a whole number >= 1; nearest: 1"),
        ((1024, 10**9, 1024, 1000), "dataset_tokens is 1000; it must be a whole number >= 1024; nearest: 1024"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(bsjax.InvalidArgument, match=f"^{message}$"):
        bsjax.recipe_in_tokens(1e-3, *arguments)


def test_the_clock_needs_the_context_length():
    with pytest.raises(
        bsjax.InvalidArgument, match=r"^tokens_per_example is None; .* context length .*; nearest: 1024$"
    ):
        bsjax.Recipe(1e-3, 10, 1000, 1, clock="tokens")
    with pytest.raises(bsjax.InvalidArgument, match=r"^tokens_per_example is 0.5; .* >= 1"):
        bsjax.Recipe(1e-3, 10, 1000, 1, tokens_per_example=0.5)
