"""Limits: which sizes are allowed, and hysteresis."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bsjax import InvalidArgument
from bsjax.controllers import Limits

PROPERTY = settings(derandomize=True, deadline=None, max_examples=50)
TARGETS = st.lists(st.floats(0.1, 2000) | st.sampled_from([math.nan, math.inf, 0.0, -5.0]), min_size=1, max_size=30)


def limits_strategy():
    def build(smallest, steps, unit, growth, picked, monotone, hysteresis):
        smallest, largest = smallest * unit, (smallest + steps) * unit
        allowed = tuple(size for size in range(smallest, largest + 1, unit) if picked >> (size % 31) & 1) or None
        growth = None if allowed or growth is None else max(growth, 1 + unit / smallest)
        return Limits(smallest, largest, unit, growth, allowed, monotone, hysteresis)

    return st.builds(
        build,
        st.integers(1, 20),
        st.integers(0, 60),
        st.sampled_from([1, 3, 8]),
        st.sampled_from([None, None, 1.3, 2]),
        st.sampled_from([0, 0, 0x12345678]),
        st.booleans(),
        st.sampled_from([0.0, 0.1, 0.25, 1.0]),
    )


@PROPERTY
@given(limits_strategy(), TARGETS)
def test_sizes_are_allowed_and_follow_what_is_clearly_past_them(limits, targets):
    sizes = set(limits.sizes)
    assert all(limits.min_batch_size <= size <= limits.max_batch_size for size in sizes)
    assert all(size % limits.multiple_of == 0 for size in sizes)
    size = limits.sizes[0]
    for target in targets:
        before, size = size, limits.follow(size, target)
        assert size in sizes
        if limits.monotone:
            assert size >= before
        if math.isnan(target):
            assert size == before
        elif size != before:
            assert size == limits.round_down(target)
        else:  # no allowed size lies between it and the target, beyond the hysteresis
            above = [other for other in sizes if before < other <= target / (1 + limits.hysteresis)]
            below = [other for other in sizes if target * (1 + limits.hysteresis) * (1 + 1e-6) < other <= before]
            assert not above
            assert limits.monotone or not below or before == min(sizes)


@PROPERTY
@given(limits_strategy(), st.integers(0, 2**32 - 1))
def test_a_noisy_constant_changes_the_size_once_at_most(limits, seed):
    # All targets within a factor 1 + h of each other, wherever the borders between the sizes are.
    random = np.random.default_rng(seed)
    lowest = random.uniform(limits.min_batch_size, limits.max_batch_size)
    highest = lowest * (1 + limits.hysteresis) * (1 - 1e-9)
    sizes = [int(random.choice(limits.sizes))]
    for target in random.uniform(lowest, max(lowest, highest), 40):
        sizes.append(limits.follow(sizes[-1], target))
    assert sum(one != other for one, other in itertools.pairwise(sizes)) <= 1


def test_allowed_sizes_by_growth_list_and_multiples():
    assert list(Limits(128, 5120, growth=5).sizes) == [128, 640, 3200]
    assert list(Limits(24, 104, multiple_of=8, growth=1.5).sizes) == [24, 32, 48, 80]
    assert list(Limits(8, 64, 8, allowed_batch_sizes=(64, 8, 16)).sizes) == [8, 16, 64]
    assert list(Limits(8, 32, 8).sizes) == [8, 16, 24, 32]
    assert Limits(1, 2000).round_down(1279.9999999) == 1280


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((0, 8), "min_batch_size is 0; it must be a whole number >= 1; nearest: 1"),
        ((8, 8.5), "max_batch_size is 8.5; it must be a whole number >= 1; nearest: 8"),
        ((16, 8), "min_batch_size is 16; it must be at most max_batch_size 8; nearest: 8"),
        ((20, 64, 8), "min_batch_size is 20; it must be a multiple of multiple_of 8; nearest: 16 or 24"),
        ((20, 16, 8), "min_batch_size is 20; it must be at most max_batch_size 16; nearest: 16"),
        ((5, 8, 8), "min_batch_size is 5; it must be a multiple of multiple_of 8; nearest: 8"),
        ((8, 60, 8), "max_batch_size is 60; it must be a multiple of multiple_of 8; nearest: 56 or 64"),
        ((8, 9, 0), "multiple_of is 0; it must be a whole number >= 1; nearest: 1"),
        ((8, 64, 8, None, (8, 67)), "allowed_batch_sizes is 67; it must be a multiple of multiple_of 8; nearest: 64"),
        (
            (8, 16, 1, None, (9, 17)),
            "allowed_batch_sizes is 17; it must be between min_batch_size 8 and max_batch_size 16; nearest: 16",
        ),
        ((8, 64, 1, None, ()), "allowed_batch_sizes is (); it must be at least one size, or None; nearest: (8,)"),
        ((8, 64, 1, 2, (8,)), "growth is 2; it must be None where allowed_batch_sizes are given"),
        ((8, 64, 1, 1), "growth is 1; it must be a number greater than 1, or None; nearest: 2"),
        ((8, 64, 8, 1.5), "growth is 1.5; it must be enough to get from 8 to a larger allowed size; nearest: 2.0"),
        ((8, 64, 1, None, None, False, -0.1), "hysteresis is -0.1; it must be a number >= 0; nearest: 0"),
        ((8, 64, 1, None, None, False, math.nan), "hysteresis is nan; it must be a number >= 0; nearest: 0"),
        ((8, 64, 1, None, None, False, 0, -1), "warmup_examples is -1; it must be a whole number >= 0; nearest: 0"),
    ],
)
def test_bad_limits_are_refused_with_the_numbers(fields, message):
    with pytest.raises(InvalidArgument) as refusal:
        Limits(*fields)
    assert str(refusal.value) == message


def test_the_growth_that_a_refusal_names_is_allowed():
    for smallest in range(1, 200):
        with pytest.raises(InvalidArgument) as refusal:
            Limits(smallest, 400, growth=1 + 1e-4)
        assert Limits(smallest, 400, growth=refusal.value.nearest).sizes[1] == smallest + 1
