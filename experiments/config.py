"""What a run is: one frozen dataclass, a field a line, and a flag for each."""

import contextlib
import dataclasses
import json
from collections.abc import Collection, Iterator
from typing import Any

import jax.numpy as jnp
import optax
from absl import flags
from flax import linen as nn

from bsjax import InvalidArgument, Plan, Recipe
from bsjax.controllers import CONTROLLERS, Controller, Limits, Planned, create_controller
from bsjax.data import AUGMENTATIONS, DATASETS, Dataset
from bsjax.engine import Engine
from bsjax.errors import check_choice
from bsjax.models import MODELS, create_model, ghost_batch_size_of
from bsjax.optimizers import OPTIMIZERS, create_optimizer
from bsjax.parallel import all_devices, first_of_each_process

LR_SCHEDULES = ("constant", "step", "cosine", "linear", "exponential")
SCHEDULES = ("decay_learning_rate", "increase_batch_size")
_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def _field(default: Any, help: str, choices: tuple[str, ...] = ()) -> Any:
    if choices:
        help = f"{help} One of {', '.join(choices)}."
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that a run's numbers depend on. The defaults are the digits preset's first schedule."""

    dataset: str = _field(
        "digits", f"Data set: {', '.join(DATASETS)}, or one that scripts/prepare_data.py has prepared."
    )
    augmentation: str = _field("none", "Augmentation of training images: pad by 4 and crop, and flip.", AUGMENTATIONS)
    model: str = _field("cnn", "Model.", MODELS)
    model_depth: int | None = _field(None, "Layers of the model; default, the model's own (16 for wide_resnet).")
    model_width: int | None = _field(None, "Width of the model; default, the model's own (4 for wide_resnet).")
    ghost_batch_size: int = _field(8, "Examples that share batch-norm statistics. Batches are multiples of it.")
    batch_norm_decay: float = _field(0.99, "Decay per ghost of batch norm's running averages.")
    dropout: float = _field(0.0, "Probability that the model's dropout layers zero a unit, in [0, 1).")
    dtype: str = _field("float32", "Precision of the model's computation.", tuple(_DTYPES))

    optimizer: str = _field("momentum", "Optimizer.", OPTIMIZERS)
    learning_rate: float = _field(0.05, "Peak learning rate of the recipe, before --scale_learning_rate.")
    momentum: float | None = _field(None, "Momentum, or b1 of adam; default 0.9, and 0 for sgd.")
    weight_decay: float = _field(5e-4, "L2 coefficient in the gradient; for adamw, decoupled.")
    decay_biases_and_norms: bool = _field(False, "Also decay biases and batch-norm parameters.")
    max_grad_norm: float | None = _field(None, "Clip gradients to this global norm; default, do not.")
    label_smoothing: float = _field(0.0, "Weight of the uniform distribution in the targets, in [0, 1).")

    batch_size: int = _field(8, "Batch size of the recipe, in examples over all devices.")
    num_epochs: float = _field(60.0, "Length of training, in epochs.")
    lr_schedule: str = _field("step", "How the recipe's learning rate decays.", LR_SCHEDULES)
    lr_decay_epochs: tuple[float, ...] = _field((20.0, 40.0, 50.0), "Epochs of step's decays, comma-separated.")
    lr_decay_factor: float = _field(
        5.0, "Divides the learning rate at each step; exponential reaches the same end without steps."
    )
    warmup_epochs: float = _field(0.0, "Epochs of linear warm-up from 0.")

    schedule: str = _field("decay_learning_rate", "Follow the recipe, or convert its decay into growth.", SCHEDULES)
    scale_learning_rate: float = _field(1.0, "Multiply learning rate and batch size from the start.")
    scale_momentum: float | None = _field(None, "Raise the momentum to this, and the batch size with 1/(1 - momentum).")
    max_batch_size: int | None = _field(None, "Cap of the growth, in examples; beyond it the learning rate decays.")
    batch_growth: float | None = _field(None, "Grow only by powers of this factor; default, by any amount.")
    batch_scaling: str = _field(
        "linear", "Learning rate ∝ batch (linear) or its root (sqrt, for adam).", ("linear", "sqrt")
    )
    batch_share: float = _field(1.0, "Share of the decay that becomes batch, in (0, 1]; 0.5 with sqrt is Seesaw.")

    noise_half_life_epochs: float = _field(
        0.5, "Half-life, in epochs, of the averages behind the gradient noise scale."
    )
    measure_noise: bool = _field(False, "Two microbatches or more in every update, to measure the gradient noise.")
    controller: str = _field("planned", "What decides the batch size of each update.", tuple(CONTROLLERS))
    controller_options: tuple[str, ...] = _field((), "Options of it, such as factor=0.5,bound_by_decay=true.")
    min_batch_size: int | None = _field(None, "The controller's smallest batch; default, --batch_size.")
    controller_monotone: bool = _field(False, "The controller never makes the batch smaller.")
    controller_hysteresis: float = _field(0.2, "How far, as a share, its target must move before the batch follows.")
    controller_warmup_epochs: float = _field(0.0, "Epochs before it first changes the batch.")

    microbatch_size: int | None = _field(None, "Examples per device at once; default, chosen for each batch size.")
    seed: int = _field(0, "Seed of parameters, example order, augmentation and dropout.")
    eval_every_epochs: float = _field(1.0, "Evaluate this often, in epochs.")
    log_every_epochs: float = _field(1.0, "Log training metrics this often, in epochs.")

    def __post_init__(self):
        check_choice("dtype", self.dtype, _DTYPES)
        check_choice("lr_schedule", self.lr_schedule, LR_SCHEDULES)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        if self.optimizer == "sgd" and self.momentum:
            raise InvalidArgument("momentum", self.momentum, "0 for --optimizer=sgd", "0, or --optimizer=momentum")
        if not 0 <= self.label_smoothing < 1:
            raise InvalidArgument("label_smoothing", self.label_smoothing, "in [0, 1)", 0)
        if not 0 <= self.batch_norm_decay < 1:
            raise InvalidArgument("batch_norm_decay", self.batch_norm_decay, "in [0, 1)", 0.99)
        if not self.num_epochs > 0:
            raise InvalidArgument("num_epochs", self.num_epochs, "positive", 1)
        if self.warmup_epochs and not 0 < self.warmup_epochs < self.num_epochs:
            raise InvalidArgument("warmup_epochs", self.warmup_epochs, f"in [0, num_epochs {self.num_epochs:g})", 0)
        if not self.lr_decay_factor > 1:
            raise InvalidArgument("lr_decay_factor", self.lr_decay_factor, "greater than 1")
        if list(self.lr_decay_epochs) != sorted(set(self.lr_decay_epochs)):
            nearest = ",".join(f"{epoch:g}" for epoch in sorted(set(self.lr_decay_epochs)))
            raise InvalidArgument("lr_decay_epochs", self.lr_decay_epochs, "in increasing order", nearest)
        for name in ("eval_every_epochs", "log_every_epochs", "noise_half_life_epochs"):
            if not getattr(self, name) > 0:
                raise InvalidArgument(name, getattr(self, name), "positive", 1)
        if self.controller != "planned" and self.schedule != "decay_learning_rate":
            raise InvalidArgument(
                "schedule", self.schedule, "decay_learning_rate with a controller, which grows the batch"
            )
        if self.controller == "planned" and self.controller_options:
            raise InvalidArgument("controller_options", ",".join(self.controller_options), "left out: planned has none")
        if not self.controller_warmup_epochs >= 0:
            raise InvalidArgument("controller_warmup_epochs", self.controller_warmup_epochs, "0 or positive", 0)
        if self.seed < 0:
            raise InvalidArgument("seed", self.seed, "a whole number >= 0", 0)

    def recipe(self, dataset_size: int) -> Recipe:
        """The recipe, converted as `schedule` and the scale_* fields say."""
        default_momentum = 0.0 if self.optimizer == "sgd" else 0.9
        recipe = Recipe(
            self._learning_rate_schedule(),
            self.batch_size,
            dataset_size,
            self.num_epochs,
            momentum=default_momentum if self.momentum is None else self.momentum,
            clock="epochs",
        )
        if self.scale_learning_rate != 1:
            with _argument_is_flag(factor="scale_learning_rate", scaling="batch_scaling"):
                recipe = recipe.scale_learning_rate(self.scale_learning_rate, self.batch_scaling)
        if self.scale_momentum is not None:
            with _argument_is_flag(momentum="scale_momentum"):
                recipe = recipe.scale_momentum(self.scale_momentum)
        if self.schedule == "increase_batch_size":
            unit = ghost_batch_size_of(self.create_model(num_classes=1))
            with _argument_is_flag(scaling="batch_scaling", share="batch_share", growth="batch_growth"):
                recipe = recipe.increase_batch_size(
                    self.max_batch_size, self.batch_scaling, self.batch_share, self.batch_growth, multiple_of=unit
                )
        return recipe

    def unconverted(self) -> "Config":
        """What this run's schedule is a conversion of."""
        return dataclasses.replace(self, schedule="decay_learning_rate", scale_learning_rate=1.0, scale_momentum=None)

    def create_model(self, num_classes: int) -> nn.Module:
        sizes = {"depth": self.model_depth, "width": self.model_width}
        with _argument_is_flag(depth="model_depth", width="model_width"):
            return create_model(
                self.model,
                num_classes,
                self.ghost_batch_size,
                self.dropout,
                _DTYPES[self.dtype],
                **{name: size for name, size in sizes.items() if size is not None},
            )

    def create_controller(self, dataset_size: int, start: int = 0) -> Controller:
        """What decides the updates; `start` is where in the examples a plan begins."""
        recipe = self.recipe(dataset_size)
        if self.controller == "planned":
            return Planned(recipe.plan(start))
        unit = ghost_batch_size_of(self.create_model(num_classes=1))
        with _argument_is_flag(growth="batch_growth", hysteresis="controller_hysteresis"):
            limits = self._limits(dataset_size, unit)
        options = dict(map(_option, self.controller_options))
        option_flags = {name: f"controller_options: {name}" for name in (*options, f"option of {self.controller}")}
        with _argument_is_flag(**option_flags):
            return create_controller(self.controller, recipe, limits, self.optimizer, **options)

    def _limits(self, dataset_size: int, unit: int) -> Limits:
        return Limits(
            self.min_batch_size or self.batch_size,
            self.max_batch_size or dataset_size // unit * unit,
            multiple_of=unit,
            growth=self.batch_growth,
            monotone=self.controller_monotone,
            hysteresis=self.controller_hysteresis,
            warmup_examples=round(self.controller_warmup_epochs * dataset_size),
        )

    def create_engine(
        self, dataset: Dataset, controller: Plan | Controller, images_on: str = "auto", devices: str = "all"
    ) -> Engine:
        """Makes the engine; devices is "all", "auto" or a number, in all processes together."""
        return Engine(
            self.create_model(dataset.num_classes),
            create_optimizer(self.optimizer, self.weight_decay, self.decay_biases_and_norms, self.max_grad_norm),
            dataset,
            set(map(int, controller.batch_sizes)),
            seed=self.seed,
            microbatch_size=self.microbatch_size,
            augmentation=self.augmentation,
            label_smoothing=self.label_smoothing,
            batch_norm_decay=self.batch_norm_decay,
            images_on=images_on,
            devices=first_of_each_process(all_devices(), int(devices)) if devices.isdigit() else None,
            grow_devices=devices == "auto",
            measure_noise=self.measure_noise or (isinstance(controller, Controller) and controller.needs_noise),
        )

    def _learning_rate_schedule(self) -> optax.Schedule | float:
        """The unconverted learning rate as a function of the epoch; step's epochs count from the start."""
        peak, epochs = self.learning_rate, self.num_epochs - self.warmup_epochs
        if not peak > 0:
            return peak  # which the recipe refuses
        total_decay = self.lr_decay_factor ** len(self.lr_decay_epochs)
        steps = {epoch - self.warmup_epochs: 1 / self.lr_decay_factor for epoch in self.lr_decay_epochs}
        decay = {
            "constant": optax.constant_schedule(peak),
            "step": optax.piecewise_constant_schedule(peak, steps),
            "cosine": optax.cosine_decay_schedule(peak, epochs),
            "linear": optax.linear_schedule(peak, 0.0, epochs),
            "exponential": optax.exponential_decay(peak, epochs, 1 / total_decay),
        }[self.lr_schedule]
        if not self.warmup_epochs:
            return decay
        warmup = optax.linear_schedule(0.0, peak, self.warmup_epochs)
        return optax.join_schedules([warmup, decay], [self.warmup_epochs])


