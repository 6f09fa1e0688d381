"""Makes what is learned of a Config: the data set, the model and the task, and what its batches are multiples of."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bsjax.data import Dataset, TextDataset, has_images, load_dataset, load_images
from bsjax.errors import InvalidArgument
from bsjax.models import Projector, create_model, ghost_batch_size_of
from bsjax.tasks import Autoencoder, Classification, Contrastive, LanguageModel, Task
from experiments.harness.config import Config

_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_WHITE = {"digits": 16.0}  # the stored value of a white pixel; elsewhere 255


def dataset(config: Config, data_dir: str | None = None, num_workers: int = 0) -> Any:
    """The data set; a text in windows of the context length, images of many sizes as crops of the image size.

    Args:
      config: what to train.
      data_dir: see `bsjax.data.load_dataset`.
      num_workers: processes that decode images of many sizes, see `bsjax.data.ImageSource`.

    Raises:
      InvalidArgument: it is not there, or it is nothing that the task can learn.
    """
    name, settings = config.data.dataset, config.task
    is_encoded = has_images(name, data_dir)
    if is_encoded and settings.task != "language_model":
        return _images(config, data_dir, num_workers)
    if num_workers:
        allowed = f"0 with {name}, which is decoded already: workers decode images of many sizes"
        raise InvalidArgument("num_workers", num_workers, allowed, 0)
    found: Any = None if is_encoded else load_dataset(name, data_dir)
    if settings.task == "language_model":
        if not isinstance(found, TextDataset):
            raise InvalidArgument(
                "dataset", name, "a text, which scripts/prepare_data.py prepares, with task=language_model"
            )
        return found.windows(settings.context_length)
    if isinstance(found, TextDataset):
        raise InvalidArgument("task", settings.task, f"language_model with {name}, a text", "language_model")
    _check_decoded(config, found)
    return found


def _images(config: Config, data_dir: str | None, num_workers: int) -> Dataset:
    """Images of many sizes, cropped with the seed of the run."""
    size, name = config.data.image_size, config.data.dataset
    if size is None:
        raise InvalidArgument("image_size", None, f"a number of pixels with {name}, whose images have many sizes", 224)
    return load_images(name, size, data_dir, config.run.seed, config.data.on_bad_example, num_workers)


def _check_decoded(config: Config, found: Dataset) -> None:
    """Refuses flags of images of many sizes for a data set whose images have one; their own size is allowed."""
    size, sides = config.data.image_size, found.train.gather(np.zeros(1, int))["image"].shape[1:3]
    if size is not None and sides != (size, size):
        allowed = f"left out with {found.name}, whose images all have {sides[0]}×{sides[1]} pixels"
        raise InvalidArgument("image_size", size, allowed, sides[0] if sides[0] == sides[1] else None)
    if config.data.on_bad_example != "fail":
        allowed = f"fail with {found.name}, whose images are decoded already"
        raise InvalidArgument("on_bad_example", config.data.on_bad_example, allowed, "fail")


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
