"""The training functions over two processes, as on a pod, give the numbers of one process.

This file is also what each of the processes runs.
"""

import functools
import os
import pathlib
import socket
import subprocess
import sys
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsjax.engine.devices import Program
from bsjax.engine.step import Microbatch, Steps
from bsjax.models import CNN
from bsjax.models.ghost_batch_norm import AXIS_NAME
from bsjax.optimizers import create_optimizer
from bsjax.tasks import Classification

NUM_PROCESSES, NUM_LOCAL_DEVICES, MICROBATCH_SIZE = 2, 2, 2
NUM_DEVICES = NUM_PROCESSES * NUM_LOCAL_DEVICES
# Ghost batch size and microbatches per update: ghosts of 4 are shared by the devices of a process, of 8 by all.
CASES = {
    "ghosts in a process": ("pmap", 4, 1),
    "ghosts over processes": ("pmap", 8, 2),
    "ghosts over processes with shard_map": ("shard_map", 8, 2),
}
TIMEOUT_S = 300


def train(devices, local, mapping, ghost_batch_size, num_microbatches):
    """Three updates on `devices`, of which those in the slice `local` are this process's.

    Returns:
      What is on the local devices in the end, as a list of arrays [local devices, ...].
    """
    model = CNN(3, depth=1, width=2, ghost_batch_size=ghost_batch_size, dtype=jnp.float64)
    steps = Steps(Classification(model, 0.1, batch_stats_decay=0.9), create_optimizer("momentum", weight_decay=0.01))
    with mock.patch.dict(os.environ, BSJAX_MAPPING=mapping):
        train_step, zero_accumulator, accumulate, apply_update = (
            functools.partial(Program(function, devices), "shape")
            for function in (steps.train_step, steps.zero_accumulator, steps.accumulate, steps.apply_update)
        )

    def stack(x):
        x = np.asarray(x, np.float64 if jnp.issubdtype(x.dtype, jnp.floating) else None)
        return np.broadcast_to(x, (local.stop - local.start, *x.shape))

    random = np.random.RandomState(0)
    state = jax.tree.map(
        stack, steps.init(jax.random.key(0), {"image": np.zeros((1, 4, 4, 1)), "label": np.zeros(1, int)})
    )
    hyperparams = {"learning_rate": stack(np.float64(0.3)), "momentum": stack(np.float64(0.9))}
    all_metrics = []
    for _ in range(3):
        microbatches = []
        for _ in range(num_microbatches):
            shape = (NUM_DEVICES, MICROBATCH_SIZE)
            images, labels = random.standard_normal((*shape, 4, 4, 1)), random.randint(3, size=shape)
            examples = {"image": images, "label": labels}
            microbatch = Microbatch(examples, np.ones(shape), np.zeros((*shape, 2), np.uint32))
            microbatches.append(jax.tree.map(lambda array: array[local], microbatch))
        if num_microbatches == 1:
            state, metrics = train_step(state, microbatches[0], hyperparams)
        else:
            accumulator = zero_accumulator(state)
            for microbatch in microbatches:
                accumulator = accumulate(accumulator, state, microbatch)
            state, metrics = apply_update(state, accumulator, hyperparams)
        all_metrics.append(jax.block_until_ready(metrics))
    return [
        np.stack([shard.data[0] for shard in leaf.addressable_shards])
        for leaf in jax.tree.leaves((state.params, state.batch_stats, all_metrics))
    ]


def sum_over_devices(x):
    return jax.lax.psum(x, AXIS_NAME)


def main(process: int, address: str, folder: str) -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", NUM_LOCAL_DEVICES)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_x64", True)
    jax.distributed.initialize(address, NUM_PROCESSES, process, initialization_timeout=TIMEOUT_S)
    assert jax.device_count() == NUM_DEVICES
    # The processes wait only 30 s for each other when they first connect: do it now, not after compiling.
    jax.block_until_ready(jax.pmap(sum_over_devices, AXIS_NAME)(np.ones(NUM_LOCAL_DEVICES)))
    local = slice(process * NUM_LOCAL_DEVICES, (process + 1) * NUM_LOCAL_DEVICES)
    assert jax.devices()[local] == jax.local_devices()
    for case, arguments in CASES.items():
        np.savez(f"{folder}/{case} {process}.npz", *train(jax.devices(), local, *arguments))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the processes left what they have computed."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    root = pathlib.Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    processes = []
    try:
        for process in range(NUM_PROCESSES):
            command = [sys.executable, __file__, str(process), address, str(folder)]
            with open(folder / f"log {process}", "w") as log:
                processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            codes = [process.poll() for process in processes]
            if None not in codes or any(codes):  # all have ended, or one has failed
                break
            time.sleep(0.1)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if codes != [0] * NUM_PROCESSES:
        logs = "\n".join(f"== {log.name}\n{log.read_text()[-4000:]}" for log in sorted(folder.glob("log *")))
        pytest.fail(f"the processes ended with {codes} (None: killed after {TIMEOUT_S} s or with the other)\n{logs}")
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(float64, folder, case):
    one_process = train(jax.devices()[:NUM_DEVICES], slice(0, NUM_DEVICES), *CASES[case])
    parts = [np.load(folder / f"{case} {process}.npz") for process in range(NUM_PROCESSES)]
    for i, expected in enumerate(one_process):
        two_processes = np.concatenate([part[f"arr_{i}"] for part in parts])
        np.testing.assert_allclose(two_processes, expected, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(two_processes, two_processes[:1].repeat(NUM_DEVICES, axis=0))


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
