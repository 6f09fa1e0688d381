"""A plan's batches in other people's loops and loaders: the engine's examples, exact on resume."""

import dataclasses
import importlib.util
import pickle
import sys
import types
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bsjax
from bsjax import InvalidArgument
from bsjax.data import ExampleStream
from bsjax.interop import BatchSampler, GrainSampler

RECIPE = bsjax.Recipe(optax.piecewise_constant_schedule(0.1, {1: 0.5, 2: 0.5}), 8, 50, num_epochs=3)
PLAN = RECIPE.increase_batch_size(growth=2).plan()
STREAM = ExampleStream(50, seed=3)
SIZES = [8] * 7 + [16] * 3 + [32] * 2


def test_batches_are_those_of_the_stream_across_epochs():
    batches = PLAN.batches(STREAM)
    assert [len(indices) for _, indices in batches] == SIZES == PLAN.batch_sizes.tolist()
    seen = np.concatenate([indices for _, indices in batches])
    np.testing.assert_array_equal(seen, STREAM.indices(0, sum(SIZES)))
    assert sorted(seen[:50]) == sorted(seen[50:100]) == list(range(50))  # each epoch has each example
    assert [update for update, _ in batches] == list(PLAN)
    assert len(batches) == len(SIZES) and batches[-1].update == PLAN[-1] and len(batches[1:3]) == 2


@pytest.mark.parametrize("start_update", [0, 6, 7, 11, 12])
@pytest.mark.parametrize("microbatch_size", [None, 4])
def test_batches_continue_at_any_update(start_update, microbatch_size):
    rest = PLAN.batches(STREAM, start_update, microbatch_size)
    begin = sum(SIZES[:start_update])
    expected = STREAM.indices(begin, sum(SIZES) - begin).tolist()
    assert [index for _, indices in rest for index in indices.tolist()] == expected
    numbers = [update.update for update, _ in rest]
    pieces = [1 if microbatch_size is None else size // 4 for size in SIZES]
    assert numbers == [k for k in range(start_update, 12) for _ in range(pieces[k])] and len(rest) == len(numbers)


def quadratic(params, indices):
    """The mean loss of some examples."""
    x = jax.random.normal(jax.random.key(0), (50, 3), jnp.float64)[indices]
    return jnp.mean(jnp.square(jnp.sin(x @ params["w"]) + params["b"] - x[:, 0] * x[:, 1]))


def test_multi_steps_of_the_plan_are_its_updates(float64):
    params = first = {"w": jnp.asarray([0.3, -0.2, 0.5]), "b": jnp.asarray(0.1)}
    gradient = jax.jit(jax.grad(quadratic))
    with jax.numpy_dtype_promotion("standard"):
        tx = optax.sgd(PLAN.learning_rate, momentum=0.9)
        state, apply = tx.init(params), jax.jit(tx.update)
        for _, indices in PLAN.batches(STREAM):
            updates, state = apply(gradient(params, indices), state, params)
            params = optax.apply_updates(params, updates)

        multi = optax.MultiSteps(tx, every_k_schedule=PLAN.microsteps(4), accumulator_dtype=jnp.float64)
        mine, state, apply, num_updates = first, multi.init(first), jax.jit(multi.update), 0
        for _, indices in PLAN.batches(STREAM, microbatch_size=4):
            updates, state = apply(gradient(mine, indices), state, mine)
            mine = optax.apply_updates(mine, updates)
            num_updates += bool(multi.has_updated(state))
    assert num_updates == PLAN.num_updates == int(state.gradient_step)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), mine, params)
    assert abs(params["b"] - first["b"]) > 0.003  # it has moved


class Loader:
    """What torch.utils.data.DataLoader does with a batch sampler, with a batch fetched ahead."""

    def __init__(self, dataset, batch_sampler):
        self.dataset, self.batch_sampler = dataset, batch_sampler

    def __len__(self):
        return len(self.batch_sampler)

    def __iter__(self):
        ahead = []
        for indices in self.batch_sampler:
            ahead.append(np.array([self.dataset[index] for index in indices]))
            if len(ahead) > 2:
                yield ahead.pop(0)
        yield from ahead


def torch_loader(dataset, batch_sampler):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.utils.data import DataLoader

    return DataLoader(dataset, batch_sampler=batch_sampler)


NO_TORCH = pytest.mark.skipif(
    not importlib.util.find_spec("torch"), reason="PyTorch, of the extra benchmark, is missing"
)
LOADERS = [Loader, pytest.param(torch_loader, marks=NO_TORCH)]


