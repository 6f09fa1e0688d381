"""Errors name a nearest choice that is itself allowed."""

from hypothesis import given, settings
from hypothesis import strategies as st

from bsjax.errors import nearest_multiples


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.integers(0, 60), st.integers(1, 40), st.none() | st.integers(1, 60), st.integers(1, 50))
def test_nearest_multiples_are_the_allowed_ones_next_to_the_value(value, unit, at_most, at_least):
    text = nearest_multiples(value, unit, at_most, at_least)
    given = [] if text is None else [int(size) for size in text.split(" or ")]
    allowed = [size for size in range(unit, 200, unit) if at_least <= size <= (at_most or 200)]
    below, above = [size for size in allowed if size <= value], [size for size in allowed if size >= value]
    assert given == sorted({*below[-1:], *above[:1]})
