"""What the tests of the engine share."""

import jax
import pytest

from bsjax.engine import Engine
from bsjax.engine.devices import MAPPINGS, replicate
from bsjax.models import MLP
from bsjax.optimizers import create_optimizer
from bsjax.tasks import Classification


@pytest.fixture(params=MAPPINGS)
def mapping(request, monkeypatch):
    """A test with this runs on `jax.pmap` and on its twin; BSJAX_MAPPING=shard_map runs the others on that one."""
    monkeypatch.setenv("BSJAX_MAPPING", request.param)


@pytest.fixture(scope="module")
def dataset(make_dataset):
    """45 examples to train on."""
    return make_dataset(45)


@pytest.fixture(scope="module")
def mlp_engine(dataset, random_state):
    """A function that makes an engine of a small model, and a state for it."""

    def make(num_devices=1, batch_sizes=(), augmentation="none", **options):
        model, tx, devices = MLP(10, depth=1, width=2), create_optimizer("momentum"), jax.devices()[:num_devices]
        task = Classification(model, augmentation=augmentation, mean=dataset.mean, std=dataset.std)
        engine = Engine(task, tx, dataset.train, dataset.test, batch_sizes, devices=devices, **options)
        return engine, replicate(random_state(model, tx, (8, 8, 1)), devices)

    return make
