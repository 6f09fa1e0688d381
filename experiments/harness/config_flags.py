"""A flag for each field of Config, in a group for each concern, and the Config that a command line gives."""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Collection, Iterable
from typing import Any

from absl import flags

from bsjax.controllers import options_from_mapping
from bsjax.engine.devices import is_first_process
from bsjax.errors import InvalidArgument, check_choice, nearest_multiples
from bsjax.models import CLASSIFIERS, LANGUAGE_MODELS, MODELS, create_model
from bsjax.optimizers import OPTIMIZERS, WITH_B2
from experiments.harness.concerns import MODELS_OF, text
from experiments.harness.config import CONCERNS, Config

_DEFINE: dict[Any, Any] = {
    **dict.fromkeys((str, str | None, str | float, int | str), flags.DEFINE_string),
    **dict.fromkeys((int, int | None), flags.DEFINE_integer),
    **dict.fromkeys((float, float | None), flags.DEFINE_float),
    **dict.fromkeys(
        (tuple[int, ...], tuple[int, int] | None, tuple[float, ...], tuple[str, ...], Any), flags.DEFINE_list
    ),
    bool: flags.DEFINE_bool,
}


def _models_with(name: str) -> tuple[str, ...]:
    return tuple(model for model in MODELS if hasattr(create_model(model, num_classes=1), name))


# Batch sizes that --batch_size_unit is about.
_SIZES = ("batch_size", "max_batch_size", "min_batch_size")

# The flags that belong to one of some flags with one of some values (an empty tuple: any value but the default).
_Owners = dict[str, tuple[str, ...]]
_GROWS: _Owners = {"schedule": ("increase_batch_size",)}
_ADAPTS: _Owners = {"controller": ()}
_WARMS: _Owners = {"batch_warmup_epochs": ()}
_WITH_DROPOUT = (*CLASSIFIERS, *LANGUAGE_MODELS)
_OWNED: tuple[tuple[_Owners, tuple[str, ...]], ...] = (
    ({"task": ("classification",)}, ("label_smoothing",)),
    ({"task": ("classification", "contrastive")}, ("augmentation",)),
    ({"task": ("contrastive",)}, ("group_size", "eval_group_size", "temperature", "view_amplitude", "view_noise")),
    ({"task": ("contrastive",)}, ("num_features",)),
    ({"augmentation": ("crop", "crop_flip")}, ("crop_padding",)),
    ({"task": ("autoencoder",)}, ("reconstruction",)),
    ({"model": _models_with("depth")}, ("model_depth",)),
    ({"model": _models_with("width")}, ("model_width",)),
    ({"model": _models_with("ghost_batch_size")}, ("ghost_batch_size", "batch_norm_decay")),
    ({"model": _WITH_DROPOUT}, ("dropout",)),
    ({"task": ("language_model",)}, ("context_length", "layer_norm_noise")),
    ({"model": _models_with("num_heads")}, ("num_heads", "positions")),
    ({"optimizer": tuple(name for name in OPTIMIZERS if name != "sgd")}, ("momentum", "scale_momentum")),
    ({"lr_schedule": ("step", "exponential")}, ("lr_decay_epochs", "lr_decay_factor")),
    ({"lr_schedule": ("cosine", "quarter_cosine", "linear")}, ("lr_end_factor",)),
    (_GROWS | _ADAPTS, ("max_batch_size", "batch_growth")),
    (_GROWS | {"scale_learning_rate": ()} | _WARMS, ("batch_scaling",)),
    (_GROWS | {"scale_learning_rate": (), "scale_momentum": ()} | _WARMS, ("scale_adam",)),
    (_WARMS, ("batch_warmup_factors",)),
    ({"optimizer": WITH_B2}, ("b2", "epsilon")),
    (_GROWS, ("batch_share",)),
    (_ADAPTS, tuple(field.name for field in dataclasses.fields(CONCERNS["controller"])[1:])),
)
_BELONGS_TO = {name: owners for owners, names in _OWNED for name in names}


