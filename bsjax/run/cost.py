"""The FLOPs of a run and its use of the devices, for its summary."""

import collections
from collections.abc import Mapping
from typing import Any

from bsjax.analysis.flops import has_peak, peak_flops_per_s
from bsjax.engine import Cost, Engine
from bsjax.engine.cost import total_cost


class CostMeter:
    r"""Adds up what the updates of a run cost.

    .. math:: utilisation = \frac{F \cdot examples / s}{peak \cdot devices}

    F is `Engine.model_flops`, the model's FLOPs per example: neither padding nor the optimizer counts.

    Args:
      engine: runs the updates.
      peak_flops_per_s: of one device; None takes the vendor's, where it is known.
    """

    def __init__(self, engine: Engine, peak_flops_per_s: float | None):
        self._engine, self._peak = engine, peak_flops_per_s
        self._counts: collections.Counter[int] = collections.Counter()  # updates of each batch size, in this process
        self._before: tuple[int, Cost] = 0, Cost(0.0, 0.0)  # updates of earlier ones, and what they cost

    def add(self, batch_size: int) -> None:
        """Counts an update."""
        self._counts[batch_size] += 1

    def resume(self, before: Mapping[str, Any] | None) -> None:
        """Adds what `to_json` returned in the previous call; None, if nobody counted then."""
        before = before or {"updates": 0, "flops": None, "bytes_accessed": None}
        self._before = before["updates"], Cost(before["flops"], before["bytes_accessed"])

    def to_json(self) -> dict[str, Any]:
        """How many updates there were, and what they cost."""
        updates, before = self._before
        costs = [(count, self._engine.cost_of(size)) for size, count in self._counts.items()]
        return {"updates": updates + self._counts.total(), **total_cost([(1, before), *costs])._asdict()}

    def summary(self, examples: int, seconds: float) -> dict[str, Any]:
        """The entries of the summary.

        Args:
          examples: that the updates took.
          seconds: of training, without compilation.
        """
        totals = self.to_json()
        flops, num_bytes, updates = totals["flops"], totals["bytes_accessed"], totals["updates"]
        used = self._utilisation(examples / seconds)
        return {
            "flops_per_update": flops / updates if flops and updates else None,
            "bytes_accessed_per_update": num_bytes / updates if num_bytes and updates else None,
            "flops_per_s": round(flops / seconds) if flops and updates else None,
            "model_flop_utilisation": None if used is None else round(used, 6),
        }

    def _utilisation(self, examples_per_s: float) -> float | None:
        kind = self._engine.devices[0].device_kind
        if self._peak is None and not has_peak(kind):
            return None  # without tracing the model
        model = self._engine.model_flops
        peak = self._peak or peak_flops_per_s(kind, model.dtype)
        if peak is None or model.per_example is None:
            return None
        return model.per_example * examples_per_s / (peak * self._engine.num_devices)
