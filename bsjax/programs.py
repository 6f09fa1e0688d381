"""What a fixed set of devices runs: the programs of an update and of the evaluation, and the examples they read."""

import concurrent.futures
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bsjax import layout
from bsjax.data import Dataset, ExampleStream
from bsjax.data.augmentation import augment, position_keys
from bsjax.feed import create_feeds
from bsjax.normalization import AXIS_NAME
from bsjax.parallel import Program, first_replica, local_part, replicate, shapes_of
from bsjax.step import Microbatch, Steps, TrainState

METRICS = ("loss", "accuracy", "grad_norm", "weighted_grad_sq")  # of an update, see `bsjax.step.make_steps`
_NUM_HYPERPARAMS = 3  # learning rate, momentum, and whether to stop


class Programs:
    """Runs updates and evaluations on some devices, with microbatches of given sizes.

    Args:
      steps: of the model and the optimizer.
      dataset: what to train and test on.
      stream: the order of the training examples.
      key: of the randomness of augmentation and dropout.
      augmentation: one of `bsjax.data.AUGMENTATIONS`.
      images_on: see `bsjax.feed.create_feeds`.
      devices: of all processes.
    """

    def __init__(
        self,
        steps: Steps,
        dataset: Dataset,
        stream: ExampleStream,
        key: jax.Array,
        augmentation: str,
        images_on: str,
        devices: Sequence[jax.Device],
    ):
        self.devices = devices
        part = local_part(devices)
        self._num_local_devices = part.stop - part.start
        self._dtype = jnp.result_type(float)
        self._test_size = len(dataset.test.labels)
        # The key is an argument of the programs, not a constant in them, so that other seeds share the executables.
        self._train, self._test = create_feeds(images_on, dataset.train, dataset.test, stream, key, devices)
        read, read_test = _make_reader(dataset, augmentation), _make_reader(dataset, "none")

        def accumulate(accumulator, state, split, address):
            return steps.accumulate(accumulator, state, read(split, address))

        def apply_update(state, accumulator, hyperparams):
            state, metrics = steps.apply_update(state, accumulator, _named(hyperparams))
            packed = _packed(metrics, hyperparams)
            return state, packed, steps.zero_accumulator(state)  # in the buffers of the old one

        def train_step(state, split, address, hyperparams):
            state, metrics = steps.train_step(state, read(split, address), _named(hyperparams))
            return state, _packed(metrics, hyperparams)

        def eval_step(state, split, address):
            sums = steps.eval_step(state, read_test(split, address))
            return jnp.stack([sums["loss"], sums["num_correct"], sums["num_examples"]])

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

    def place(self, state: TrainState) -> TrainState:
        """A state of one device on all of these."""
        return replicate(state, self.devices)

    def update(
        self,
        state: TrainState,
        examples_seen: int,
        batch_size: int,
        microbatch_size: int,
        hyperparams: Sequence[float],
    ) -> tuple[TrainState, jax.Array]:
        """See `bsjax.engine.Engine.update`; hyperparams are learning rate, momentum, and 1 to stop."""
        microbatches = self._train.microbatches(examples_seen, batch_size, microbatch_size)
        local = np.full((self._num_local_devices, _NUM_HYPERPARAMS), hyperparams, self._dtype)
        if self._is_single(batch_size, microbatch_size):
            [(split, address)] = microbatches
            return self._train_step(microbatch_size, state, split, address, local)
        if self._accumulator is None:
            self._accumulator = self._zero_accumulator((), state)
        for split, address in microbatches:
            self._accumulator = self._accumulate(microbatch_size, self._accumulator, state, split, address)
        state, metrics, self._accumulator = self._apply_update((), state, self._accumulator, local)
        return state, metrics

    def evaluate(self, state: TrainState, microbatch_size: int) -> dict[str, float]:
        """See `bsjax.engine.Engine.evaluate`."""
        microbatches = self._test.microbatches(0, self._test_size, microbatch_size)
        sums = [self._eval_step(microbatch_size, state, split, address) for split, address in microbatches]
        loss, num_correct, num_examples = sum(first_replica(part).astype(np.float64) for part in sums)
        return {"test_loss": float(loss / num_examples), "test_accuracy": float(num_correct / num_examples)}

    def compile_ahead(self, state: TrainState, batch_size: int, microbatch_size: int) -> None:
        """Begins to compile, in the background, what updates of a batch size need; `state` gives the shapes."""
        needed = microbatch_size, self._is_single(batch_size, microbatch_size)
        if needed not in self._compiling:
            x64 = jax.config.read("jax_enable_x64")
            # Also of a state that is on other devices.
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), state)

            def compile_with_our_precision() -> None:  # which is a thread's own
                with jax.enable_x64(x64):
                    self._compile(shapes, *needed)

            self._compiling[needed] = self._compiler.submit(compile_with_our_precision)

    def _is_single(self, batch_size: int, microbatch_size: int) -> bool:
        """Whether one microbatch makes the update."""
        return layout.num_microbatches(batch_size, microbatch_size, len(self.devices)) == 1

    def _compile(self, state: Any, microbatch_size: int, single: bool) -> None:
        split, address = self._train.shapes(microbatch_size)
        accumulator = shapes_of(self._zero_shapes(state), self.devices)
        hyperparams = shapes_of(jax.ShapeDtypeStruct((_NUM_HYPERPARAMS,), self._dtype), self.devices)
        state = shapes_of(state, self.devices)
        if single:
            self._train_step.compile(microbatch_size, state, split, address, hyperparams)
        else:
            self._zero_accumulator.compile((), state)
            self._accumulate.compile(microbatch_size, accumulator, state, split, address)
            self._apply_update.compile((), state, accumulator, hyperparams)


def _make_reader(dataset: Dataset, augmentation: str) -> Callable:
    """Reads a microbatch at an address, inside jit."""

    def read(split: Any, address: jax.Array) -> Microbatch:
        images, labels, key = split
        index = jnp.maximum(address[0], 0)
        x = (images[index].astype(jnp.result_type(float)) - dataset.mean) / dataset.std
        position_hi, position_lo = jax.lax.bitcast_convert_type(address[1:], jnp.uint32)
        augmentation_keys, keys = position_keys(key, position_hi, position_lo)
        x = augment(augmentation, x, augmentation_keys)
        return Microbatch(x, labels[index], (address[0] >= 0).astype(x.dtype), keys)

    return read


def _named(hyperparams: jax.Array) -> dict[str, jax.Array]:
    return {"learning_rate": hyperparams[0], "momentum": hyperparams[1]}


def _packed(metrics: dict[str, jax.Array], hyperparams: jax.Array) -> jax.Array:
    num_stops = jax.lax.psum(hyperparams[2], AXIS_NAME)  # so that all processes stop after the same update
    return jnp.stack([*(metrics[name] for name in METRICS), num_stops])