@pytest.mark.parametrize("make_loader", LOADERS)
@pytest.mark.parametrize("microbatch_size", [None, 8])
def test_a_batch_sampler_continues_after_the_updates_that_training_has_done(make_loader, microbatch_size):
    dataset = np.arange(50) * 10
    sampler = BatchSampler(PLAN, STREAM, microbatch_size=microbatch_size)
    loader = make_loader(dataset, sampler)
    whole = [np.asarray(batch).tolist() for batch in loader]
    assert [index for batch in whole for index in batch] == (10 * STREAM.indices(0, sum(SIZES))).tolist()
    assert len(loader) == len(whole) == (12 if microbatch_size is None else sum(SIZES) // 8)

    interrupted = iter(loader)
    for _ in range(9):  # training has done 8 updates at least; the loader has fetched more
        next(interrupted)
    sampler.start_update = 8
    done = 8 if microbatch_size is None else 9
    assert [np.asarray(batch).tolist() for batch in loader] == whole[done:] and len(loader) == len(whole) - done


@pytest.fixture
def grain(monkeypatch):
    """A stand-in with Grain's record, which is not among the tests' requirements."""

    @dataclasses.dataclass
    class RecordMetadata:
        index: int
        record_key: Any = None
        rng: Any = None

    monkeypatch.setitem(sys.modules, "grain", types.SimpleNamespace(RecordMetadata=RecordMetadata))


def test_a_grain_sampler_has_a_record_for_each_update(grain):
    sampler = GrainSampler(PLAN, STREAM, seed=1)
    for update in PLAN:
        record = sampler[update.update]
        assert record.index == update.update
        np.testing.assert_array_equal(record.record_key, STREAM.indices(update.examples_seen, update.batch_size))
    assert sampler[3].rng.random() == GrainSampler(PLAN, STREAM, seed=1)[3].rng.random() != sampler[4].rng.random()
    assert GrainSampler(PLAN, STREAM)[0].rng is None
    for index in (12, -1):
        with pytest.raises(IndexError, match="the plan has 12 batches"):
            sampler[index]
    assert len(GrainSampler(PLAN, STREAM, microbatch_size=8)) == sum(SIZES) // 8


def test_the_text_of_a_grain_sampler_is_that_of_its_batches():
    others = [
        GrainSampler(PLAN, ExampleStream(50, seed=4)),
        GrainSampler(PLAN, STREAM, microbatch_size=8),
        GrainSampler(RECIPE.plan(), STREAM),
        GrainSampler(RECIPE.increase_batch_size(growth=2, max_batch_size=16).plan(), STREAM),
    ]
    assert repr(GrainSampler(PLAN, STREAM)) == repr(GrainSampler(PLAN, ExampleStream(50, seed=3)))
    assert len({repr(GrainSampler(PLAN, STREAM)), *map(repr, others)}) == 5


def test_samplers_and_streams_go_to_the_processes_of_a_loader():
    stream = ExampleStream(50, seed=3, classes=np.arange(50) % 3)
    for sampler in (BatchSampler(PLAN, stream, 2), PLAN.batches(stream), GrainSampler(PLAN, stream)):
        stream.indices(0, 60)  # which keeps permutations
        copy = pickle.loads(pickle.dumps(sampler))
        assert len(copy) == len(sampler) and repr(getattr(copy, "_text", "")) == repr(getattr(sampler, "_text", ""))
    copy = pickle.loads(pickle.dumps(PLAN.batches(stream)))
    for mine, theirs in zip(copy, PLAN.batches(stream), strict=True):
        np.testing.assert_array_equal(mine.indices, theirs.indices)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PLAN.batches(ExampleStream(60, 0)), "stream is 'of 60 examples'; .* 50 examples, .*nearest: 50"),
        (lambda: PLAN.batches(STREAM, 13), "start_update is 13; .*at most num_updates 12; nearest: 12"),
        (lambda: PLAN.batches(STREAM, -1), "start_update is -1; .*nearest: 0"),
        (lambda: PLAN.batches(STREAM, microbatch_size=3), "microbatch_size is 3; .*a divisor of 8.*nearest: 2"),
        (lambda: PLAN.microsteps(16), "microbatch_size is 16; .*multiple_of of increase_batch_size; nearest: 8"),
        (lambda: PLAN.microsteps(0), "microbatch_size is 0; .*nearest: 1"),
        (lambda: BatchSampler(PLAN, ExampleStream(60, 0)), "stream is "),
        (lambda: setattr(BatchSampler(PLAN, STREAM), "start_update", 99), "start_update is 99; .*nearest: 12"),
        (lambda: GrainSampler(PLAN, STREAM, seed=-1), "seed is -1; .*nearest: 0"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(InvalidArgument, match=f"^{message}"):
        make()
