"""Makes what a Config describes, from the data set and the recipe to the engine. Errors name the flag."""

import contextlib
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from bsjax import IncreaseBatchSize, Plan, Recipe, check_adam_stability
from bsjax.controllers import Limits, Planned, create_controller
from bsjax.data import TextDataset, load_dataset
from bsjax.engine import Engine
from bsjax.engine.devices import all_devices, first_of_each_process, is_first_process
from bsjax.errors import InvalidArgument, check_whole, nearest_multiples
from bsjax.models import Projector, create_model, ghost_batch_size_of
from bsjax.noise import scaling_exponent
from bsjax.optimizers import create_optimizer
from bsjax.tasks import Autoencoder, Classification, Contrastive, LanguageModel, Task
from experiments.harness.config import Config, RecipeConfig

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_WHITE = {"digits": 16.0}  # the stored value of a white pixel; elsewhere 255


def dataset(config: Config, data_dir: str | None = None) -> Any:
    """The data set; a text in windows of the context length.

    Raises:
      InvalidArgument: it is not there, or it is nothing that the task can learn.
    """
    name, settings = config.data.dataset, config.task
    found = load_dataset(name, data_dir)
    if settings.task == "language_model":
        if not isinstance(found, TextDataset):
            raise InvalidArgument(
                "dataset", name, "a text, which scripts/prepare_data.py prepares, with task=language_model"
            )
        return found.windows(settings.context_length)
    if isinstance(found, TextDataset):
        raise InvalidArgument("task", settings.task, f"language_model with {name}, a text", "language_model")
    return found


def recipe(config: Config, dataset_size: int) -> Recipe:
    """The recipe with the conversions of the config.

    Raises:
      InvalidArgument: a value cannot be used, or the batch never grows although it should.
    """
    unit, conversion, scaling = unit_of(config), config.conversion, config.conversion.batch_scaling
    size, num_epochs, momentum = config.recipe.batch_size, config.recipe.num_epochs, config.optimizer.momentum
    check_whole("dataset_size", dataset_size)
    if unit > dataset_size:
        valid = size if 0 < size <= dataset_size else None
        raise InvalidArgument(unit_flag(config), unit, f"at most dataset_size {dataset_size}", valid)
    if size > dataset_size:
        largest = dataset_size // unit * unit or None
        raise InvalidArgument("batch_size", size, f"at most dataset_size {dataset_size}", largest)
    if (size < 1 or size % unit) and config.controller.controller == "planned":
        nearest = nearest_multiples(size, unit, at_most=dataset_size)
        raise InvalidArgument("batch_size", size, f"a multiple of --{unit_flag(config)} {unit}", nearest)
    if momentum is None:
        momentum = 0.0 if config.optimizer.optimizer == "sgd" else 0.9
    rate = learning_rate(config.recipe, config.optimizer.learning_rate)
    others = followers(config)
    tokens = config.task.context_length if config.task.task == "language_model" else None
    made = Recipe(rate, size, dataset_size, num_epochs, momentum, "epochs", others, tokens_per_example=tokens)
    names = {"factor": "scale_learning_rate", "momentum": "scale_momentum", "scaling": "batch_scaling"}
    names |= {"factors": "batch_warmup_factors", "until": "batch_warmup_epochs", "b2": "scale_adam"}
    with argument_is_flag(unit, unit_flag(config), **names, share="batch_share", growth="batch_growth"):
        made = _scaled(made, config, unit)
        if conversion.batch_warmup_epochs:
            factors, until = conversion.batch_warmup_factors, conversion.batch_warmup_epochs
            made = made.warm_up_batch_size(factors, until, scaling, multiple_of=unit)
        if conversion.scale_adam != "no":
            decay = "time_scale" if "weight_decay" in others else None
            made = made.scale_adam(conversion.scale_adam, weight_decay=decay)
        if "ema_decay" in others:
            made = made.scale_ema()
        if conversion.schedule != "increase_batch_size":
            return made
        share, growth = conversion.batch_share, conversion.batch_growth
        try:
            grown = made.increase_batch_size(conversion.max_batch_size, scaling, share, growth, multiple_of=unit)
        except InvalidArgument as error:
            if error.name != "max_batch_size":
                raise
            grown = made.increase_batch_size(None, scaling, share, growth, multiple_of=unit)
            _check_grows(None, made, grown)
            caps = _nearest_caps(error.value, made, grown, unit)
            raise InvalidArgument(error.name, error.value, error.allowed, caps) from None
    _check_grows(conversion.max_batch_size, made, grown)
    return grown


def _scaled(made: Recipe, config: Config, unit: int) -> Recipe:
    """The recipe with a scaled learning rate and momentum, in batches of whole ghosts."""
    conversion, before = config.conversion, made.at(0)
    factor, momentum, scaling = conversion.scale_learning_rate, conversion.scale_momentum, conversion.batch_scaling
    if config.controller.controller != "planned":
        unit = 1  # a controller rounds the batch itself
    if factor != 1:
        exponent, size = scaling_exponent(scaling), before.batch_size.item()
        made = _in_whole_ghosts(
            lambda value: made.scale_learning_rate(value, scaling),
            ("factor", factor),
            lambda new_size: (new_size / size) ** exponent,
            unit if momentum is None else 1,
        )
    if momentum is not None:
        product = made.at(0).batch_size.item() * (1 - before.momentum.item())
        given = ("momentum", momentum)
        made = _in_whole_ghosts(made.scale_momentum, given, lambda new_size: 1 - product / new_size, unit)
    return made


