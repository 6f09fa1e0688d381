"""A fake engine and a fake controller, in numpy, for tests without compilation; and processes of their own."""

import os
import pathlib
import subprocess
import sys
import time
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from bsjax import InvalidArgument
from bsjax.engine import Cost, ModelFlops
from bsjax.engine.devices import first_replica, replicate
from bsjax.gradient_noise import Averages, Estimate
from bsjax.plan import Plan, Update

FAST = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiles faster; the processes of a test all do


class FakeEngine:
    """Has the interface of `bsjax.engine.Engine`; each update changes its one parameter, which is the loss.

    Args:
      dataset_size: N.
      losses: by the number of the update, in place of the parameter.
      num_shards: of every update.
      **identity: entries of `identity`.

    Attributes:
      events: the calls of its methods and of its metrics' `read`, in order.
    """

    num_devices, num_compilations, compile_time_s, stall_time_s = 1, 0, 0.0, 0.0
    input_wait_s: float | None = None
    sources: Mapping[str, Any] = types.MappingProxyType({})
    layout_choice = types.SimpleNamespace(measured=None, describe=lambda *_: "", adopt=lambda measured: None)

    def __init__(self, dataset_size: int, losses: Any = None, num_shards: int = 1, **identity: Any):
        self.dataset_size, self.losses, self.shards, self.identity = dataset_size, losses, num_shards, identity
        self.devices, self.model_flops = jax.devices()[:1], ModelFlops(50.0, "float32")
        self.task = types.SimpleNamespace(metrics=("accuracy",), unit="images", units_per_example=1)
        self.events: list[tuple[str, Any]] = []

    def init(self):
        return self.place({"param": np.full(64, 2.0, np.float32), "updates": np.int32(0)})

    def place(self, state):
        return replicate(state, jax.devices()[:1])

    def check_hyperparameters(self, hyperparameters):
        if unknown := set(hyperparameters) - {"learning_rate", "momentum"}:
            raise InvalidArgument(unknown.pop(), 0, "a hyperparameter of the optimizer")

    def update(self, state, update, stop=False):
        replica = first_replica(state)
        self.events.append(("update", update.update))
        values = {"loss": float(replica["param"][0]), "accuracy": 0.5, "grad_norm": 2.0}
        values |= {"weighted_grad_sq": 4.0 * update.batch_size + 8.0 + update.update % 5, "num_stops": float(stop)}
        if self.losses is not None:
            values["loss"] = float(self.losses[update.update])
        change = 1 - update.learning_rate * np.cos(update.examples_seen + update.batch_size) / 2
        new = {"param": (replica["param"] * change).astype(np.float32), "updates": replica["updates"] + np.int32(1)}

        def read():
            self.events.append(("read", update.update))
            return values

        return self.place(new), types.SimpleNamespace(read=read)

    def num_shards(self, batch_size):
        return self.shards

    def cost_of(self, batch_size):
        return Cost(flops=100.0 * batch_size, bytes_accessed=None)

    def evaluate(self, state):
        replica = first_replica(state)
        self.events.append(("evaluate", int(replica["updates"])))
        return {"test_loss": float(replica["param"][0]), "test_accuracy": 0.25}

    def compile_ahead(self, state, batch_size):
        self.events.append(("compile", batch_size))


class FakeControllerState(NamedTuple):
    update: int = 0
    loss: float = 0.0  # of the last one observed
    noise: float = 0.0  # the weight of its averages
    tried: tuple = ()  # the branches' losses


class FakeController:
    """A plan whose learning rate follows the losses; tries two branches before some updates."""

    needs_observations, needs_noise = True, True

    def __init__(self, plan: Plan, branch_before: tuple[int, ...] = ()):
        self.plan, self.branch_before = plan, branch_before
        self.dataset_size, self.num_examples = plan.dataset_size, plan.num_examples
        self.batch_sizes = sorted(set(plan.batch_sizes.tolist()))
        self.decided: list[Update] = []

    def init(self):
        return FakeControllerState()

    def decide(self, state):
        if state.update == self.plan.num_updates:
            return None, state
        update = self.plan[state.update]
        update = update._replace(learning_rate=update.learning_rate * (1 + 0.1 * state.loss + 1e-6 * state.noise))
        self.decided.append(update)
        return update, state._replace(update=state.update + 1)

    def observe(self, state, observation):
        assert isinstance(observation.noise, Estimate) and isinstance(observation.averages, Averages)
        return state._replace(loss=observation.loss, noise=observation.averages.weight)

    def branches(self, state):
        if state.update not in self.branch_before or len(state.tried) > self.branch_before.index(state.update):
            return None
        first = self.plan[state.update]
        return [[first._replace(batch_size=size)] * 2 for size in (first.batch_size, 2 * first.batch_size)]

    def observe_branches(self, state, losses):
        return state._replace(tried=(*state.tried, tuple(map(tuple, losses))))

    def identity(self):
        return {"name": "fake"}


@pytest.fixture(scope="session")
def fake_engine():
    return FakeEngine


@pytest.fixture(scope="session")
def fake_controller():
    return FakeController


@pytest.fixture(scope="session")
def start_python():
    """A function that starts Python in the root of the repository, with devices of its own."""

    def start(*arguments, num_devices=1, stdout=subprocess.PIPE, stderr=subprocess.PIPE):
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(num_devices), **FAST}
        options = {"cwd": pathlib.Path(__file__).parents[2], "env": environment, "stdout": stdout, "stderr": stderr}
        return subprocess.Popen([sys.executable, *map(str, arguments)], text=True, **options)

    return start


@pytest.fixture(scope="session")
def wait_for_checkpoint():
    """A function that waits until processes have written a checkpoint into a folder, or a run in it."""

    def wait(workdir, *processes):
        deadline = time.monotonic() + 240
        while not [*workdir.glob("checkpoints/[0-9]*[0-9]"), *workdir.glob("runs/*/checkpoints/[0-9]*[0-9]")]:
            if time.monotonic() > deadline or any(process.poll() is not None for process in processes):
                for process in processes:
                    process.kill()
                pytest.fail(f"there is no checkpoint:\n{[process.communicate() for process in processes]}")
            time.sleep(0.02)

    return wait
