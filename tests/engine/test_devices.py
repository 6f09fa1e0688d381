"""Programs: one executable per shape, whichever thread asks first; and stacked state."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsjax.engine.devices import Program, first_replica, replicate, shapes_of
from bsjax.models.ghost_batch_norm import AXIS_NAME


def sum_over_devices(x):
    return jax.lax.psum(x, AXIS_NAME)


@pytest.mark.parametrize("num_devices", [1, 8])
def test_one_executable_per_shape(num_devices):
    devices = jax.devices()[:num_devices]
    program = Program(sum_over_devices, devices)
    for repeat in range(10):  # passes the points where the pipeline drains
        for size in (2, 3):
            x = replicate(repeat * np.arange(size, dtype=np.float32), devices)
            np.testing.assert_array_equal(program(size, x)[0], num_devices * repeat * np.arange(size))
    assert program.num_compilations == 2
    assert program.stall_time_s >= program.compile_time_s > 0


def test_compiled_from_shapes_alone_a_call_does_not_wait():
    devices = jax.devices()[:4]
    program = Program(sum_over_devices, devices)
    x = replicate({"a": jnp.ones(2), "b": np.ones(3, np.int32)}, devices)
    program.compile("shape", shapes_of(x))
    assert (program.num_compilations, program.stall_time_s) == (1, 0.0)
    assert shapes_of({"a": jnp.ones(2), "b": np.ones(3, np.int32)}, devices) == shapes_of(x)
    total = program("shape", x)
    np.testing.assert_array_equal(total["a"], np.full((4, 2), 4))
    assert (program.num_compilations, program.stall_time_s) == (1, 0.0)


def test_threads_that_need_the_same_shape_compile_it_once():
    devices = jax.devices()[:2]
    program = Program(sum_over_devices, devices)
    x = replicate(np.ones(5, np.float32), devices)
    threads = [threading.Thread(target=program.compile, args=(5, x)) for _ in range(4)]
    for thread in threads:
        thread.start()
    program(5, x)
    for thread in threads:
        thread.join()
    assert program.num_compilations == 1


def test_replicas():
    tree = {"a": np.arange(3), "b": np.float32(2)}
    stacked = replicate(tree, jax.devices()[:4])
    assert stacked["a"].shape == (4, 3)
    assert [shard.device for shard in stacked["a"].addressable_shards] == jax.devices()[:4]
    jax.tree.map(np.testing.assert_array_equal, first_replica(stacked), tree)
    assert isinstance(first_replica(stacked)["a"], np.ndarray)