def define_flags(except_for: Collection[str] = (), values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines a flag for each field of Config, except for some."""
    for concern in CONCERNS.values():
        define_flags_of(concern, concern.__doc__, except_for, values)
    if "batch_size" not in except_for:
        flags.DEFINE_string(
            "batch_size_unit",
            "examples",
            f"What {', '.join(f'--{name}' for name in _SIZES)} count: examples, or the tokens of a language model.",
            flag_values=values,
            module_name=CONCERNS["recipe"].__doc__,
        )


def define_flags_of(
    settings: Any,
    group: str,
    except_for: Collection[str] = (),
    values: flags.FlagValues = flags.FLAGS,
    defaults: bool = True,
) -> None:
    """Defines a flag for each field of a dataclass that has a help text, in a group of the help."""
    for field in dataclasses.fields(settings):
        if "help" in field.metadata and field.name not in except_for:
            default = text(field.default) if defaults else None
            define = _DEFINE[field.type]
            define(field.name, default, field.metadata["help"], flag_values=values, module_name=group)


def show_defaults(preset: Config, values: flags.FlagValues = flags.FLAGS) -> None:
    """Makes a preset's values the defaults that the help shows."""
    for name, value in preset.flat().items():
        if name in values:
            values.set_default(name, text(value))


def config_from_flags(preset: Config, values: flags.FlagValues = flags.FLAGS) -> Config:
    """The Config that the command line gives: the preset's values, except for the flags that are set.

    Args:
      preset: the values of flags that are not set and of fields without a flag in this script.
      values: the flags, parsed.

    Raises:
      InvalidArgument: a value cannot be used, or a flag belongs to a choice that was not made.
    """
    given: dict[str, Any] = {
        name: values[name].value for name in preset.flat() if name in values and values[name].present
    }
    for name, value in given.items():
        given[name] = _parsed(name, value, given.get("controller", preset.controller.controller))
    if "batch_size_unit" in values:
        given |= _sizes_in_examples(preset, given, str(values["batch_size_unit"].value))
    scaled = _of_the_length(preset, given) if "lr_decay_epochs" in values else {}
    config = preset.replace(**_of_the_task(preset, given), **scaled, **given)
    _refuse_strays(config, given, list(values))
    return config


def numbers_of(name: str, texts: Iterable[Any], number: Callable[[Any], Any], example: str) -> tuple[Any, ...]:
    """The numbers of a comma-separated flag.

    Raises:
      InvalidArgument: a text is not a number.
    """
    try:
        return tuple(map(number, texts))
    except ValueError:
        kind = "whole numbers" if number is int else "numbers"
        raise InvalidArgument(name, ",".join(map(str, texts)), f"{kind} separated by commas", example) from None


def _sizes_in_examples(preset: Config, given: dict[str, Any], unit: str) -> dict[str, Any]:
    """The given batch sizes in examples."""
    if check_choice("batch_size_unit", unit, ("examples", "tokens")) == "examples":
        return {}
    task, context = (given.get(name, getattr(preset.task, name)) for name in ("task", "context_length"))
    if task != "language_model":
        allowed = f"examples with --task={task}; tokens are those of --task=language_model"
        raise InvalidArgument("batch_size_unit", unit, allowed, "examples")
    sizes = {name: given[name] for name in _SIZES if given.get(name) is not None and context > 0}
    for name, size in sizes.items():
        if size < context or size % context:
            nearest = nearest_multiples(size, context, at_least=context)
            raise InvalidArgument(name, size, f"a multiple of --context_length {context} in tokens", nearest)
    return {name: size // context for name, size in sizes.items()}


def _of_the_task(preset: Config, given: dict[str, Any]) -> dict[str, Any]:
    """New values for those fields of the preset that the chosen task or model does not use."""
    before = preset.task
    values: dict[str, Any] = {}
    task, model = given.get("task", before.task), given.get("model", before.model)
    if "model" not in given and task in MODELS_OF and model not in MODELS_OF[task]:
        values["model"] = model = MODELS_OF[task][0]
    # A size means the same in all classifiers, except for those that have one size only.
    sizes = ("model_depth", "model_width")
    if task != before.task or any(model not in _BELONGS_TO[name]["model"] for name in sizes):
        values |= {name: None for name in sizes if model != before.model}
        values |= {} if model in _WITH_DROPOUT else {"dropout": 0.0}
    return {name: value for name, value in values.items() if name not in given}


def _of_the_length(preset: Config, given: dict[str, Any]) -> dict[str, Any]:
    """The preset's decay epochs, scaled with the length of the training."""
    before, decays = preset.recipe.num_epochs, preset.recipe.lr_decay_epochs
    num_epochs = given.get("num_epochs", before)
    if num_epochs == before or not num_epochs > 0 or "lr_decay_epochs" in given or not decays:
        return {}
    scaled = tuple(epoch * num_epochs / before for epoch in decays)
    if given.get("lr_schedule", preset.recipe.lr_schedule) == "step" and is_first_process():
        epochs = ", ".join(f"{epoch:g}" for epoch in scaled)
        print(f"The preset's decays move with --num_epochs={num_epochs:g}, to epochs {epochs}.", file=sys.stderr)
    return {"lr_decay_epochs": scaled}


def _refuse_strays(config: Config, given: dict[str, Any], known: Collection[str]) -> None:
    """Refuses flags that belong to a choice that was not made; `known` are the flags that the script has."""
    chosen, defaults = config.flat(), Config().flat()
    for name, value in given.items():
        owners = _BELONGS_TO.get(name, {})
        if not set(owners) <= set(known) or not owners:  # the script itself makes the choice
            continue
        if not any(chosen[one] in those if those else chosen[one] != defaults[one] for one, those in owners.items()):
            here = " and ".join(f"{one}={chosen[one]}" for one in owners)
            there = (f"--{one}={'|'.join(those)}" if those else f"--{one}" for one, those in owners.items())
            allowed = f"combined with {' or '.join(there)}; it has no effect with {here}"
            raise InvalidArgument(name, text(value), allowed)


def _parsed(name: str, value: Any, controller: str) -> Any:
    """The value of a flag that absl does not parse."""
    if name == "lr_decay_epochs":
        return numbers_of(name, value or (), float, "60,120,160")
    if name in ("batch_warmup_epochs", "batch_warmup_factors"):
        return numbers_of(name, value or (), float, "3,10" if name == "batch_warmup_epochs" else "0.25,0.5")
    if name == "controller_options":
        try:
            return options_from_mapping(controller, dict(map(_option, value or ())))
        except InvalidArgument as error:
            raise error.renamed(name if error.name == name else f"{name}: {error.name}") from None
    with contextlib.suppress(ValueError):
        if name == "microbatch_size":
            return int(value)
        if name == "batch_scaling":
            return {1.0: "linear", 0.5: "sqrt"}.get(float(value), float(value))  # so that equal settings compare equal
    return value


def _option(text: str) -> tuple[str, Any]:
    """An option's name and its value: JSON, such as a number or true, or any other text as it is."""
    name, separator, value = text.partition("=")
    if not separator or not value:
        raise InvalidArgument("controller_options", text, "NAME=VALUE, separated by commas", f"{name}=1")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
