"""Claim: batch sizes that are powers of two are faster."""

import dataclasses
import functools
import time
from typing import Any

import jax
import numpy as np

from bsjax.analysis.statistics import Interval, mean_interval
from experiments.effects import pictures, plain_step
from experiments.effects.claim import Claim, Findings, columns, exp, text
from experiments.effects.study import Study

_MARGIN = 1.05


@dataclasses.dataclass(frozen=True)
class Settings:
    """Exponents k, repetitions of each size, and seconds that each of them takes at least."""

    exponents: tuple[int, ...] = (4, 5, 6, 7, 8, 9, 10)
    repeats: int = 20
    min_seconds: float = 0.05
    model: tuple[tuple[str, Any], ...] = (("model", "cnn"), ("model_depth", 2), ("model_width", 16))


def measure(study: Study, settings: Settings) -> Findings:
    """Times updates of 2^k - 1, 2^k and 2^k + 1 in turns."""
    about = {**dataclasses.asdict(settings), "dataset": study.config.data.dataset}
    times = {
        k: study.kept(f"seconds_2_to_{k}", about, functools.partial(_time, study, settings, k))
        for k in settings.exponents
    }
    ratios, table, points = {}, [], []
    verdicts: dict[str, bool | None] = {}
    for k, rows in times.items():
        seconds = np.array(rows)  # [repeats, 3]: of an image
        logs = np.log(seconds[:, [0, 2]]).mean(axis=1) - np.log(seconds[:, 1])
        ratios[k] = exp(mean_interval(logs))
        verdicts[f"2^{k}"] = _is_faster(ratios[k])
        speeds = [exp(mean_interval(-np.log(seconds[:, i]))) for i in range(3)]
        table.append({"exponent": k, "batch_size": 2**k, **columns("speed_over_neighbours", ratios[k])})
        for offset, speed in zip((-1, 0, 1), speeds, strict=True):
            points.append({"exponent": k, "batch_size": 2**k + offset, **columns("images_per_second", speed)})
    return Findings(verdicts, _lines(table, points), table, points, _draw(points, ratios, settings))


def _time(study: Study, settings: Settings, k: int) -> list[list[float]]:
    """Seconds of an image [repeats][3], the three sizes in turns, so that what else runs slows all of them alike."""
    study.check_time()
    config = study.config.replace(**dict(settings.model))
    sizes = (2**k - 1, 2**k, 2**k + 1)
    steps = [plain_step.create(config, size, study.setup.control.data_dir) for size in sizes]
    counts = [max(1, round(settings.min_seconds / _seconds(step, 3))) for step in steps]
    return [
        [_seconds(step, count) / size for step, count, size in zip(steps, counts, sizes, strict=True)]
        for _ in range(settings.repeats)
    ]


def _seconds(step: plain_step.Step, count: int) -> float:
    """Of an update, the mean of some."""
    jax.block_until_ready(step())
    start = time.perf_counter()
    jax.block_until_ready([step() for _ in range(count)])
    return (time.perf_counter() - start) / count


def _is_faster(ratio: Interval) -> bool | None:
    if ratio.high < _MARGIN:
        return False
    return True if ratio.low > _MARGIN else None


def _lines(table: list[dict[str, Any]], points: list[dict[str, Any]]) -> list[list[str]]:
    lines = [["batch", "images/s at 2^k - 1", "at 2^k", "at 2^k + 1", "2^k over its neighbours"]]
    for row in table:
        speeds = [point["images_per_second"] for point in points if point["exponent"] == row["exponent"]]
        ratio = Interval(*(row[f"speed_over_neighbours{end}"] for end in ("", "_low", "_high")))
        lines.append([f"{row['batch_size']:,}", *(f"{speed:,.0f}" for speed in speeds), text(ratio, 3)])
    return lines


def _draw(points: list[dict[str, Any]], ratios: dict[int, Interval], settings: Settings) -> Any:
    figure, [axes] = pictures.panels(2)
    names = {-1: "$2^k - 1$", 0: "$2^k$", 1: "$2^k + 1$"}
    series: dict[str, list] = {name: [] for name in names.values()}
    for point in points:
        speed = Interval(*(point[f"images_per_second{end}"] for end in ("", "_low", "_high")))
        series[names[point["batch_size"] - 2 ** point["exponent"]]].append((2 ** point["exponent"], speed))
    pictures.against_batch(axes[0], series, "Images per second", log=True)
    ratio_series = {"$2^k$ over its neighbours": [(2**k, ratio) for k, ratio in ratios.items()]}
    pictures.against_batch(axes[1], ratio_series, "Speed over the neighbours'")
    axes[1].axhspan(1 / _MARGIN, _MARGIN, color="#F0E44250")
    axes[1].axhline(1, color="black", linewidth=0.8)
    return pictures.finish(figure, axes[0], 3, f"Bars: 95 % intervals over {settings.repeats} repetitions")


CLAIM = Claim(
    name="powers_of_two",
    question="Are batch sizes that are powers of two faster?",
    claim="Choose a power of two as the batch size: the hardware is faster with it.",
    prediction="Kernels work in tiles, so that one example more than a multiple of the tile may cost a tile; on a "
    "large batch that is a small share.",
    measurement="Images per second of one jitted update of a CNN with batches of 2^k - 1, 2^k and 2^k + 1, in turns: "
    "the speed at 2^k over the geometric mean of its neighbours', with 95 % intervals over repetitions.",
    margin=f"a factor {_MARGIN:g} of speed; true where a power of two is faster by more",
    settings={
        "digits": Settings(),
        "fashion_mnist": Settings(exponents=(4, 6, 8), repeats=10, min_seconds=0.3),
        "cifar10": Settings(
            exponents=(5, 6, 7, 8, 9, 10, 11, 12),
            model=(("model", "wide_resnet"), ("model_depth", 16), ("model_width", 4)),
        ),
        "quick": Settings((4,), repeats=2, min_seconds=1e-3, model=(("model", "mlp"), ("model_width", 8))),
    },
    measure=measure,
)
