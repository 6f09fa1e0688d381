"""The engine: runs one update of any batch size, and the evaluation, on all devices."""

import concurrent.futures
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from bsjax import layout
from bsjax.data import AUGMENTATIONS, Dataset, ExampleStream
from bsjax.data.augmentation import augment, position_keys
from bsjax.errors import check_choice
from bsjax.feed import create_feeds
from bsjax.models import ghost_batch_size_of
from bsjax.parallel import Program, first_replica, replicate, shapes_of
from bsjax.step import Microbatch, TrainState, make_steps

METRICS = ("loss", "accuracy", "grad_norm")
# Largest microbatch per device unless told otherwise: on accelerators; on CPUs; there for images of more than 16×16
# pixels, with which larger ones need temporaries that malloc takes from the system anew at each call.
_MAX_MICROBATCH_SIZE, _MAX_MICROBATCH_SIZE_CPU, _MAX_MICROBATCH_SIZE_CPU_LARGE_IMAGES = 1024, 64, 32


class Engine:
    """Runs updates of any batch size without recompiling for each.

    The batch runs as microbatches of a fixed shape, see `bsjax.layout`; gradients are summed on each
    device and reduced once per update. The images live on the devices if they fit, see `bsjax.feed`.

    Args:
      model: see `bsjax.models`.
      tx: an optimizer with injected hyperparameters, see `bsjax.optimizers`.
      dataset: what to train and test on.
      batch_sizes: those that are to come, for the choice of microbatches; others run as well.
      seed: of the initial parameters, the order of the examples, their augmentation, and dropout.
      microbatch_size: per device, for all batch sizes; None chooses one for each.
      augmentation: one of `bsjax.data.AUGMENTATIONS`.
      label_smoothing, batch_norm_decay: see `bsjax.step.make_steps`.
      images_on: see `bsjax.feed.create_feeds`; the numbers are the same.
      devices: default, all.

    Raises:
      InvalidArgument: a batch or microbatch size that does not hold whole ghosts.
    """

    def __init__(
        self,
        model: nn.Module,
        tx: optax.GradientTransformation,
        dataset: Dataset,
        batch_sizes: Iterable[int],
        seed: int = 0,
        microbatch_size: int | None = None,
        augmentation: str = "none",
        label_smoothing: float = 0.0,
        batch_norm_decay: float = 0.99,
        images_on: str = "auto",
        devices: Sequence[jax.Device] | None = None,
    ):
        check_choice("augmentation", augmentation, AUGMENTATIONS)
        self.devices = list(devices or jax.devices())
        self.num_devices = len(self.devices)
        self.ghost_batch_size = ghost_batch_size_of(model)
        batch_sizes = sorted(set(batch_sizes))
        layout.check_batch_sizes(batch_sizes, self.ghost_batch_size)
        if microbatch_size is None:
            largest = max_microbatch_size(self.devices[0].platform, dataset.train.images.shape[1:3])
            many = not 0 < len(batch_sizes) <= layout.FEW_BATCH_SIZES
            candidates = layout.candidate_microbatch_sizes(self.ghost_batch_size, self.num_devices, largest, many)
        else:
            layout.check_microbatch_size(microbatch_size, self.ghost_batch_size, self.num_devices)
            candidates = [microbatch_size]
        self._candidates = candidates
        self._microbatch_sizes: dict[int, int] = {}

        self.stream = ExampleStream(len(dataset.train.labels), seed)
        self._test_size = len(dataset.test.labels)
        self._image_shape = dataset.train.images.shape[1:]

        steps = make_steps(model, tx, label_smoothing, self.ghost_batch_size, batch_norm_decay)
        read, read_test = _make_reader(dataset, augmentation), _make_reader(dataset, "none")
        init_key, examples_key = jax.random.split(jax.random.PRNGKey(seed))
        # The key is an argument of the programs, not a constant in them, so that other seeds share the executables.
        self._train, self._test = create_feeds(
            images_on, dataset.train, dataset.test, self.stream, examples_key, self.devices
        )

        def accumulate(accumulator, state, split, address):
            return steps.accumulate(accumulator, state, read(split, address))

        def apply_update(state, accumulator, hyperparams):
            state, metrics = steps.apply_update(state, accumulator, _named(hyperparams))
            return state, _packed(metrics), steps.zero_accumulator(state)  # in the buffers of the old one

        def train_step(state, split, address, hyperparams):
            state, metrics = steps.train_step(state, read(split, address), _named(hyperparams))
            return state, _packed(metrics)

        def eval_step(state, split, address):
            sums = steps.eval_step(state, read_test(split, address))
            return jnp.stack([sums["loss"], sums["num_correct"], sums["num_examples"]])

        self._init = functools.partial(jax.jit(steps.init), init_key)
        self._zero_accumulator = Program(steps.zero_accumulator, self.devices)
        self._accumulate = Program(accumulate, self.devices, donate_argnums=(0,))
        self._apply_update = Program(apply_update, self.devices, donate_argnums=(0, 1))
        self._train_step = Program(train_step, self.devices, donate_argnums=(0,))
        self._eval_step = Program(eval_step, self.devices)
        self._accumulator: Any = None  # zero between updates
        self._compiler = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="compile")
        self._compiling: dict[tuple[int, bool], concurrent.futures.Future] = {}

    def init(self) -> TrainState:
        """The state before the first update, stacked over the devices."""
        return self.place(self._init(jnp.zeros((1, *self._image_shape))))

    def place(self, state: TrainState) -> TrainState:
        """A state of one device, such as a checkpoint's, on all of them."""
        return replicate(state, self.devices)

    def update(
        self, state: TrainState, examples_seen: int, batch_size: int, learning_rate: float, momentum: float
    ) -> tuple[TrainState, jax.Array]:
        """One update on the stream's positions [examples_seen, examples_seen + batch_size).

        Args:
          state: is consumed.
          examples_seen: before this update.
          batch_size: in examples; may be another one each time.
          learning_rate: of this update.
          momentum: of this update.

        Returns:
          The new state, and float [num_devices, 3]: `METRICS` of this update, on each device the same.
          Neither has been waited for.
        """
        microbatch_size = self.microbatch_size(batch_size)
        microbatches = self._train.microbatches(examples_seen, batch_size, microbatch_size)
        hyperparams = np.full((self.num_devices, 2), (learning_rate, momentum), jnp.result_type(float))
        if self._is_single(batch_size):
            [(split, address)] = microbatches
            return self._train_step(microbatch_size, state, split, address, hyperparams)
        if self._accumulator is None:
            self._accumulator = self._zero_accumulator((), state)
        for split, address in microbatches:
            self._accumulator = self._accumulate(microbatch_size, self._accumulator, state, split, address)
        state, metrics, self._accumulator = self._apply_update((), state, self._accumulator, hyperparams)
        return state, metrics

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Mean cross-entropy and accuracy over the whole test split, each example once."""
        microbatch_size = self._candidates[-1]
        microbatches = self._test.microbatches(0, self._test_size, microbatch_size)
        sums = [self._eval_step(microbatch_size, state, split, address) for split, address in microbatches]
        loss, num_correct, num_examples = sum(first_replica(part).astype(np.float64) for part in sums)
        return {"test_loss": float(loss / num_examples), "test_accuracy": float(num_correct / num_examples)}

    def compile_ahead(self, state: TrainState, batch_size: int) -> None:
        """Begins to compile what a batch size needs, in the background."""
        needed = self.microbatch_size(batch_size), self._is_single(batch_size)
        if needed not in self._compiling:
            shapes, x64 = shapes_of(state), jax.config.read("jax_enable_x64")

            def compile_with_our_precision() -> None:  # which is a thread's own
                with jax.enable_x64(x64):
                    self._compile(shapes, *needed)

            self._compiling[needed] = self._compiler.submit(compile_with_our_precision)

    def microbatch_size(self, batch_size: int) -> int:
        """The microbatch per device that a batch size runs with."""
        if batch_size not in self._microbatch_sizes:
            layout.check_batch_sizes([batch_size], self.ghost_batch_size)
            size = layout.choose_microbatch_size(batch_size, self._candidates, self.num_devices)
            self._microbatch_sizes[batch_size] = size
        return self._microbatch_sizes[batch_size]

    @property
    def num_compilations(self) -> int:
        """Executables made for training and evaluation."""
        return sum(program.num_compilations for program in self._programs)

    @property
    def compile_time_s(self) -> float:
        """Seconds of compilation, in the background and not."""
        return sum(program.compile_time_s for program in self._programs)

    @property
    def stall_time_s(self) -> float:
        """Seconds of compilation that training waited for."""
        return sum(program.stall_time_s for program in self._programs)

    @property
    def _programs(self) -> tuple[Program, ...]:
        return (self._zero_accumulator, self._accumulate, self._apply_update, self._train_step, self._eval_step)

    def _is_single(self, batch_size: int) -> bool:
        """Whether one microbatch makes the update."""
        return layout.num_microbatches(batch_size, self.microbatch_size(batch_size), self.num_devices) == 1

    def _compile(self, state: Any, microbatch_size: int, single: bool) -> None:
        split, address = self._train.shapes(microbatch_size)
        hyperparams = jax.ShapeDtypeStruct((self.num_devices, 2), jnp.result_type(float))
        if single:
            self._train_step.compile(microbatch_size, state, split, address, hyperparams)
        else:
            self._zero_accumulator.compile((), state)
            accumulator = self._zero_accumulator.output_shapes(state)
            self._accumulate.compile(microbatch_size, accumulator, state, split, address)
            self._apply_update.compile((), state, accumulator, hyperparams)


def max_microbatch_size(platform: str, image_size: tuple[int, ...]) -> int:
    """The largest microbatch per device that the engine takes by itself, for images of height × width pixels."""
    if platform != "cpu":
        return _MAX_MICROBATCH_SIZE
    return _MAX_MICROBATCH_SIZE_CPU if math.prod(image_size) <= 16**2 else _MAX_MICROBATCH_SIZE_CPU_LARGE_IMAGES


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


def _packed(metrics: dict[str, jax.Array]) -> jax.Array:
    return jnp.stack([metrics[name] for name in METRICS])
