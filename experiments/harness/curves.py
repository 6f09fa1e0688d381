"""Metrics along training, over seeds: means, deviations, and the differences to another schedule. Draws nothing."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bsjax.analysis.statistics import paired_difference
from experiments.harness import runs

_TINY = 1e-12  # a loss of 0 on a logarithmic axis


class Curve(NamedTuple):
    """A metric along training, of each seed."""

    epoch: np.ndarray  # [num_points]
    update: np.ndarray  # [num_points]
    values: np.ndarray  # [num_seeds, num_points]; NaN of a seed that diverged

    def spread(self, log: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation over seeds [num_points]; geometric ones, for a logarithmic axis.

        >>> mean, std = Curve(np.ones(1), np.ones(1), np.array([[1.0], [100.0]])).spread(log=True)
        >>> float(mean[0]), float(std[0])
        (10.0, 25.954)
        """
        completed = self.values[~np.isnan(self.values).any(axis=1)]
        if log:
            return tuple(map(np.exp, _mean_and_std(np.log(np.maximum(completed, _TINY)))))  # type: ignore[return-value]
        return _mean_and_std(completed)

    def band(self, log: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The mean and both ends of a band of one standard deviation; geometric, the band is positive."""
        mean, std = self.spread(log)
        return (mean, mean / std, mean * std) if log else (mean, mean - std, mean + std)

    def difference(self, original: "Curve", log: bool = False, resolution: float = 0.0) -> np.ndarray | None:
        """The difference to another schedule at the same epochs, paired by seed, with its 95 % interval.

        Args:
          original: the other schedule, with the same seeds.
          log: the ratio instead, whose interval is that of the difference of logarithms.
          resolution: the step between neighbouring values of the metric; 0, none.

        Returns:
          [3, num_points]: estimate, low, high; None if the two are not of the same length or not evaluated together.
        """
        if self.epoch.shape != original.epoch.shape or not len(self.epoch):
            return None
        spacing = np.diff(original.epoch, prepend=0.0).min()
        if np.abs(self.epoch - original.epoch).max() > spacing / 2:
            return None
        values, baseline = (np.log(np.maximum(one.values, _TINY)) if log else one.values for one in (self, original))
        found = np.array(
            [paired_difference(*pair, resolution=resolution) for pair in zip(values.T, baseline.T, strict=True)]
        ).T
        return np.exp(found) if log else found

    def final_difference(self, original: "Curve", log: bool = False, resolution: float = 0.0) -> np.ndarray:
        """As `difference` at the end of each, which may be at different epochs: [3]."""
        ends = [Curve(np.ones(1), np.ones(1), one.values[:, -1:]) for one in (self, original)]
        found = ends[0].difference(ends[1], log, resolution)
        assert found is not None
        return found[:, 0]


def curve(results: Sequence[runs.Result], metric: str) -> Curve:
    """A metric's lines of the runs of one schedule, one run per seed."""
    completed = iter(lines_with(metric, results))
    lines = [next(completed) if result.summary["completed"] else None for result in results]
    points: list[dict[str, Any]] = next((run for run in lines if run is not None), [])
    values = [[line[metric] for line in run] if run is not None else [np.nan] * len(points) for run in lines]
    epoch, update = (np.array([line[clock] for line in points], float) for clock in ("epoch", "update"))
    return Curve(epoch, update, np.array(values, float).reshape(len(results), len(points)))


def lines_with(metric: str, results: Sequence[runs.Result]) -> list[list[dict[str, Any]]]:
    """The lines that have a metric, of each run that completed."""
    completed = [result.metrics for result in results if result.summary["completed"]]
    return [[line for line in lines if line.get(metric) is not None] for lines in completed]


def curve_rows(
    curves: dict[str, Curve], metric: str, log: bool = False, resolution: float = 0.0, **extra: Any
) -> list[dict[str, Any]]:
    """The points of curves as rows of a CSV file, with the differences to the first one, or with their ratios."""
    mean_and_std = [f"{metric}_{'geometric_' * log}{name}" for name in ("mean", "std")]
    differences = [f"{'ratio' if log else 'difference'}{end}" for end in ("", "_low", "_high")]
    names = ("epoch", "update", *mean_and_std, *differences)
    original, rows = next(iter(curves.values())), []
    for label, one in curves.items():
        mean, std = one.spread(log)
        found = None if one is original else one.difference(original, log, resolution)
        texts = [[""] * 3] * len(mean) if found is None else [[f"{x:.4g}" for x in point] for point in found.T]
        for epoch, update, *spread, end in zip(one.epoch, one.update, mean, std, texts, strict=True):
            values = (epoch, int(update), spread[0], f"{spread[1]:.3g}", *end)
            rows.append({**extra, "schedule": label, **dict(zip(names, values, strict=True))})
    return rows


def _mean_and_std(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Over the first axis; the deviation of one value is 0."""
    if not len(values):
        return tuple(np.full(values.shape[1:], np.nan) for _ in range(2))  # type: ignore[return-value]
    return values.mean(axis=0), values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1:])
