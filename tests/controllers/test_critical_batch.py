"""When the critical batch size lets the batch double: measured by branches, or known."""

import numpy as np
import optax
import pytest

import bsjax
from bsjax.controllers import CriticalBatch, CriticalBatchOptions, Limits


def build(num_epochs=2, max_batch_size=256, learning_rate=0.1, **options):
    recipe = bsjax.Recipe(learning_rate, 16, 2000, num_epochs)
    return CriticalBatch(recipe, Limits(16, max_batch_size), CriticalBatchOptions(**options))


def after(controller, num_updates):
    """The state after this many updates."""
    state = controller.init()
    for _ in range(num_updates):
        _, state = controller.decide(state)
    return state


@pytest.mark.parametrize(
    ("losses", "size"),
    [
        ([[1.0], [1.0], [1.0]], 32),
        ([[1.0], [1.0], [1.011]], 16),
        ([[1.0], [1.5], [1.009]], 32),  # the largest good one counts
        ([[1.0], [0.98], [1.0]], 16),  # worse than a smaller one, but not than the smallest
        ([[9.0, 1.0, 1.0], [3.0, 2.9], [2.955]], 32),  # smoothed: 3, 2.95, 2.955
        ([[9.0, 1.0, 1.0], [3.0, 2.9], [2.965]], 16),
    ],
)
def test_critical_batch_by_hand(losses, size):
    controller = build(branch_examples=64)
    state = after(controller, 125)
    assert controller.branches(state) is not None
    update, _ = controller.decide(controller.observe_branches(state, losses))
    assert update.batch_size == size


@pytest.mark.parametrize(("scaling", "exponent"), [("linear", 1.0), ("sqrt", 0.5)])
def test_branches_take_the_same_examples_with_scaled_learning_rates(scaling, exponent):
    decay = optax.cosine_decay_schedule(0.1, 4)
    controller = build(4, learning_rate=decay, scaling=scaling, branch_examples=100, multiples=(1, 2, 3))
    assert controller.branches(after(controller, 124)) is None
    state = after(controller, 125)
    branches = controller.branches(state)
    assert [branch[0].batch_size for branch in branches] == [16, 32, 48]
    for branch in branches:
        ends = [update.examples_seen + update.batch_size for update in branch]
        assert [update.examples_seen for update in branch] == [2000, *ends[:-1]]
        assert ends[-1] == 2000 + 192  # 100, rounded up to whole batches of all three
        assert [update.update for update in branch] == list(range(125, 125 + len(branch)))
        rates = controller.recipe.at([update.examples_seen for update in branch]).learning_rate
        scaled = rates * (branch[0].batch_size / 16) ** exponent
        np.testing.assert_allclose([update.learning_rate for update in branch], scaled)
    state = controller.observe_branches(state, [[1.0] * len(branch) for branch in branches])
    assert controller.branches(state) is None
    update, _ = controller.decide(state)
    assert (update.update, update.examples_seen, update.batch_size) == (125, 2000, 32)


def test_it_measures_until_it_cannot_grow(play):
    losses = iter([[[1.0]] * 3] * 2)  # of two measurements
    updates = play(build(6, 64, branch_examples=10), try_branches=lambda branches: next(losses))
    assert next(losses, None) is None
    assert sorted({update.batch_size for update in updates}) == [16, 32, 64]


def test_branches_that_would_outlast_the_run_are_left_out():
    controller = build(measure_every_epochs=1.9, branch_examples=130)
    asked = [controller.branches(after(controller, 236 + i)) for i in range(15)]
    # Due from 3800 on; at 3808 its 192 examples end with the run.
    assert [branches is not None for branches in asked] == [i == 2 for i in range(15)]


def test_known(play):
    controller = build(4, 1024, scaling="sqrt", critical_batch_size=200)
    sizes = [update.batch_size for update in play(controller)]  # which refuses branches
    assert sizes[:4] == [32, 64, 128, 128]  # 200 exceeds twice 64, not twice 128
    assert set(sizes[4:]) == {128}
