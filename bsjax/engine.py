"""The engine: runs one update of any batch size, and the evaluation, on as many devices as are of use."""

import functools
import math
import zlib
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from bsjax import layout
from bsjax.data import AUGMENTATIONS, Dataset, ExampleStream
from bsjax.errors import check_choice
from bsjax.feed import IMAGES_ON
from bsjax.models import ghost_batch_size_of
from bsjax.parallel import Program, all_devices, first_of_each_process, first_replica
from bsjax.programs import METRICS, Programs
from bsjax.step import TrainState, make_steps

__all__ = ["METRICS", "Engine"]

# Largest microbatch per device unless told otherwise: on accelerators; on CPUs; there for images of more than 16×16
# pixels, with which larger ones need temporaries that malloc takes from the system anew at each call.
_MAX_MICROBATCH_SIZE, _MAX_MICROBATCH_SIZE_CPU, _MAX_MICROBATCH_SIZE_CPU_LARGE_IMAGES = 1024, 64, 32


class Engine:
    """Runs updates of any batch size without recompiling for each.

    The batch runs as microbatches of a fixed shape, see `bsjax.layout`; gradients are summed on each
    device and reduced once per update. The images live on the devices if they fit, see `bsjax.feed`.
    With many processes, each makes an engine with the same arguments and calls the same methods.

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
      devices: default, all of all processes.
      grow_devices: a small batch runs on as many of the devices as make it fastest, see `bsjax.layout.Layouts`.
      measure_noise: every update is to have two microbatches or more, see `bsjax.layout.Layouts`.

    Attributes:
      identity: what the numbers depend on, for a checkpoint to know; the optimizer cannot be told.

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
        grow_devices: bool = False,
        measure_noise: bool = False,
    ):
        check_choice("augmentation", augmentation, AUGMENTATIONS)
        check_choice("images_on", images_on, IMAGES_ON)
        self.devices = list(devices or all_devices())
        self.ghost_batch_size = ghost_batch_size_of(model)
        # Chooses the number of devices, and the microbatch on each, that a batch size runs with.
        self.layout = layout.Layouts(
            batch_sizes,
            self.ghost_batch_size,
            self._numbers_of_devices(grow_devices),
            max_microbatch_size(self.devices[0].platform, dataset.train.images.shape[1:3]),
            microbatch_size,
            measure_noise,
        )

        steps = make_steps(model, tx, label_smoothing, self.ghost_batch_size, batch_norm_decay)
        init_key, examples_key = jax.random.split(jax.random.PRNGKey(seed))
        stream = ExampleStream(len(dataset.train.labels), seed)
        images = jnp.zeros((1, *dataset.train.images.shape[1:]))
        self._init = functools.partial(jax.jit(steps.init), init_key, images)
        self._make_programs = functools.partial(Programs, steps, dataset, stream, examples_key, augmentation, images_on)
        self._programs: dict[int, Programs] = {}  # by number of devices
        self.identity = {
            "model": repr(model),
            "dataset": dataset.name,
            "train_labels": f"{len(dataset.train.labels)}, CRC-32 {zlib.crc32(dataset.train.labels.tobytes())}",
            "seed": seed,
            "augmentation": augmentation,
            "label_smoothing": label_smoothing,
            "batch_norm_decay": batch_norm_decay,
        }

    @property
    def num_devices(self) -> int:
        """Of all processes."""
        return len(self.devices)

    def init(self) -> TrainState:
        """The state before the first update, stacked over the devices."""
        return self.place(self._init())

    def place(self, state: TrainState) -> TrainState:
        """A state of one device, such as a checkpoint's, on all of them."""
        return self._on(len(self.devices)).place(state)

    def update(
        self,
        state: TrainState,
        examples_seen: int,
        batch_size: int,
        learning_rate: float,
        momentum: float,
        stop: bool = False,
    ) -> tuple[TrainState, jax.Array]:
        """One update on the stream's positions [examples_seen, examples_seen + batch_size).

        Args:
          state: is consumed.
          examples_seen: before this update.
          batch_size: in examples; may be another one each time.
          learning_rate: of this update.
          momentum: of this update.
          stop: whether this process wants to stop, which may differ between them.

        Returns:
          The new state, and float [devices, 5], on each device the same: `METRICS` of this update, and on how
          many devices their process wants to stop. Neither has been waited for.
        """
        num_devices, microbatch_size = self.layout(batch_size)
        programs = self._on(num_devices)
        state = self._move(state, programs)
        return programs.update(
            state, examples_seen, batch_size, microbatch_size, (learning_rate, momentum, float(stop))
        )

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Mean cross-entropy and accuracy over the whole test split, each example once."""
        programs = self._on(_num_devices(state))
        return programs.evaluate(state, self.layout.microbatch_sizes[len(programs.devices)][-1])

    def compile_ahead(self, state: TrainState, batch_size: int) -> None:
        """Begins to compile what a batch size needs, in the background."""
        num_devices, microbatch_size = self.layout(batch_size)
        self._on(num_devices).compile_ahead(state, batch_size, microbatch_size)

    def num_shards(self, batch_size: int) -> int:
        """How many microbatches, whose gradients are independent, an update has on all devices.

        0 where devices share ghosts: parts of a ghost are not independent, so their spread is not the noise.
        """
        microbatch_size = self.layout(batch_size).microbatch_size
        return 0 if microbatch_size < self.ghost_batch_size else -(-batch_size // microbatch_size)

    @property
    def num_compilations(self) -> int:
        """Executables made for training and evaluation."""
        return sum(program.num_compilations for program in self._all_programs())

    @property
    def compile_time_s(self) -> float:
        """Seconds of compilation, in the background and not."""
        return sum(program.compile_time_s for program in self._all_programs())

    @property
    def stall_time_s(self) -> float:
        """Seconds of compilation that training waited for."""
        return sum(program.stall_time_s for program in self._all_programs())

    def _all_programs(self) -> list[Program]:
        return [program for programs in self._programs.values() for program in programs.all]

    def _on(self, num_devices: int) -> Programs:
        """The programs for the first of each process's devices, so many in all."""
        if num_devices not in self._programs:
            self._programs[num_devices] = self._make_programs(first_of_each_process(self.devices, num_devices))
        return self._programs[num_devices]

    def _numbers_of_devices(self, grow: bool) -> range:
        """As many of each process as of the others."""
        num_processes = len({device.process_index for device in self.devices})
        return range(num_processes if grow else self.num_devices, self.num_devices + 1, num_processes)

    def _move(self, state: TrainState, programs: Programs) -> TrainState:
        if _num_devices(state) == len(programs.devices):
            return state
        return programs.place(first_replica(state))


def _num_devices(state: TrainState) -> int:
    """That it is stacked over."""
    return state.opt_state.hyperparams["learning_rate"].shape[0]


def max_microbatch_size(platform: str, image_size: tuple[int, ...]) -> int:
    """The largest microbatch per device that the engine chooses: "cpu" or another platform, height and width."""
    if platform != "cpu":
        return _MAX_MICROBATCH_SIZE
    return _MAX_MICROBATCH_SIZE_CPU if math.prod(image_size) <= 16**2 else _MAX_MICROBATCH_SIZE_CPU_LARGE_IMAGES
