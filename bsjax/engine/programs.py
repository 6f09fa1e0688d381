"""What a fixed set of devices runs: the programs of an update and of the evaluation, and the examples they read."""

import concurrent.futures
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bsjax.data import ExampleStream, Source
from bsjax.engine import layout
from bsjax.engine.cost import Cost, total_cost
from bsjax.engine.devices import Program, first_replica, local_part, shapes_of, shapes_on_each
from bsjax.engine.feed import create_feeds
from bsjax.engine.step import Microbatch, Steps, TrainState, example_keys, sum_over_devices


class Programs:
    """Runs updates and evaluations on some devices, with microbatches of given sizes.

    Args:
      steps: of the task and the optimizer.
      hyperparameters: names of those that every update sets, in order, and the optimizer's names of these; must be
        there when the first update is compiled.
      metrics: names of what the update returns, in order; "num_stops" is the last.
      eval_metrics: names of what the evaluation sums up, in order; "num_examples" is the last.
      train: the training examples.
      test: the test examples.
      stream: the order of the training examples.
      key: of the randomness of examples.
      examples_on: see `bsjax.engine.feed.create_feeds`.
      devices: of all processes.
    """

    def __init__(
        self,
        steps: Steps,
        hyperparameters: Mapping[str, str],
        metrics: Sequence[str],
        eval_metrics: Sequence[str],
        train: Source,
        test: Source,
        stream: ExampleStream,
        key: jax.Array,
        examples_on: str,
        devices: Sequence[jax.Device],
    ):
        self.devices = devices
        part = local_part(devices)
        self._num_local_devices = part.stop - part.start
        self._dtype = jnp.result_type(float)
        self._test_size = len(test)
        self._eval_metrics = eval_metrics
        self._hyperparameters = hyperparameters
        # The key is an argument of the programs, not a constant in them, so that other seeds share the executables.
        self._train, self._test = create_feeds(examples_on, train, test, stream, key, devices)

        def named(controls):
            return dict(zip(hyperparameters.values(), controls, strict=False))

        def packed(values, controls):
            values = {**values, "num_stops": sum_over_devices(controls[-1])}  # so that all stop after the same update
            return jnp.stack([values[name].astype(self._dtype) for name in metrics])

        def accumulate(accumulator, state, pool, address):
            return steps.accumulate(accumulator, state, _read(pool, address))

        def apply_update(state, accumulator, controls):
            state, values = steps.apply_update(state, accumulator, named(controls))
            return state, packed(values, controls), steps.zero_accumulator(state)  # in the buffers of the old one

        def train_step(state, pool, address, controls):
            state, values = steps.train_step(state, _read(pool, address), named(controls))
            return state, packed(values, controls)

        def eval_step(state, pool, address):
            sums = steps.eval_step(state, _read(pool, address))
            return jnp.stack([sums[name] for name in eval_metrics])

        self._zero_shapes = lambda state: jax.eval_shape(steps.zero_accumulator, state)
        self._zero_accumulator = Program(steps.zero_accumulator, devices)
        self._accumulate = Program(accumulate, devices, donate_argnums=(0,))
        self._apply_update = Program(apply_update, devices, donate_argnums=(0, 1))
        self._train_step = Program(train_step, devices, donate_argnums=(0,))
        self._eval_step = Program(eval_step, devices)
        self.all = (self._zero_accumulator, self._accumulate, self._apply_update, self._train_step, self._eval_step)
        self._accumulator: Any = None  # zero between updates
        self._compiler = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="compile")
        self._compiling: dict[tuple[int, bool], concurrent.futures.Future] = {}

    def update(
        self, state: TrainState, examples_seen: int, batch_size: int, microbatch_size: int, controls: Sequence[float]
    ) -> tuple[TrainState, jax.Array]:
        """An update: its state and its metrics, float [devices, metrics]; neither has been waited for.

        `controls` are the values of the hyperparameters, and 1 if this process wants to stop after the update.
        """
        microbatches = self._train.microbatches(examples_seen, batch_size, microbatch_size)
        local = np.full((self._num_local_devices, len(controls)), controls, self._dtype)
        if self._is_single(batch_size, microbatch_size):
            [(pool, address)] = microbatches
            return self._train_step(microbatch_size, state, pool, address, local)
        if self._accumulator is None:
            self._accumulator = self._zero_accumulator((), state)
        for pool, address in microbatches:
            self._accumulator = self._accumulate(microbatch_size, self._accumulator, state, pool, address)
        state, metrics, self._accumulator = self._apply_update((), state, self._accumulator, local)
        return state, metrics

    @property
    def input_wait_s(self) -> float | None:
        """Seconds that updates have waited for examples on the host; None where they are on the devices."""
        return self._train.wait_s

    def cost_of(self, batch_size: int, microbatch_size: int) -> Cost:
        """What an update costs on all devices, padding included; there must have been such an update."""
        if self._is_single(batch_size, microbatch_size):
            parts = [(1, self._train_step.cost_of(microbatch_size))]
        else:
            count = layout.num_microbatches(batch_size, microbatch_size, len(self.devices))
            parts = [(count, self._accumulate.cost_of(microbatch_size)), (1, self._apply_update.cost_of(()))]
        return total_cost((len(self.devices) * count, cost) for count, cost in parts)

    def memory_of(self, batch_size: int, microbatch_size: int) -> int:
        """Bytes that the largest program of an update takes on each device; there must have been such an update."""
        if self._is_single(batch_size, microbatch_size):
            return self._train_step.total_bytes(microbatch_size)
        return max(self._accumulate.total_bytes(microbatch_size), self._apply_update.total_bytes(()))

    def evaluate(self, state: TrainState, microbatch_size: int) -> dict[str, float]:
        """The means of the loss and the task's metrics over the test examples."""
        microbatches = self._test.microbatches(0, self._test_size, microbatch_size)
        sums = [self._eval_step(microbatch_size, state, pool, address) for pool, address in microbatches]
        *totals, num_examples = sum(first_replica(part).astype(np.float64) for part in sums)
        means = [float(total / num_examples) for total in totals]
        return dict(zip(self._eval_metrics, means, strict=False))

    def shapes(self, state: TrainState) -> Any:
        """Of a state and of a microbatch of one example."""
        return jax.tree.map(lambda x: (x.shape, str(x.dtype)), (state, self._train.shapes(1)))

    def microbatch_bytes(self, state: TrainState, microbatch_size: int) -> int:
        """Compiles the accumulation of a microbatch; returns the bytes that it takes beyond state and examples."""
        self._compile(shapes_on_each(state, len(self.devices)), microbatch_size, single=False)
        return self._accumulate.temporary_bytes(microbatch_size)

    def time_microbatches(self, state: TrainState, microbatch_size: int, count: int) -> float:
        """Seconds for each of `count` microbatches, accumulated as in an update; `forget` what they add up to."""
        if self._accumulator is None:
            self._accumulator = self._zero_accumulator((), state)
        start = time.perf_counter()
        batch_size = count * microbatch_size * len(self.devices)
        for pool, address in self._train.microbatches(0, batch_size, microbatch_size):
            self._accumulator = self._accumulate(microbatch_size, self._accumulator, state, pool, address)
        jax.block_until_ready(self._accumulator)
        return (time.perf_counter() - start) / count

    def time_updates(
        self, state: TrainState, num_microbatches: int, microbatch_size: int, count: int, controls: Sequence[float]
    ) -> tuple[float, TrainState]:
        """Seconds for each of `count` updates, and the state after them."""
        batch_size = num_microbatches * microbatch_size * len(self.devices)
        start = time.perf_counter()
        for _ in range(count):
            state, metrics = self.update(state, 0, batch_size, microbatch_size, controls)
        jax.block_until_ready((state, metrics))
        return (time.perf_counter() - start) / count, state

    def forget(self) -> None:
        """Sets the accumulator to zero."""
        self._accumulator = None

    def compile_ahead(self, state: TrainState, batch_size: int, microbatch_size: int) -> None:
        """Begins to compile, in the background, what updates of a batch size need; `state` gives the shapes."""
        needed = microbatch_size, self._is_single(batch_size, microbatch_size)
        if needed not in self._compiling:
            shapes = shapes_on_each(state, len(self.devices))
            enabled = jax.config.read("jax_enable_x64")

            def compile_with_our_precision() -> None:  # which a thread does not inherit
                with jax.enable_x64(enabled):
                    self._compile(shapes, *needed)

            self._compiling[needed] = self._compiler.submit(compile_with_our_precision)

    def _is_single(self, batch_size: int, microbatch_size: int) -> bool:
        """Whether one microbatch makes the update."""
        return layout.num_microbatches(batch_size, microbatch_size, len(self.devices)) == 1

    def _compile(self, state: Any, microbatch_size: int, single: bool) -> None:
        pool, address = self._train.shapes(microbatch_size)
        accumulator = shapes_of(self._zero_shapes(state), self.devices)
        controls = shapes_of(jax.ShapeDtypeStruct((len(self._hyperparameters) + 1,), self._dtype), self.devices)
        state = shapes_of(state, self.devices)
        if single:
            self._train_step.compile(microbatch_size, state, pool, address, controls)
        else:
            self._zero_accumulator.compile((), state)
            self._accumulate.compile(microbatch_size, accumulator, state, pool, address)
            self._apply_update.compile((), state, accumulator, controls)


def _read(pool: Any, address: jax.Array) -> Microbatch:
    """A microbatch at an address, inside jit; randomness is keyed by (seed, stream position) alone."""
    examples, key = pool
    index = jnp.maximum(address[0], 0)
    position_hi, position_lo = jax.lax.bitcast_convert_type(address[1:], jnp.uint32)
    keys = example_keys(key, position_hi, position_lo)
    weights = (address[0] >= 0).astype(jnp.result_type(float))
    return Microbatch(jax.tree.map(lambda array: array[index], examples), weights, keys)
