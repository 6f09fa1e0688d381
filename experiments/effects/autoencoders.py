"""Claim: small batches train better autoencoders."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from bsjax.analysis.microbatches import microbatches
from bsjax.analysis.statistics import Comparison, Interval, compare, mean_interval
from bsjax.errors import InvalidArgument
from experiments.effects import pictures, regimes
from experiments.effects.accuracies import BASE
from experiments.effects.claim import Claim, Findings, columns, exp, is_more, is_worse, text
from experiments.effects.rates import searches
from experiments.effects.study import Study
from experiments.effects.training import Lab, Outcome, Training, finals

_MARGIN = 1.1
_LOCAL_MARGIN = 0.05
# What is equal, and the rule of the learning rate. The first comes closest to the literature, which keeps all settings.
_CONDITIONS = (("epochs", "constant"), ("epochs", "searched"), ("updates", "searched"))

Key = tuple[str, str, int]  # what is equal, rule and batch size


@dataclasses.dataclass(frozen=True)
class Settings:
    """Batch sizes, the one whose rate all have once, the length of training at that one, and the autoencoder."""

    batch_sizes: tuple[int, ...] = (2, 8, 32, 128)
    base_batch_size: int = 32
    num_epochs: float = 40.0
    search_seeds: int = 2
    num_examples: int = 0  # the first training examples; 0, all of them
    model_depth: int = 1
    model_width: int = 8
    learning_rate: float = 0.004  # of Adam at the base batch size, where the searches begin
    patch_size: int = 4  # pixels of each side


@dataclasses.dataclass(frozen=True)
class Patches:
    """The probe: what reconstructions of the test images keep within patches."""

    size: int
    name: str = "patches"

    def __call__(self, lab: Lab, params: Any, batch_stats: Any) -> dict[str, float]:
        """The share of the variance that they keep, and the share that they explain, see `shares`."""
        squares = np.zeros(3)
        for examples, index in microbatches(lab.test, 512):
            found = _reconstruct(lab)(params, batch_stats, examples)
            images, outputs = (np.asarray(array, np.float64)[index >= 0] for array in found)
            squares += patch_squares(images, outputs, self.size)
        return shares(squares)


@functools.lru_cache(maxsize=8)
def _reconstruct(lab: Lab) -> Any:
    """Images, and what an autoencoder with the squared error makes of them."""
    task: Any = lab.task

    def reconstruct(params: Any, batch_stats: Any, examples: Any) -> tuple[jax.Array, jax.Array]:
        keys = jax.random.split(jax.random.key(0), len(examples["image"]))
        images = task.read(examples, keys, train=False)
        return images, task.apply(params, batch_stats, images, keys, train=False)[0]

    return jax.jit(reconstruct)


def within_patches(images: np.ndarray, size: int) -> np.ndarray:
    """The difference of each pixel from the mean of its patch, channel by channel.

    Args:
      images: [n, height, width, channels].
      size: of the square patches, in pixels; it divides height and width.

    Raises:
      InvalidArgument: it does not.

    >>> within_patches(np.array([[1.0, 3.0, 5.0, 5.0], [1.0, 3.0, 5.0, 9.0]]).reshape(1, 2, 4, 1), 2).reshape(2, 4)
    array([[-1.,  1., -1., -1.],
           [-1.,  1., -1.,  3.]])
    """
    n, height, width, channels = images.shape
    if height % size or width % size:
        allowed = f"a divisor of the images' height {height} and width {width}"
        raise InvalidArgument("patch_size", size, allowed, math.gcd(size, height, width))
    patches = images.reshape(n, height // size, size, width // size, size, channels)
    return (patches - patches.mean(axis=(2, 4), keepdims=True)).reshape(images.shape)


def patch_squares(images: np.ndarray, outputs: np.ndarray, size: int) -> np.ndarray:
    """The sums of squares within patches of images, of their reconstructions, and of the differences: [3]."""
    return np.array([np.square(within_patches(x, size)).sum() for x in (images, outputs, outputs - images)])


def shares(squares: np.ndarray) -> dict[str, float]:
    r"""The share of the variance within patches that reconstructions keep, and the share that they explain.

    With the differences d of an image's pixels from the means of their patches, and d' of its reconstruction's,

    .. math:: \text{kept} = \frac{\sum d'^2}{\sum d^2}, \qquad
       \text{explained} = 1 - \frac{\sum (d' - d)^2}{\sum d^2}.

    Noise would be kept as well, and is not explained.

    Args:
      squares: [3], a sum of `patch_squares`.

    >>> image = np.arange(16.0).reshape(1, 4, 4, 1)
    >>> shares(patch_squares(image, 0.5 * image, 2))
    {'kept': 0.25, 'explained': 0.75}
    """
    images, outputs, errors = squares.tolist()
    return {"kept": outputs / images, "explained": 1 - errors / images}


class Case(NamedTuple):
    """A condition and a batch size."""

    training: Training
    outcomes: list[Outcome]
    log_error: Interval  # the logarithm of the squared error
    kept: Interval
    explained: Interval
    error_to_smallest: Comparison  # of the logarithm, with the smallest batch under the same condition
    kept_to_smallest: Comparison

    @property
    def num_diverged(self) -> int:
        """Seeds that are left out."""
        return sum(outcome.diverged for outcome in self.outcomes)


def measure(study: Study, settings: Settings) -> Findings:
    """Searches the rates, trains under each condition, and compares with the smallest batch."""
    trainings, tried = _trainings(study, settings)
    cases = _cases(study, trainings, settings.batch_sizes[0])
    verdicts: dict[str, bool | None] = {}
    for regime, rule in _CONDITIONS:
        num_diverged = {size: cases[regime, rule, size].num_diverged for size in settings.batch_sizes}
        largest = regimes.largest_stable(num_diverged, settings.batch_sizes[0])
        one = cases[regime, rule, largest] if largest else None
        label = f"with {rule} rate at equal {regime}"
        verdicts[f"global error {label}"] = is_more(one.error_to_smallest) if one else None
        verdicts[f"local variance {label}"] = is_worse(one.kept_to_smallest) if one else None
    num_examples = settings.num_examples or study.base.dataset_size
    table = [_row(key, one, num_examples) for key, one in cases.items()]
    notes = [
        f"Equal {regime}, {rule} rate, batch {size:,}: {one.num_diverged} of {len(one.outcomes)} seeds diverged and "
        "are left out."
        for (regime, rule, size), one in cases.items()
        if one.num_diverged
    ]
    return Findings(verdicts, _lines(table, cases), table, tried, _draw(cases, len(study.seeds)), notes)


def _trainings(study: Study, settings: Settings) -> tuple[dict[Key, Training], list[dict[str, Any]]]:
    """By condition and batch size; and what the searches have tried."""
    base = settings.base_batch_size
    config = study.config.replace(
        task="autoencoder",
        model="conv_autoencoder",
        model_depth=settings.model_depth,
        model_width=settings.model_width,
        optimizer="adam",
        learning_rate=settings.learning_rate,
        batch_size=base,
    )
    plain = regimes.trainings(study, config, settings.batch_sizes, base, settings.num_epochs, settings.num_examples)
    probe = Patches(settings.patch_size)
    begin = {key: dataclasses.replace(one, probe=probe) for key, one in plain.items()}
    best, tried = searches(study, list(begin.values()), settings.search_seeds)
    rates = dict(zip(begin, best, strict=True))
    return {
        (regime, rule, size): begin[regime, size].replace(
            learning_rate=rates["epochs", base] if rule == "constant" else rates[regime, size]
        )
        for regime, rule in _CONDITIONS
        for size in settings.batch_sizes
    }, tried


def _cases(study: Study, trainings: Mapping[Key, Training], smallest: int) -> dict[Key, Case]:
    outcomes = study.train_seeds(trainings)
    logs = {key: np.log(finals(its, "test_loss")) for key, its in outcomes.items()}
    kept = {key: finals(its, "kept") for key, its in outcomes.items()}

    def compared(values: Mapping[Key, np.ndarray], key: Key, margin: float) -> Comparison:
        baseline = (key[0], key[1], smallest)
        if key == baseline:
            return Comparison(Interval(0.0, 0.0, 0.0), BASE)
        return compare(values[key], values[baseline], margin)

    return {
        key: Case(
            trainings[key],
            its,
            mean_interval(logs[key]),
            mean_interval(kept[key]),
            mean_interval(finals(its, "explained")),
            compared(logs, key, math.log(_MARGIN)),
            compared(kept, key, _LOCAL_MARGIN),
        )
        for key, its in outcomes.items()
    }


def _row(key: Key, one: Case, num_examples: int) -> dict[str, Any]:
    regime, rule, size = key
    updates = one.training.evaluate_at[-1]
    row: dict[str, Any] = {"equal": regime, "rule": rule, "batch_size": size}
    row |= {"learning_rate": one.training.config.optimizer.learning_rate}
    row |= {"updates": updates, "epochs": updates * size / num_examples}
    row |= columns("squared_error", exp(one.log_error)) | columns("ratio", exp(one.error_to_smallest.difference))
    row |= {"ratio_verdict": one.error_to_smallest.verdict} | columns("kept", one.kept)
    row |= columns("kept_difference", one.kept_to_smallest.difference)
    row |= {"kept_verdict": one.kept_to_smallest.verdict} | columns("explained", one.explained)
    return row | {"diverged": one.num_diverged}


def _lines(table: list[dict[str, Any]], cases: Mapping[Key, Case]) -> list[list[str]]:
    head = ["equal", "rule", "batch", "rate", "updates", "squared error", "÷ smallest batch's", ""]
    lines = [[*head, "variance of patches kept, %", "to the smallest batch", "", "explained, %"]]
    for row, one in zip(table, cases.values(), strict=True):
        cells = [row["equal"], row["rule"], f"{row['batch_size']:,}", f"{row['learning_rate']:g}"]
        cells += [f"{row['updates']:,}", text(exp(one.log_error), 5)]
        is_base = one.error_to_smallest.verdict == BASE
        ratio = "" if is_base else text(exp(one.error_to_smallest.difference))
        difference = "" if is_base else text(one.kept_to_smallest.difference, 1, 100)
        cells += [ratio, one.error_to_smallest.verdict, text(one.kept, 1, 100)]
        lines.append([*cells, difference, one.kept_to_smallest.verdict, text(one.explained, 1, 100)])
    return lines


def _draw(cases: Mapping[Key, Case], num_seeds: int) -> Any:
    figure, [axes] = pictures.panels(2)
    errors: dict[str, list] = {}
    kept: dict[str, list] = {}
    for (regime, rule, size), one in cases.items():
        label = f"equal {regime}, {rule} rate"
        errors.setdefault(label, []).append((size, exp(one.log_error)))
        kept.setdefault(label, []).append((size, one.kept))
    pictures.against_batch(axes[0], errors, "Squared error on test images", log=True)
    pictures.against_batch(axes[1], kept, "Variance within patches kept (%)", 100.0)
    axes[0].set_title("Global")
    axes[1].set_title("Local")
    return pictures.finish(figure, axes[0], 3, pictures.bars_note(num_seeds))


CLAIM = Claim(
    name="autoencoders",
    question="Do small batches train better autoencoders?",
    claim="Under the same settings, small batches reconstruct better, and keep more of what differs locally (Kerley et "
    "al., 2023, on medical records and images, https://doi.org/10.1117/12.2653643).",
    prediction="At equal epochs and one learning rate a large batch makes fewer updates of the same size, so it has "
    "learned less; details come last, so they suffer most. That is a lack of updates: at equal updates, with a rate of "
    "its own, a large batch has seen more data with less noise, and should be as good or better.",
    measurement="A convolutional autoencoder with Adam and a constant learning rate, on test images: globally, the "
    "mean squared error of the pixels; locally, the variance of pixels within square patches that reconstructions "
    "keep, as a share of the images' own. At equal epochs with the base batch size's rate, and at equal epochs and at "
    "equal updates with a rate from a search for each batch size (by the squared error, on other seeds than are "
    "reported). Comparisons with the smallest batch under the same condition are paired by seed; means of errors are "
    "geometric, with 95 % intervals.",
    margin=f"a factor {_MARGIN:g} of squared errors; {100 * _LOCAL_MARGIN:g} points of the variance kept; true where "
    "the largest batch is worse than the smallest",
    settings={
        "digits": Settings(),
        "fashion_mnist": Settings(num_epochs=25.0, search_seeds=1, num_examples=4096, model_depth=2),
        "cifar10": Settings((16, 64, 256, 1024), base_batch_size=64, num_epochs=30.0, model_depth=3, model_width=32),
        "quick": Settings((16, 64), 16, num_epochs=0.5, search_seeds=1, num_examples=256, model_width=2),
    },
    measure=measure,
)
