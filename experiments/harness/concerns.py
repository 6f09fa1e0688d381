"""What belongs to a run, a frozen dataclass for each concern, one line per field: `config.Config` holds one of each.

`config_flags` makes a flag of each field.
"""

import dataclasses
import math
from typing import Any

from bsjax.controllers import CONTROLLERS
from bsjax.data import AUGMENTATIONS, DATASETS
from bsjax.data.image_source import ON_BAD_EXAMPLE
from bsjax.errors import InvalidArgument, check_choice, check_whole
from bsjax.models import AUTOENCODERS, CLASSIFIERS, LANGUAGE_MODELS, MODELS, POSITIONS
from bsjax.optimizers import OPTIMIZERS
from bsjax.tasks import RECONSTRUCTIONS

LR_SCHEDULES = ("constant", "step", "cosine", "quarter_cosine", "linear", "exponential")
SCHEDULES = ("decay_learning_rate", "increase_batch_size")
MODELS_OF = {"classification": CLASSIFIERS, "autoencoder": AUTOENCODERS, "language_model": LANGUAGE_MODELS}
MODELS_OF["contrastive"] = ("mlp",)  # those without batch normalisation
TASKS = tuple(MODELS_OF)
DTYPES = ("float32", "bfloat16")
SCALE_ADAM = ("no", "half_life", "sde")


def field(default: Any, help: str, choices: tuple[str, ...] = ()) -> Any:
    """A dataclass field that is a flag with this help; without a default, it is dataclasses.MISSING."""
    if choices:
        help = f"{help} One of {', '.join(choices)}."
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


def text(value: Any) -> Any:
    """A tuple of numbers as it is written in a flag; any other value as it is."""
    return ",".join(f"{number:g}" for number in value) if isinstance(value, tuple) else value


class _Concern:
    """Refuses an unknown choice and a number that is not finite."""

    def __post_init__(self):
        for one in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, one.name)
            if choices := one.metadata["choices"]:
                check_choice(one.name, value, choices)
            if isinstance(value, float) and not math.isfinite(value):
                raise InvalidArgument(one.name, value, "a finite number", one.default)

    def _check_positive(self, *names: str) -> None:
        for name in names:
            if not getattr(self, name) > 0:
                raise InvalidArgument(name, getattr(self, name), "positive", 1)


@dataclasses.dataclass(frozen=True)
class DataConfig(_Concern):
    """Data"""

    dataset: str = field(
        "digits", f"Data set: {', '.join(DATASETS)}, or one that scripts/prepare_data.py has prepared."
    )
    image_size: int | None = field(None, "Pixels, height and width, to which images of many sizes are cropped.")
    on_bad_example: str = field(
        "fail", "At a damaged JPEG, end, or take the next one and note it in bad_examples.json.", ON_BAD_EXAMPLE
    )

    def __post_init__(self):
        super().__post_init__()
        if self.image_size is not None:
            check_whole("image_size", self.image_size)


