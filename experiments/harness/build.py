"""Makes what a Config describes, from the data set and the recipe to the engine. Errors name the flag."""

import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import optax

from bsjax import IncreaseBatchSize, Plan, Recipe, check_adam_stability
from bsjax.controllers import Limits, Planned, create_controller
from bsjax.engine import Engine
from bsjax.engine.devices import all_devices, first_of_each_process, is_first_process
from bsjax.errors import InvalidArgument, check_whole, nearest_multiples
from bsjax.noise import scaling_exponent
from bsjax.optimizers import create_optimizer
from experiments.harness.build_task import argument_is_flag, dataset, model, task, unit_flag, unit_of, units
from experiments.harness.concerns import ConversionConfig, RecipeConfig
from experiments.harness.config import Config

__all__ = [
    "argument_is_flag",
    "controller",
    "dataset",
    "engine",
    "fixed_microbatch_size",
    "learning_rate",
    "model",
    "optimizer",
    "recipe",
    "task",
    "unit_flag",
    "unit_of",
    "units",
    "warn_of_instability",
]


def recipe(config: Config, dataset_size: int) -> Recipe:
    """The recipe with the conversions of the config.

    Raises:
      InvalidArgument: a value cannot be used, or the batch never grows although it should.
    """
    _check_batch_size(config, dataset_size)
    unit, conversion, momentum = unit_of(config), config.conversion, config.optimizer.momentum
    if momentum is None:
        momentum = 0.0 if config.optimizer.optimizer == "sgd" else 0.9
    size, num_epochs = config.recipe.batch_size, config.recipe.num_epochs
    rate, others = learning_rate(config.recipe, config.optimizer.learning_rate), followers(config)
    tokens = config.task.context_length if config.task.task == "language_model" else None
    made = Recipe(rate, size, dataset_size, num_epochs, momentum, "epochs", others, tokens_per_example=tokens)
    names = {"factor": "scale_learning_rate", "momentum": "scale_momentum", "scaling": "batch_scaling"}
    names |= {"factors": "batch_warmup_factors", "until": "batch_warmup_epochs", "b2": "scale_adam"}
    with argument_is_flag(unit, unit_flag(config), **names, share="batch_share", growth="batch_growth"):
        made = _scaled(made, config, unit)
        if conversion.batch_warmup_epochs:
            factors, until = conversion.batch_warmup_factors, conversion.batch_warmup_epochs
            made = made.warm_up_batch_size(factors, until, conversion.batch_scaling, multiple_of=unit)
        if conversion.scale_adam != "no":
            decay = "time_scale" if "weight_decay" in others else None
            made = made.scale_adam(conversion.scale_adam, weight_decay=decay)
        if "ema_decay" in others:
            made = made.scale_ema()
        grown = _grown(made, conversion, unit)
    if conversion.schedule == "increase_batch_size":
        _check_grows(conversion.max_batch_size, made, grown)
    return grown


def _check_batch_size(config: Config, dataset_size: int) -> None:
    """Refuses a batch or a group that is larger than the data set, and a batch of partial groups."""
    unit, flag, size = unit_of(config), unit_flag(config), config.recipe.batch_size
    check_whole("dataset_size", dataset_size)
    if unit > dataset_size:
        valid = size if 0 < size <= dataset_size else None
        raise InvalidArgument(flag, unit, f"at most dataset_size {dataset_size}", valid)
    if size > dataset_size:
        largest = dataset_size // unit * unit or None
        raise InvalidArgument("batch_size", size, f"at most dataset_size {dataset_size}", largest)
    if (size < 1 or size % unit) and config.controller.controller == "planned":
        nearest = nearest_multiples(size, unit, at_most=dataset_size)
        raise InvalidArgument("batch_size", size, f"a multiple of --{flag} {unit}", nearest)


def _grown(made: Recipe, conversion: ConversionConfig, unit: int) -> Recipe:
    """The recipe with a batch that grows where its learning rate falls, if the config says so."""
    if conversion.schedule != "increase_batch_size":
        return made
    scaling, share, growth = conversion.batch_scaling, conversion.batch_share, conversion.batch_growth
    try:
        return made.increase_batch_size(conversion.max_batch_size, scaling, share, growth, multiple_of=unit)
    except InvalidArgument as error:
        if error.name != "max_batch_size":
            raise
        grown = made.increase_batch_size(None, scaling, share, growth, multiple_of=unit)
        _check_grows(None, made, grown)
        caps = _nearest_caps(error.value, made, grown, unit)
        raise InvalidArgument(error.name, error.value, error.allowed, caps) from None


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


def fixed_microbatch_size(config: Config) -> int | None:
    """The microbatch size of all batch sizes; None where each has the fastest."""
    size = config.run.microbatch_size
    return size if isinstance(size, int) else None


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
    with argument_is_flag(unit_of(config), unit_flag(config), examples_on="images_on"):
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
