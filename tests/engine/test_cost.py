"""What an update costs: XLA's count against pencil and paper, and against itself counted in another way."""

import itertools

import jax
import jax.numpy as jnp
import pytest

from bsjax import Update
from bsjax.engine import Cost, Engine, ModelFlops
from bsjax.models import MLP
from bsjax.optimizers import create_optimizer
from bsjax.tasks import Classification


def update(batch_size):
    return Update(0, 0, batch_size, 0.1, 0.9)


@pytest.fixture(scope="module")
def flops_of_mlp(make_dataset):
    """A function that counts the FLOPs per example of an MLP with one hidden layer."""

    def count(num_inputs, width, num_classes, depth=1, dtype=jnp.float32):
        dataset = make_dataset(20, image_shape=(8, num_inputs // 8, 1), num_classes=num_classes)
        model = MLP(num_classes, depth, width, dtype=dtype)
        task = Classification(model, mean=dataset.mean, std=dataset.std)
        devices = jax.devices()[:1]
        engine = Engine(task, create_optimizer("momentum"), dataset.train, dataset.test, [], devices=devices)
        return engine.model_flops

    return count


def by_hand(num_inputs, width, num_classes):
    """A matrix product of [1, a] and [a, b] takes 2ab.

    Forward, and backward for the weights and for the inputs; but no gradient of the pixels.
    """
    return 2 * num_inputs * width * 2 + 2 * width * num_classes * 3


def test_xla_counts_the_matrix_products_as_by_hand(flops_of_mlp):
    """To the last FLOP: what else XLA counts is element by element, so it is linear in each size.

    A product that is missed or counted twice is not: it would show where two sizes grow together. What is left is
    (today 3, 4 and 11) FLOPs for each pixel, which is normalised, for each unit and for each class.
    """
    sizes = list(itertools.product((64, 128), (32, 64), (5, 10)))
    rest = {each: flops_of_mlp(*each).per_example - by_hand(*each) for each in sizes}
    smallest = sizes[0]
    growth = [
        rest[tuple(2 * n if i == axis else n for i, n in enumerate(smallest))] - rest[smallest] for axis in range(3)
    ]
    for each in sizes:
        grown = [n != least for n, least in zip(each, smallest, strict=True)]
        assert rest[each] == rest[smallest] + sum(itertools.compress(growth, grown))
    assert 0 < rest[smallest] < 4 * 64 + 16 * (32 + 5)


def test_the_dtype_is_that_of_most_products(flops_of_mlp):
    assert flops_of_mlp(64, 32, 5).dtype == "float32"
    assert flops_of_mlp(64, 32, 5, depth=3, dtype=jnp.bfloat16).dtype == "bfloat16"


@pytest.mark.parametrize("num_devices", [1, 2])
def test_an_update_costs_its_microbatches_and_one_end(mlp_engine, num_devices):
    engine, state = mlp_engine(num_devices, microbatch_size=4)
    sizes = [4 * num_devices * k for k in range(1, 5)]
    for size in sizes:
        state, _ = engine.update(state, update(size))
    costs = [engine.cost_of(size) for size in sizes]
    for one, two, three, four in zip(*costs, strict=True):
        assert four - three == three - two > 0
        assert one < two
    assert engine.cost_of(sizes[-1] - 3) == costs[-1]  # padding costs as much
    products = num_devices * 4 * (2 * 64 * 2 * 2 + 2 * 2 * 10 * 3)
    assert products < costs[3].flops - costs[2].flops < 2 * products  # each device's, with an adding up of gradients


def test_a_count_for_cpus_replaces_the_one_that_accelerators_lack(make_dataset, monkeypatch):
    """There, only compiled programs have an analysis, which does not see into custom calls.

    The two counts differ by the marks of pmap at its arrays, each of which XLA counts as -1 FLOP. The number of arrays
    does not depend on the width.
    """
    dataset, differences = make_dataset(45), []
    for width in (2, 16):
        counts = []
        for is_accelerator in (False, True):
            task = Classification(MLP(10, 1, width), mean=dataset.mean, std=dataset.std)
            options = {"microbatch_size": 2, "devices": jax.devices()[:2]}
            engine = Engine(task, create_optimizer("momentum"), dataset.train, dataset.test, [], **options)
            state = engine.init()
            for size in (4, 12):
                state, _ = engine.update(state, update(size))
            with monkeypatch.context() as patch:
                if is_accelerator:
                    patch.setattr(jax.stages.Lowered, "cost_analysis", _without_pmapped(jax.stages.Lowered))
                counts.append([engine.cost_of(size) for size in (4, 12)])
        assert [cost.bytes_accessed for cost in counts[0]] == [cost.bytes_accessed for cost in counts[1]]
        differences.append([other.flops - one.flops for one, other in zip(*counts, strict=True)])
    assert differences[0] == differences[1]
    assert 0 < max(differences[0]) < 200


def _without_pmapped(lowered):
    analyse = lowered.cost_analysis
    return lambda self: None if "num_partitions = 2" in self.as_text() else analyse(self)


def test_a_backend_without_an_analysis_gives_none(mlp_engine, monkeypatch):
    def unimplemented(self):
        raise jax.errors.JaxRuntimeError("UNIMPLEMENTED")

    monkeypatch.setattr(jax.stages.Lowered, "cost_analysis", lambda self: None)
    monkeypatch.setattr(jax.stages.Compiled, "cost_analysis", unimplemented)
    engine, state = mlp_engine()
    engine.update(state, update(8))
    assert engine.cost_of(8) == Cost(None, None)
    assert engine.model_flops == ModelFlops(None, None)
