"""What an update has measured."""

import jax

from bsjax.engine.devices import first_replica


class UpdateMetrics:
    """What an update has measured, by name; nothing waits for the device until something is read.

    `metrics.loss`, or any other of `names`, waits and is a float; `read` returns all of them.

    Attributes:
      names: those of `bsjax.engine.step.Steps.metrics`, such as "loss", the task's metrics and "grad_norm", and
        "num_stops": on how many devices their process wants to stop.
    """

    __slots__ = ("_values", "names")

    def __init__(self, names: tuple[str, ...], values: jax.Array):
        self.names = names
        self._values = values  # float [devices, names], the same on each

    def read(self) -> dict[str, float]:
        """All of them; waits for the update."""
        return dict(zip(self.names, first_replica(self._values).tolist(), strict=True))

    def __getattr__(self, name: str) -> float:
        if name.startswith("_") or name not in self.names:
            raise AttributeError(f"no metric is named {name!r}; there are {', '.join(self.names)}")
        return self.read()[name]

    def __repr__(self) -> str:
        return f"<UpdateMetrics: {', '.join(self.names)}>"
