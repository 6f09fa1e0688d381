"""What the engine compiles, what it waits for, and how devices grow with the batch."""

import time

import jax
import numpy as np
import pytest

from bsjax import Update
from bsjax.engine.devices import first_replica

pytestmark = pytest.mark.usefixtures("mapping")


def update(examples_seen, batch_size, momentum=0.0):
    return Update(0, examples_seen, batch_size, 0.1, momentum)


@pytest.mark.parametrize("examples_on", ["device", "host"])
def test_updates_move_nothing_implicitly(mlp_engine, examples_on):
    """What an update needs from the host is sent explicitly, and nothing is waited for."""
    engine, state = mlp_engine(2, microbatch_size=2, examples_on=examples_on)
    sizes = (4, 12, 24)
    for size in sizes:
        state, _ = engine.update(state, update(0, size))  # compiles
    with jax.transfer_guard("disallow"):
        for i in range(6):
            state, metrics = engine.update(state, update(12 * i, sizes[i % 3]))
    assert np.isfinite(metrics.loss)


@pytest.mark.parametrize("num_devices", [1, 8])
def test_a_fixed_microbatch_compiles_once_for_all_batch_sizes(mlp_engine, num_devices):
    engine, state = mlp_engine(num_devices, microbatch_size=2)
    counts = []
    for batch_size in range(1, 41, 2):
        state, _ = engine.update(state, update(0, batch_size, momentum=0.9))
        counts.append(engine.num_compilations)
    # The step of one microbatch; then the three of several.
    assert counts == [1 + 3 * (size > 2 * num_devices) for size in range(1, 41, 2)]
    assert engine.stall_time_s >= engine.compile_time_s > 0  # all of them in the foreground


def test_devices_grow_with_the_batch(dataset, mlp_engine):
    """From few devices to more, and back, as on one; each layout is the fastest by the layout's own measure."""
    batch_sizes = [3, 20, 200]
    engine, _ = mlp_engine(8, batch_sizes, grow_devices=True, augmentation="crop")
    layouts = [engine.layout(size) for size in batch_sizes]
    assert layouts == [(3, 1), (7, 3), (8, 25)]  # of three examples, a device each; 20 are 7 × 3 less one
    single, expected = mlp_engine(1, batch_sizes, augmentation="crop")
    state = engine.place(first_replica(expected))
    start = 0
    for batch_size, (num_devices, _) in zip([*batch_sizes, 3], [*layouts, layouts[0]], strict=True):
        state, metrics = engine.update(state, update(start, batch_size, momentum=0.9))
        expected, expected_metrics = single.update(expected, update(start, batch_size, momentum=0.9))
        start += batch_size
        assert {x.shape[0] for x in jax.tree.leaves(state)} == {num_devices}
        for name in ("loss", "accuracy", "grad_norm"):
            assert metrics.read()[name] == pytest.approx(expected_metrics.read()[name], rel=1e-5)
        if batch_size < 200:
            engine.compile_ahead(state, batch_sizes[batch_sizes.index(batch_size) + 1])  # for other devices
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
        first_replica(state),
        first_replica(expected),
    )
    assert engine.evaluate(state) == pytest.approx(single.evaluate(expected), rel=1e-5)


@pytest.mark.parametrize("batch_size", [16, 40], ids=["one microbatch", "several"])
def test_compiled_ahead_an_update_waits_for_nothing(mlp_engine, batch_size):
    states = []
    for is_ahead in (True, False):
        engine, state = mlp_engine(microbatch_size=16)
        if is_ahead:
            engine.check_hyperparameters(update(0, 1).hyperparameters)
            engine.compile_ahead(state, batch_size)
            engine.compile_ahead(state, batch_size)  # once is enough
            expected = 1 if batch_size == 16 else 3
            deadline = time.monotonic() + 300
            while engine.num_compilations < expected and time.monotonic() < deadline:
                time.sleep(0.01)
        state, _ = engine.update(state, update(5, batch_size, momentum=0.9))
        assert (engine.stall_time_s == 0) == is_ahead
        assert engine.num_compilations == (1 if batch_size == 16 else 3)
        states.append(first_replica(state))
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_the_seed_decides_the_parameters(mlp_engine):
    first, same, other = (mlp_engine(2, seed=seed)[0].init().params for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, same)
    kernel = first["Dense_0"]["kernel"]
    np.testing.assert_array_equal(kernel[0], kernel[1])  # on both devices
    assert np.abs(kernel - other["Dense_0"]["kernel"]).min() > 0