def define_flags(except_for: Collection[str] = ()) -> None:
    """Defines a flag for each field of Config."""
    for field in _fields(except_for):
        define: Any = {
            "str": flags.DEFINE_string,
            "int": flags.DEFINE_integer,
            "int | None": flags.DEFINE_integer,
            "float": flags.DEFINE_float,
            "float | None": flags.DEFINE_float,
            "bool": flags.DEFINE_bool,
            "tuple[float, ...]": flags.DEFINE_list,
            "tuple[str, ...]": flags.DEFINE_list,
        }[_type_name(field.type)]
        default = [f"{x:g}" for x in field.default] if isinstance(field.default, tuple) else field.default
        define(field.name, default, field.metadata["help"])


def config_from_flags(preset: Config, except_for: Collection[str] = ()) -> Config:
    """The Config that the command line gives: the preset's values, but for the flags that are set there."""
    values: dict[str, Any] = {}
    for field in _fields(except_for):
        flag: Any = flags.FLAGS[field.name]
        if flag.present:
            values[field.name] = flag.value
            if _type_name(field.type) == "tuple[str, ...]":
                values[field.name] = tuple(flag.value or ())
            elif isinstance(field.default, tuple):
                values[field.name] = tuple(_number(field.name, text) for text in flag.value or ())
    return dataclasses.replace(preset, **values)


def _fields(except_for: Collection[str]) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(Config) if field.name not in except_for]


def _option(text: str) -> tuple[str, Any]:
    """An option's name and its value: a JSON value, such as a number or true, or else a text."""
    name, separator, value = text.partition("=")
    if not separator or not value:
        raise InvalidArgument("controller_options", text, "NAME=VALUE, separated by commas", f"{name}=1")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidArgument(name, text, "numbers separated by commas", "60,120,160") from None


def _type_name(annotation: Any) -> str:
    return (
        annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else str(annotation)
    )


@contextlib.contextmanager
def _argument_is_flag(**flag_names: str) -> Iterator[None]:
    """Names the flag in errors about a library function's argument."""
    try:
        yield
    except InvalidArgument as error:
        raise error.renamed(flag_names.get(error.name, error.name)) from None