def _in_whole_ghosts(
    scale: Callable[[float], Recipe], given: tuple[str, float], value_of: Callable[[int], float], unit: int
) -> Recipe:
    """Scales a recipe by a given name and value; refuses partial ghosts and names the nearest value with whole ghosts.

    `value_of` returns the value that scales the batch to a size.
    """
    name, value = given
    try:
        made = scale(value)
        size = made.at(0).batch_size.item()
        if size % unit == 0:
            return made
        allowed = f"such that batch_size {size} is a multiple of multiple_of {unit}"
    except InvalidArgument as error:
        if error.name != name or error.nearest is None:
            raise
        made, allowed = scale(float(error.nearest)), error.allowed
        size = made.at(0).batch_size.item()
    below = size // unit * unit
    sizes = [multiple for multiple in (below, below + unit) if 0 < multiple <= made.dataset_size]
    nearest = f"{value_of(min(sizes, key=lambda multiple: abs(multiple - size))):.12g}" if sizes else None
    raise InvalidArgument(name, value, allowed, nearest)


def _check_grows(max_batch_size: int | None, before: Recipe, grown: Recipe) -> None:
    """Refuses a growing batch that never grows."""
    if np.array_equal(grown.plan().batch_sizes, before.plan().batch_sizes):
        why = "the learning rate never falls" if len(set(before.plan().learning_rates)) == 1 else "it falls too little"
        if max_batch_size is not None and max_batch_size <= before.plan().batch_sizes.max():
            why = f"max_batch_size is {max_batch_size}"
        allowed = f"decay_learning_rate here, because the batch would never grow: {why}"
        raise InvalidArgument("schedule", "increase_batch_size", allowed, "decay_learning_rate")


def _nearest_caps(cap: int, before: Recipe, grown: Recipe, unit: int) -> str | None:
    """The caps next to one, with which a batch that grows without a cap still grows."""
    largest, sizes = before.plan().batch_sizes.max(), grown.plan().batch_sizes
    by_growth = grown.conversions[-1].growth is not None  # type: ignore[attr-defined]
    at_least = int(sizes[sizes > largest].min() if by_growth else largest + unit)
    return nearest_multiples(cap, unit, at_most=before.dataset_size, at_least=at_least)


def learning_rate(settings: RecipeConfig, peak: float) -> optax.Schedule | float:
    """The learning rate before conversions, a function of the epoch; the epochs of step count from the start."""
    if not peak > 0:
        return peak  # the recipe refuses it
    warmup_epochs, epochs = settings.warmup_epochs, settings.num_epochs - settings.warmup_epochs
    total_decay = settings.lr_decay_factor ** len(settings.lr_decay_epochs)
    steps = {epoch - warmup_epochs: 1 / settings.lr_decay_factor for epoch in settings.lr_decay_epochs}
    decay = {
        "constant": optax.constant_schedule(peak),
        "step": optax.piecewise_constant_schedule(peak, steps),
        "cosine": optax.cosine_decay_schedule(peak, epochs, settings.lr_end_factor),
        "quarter_cosine": optax.cosine_decay_schedule(peak, epochs, settings.lr_end_factor, exponent=0.5),  # cos(πt/2)
        "linear": optax.linear_schedule(peak, settings.lr_end_factor * peak, epochs),
        "exponential": optax.exponential_decay(peak, epochs, 1 / total_decay),
    }[settings.lr_schedule]
    if not warmup_epochs:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup_epochs), decay], [warmup_epochs])


def model(config: Config, num_classes: int = 1) -> nn.Module:
    """The model; the number of classes changes its last layer only."""
    settings = config.task
    sizes: dict[str, Any] = {"depth": settings.model_depth, "width": settings.model_width}
    if settings.task == "language_model":
        sizes |= {name: getattr(settings, name) for name in ("context_length", "num_heads", "positions")}
    given = {name: size for name, size in sizes.items() if size is not None}
    dtype = _DTYPES[settings.dtype]
    with argument_is_flag(depth="model_depth", width="model_width"):
        return create_model(settings.model, num_classes, settings.ghost_batch_size, settings.dropout, dtype, **given)


def fixed_microbatch_size(config: Config) -> int | None:
    """The microbatch size of all batch sizes; None where each has the fastest."""
    size = config.run.microbatch_size
    return size if isinstance(size, int) else None


def unit_of(config: Config) -> int:
    """The number of examples that each batch is a multiple of: a contrastive group, a ghost, or 1 without either."""
    return config.task.group_size if config.task.task == "contrastive" else ghost_batch_size_of(model(config))


def unit_flag(config: Config) -> str:
    """The flag that sets it."""
    return "group_size" if config.task.task == "contrastive" else "ghost_batch_size"


