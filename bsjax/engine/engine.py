"""The engine: runs one update of any batch size, and the evaluation, on as many devices as are of use."""

import functools
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from bsjax.constants import describe_constants
from bsjax.data import ExampleStream, Source
from bsjax.engine.contract import (
    check_arguments,
    check_devices,
    check_layer_norm_noise,
    check_same_names,
    hyperparameter_names,
)
from bsjax.engine.cost import Cost, ModelFlops, model_flops
from bsjax.engine.devices import all_devices, first_of_each_process, first_replica, replicate
from bsjax.engine.feed import EXAMPLES_ON
from bsjax.engine.layout import Layouts, StepTimes
from bsjax.engine.measure import LayoutChoice, Measurement, max_microbatch_size, step_times
from bsjax.engine.metrics import UpdateMetrics
from bsjax.engine.programs import Programs
from bsjax.engine.step import Steps, TrainState
from bsjax.errors import check_choice
from bsjax.plan import Update
from bsjax.tasks import Task


class Engine:
    """Runs updates of any batch size without recompiling for each.

    The batch runs as microbatches of a fixed shape, see `bsjax.engine.layout`; gradients are summed on each
    device and reduced once per update. The examples live on the devices if they fit, see `bsjax.engine.feed`.
    With many processes, each makes an engine with the same arguments and calls the same methods.

    Args:
      task: what is trained, see `bsjax.tasks`.
      tx: an optimizer made by `optax.inject_hyperparams`, see `bsjax.optimizers`.
      train: the training examples, see `bsjax.data.Source`.
      test: the examples of the evaluation.
      batch_sizes: those that are to come, for the choice of microbatches; others run as well.
      seed: of the initial parameters, the order of the examples, and their randomness.
      microbatch_size: per device, for all batch sizes; "auto" chooses one for each by a rule of thumb, "measure" by the
        times of the steps, which are measured before the first update (for some seconds, once per task, optimizer and
        machine: see `bsjax.engine.measure`) or given: a `bsjax.engine.layout.StepTimes`.
      examples_on: see `bsjax.engine.feed.create_feeds`; the numbers are the same.
      devices: default, all of all processes.
      grow_devices: a small batch runs on as many of the devices as make it fastest, see `bsjax.engine.layout.Layouts`.
      measure_noise: every update is to have two microbatches or more, see `bsjax.engine.layout.Layouts`.
      layer_norm_noise: every update measures the gradient of each example for the parameters of normalisation layers,
        whatever its microbatches, see `bsjax.gradient_noise.of_each_example`; examples must have losses of their own.
      shard_optimizer: each device keeps a share of the optimizer's state, see `bsjax.engine.shares`.
      classes: int [N], the class of each training example, for an order that spreads each class evenly over an epoch,
        see `bsjax.data.ExampleStream`; default, the order does not know of classes.

    Raises:
      InvalidArgument: an argument is not what it should be; a batch or microbatch size does not hold whole groups; the
        processes have different numbers of devices.

    >>> import jax.numpy as jnp
    >>> import numpy as np
    >>> from bsjax import Recipe
    >>> from bsjax.data import ArraySource
    >>> from bsjax.tasks import from_loss
    >>> x = np.linspace(-1.0, 1.0, 64, dtype=np.float32)
    >>> source = ArraySource({"x": x, "y": 3 * x})
    >>> task = from_loss(
    ...     lambda params, examples, keys, train: (params * examples["x"] - examples["y"]) ** 2,
    ...     init_fn=lambda key: jnp.zeros(()),
    ... )
    >>> tx = optax.inject_hyperparams(optax.sgd)(learning_rate=0.0)
    >>> plan = Recipe(0.5, batch_size=16, dataset_size=64, num_epochs=5, momentum=0).plan()
    >>> engine = Engine(task, tx, source, source, batch_sizes=[16])
    >>> state = engine.init()
    >>> for update in plan:
    ...     state, metrics = engine.update(state, update)
    >>> metrics.loss < 0.1
    True
    """

    def __init__(
        self,
        task: Task,
        tx: optax.GradientTransformation,
        train: Source,
        test: Source,
        batch_sizes: Iterable[int],
        seed: int = 0,
        microbatch_size: int | str | StepTimes = "auto",
        examples_on: str = "auto",
        devices: Sequence[jax.Device] | None = None,
        grow_devices: bool = False,
        measure_noise: bool = False,
        shard_optimizer: bool = False,
        classes: Any = None,
        layer_norm_noise: bool = False,
    ):
        check_choice("examples_on", examples_on, EXAMPLES_ON)
        example = check_arguments(task, tx, train, test)
        self.task = task
        self.devices = list(devices or all_devices())
        num_processes = check_devices(self.devices)  # each has as many devices as the others
        example_size = max(array.size for array in jax.tree.leaves(example))
        make_layouts = functools.partial(
            Layouts,
            sorted(set(batch_sizes)),
            task.group_size,
            range(num_processes if grow_devices else self.num_devices, self.num_devices + 1, num_processes),
            max_microbatch_size(self.devices[0].platform, example_size),
            measure_noise=measure_noise,
            groups_may_span_devices=task.groups_may_span_devices,
        )
        kinds = [device.device_kind for device in self.devices]
        self.layout_choice = LayoutChoice(make_layouts, microbatch_size, self._measure, kinds)
        steps = Steps(task, tx, layer_norm_noise)
        init_key, examples_key = jax.random.split(jax.random.PRNGKey(seed))
        stream = ExampleStream(len(train), seed, classes)
        self._init = functools.partial(jax.jit(steps.init), init_key, example)
        if layer_norm_noise:
            check_layer_norm_noise(task, jax.eval_shape(self._init).params)
        self._shared = steps.shared(jax.eval_shape(self._init)) if shard_optimizer else None
        self._metrics = (*steps.metrics, "num_stops")
        eval_metrics = ("loss", *task.metrics, "num_examples")
        self._names: dict[str, str] = {}  # the optimizer's, by those of the updates' hyperparameters; from the first on
        self._make_programs = lambda devices: Programs(
            steps, self._names, self._metrics, eval_metrics, train, test, stream, examples_key, examples_on, devices
        )
        self._model_flops = lambda: model_flops(steps, jax.eval_shape(self._init), example, task.group_size)
        self._programs: dict[int, Programs] = {}  # by number of devices
        self._tx, self._train, self._seed, self.sources = tx, train, seed, {"train": train, "test": test}
        self._order = {} if classes is None else {"classes": zlib.crc32(np.asarray(classes, np.int64).tobytes())}
        self._about_steps = {"layer_norm_noise": True} if layer_norm_noise else {}  # on which their times depend

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What the numbers depend on, as JSON and by owner, for a checkpoint to know."""
        identity = {
            "task": self.task.identity,
            **{name: {"examples": len(one), "fingerprint": one.fingerprint} for name, one in self.sources.items()},
            "optimizer": describe_constants(self._tx),
            "engine": {"seed": self._seed, **self._order},
        }
        return json.loads(json.dumps(identity))

    @property
    def dataset_size(self) -> int:
        """N, the number of training examples."""
        return len(self._train)

    @property
    def num_devices(self) -> int:
        """Of all processes."""
        return len(self.devices)

    @property
    def layout(self) -> Layouts:
        """Chooses the number of devices, and the microbatch on each, that a batch size runs with; measures if asked to.

        Measure after `check_hyperparameters` where updates have others than a learning rate and a momentum.
        """
        return self.layout_choice.layouts

    def init(self) -> TrainState:
        """The state before the first update, stacked over the devices."""
        state = self._init()
        hyperparameter_names(state.opt_state, {})
        return self.place(state)

    def place(self, state: TrainState) -> TrainState:
        """A state of one device, such as a checkpoint's, on all of them."""
        return replicate(state, self.devices, self._shared)

    def check_hyperparameters(self, hyperparameters: Mapping[str, float]) -> None:
        """Refuses what the optimizer has no place for, before anything is compiled; the first update does so too.

        Args:
          hyperparameters: those of the first update, by name. "momentum" is Adam's "b1".

        Raises:
          InvalidArgument: the optimizer has no such hyperparameter, with the names that it has.
        """
        self._values(jax.eval_shape(self._init), hyperparameters)

    def update(self, state: TrainState, update: Update, stop: bool = False) -> tuple[TrainState, UpdateMetrics]:
        """One update on the stream's positions [update.examples_seen, update.examples_seen + update.batch_size).

        Args:
          state: is consumed.
          update: such as a plan yields. Its batch size may be another one each time; its hyperparameters have the same
            names in all updates.
          stop: whether this process wants to stop, which may differ between them.

        Returns:
          The new state, and the metrics of this update. Neither has been waited for.

        Raises:
          InvalidArgument: a batch that does not hold whole groups, or a hyperparameter that the optimizer lacks.
          TaskError: the task's functions fail.
        """
        values = self._values(state, update.hyperparameters)
        num_devices, microbatch_size = self.layout(update.batch_size)
        programs = self._on(num_devices)
        state = self._move(state, programs)
        state, metrics = programs.update(
            state, update.examples_seen, update.batch_size, microbatch_size, [*values, float(stop)]
        )
        return state, UpdateMetrics(self._metrics, metrics)

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Means over the test examples, each once: "test_loss", and "test_NAME" for each of the task's metrics.

        With them comes what the task computes from these means, see `bsjax.tasks.Task.of_means`.
        """
        num_devices = _num_devices(state)
        means = self._on(num_devices).evaluate(state, self.layout.fastest(num_devices))
        if hasattr(self.task, "of_means"):  # a task need not inherit from Task
            means = {**means, **self.task.of_means(means)}
        return {f"test_{name}": mean for name, mean in means.items()}

    def compile_ahead(self, state: TrainState, batch_size: int) -> None:
        """Begins to compile what a batch size needs, in the background; after `check_hyperparameters` or an update."""
        num_devices, microbatch_size = self.layout(batch_size)
        self._on(num_devices).compile_ahead(state, batch_size, microbatch_size)

    def num_shards(self, batch_size: int) -> int:
        """How many microbatches, whose gradients are independent, an update has on all devices.

        0 where devices share groups: parts of a group are not independent, so their spread is not the noise.
        """
        microbatch_size = self.layout(batch_size).microbatch_size
        return 0 if microbatch_size < self.task.group_size else -(-batch_size // microbatch_size)

    def cost_of(self, batch_size: int) -> Cost:
        """What an update of a batch size costs on all devices, padding included; after such an update."""
        num_devices, microbatch_size = self.layout(batch_size)
        return self._on(num_devices).cost_of(batch_size, microbatch_size)

    def memory_of(self, batch_size: int) -> int:
        """Bytes that an update of a batch size takes on each device, as XLA plans them; after such an update."""
        num_devices, microbatch_size = self.layout(batch_size)
        return self._on(num_devices).memory_of(batch_size, microbatch_size)

    @functools.cached_property
    def model_flops(self) -> ModelFlops:
        """What an example's loss and gradient take, without padding and the optimizer."""
        return self._model_flops()

    @property
    def num_compilations(self) -> int:
        """Executables made for training and evaluation."""
        return sum(program.num_compilations for one in self._programs.values() for program in one.all)

    @property
    def compile_time_s(self) -> float:
        """Seconds of compilation, in the background and not."""
        return sum(program.compile_time_s for one in self._programs.values() for program in one.all)

    @property
    def stall_time_s(self) -> float:
        """Seconds of compilation that training waited for."""
        return sum(program.stall_time_s for one in self._programs.values() for program in one.all)

    @property
    def input_wait_s(self) -> float | None:
        """Seconds that updates waited for examples from the host; None where examples live on the devices."""
        waits = [one.input_wait_s for one in self._programs.values() if one.input_wait_s is not None]
        return sum(waits) if waits else None

    def _values(self, state: TrainState, hyperparameters: Mapping[str, float]) -> list[float]:
        """An update's hyperparameters in the order of the programs' arguments."""
        if not self._names:
            self._names.update(hyperparameter_names(state.opt_state, hyperparameters))
        check_same_names(state.opt_state, self._names, hyperparameters)
        return [hyperparameters[name] for name in self._names]

    def _measure(self, smallest_batch_size: int) -> Measurement:
        if not self._names:
            self.check_hyperparameters({"learning_rate": 0.0, "momentum": 0.0})
        programs, about = self._on(self.num_devices), {"optimizer": describe_constants(self._tx), **self._about_steps}
        sizes = smallest_batch_size, len(self._train)
        with jax.transfer_guard("allow"):  # also within an update that allows no transfer
            return step_times(self.task, programs, self.init, len(self._names) + 1, *sizes, about)

    def _on(self, num_devices: int) -> Programs:
        """The programs for the first of each process's devices, so many in all."""
        if num_devices not in self._programs:
            self._programs[num_devices] = self._make_programs(first_of_each_process(self.devices, num_devices))
        return self._programs[num_devices]

    def _move(self, state: TrainState, programs: Programs) -> TrainState:
        is_there = _num_devices(state) == len(programs.devices)
        return state if is_there else replicate(first_replica(state), programs.devices, self._shared)


def _num_devices(state: TrainState) -> int:
    """That it is stacked over."""
    return state.opt_state.hyperparams["learning_rate"].shape[0]