@dataclasses.dataclass(frozen=True)
class TaskConfig(_Concern):
    """Task and model"""

    task: str = field("classification", "What is learned.", TASKS)
    augmentation: str = field("none", "Augmentation of training images, or views: pad and crop; flip.", AUGMENTATIONS)
    crop_padding: int = field(4, "Pixels by which each side of an image is padded before it is cropped.")
    model: str = field(
        "cnn",
        f"Model; default, {AUTOENCODERS[0]} for an autoencoder, {LANGUAGE_MODELS[0]} for a language model, and mlp for "
        "contrastive learning.",
        MODELS,
    )
    model_depth: int | None = field(None, "Layers of the model; default, the model's own (16 for wide_resnet).")
    model_width: int | None = field(
        None, "Channels or units; default, the model's own (a factor of 4 for wide_resnet)."
    )
    context_length: int = field(64, "Tokens that each example of a language model predicts.")
    num_heads: int | None = field(None, "Attention heads; default, the model's own (4).")
    positions: str = field("rope", "How a transformer knows positions: by rotation, or learned.", POSITIONS)
    ghost_batch_size: int = field(8, "Examples that share batch-norm statistics. Batches are multiples of it.")
    batch_norm_decay: float = field(0.99, "Decay of batch norm's running averages per ghost, in [0, 1).")
    dropout: float = field(0.0, "Probability that the model's dropout layers zero a unit, in [0, 1).")
    dtype: str = field("float32", "Precision of the model's computation.", DTYPES)
    label_smoothing: float = field(0.0, "Weight of the uniform distribution in the targets, in [0, 1).")
    reconstruction: str = field("squared_error", "The autoencoder's loss, a mean over pixels.", RECONSTRUCTIONS)
    group_size: int = field(8, "Examples whose views contrastive learning compares. Batches are multiples of it.")
    eval_group_size: int | None = field(None, "The group of the evaluation, a divisor; default, --group_size.")
    temperature: float = field(0.2, "Divides the similarities of contrastive learning's views, positive.")
    view_amplitude: float = field(0.2, "A view is scaled by a factor between exp(-a) and exp(a) for this a.")
    view_noise: float = field(0.2, "Standard deviation of the noise of a view, over that of the pixels.")
    num_features: int = field(64, "Outputs of contrastive learning's encoder, which a linear probe classifies.")

    def __post_init__(self):
        super().__post_init__()
        if self.model not in (models := MODELS_OF[self.task]):
            allowed = f"one of {', '.join(models)} with task={self.task}"
            raise InvalidArgument("model", self.model, allowed, models[0])
        check_whole("crop_padding", self.crop_padding)
        check_whole("context_length", self.context_length)
        check_whole("group_size", self.group_size, 2)
        check_whole("num_features", self.num_features)
        for name, nearest in (("label_smoothing", 0), ("batch_norm_decay", 0.99)):
            if not 0 <= getattr(self, name) < 1:
                raise InvalidArgument(name, getattr(self, name), "in [0, 1)", nearest)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(_Concern):
    """Optimizer"""

    optimizer: str = field("momentum", "Optimizer.", OPTIMIZERS)
    learning_rate: float = field(0.05, "Peak learning rate per update, before --scale_learning_rate.")
    momentum: float | None = field(None, "Momentum per update, or b1 of adam, in [0, 1); default 0.9. sgd has none.")
    b2: float = field(0.999, "Decay of the squared gradients per update, in [0, 1).")
    epsilon: float = field(1e-8, "Added to the root of the squared gradients.")
    weight_decay: float = field(5e-4, "L2 coefficient in the gradient; for adamw, lamb and muon, decoupled.")
    decay_biases_and_norms: bool = field(False, "Also decay biases and batch-norm parameters.")
    ema_decay: float | None = field(
        None,
        "Evaluate an average of the parameters with this decay per update of --batch_size examples; larger batches "
        "keep its span in examples. Default, none.",
    )
    max_grad_norm: float | None = field(None, "Clip gradients to this global norm; default, do not.")

    def __post_init__(self):
        super().__post_init__()
        if self.optimizer == "sgd" and self.momentum:
            allowed = "combined with another optimizer than sgd, which has no momentum"
            raise InvalidArgument("momentum", self.momentum, allowed, "optimizer=momentum")
        if not 0 <= self.b2 < 1:
            raise InvalidArgument("b2", self.b2, "in [0, 1)", 0.999)
        if not self.epsilon >= 0:
            raise InvalidArgument("epsilon", self.epsilon, "0 or positive", 1e-8)
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise InvalidArgument("ema_decay", self.ema_decay, "in [0, 1)", 0.999)


@dataclasses.dataclass(frozen=True)
class RecipeConfig(_Concern):
    """Recipe"""

    batch_size: int = field(8, "Batch size, in examples over all devices.")
    num_epochs: float = field(60.0, "Length of training, in epochs. The preset's decays move with it.")
    lr_schedule: str = field("step", "How the learning rate decays.", LR_SCHEDULES)
    lr_decay_epochs: tuple[float, ...] = field((20.0, 40.0, 50.0), "Epochs of step's decays, comma-separated.")
    lr_decay_factor: float = field(
        5.0, "Divides the learning rate at each step; exponential reaches the same end without steps."
    )
    lr_end_factor: float = field(0.0, "Where both cosines and linear end, as a share of the learning rate, in [0, 1).")
    warmup_epochs: float = field(0.0, "Length of the linear warm-up from 0, in epochs.")

    def __post_init__(self):
        super().__post_init__()
        self._check_positive("num_epochs")
        if not 0 <= self.warmup_epochs < self.num_epochs:
            raise InvalidArgument("warmup_epochs", self.warmup_epochs, f"in [0, num_epochs {self.num_epochs:g})", 0)
        if not 0 <= self.lr_end_factor < 1:
            raise InvalidArgument("lr_end_factor", self.lr_end_factor, "in [0, 1)", 0.1)
        if not self.lr_decay_factor > 1:
            raise InvalidArgument("lr_decay_factor", self.lr_decay_factor, "greater than 1", 5)
        decays, increasing = self.lr_decay_epochs, tuple(sorted(set(self.lr_decay_epochs)))
        if decays != increasing:
            raise InvalidArgument("lr_decay_epochs", text(decays), "in increasing order", text(increasing))
        inside = tuple(epoch for epoch in decays if 0 < epoch < self.num_epochs)
        if self.lr_schedule == "step" and decays != inside:
            allowed = f"between 0 and num_epochs {self.num_epochs:g}"
            raise InvalidArgument("lr_decay_epochs", text(decays), allowed, text(inside or self._scaled_decays()))

    def _scaled_decays(self) -> tuple[float, ...]:
        """The decay epochs at the same shares of a training whose last sixth follows them."""
        later = tuple(epoch for epoch in self.lr_decay_epochs if epoch > 0) or (1.0,)
        return tuple(epoch / (1.2 * later[-1]) * self.num_epochs for epoch in later)