def task(config: Config, dataset: Any) -> Task:
    """What the model learns from a data set."""
    settings, decay = config.task, config.task.batch_norm_decay
    if settings.task == "language_model":
        transformer = model(config, dataset.vocab_size)
        return LanguageModel(transformer, settings.context_length, dataset.bytes_per_token)
    if settings.task == "autoencoder":
        white = _WHITE.get(dataset.name, 255.0)
        return Autoencoder(model(config), settings.reconstruction, max_value=white, batch_stats_decay=decay)
    if settings.task == "contrastive":
        names = ("group_size", "temperature", "augmentation", "crop_padding", "view_amplitude", "view_noise")
        options = {name: getattr(settings, name) for name in (*names, "eval_group_size")}
        projector = Projector(model(config, settings.num_features))
        return Contrastive(projector, **options, mean=dataset.mean, std=dataset.std)
    classifier = model(config, dataset.num_classes)
    return Classification(
        classifier,
        settings.label_smoothing,
        settings.augmentation,
        dataset.mean,
        dataset.std,
        decay,
        settings.crop_padding,
    )


def units(config: Config) -> tuple[str, int]:
    """What batches are counted in, and how many of them an example has: tokens for a text."""
    is_text = config.task.task == "language_model"
    return ("tokens", config.task.context_length) if is_text else ("examples", 1)


def followers(config: Config) -> dict[str, float]:
    """The hyperparameters that follow the batch size, by optax's names: with --scale_adam and with --ema_decay."""
    given, found = config.optimizer, {}
    if config.conversion.scale_adam != "no":
        found = {"b2": given.b2, "eps": given.epsilon}
        if given.optimizer == "adamw" and given.weight_decay:
            found["weight_decay"] = given.weight_decay
    return found if given.ema_decay is None else found | {"ema_decay": given.ema_decay}


def warn_of_instability(config: Config) -> None:
    """Prints a line if the batch grows faster than Adam stands."""
    given = config.conversion
    is_adam = config.optimizer.optimizer in ("adam", "adamw")
    if is_adam and given.schedule == "increase_batch_size" and is_first_process():
        with warnings.catch_warnings(record=True, action="always") as caught:
            check_adam_stability(IncreaseBatchSize(scaling=given.batch_scaling, share=given.batch_share))
        for warning in caught:
            print(f"warning: batch_{warning.message}", file=sys.stderr)


def optimizer(config: Config) -> optax.GradientTransformation:
    """The optimizer, whose learning rate and momentum each update sets."""
    given = config.optimizer
    return create_optimizer(
        given.optimizer,
        given.weight_decay,
        given.decay_biases_and_norms,
        given.max_grad_norm,
        given.b2,
        given.epsilon,
        given.ema_decay,
        tuple(followers(config)),
    )


def controller(config: Config, dataset_size: int, start: int = 0) -> Any:
    """What decides the updates; a plan begins after `start` examples."""
    made, settings, unit = recipe(config, dataset_size), config.controller, unit_of(config)
    if settings.controller == "planned":
        return Planned(made.plan(start))
    with argument_is_flag(unit, unit_flag(config), growth="batch_growth", hysteresis="controller_hysteresis"):
        limits = Limits(
            settings.min_batch_size or config.recipe.batch_size,
            config.conversion.max_batch_size or dataset_size // unit * unit,
            multiple_of=unit,
            growth=config.conversion.batch_growth,
            monotone=settings.controller_monotone,
            hysteresis=settings.controller_hysteresis,
            warmup_examples=round(settings.controller_warmup_epochs * dataset_size),
        )
    return create_controller(settings.controller, made, limits, config.optimizer.optimizer, settings.controller_options)


def engine(
    config: Config,
    dataset: Any,
    controller: Plan | Any,
    examples_on: str = "auto",
    devices: str = "all",
    shard_optimizer: bool = False,
) -> Engine:
    """The engine; devices is "all", "auto" or a number, in all processes together."""
    with argument_is_flag(unit_of(config), unit_flag(config)):
        return Engine(
            task(config, dataset),
            optimizer(config),
            dataset.train,
            dataset.test,
            set(map(int, controller.batch_sizes)),
            seed=config.run.seed,
            microbatch_size=config.run.microbatch_size,
            examples_on=examples_on,
            devices=first_of_each_process(all_devices(), int(devices)) if devices.isdigit() else None,
            grow_devices=devices == "auto",
            measure_noise=config.run.measure_noise or getattr(controller, "needs_noise", False),
            shard_optimizer=shard_optimizer,
            layer_norm_noise=config.run.layer_norm_noise,
        )


@contextlib.contextmanager
def argument_is_flag(unit: int = 1, flag: str = "ghost_batch_size", **flag_names: str) -> Iterator[None]:
    """Names the flag in a library function's errors: of an argument, and of a group that is above 1."""
    try:
        yield
    except InvalidArgument as error:
        allowed = error.allowed
        if unit > 1:
            allowed = re.sub(rf"(the )?(group size|multiple_of) {unit}\b", f"--{flag} {unit}", allowed)
        name = flag_names.get(error.name, error.name)
        raise InvalidArgument(name, error.value, allowed, error.nearest) from None
