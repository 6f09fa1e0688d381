"""Programs: one executable per shape, whichever thread asks first; stacked state; and the two ways to map."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsjax import InvalidArgument, Update
from bsjax.engine import Engine
from bsjax.engine.devices import MAPPINGS, Program, compiler_options, first_replica, mapped, replicate, shapes_of
from bsjax.models import CNN, MLP
from bsjax.models.ghost_batch_norm import AXIS_NAME
from bsjax.optimizers import create_optimizer
from bsjax.tasks import Classification


def sum_over_devices(x):
    return jax.lax.psum(x, AXIS_NAME)


@pytest.mark.usefixtures("mapping")
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


@pytest.mark.usefixtures("mapping")
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


@pytest.mark.usefixtures("mapping")
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


@pytest.mark.parametrize("cores", [1, 2])
def test_convolutions_are_eigens_on_several_cores(monkeypatch, cores):
    monkeypatch.setattr("bsjax.engine.devices.num_cores", lambda: cores)

    def convolve(image, kernel):
        return jax.lax.conv_general_dilated(image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    devices, image, kernel = jax.devices()[:1], np.ones((8, 16, 16, 8), np.float32), np.ones((3, 3, 8, 8), np.float32)
    program = Program(convolve, devices)
    result = program("shape", replicate(image, devices), replicate(kernel, devices))
    assert result[0, 0, 8, 8, 0] == 72
    assert bool(compiler_options(devices[0])) == (cores > 1)
    if cores > 1:
        assert "ynn" not in program._executables["shape"].as_text()


def test_an_xla_without_the_option_compiles_as_it_likes(monkeypatch):
    monkeypatch.setattr("bsjax.engine.devices.num_cores", lambda: 2)
    monkeypatch.setattr("bsjax.engine.devices._EIGENS_CONVOLUTIONS", {"xla_cpu_no_such_option": "1"})
    assert compiler_options(jax.devices()[0]) == {}


def test_replicas():
    tree = {"a": np.arange(3), "b": np.float32(2)}
    stacked = replicate(tree, jax.devices()[:4])
    assert stacked["a"].shape == (4, 3)
    assert [shard.device for shard in stacked["a"].addressable_shards] == jax.devices()[:4]
    jax.tree.map(np.testing.assert_array_equal, first_replica(stacked), tree)
    assert isinstance(first_replica(stacked)["a"], np.ndarray)


@pytest.mark.usefixtures("mapping")
def test_donated_memory_is_used_again():
    devices = jax.devices()[:2]
    program, x = Program(lambda x, y: (x + y, y), devices, donate_argnums=(0,)), replicate(jnp.ones(3), devices)
    y = replicate(jnp.ones(3), devices)
    program((), x, y)
    assert x.is_deleted() and not y.is_deleted()


@pytest.mark.parametrize(
    ("model", "num_devices", "microbatch_size"),
    [(MLP(10, depth=1, width=4), 1, 16), (CNN(10, depth=1, width=2, ghost_batch_size=8), 8, 2)],
    ids=["one device", "ghosts of four devices"],
)
def test_both_mappings_give_the_same_bits(dataset, random_state, monkeypatch, model, num_devices, microbatch_size):
    """After updates of one microbatch and of several, and in the evaluation."""
    tx, devices = create_optimizer("adam"), jax.devices()[:num_devices]
    results = []
    for mapping in MAPPINGS:
        monkeypatch.setenv("BSJAX_MAPPING", mapping)
        task = Classification(model, mean=dataset.mean, std=dataset.std)
        options = {"microbatch_size": microbatch_size, "devices": devices}
        engine = Engine(task, tx, dataset.train, dataset.test, [16], **options)
        state, metrics = replicate(random_state(model, tx, (8, 8, 1)), devices), []
        for update in range(4):
            state, values = engine.update(state, Update(update, 40 * update, 16 + update % 2 * 24, 0.1, 0.9))
            metrics.append(values.read())
        results.append((jax.device_get(state), metrics, engine.evaluate(state)))
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_another_mapping_is_refused(monkeypatch):
    monkeypatch.setenv("BSJAX_MAPPING", "vmap")
    with pytest.raises(InvalidArgument, match=r"^BSJAX_MAPPING is 'vmap'; .* pmap, shard_map; nearest: pmap$"):
        mapped(sum_over_devices, jax.devices())
