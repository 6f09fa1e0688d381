"""How batches are laid out: every example once, in order, and every ghost in one place."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bsjax import InvalidArgument
from bsjax.engine import layout

PROPERTY = settings(derandomize=True, deadline=None, max_examples=100)


@PROPERTY
@given(
    st.integers(1, 200),
    st.integers(0, 40) | st.integers(2**32 - 100, 2**32 + 100) | st.integers(2**60, 2**61),
    st.integers(1, 20),
    st.integers(1, 8),
)
def test_every_example_has_one_address_in_order(batch_size, start, microbatch_size, num_devices):
    indices = np.random.RandomState(0).permutation(batch_size).astype(np.int32)
    addresses = layout.lay_out(indices, start, microbatch_size, num_devices)
    count = layout.num_microbatches(batch_size, microbatch_size, num_devices)
    assert addresses.shape == (count, num_devices, 3, microbatch_size)
    assert addresses.dtype == np.int32
    assert (count - 1) * microbatch_size * num_devices < batch_size <= count * microbatch_size * num_devices

    index, upper, lower = (addresses[:, :, part].ravel() for part in range(3))
    np.testing.assert_array_equal(index[:batch_size], indices)
    np.testing.assert_array_equal(index[batch_size:], -1)
    positions = [int(hi) << 32 | int(lo) for hi, lo in zip(upper.view(np.uint32), lower.view(np.uint32), strict=True)]
    assert positions[:batch_size] == list(range(start, start + batch_size))


@PROPERTY
@given(st.integers(1, 6), st.sampled_from([1, 2, 4, 8, 12]), st.sampled_from([1, 2, 3, 4, 6, 8]), st.data())
def test_a_ghost_is_on_one_device_or_on_neighbours_that_share_it(num_ghosts, ghost_batch_size, num_devices, data):
    candidates = layout.candidate_microbatch_sizes(ghost_batch_size, num_devices, 4 * ghost_batch_size)
    microbatch_size = data.draw(st.sampled_from(candidates))
    batch_size = num_ghosts * ghost_batch_size
    addresses = layout.lay_out(np.arange(batch_size, dtype=np.int32), 0, microbatch_size, num_devices)
    for ghost in range(num_ghosts):
        is_of_ghost = addresses[:, :, 0] // ghost_batch_size == ghost
        microbatches, devices, slots = np.nonzero(is_of_ghost)
        assert len(slots) == ghost_batch_size
        assert len(set(microbatches)) == 1
        num_shared = max(1, ghost_batch_size // microbatch_size)
        first = devices[0] // num_shared * num_shared
        assert sorted(set(devices)) == list(range(first, first + num_shared))
        assert slots.min() % min(ghost_batch_size, microbatch_size) == 0


def test_candidates_are_all_that_fit():
    for num_devices in range(1, 9):
        for ghost_batch_size in range(1, 17):
            for powers_of_two in (False, True):
                sizes = layout.candidate_microbatch_sizes(ghost_batch_size, num_devices, 48, powers_of_two)
                wholes = [ghost_batch_size * n for n in range(1, 49) if ghost_batch_size * n <= 48]
                if powers_of_two:
                    wholes = [size for size in wholes if np.log2(size / ghost_batch_size) % 1 == 0]
                # n devices that share a ghost must divide both the ghost and the devices.
                shares = [
                    ghost_batch_size // n
                    for n in range(2, num_devices + 1)
                    if ghost_batch_size % n == 0 and num_devices % n == 0
                ]
                assert sizes == sorted(shares) + wholes


def test_a_ghost_larger_than_the_largest_microbatch_is_allowed():
    assert layout.candidate_microbatch_sizes(128, num_devices=1, max_microbatch_size=64) == [128]


@PROPERTY
@given(st.integers(1, 1000), st.sampled_from([1, 2, 8]), st.sampled_from([1, 4, 32]))
def test_the_chosen_microbatch_wastes_little(num_ghosts, num_devices, ghost_batch_size):
    batch_size = num_ghosts * ghost_batch_size
    candidates = layout.candidate_microbatch_sizes(ghost_batch_size, num_devices, 256)
    chosen = layout.Layouts([batch_size], ghost_batch_size, [num_devices], 256)(batch_size)
    assert chosen.num_devices == num_devices
    size = chosen.microbatch_size
    count = layout.num_microbatches(batch_size, size, num_devices)
    assert size in candidates
    if batch_size % num_devices == 0 and batch_size // num_devices in candidates:
        assert (size, count) == (batch_size // num_devices, 1)
    largest = candidates[-1]
    assert count * size <= layout.num_microbatches(batch_size, largest, num_devices) * largest


@PROPERTY
@given(st.integers(1, 400), st.integers(1, 16), st.sampled_from([1, 4, 32]))
def test_more_devices_are_taken_only_where_they_are_faster(num_ghosts, num_devices, ghost_batch_size):
    batch_size = num_ghosts * ghost_batch_size

    def cost(layouts):
        chosen = layouts(batch_size)
        count = layout.num_microbatches(batch_size, chosen.microbatch_size, chosen.num_devices)
        return count * (chosen.microbatch_size + max(64, ghost_batch_size) / 16), chosen.num_devices

    every = [layout.Layouts([batch_size], ghost_batch_size, [n], 64) for n in range(1, num_devices + 1)]
    growing = layout.Layouts([batch_size], ghost_batch_size, range(1, num_devices + 1), 64)
    assert cost(growing)[0] <= min(cost(layouts)[0] for layouts in every)


@PROPERTY
@given(
    st.dictionaries(st.integers(1, 64), st.floats(1e-6, 1), min_size=1),
    st.floats(0, 0.1),
    st.floats(0, 0.1),
    st.lists(st.integers(1, 40), min_size=1, max_size=12),
    st.sampled_from([1, 4]),
    st.sampled_from([1, 2]),
)
def test_with_measured_times_no_possible_layout_is_faster(accumulate_s, apply_s, saving_s, counts, group, num_devices):
    times, batch_sizes = layout.StepTimes(accumulate_s, apply_s, saving_s), [group * count for count in counts]
    layouts = layout.Layouts(batch_sizes, group, [num_devices], max(accumulate_s), times=times)

    def seconds(batch_size, size):
        return times.update(layout.num_microbatches(batch_size, size, num_devices), size)

    for batch_size in batch_sizes:
        fastest = min(seconds(batch_size, size) for size in layouts.microbatch_sizes[num_devices])
        assert seconds(batch_size, layouts(batch_size).microbatch_size) == fastest


def test_of_equally_fast_layouts_the_one_with_less_padding_is_taken():
    times = layout.StepTimes({8: 0.001, 16: 0.001}, apply_update_s=0.0)
    assert layout.Layouts([8], 8, [1], 16, times=times)(8).microbatch_size == 8


def test_a_fixed_microbatch_keeps_to_the_devices_that_can_share_its_ghosts():
    layouts = layout.Layouts([8, 16], 8, range(1, 5), 64, microbatch_size=2)
    assert layouts.microbatch_sizes == {4: [2]}
    assert layouts(16) == (4, 2)


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (
            lambda: layout.check_batch_sizes([64, 100], 32),
            "batch_size is 100; it must be a multiple of the group size 32; nearest: 96 or 128",
        ),
        (
            lambda: layout.check_batch_sizes([20], 32),
            "batch_size is 20; it must be a multiple of the group size 32; nearest: 32",
        ),
        (
            lambda: layout.check_batch_sizes([0], 1),
            "batch_size is 0; it must be a multiple of the group size 1; nearest: 1",
        ),
        (
            lambda: layout.check_microbatch_size(12, 8, 2),
            "microbatch_size is 12; it must be a multiple of the group size 8, or a share of it for 2 devices; "
            "nearest: 8",
        ),
        (
            lambda: layout.check_microbatch_size(2, 8, 2),
            "microbatch_size is 2; it must be a multiple of the group size 8, or a share of it for 2 devices; "
            "nearest: 4",
        ),
        (
            lambda: layout.check_microbatch_size(0, 8, 1),
            "microbatch_size is 0; it must be a multiple of the group size 8; nearest: 8",
        ),
    ],
)
def test_bad_input(check, message):
    with pytest.raises(InvalidArgument) as refusal:
        check()
    assert str(refusal.value) == message