@dataclasses.dataclass(frozen=True)
class ConversionConfig(_Concern):
    """Conversion"""

    schedule: str = field("decay_learning_rate", "Follow the recipe, or convert its decay into growth.", SCHEDULES)
    scale_learning_rate: float = field(1.0, "Factor of learning rate and batch size from the start.")
    scale_momentum: float | None = field(
        None, "Raise the momentum to this, in [0, 1), and the batch size with 1/(1 - momentum)."
    )
    max_batch_size: int | None = field(None, "Cap of the growth, in examples; beyond it the learning rate decays.")
    batch_growth: float | None = field(None, "Grow only by powers of this factor; default, by any amount.")
    batch_scaling: str | float = field(
        "linear", "Exponent ρ of learning rate ∝ batch^ρ: linear (1), sqrt (1/2, for adam), or a number in (0, 1]."
    )
    batch_share: float = field(1.0, "Share of the decay that becomes batch, in (0, 1]; 0.5 with sqrt is Seesaw.")
    batch_warmup_epochs: tuple[float, ...] = field((), "Begin with smaller batches: when each ends, comma-separated.")
    batch_warmup_factors: tuple[float, ...] = field((0.25, 0.5), "Their shares of the batch size, comma-separated.")
    scale_adam: str = field(
        "no",
        "How b2 follows the batch size: by its half-life in examples, or as 1 - b2, with b1 (sde). With it epsilon "
        "follows, and adamw's weight decay.",
        SCALE_ADAM,
    )

    @property
    def changed(self) -> tuple[str, ...]:
        """The fields that make the batch another one than the recipe's."""
        chosen = {
            "schedule": self.schedule != "decay_learning_rate",
            "scale_learning_rate": self.scale_learning_rate != 1,
            "scale_momentum": self.scale_momentum is not None,
            "batch_warmup_epochs": bool(self.batch_warmup_epochs),
        }
        return tuple(name for name, is_chosen in chosen.items() if is_chosen)


@dataclasses.dataclass(frozen=True)
class ControllerConfig(_Concern):
    """Controller"""

    controller: str = field("planned", "What decides the batch size of each update.", tuple(CONTROLLERS))
    controller_options: Any = field(None, "NAME=VALUE of its options, such as factor=0.5,bound_by_decay=true.")  # noqa: RUF009
    min_batch_size: int | None = field(None, "Its smallest batch, in examples; default, --batch_size.")
    controller_monotone: bool = field(False, "It never makes the batch smaller.")
    controller_hysteresis: float = field(0.2, "Share by which its target must move before the batch follows.")
    controller_warmup_epochs: float = field(0.0, "Epochs before it first changes the batch.")

    def __post_init__(self):
        super().__post_init__()
        kind = CONTROLLERS[self.controller].options_type
        if self.controller_options is not None and not isinstance(self.controller_options, kind):
            raise InvalidArgument("controller_options", self.controller_options, f"of type {kind.__name__}")
        if self.controller_options == kind():
            object.__setattr__(self, "controller_options", None)  # so that equal settings compare equal
        if not self.controller_warmup_epochs >= 0:
            raise InvalidArgument("controller_warmup_epochs", self.controller_warmup_epochs, "0 or positive", 0)


@dataclasses.dataclass(frozen=True)
class RunConfig(_Concern):
    """Run"""

    measure_noise: bool = field(False, "Two microbatches or more in every update, to measure the gradient noise.")
    layer_norm_noise: bool = field(
        False, "Measure the gradient noise of the layer normalisations from every example, whatever the microbatches."
    )
    noise_half_life_epochs: float = field(0.5, "Half-life, in epochs, of the averages behind the gradient noise scale.")
    microbatch_size: int | str = field(
        "measure",
        "Examples per device at once: a whole number; measure, the fastest for each batch size, timed for some seconds "
        "once per machine; or auto, by a rule of thumb.",
    )
    seed: int = field(0, "Seed of parameters, example order, augmentation and dropout, a whole number.")
    eval_every_epochs: float = field(1.0, "Evaluate this often, in epochs.")
    log_every_epochs: float = field(1.0, "Log training metrics this often, in epochs.")

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.microbatch_size, str) and self.microbatch_size not in ("measure", "auto"):
            raise InvalidArgument("microbatch_size", self.microbatch_size, "a whole number, measure or auto", "measure")
        self._check_positive("eval_every_epochs", "log_every_epochs", "noise_half_life_epochs")
        if self.seed < 0:
            raise InvalidArgument("seed", self.seed, "a whole number >= 0", 0)
