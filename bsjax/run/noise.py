"""Estimates of the gradient noise from the updates of a run: averages, and observations for a controller."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from bsjax import gradient_noise
from bsjax.controllers.protocol import Observation
from bsjax.gradient_noise import Averages, Estimate
from bsjax.plan import Update
from bsjax.run.log import ReadUpdate
from bsjax.tasks import Task

# Estimates are computed 256 updates at a time, or earlier if a controller asks: one by one takes three times as long.
_UPDATES_AT_ONCE = 256
# B_simple = trace / grad_sq in examples, its 95 % interval, and the two averages. Those of the parameters of
# normalisation layers, where they are measured by themselves, have the same names with a prefix.
_NAMES = ("gradient_noise_scale", "gradient_noise_scale_low", "gradient_noise_scale_high", "grad_sq", "grad_trace")
_LAYER_NORM = "layer_norm_"


class NoiseState(NamedTuple):
    """The estimates of the noise so far."""

    averages: Averages = gradient_noise.zero_averages()
    observations: tuple[Observation, ...] = ()  # those that the controller has not taken yet
    pending: tuple[ReadUpdate, ...] = ()  # updates without an estimate; none in a checkpoint
    layer_norm: Averages = gradient_noise.zero_averages()  # of the examples' gradients, if they are measured

    def to_json(self) -> dict[str, Any]:
        averages = {"averages": self.averages._asdict(), "layer_norm": self.layer_norm._asdict()}
        return {**averages, "observations": self.observations}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "NoiseState":
        observations = (
            Observation(Update(*update), loss, Estimate(*noise), Averages(*averages))
            for update, loss, noise, averages in value["observations"]
        )
        layer_norm = Averages(**value["layer_norm"]) if "layer_norm" in value else gradient_noise.zero_averages()
        return cls(Averages(**value["averages"]), tuple(observations), layer_norm=layer_norm)


@dataclasses.dataclass(frozen=True)
class NoiseMeter:
    """Estimates the noise of updates, as functions of a NoiseState.

    Attributes:
      num_shards: a function from a batch size to the number of its independent gradients.
      dataset_size: N.
      half_life_examples: of the averages.
      keep_observations: whether `observations` will be called.
    """

    num_shards: Callable[[int], int]
    dataset_size: int
    half_life_examples: float
    keep_observations: bool

    def add(self, state: NoiseState, read: ReadUpdate) -> NoiseState:
        """The state after another update."""
        state = state._replace(pending=(*state.pending, read))
        return self.estimate(state) if len(state.pending) == _UPDATES_AT_ONCE else state

    def estimate(self, state: NoiseState) -> NoiseState:
        """The state once every pending update has its estimate."""
        averages, layer_norm, observations = state.averages, state.layer_norm, list(state.observations)
        for update, metrics in state.pending:
            size, shards = update.batch_size, self.num_shards(update.batch_size)
            noise = Estimate(math.nan, math.nan, size, shards)
            if shards > 1:
                squares = metrics["weighted_grad_sq"], metrics["grad_norm"] ** 2
                noise = gradient_noise.estimate(*squares, size, shards, self.dataset_size)
            if shards > 1 or averages.weight:
                averages = gradient_noise.update_averages(averages, noise, self.half_life_examples)
            if "layer_norm_example_sq" in metrics:
                examples = self._of_examples(size, metrics)
                layer_norm = gradient_noise.update_averages(layer_norm, examples, self.half_life_examples)
            if self.keep_observations:
                observations.append(Observation(update, metrics["loss"], noise, averages))
        return NoiseState(averages, tuple(observations), layer_norm=layer_norm)

    def _of_examples(self, size: int, metrics: Mapping[str, float]) -> Estimate:
        """Of the normalisation layers: each example is a shard."""
        squares = size * metrics["layer_norm_example_sq"], metrics["layer_norm_mean_sq"]
        return gradient_noise.estimate(*squares, size, size, self.dataset_size)

    def observations(self, state: NoiseState, before: int) -> tuple[Sequence[Observation], NoiseState]:
        """The observations of the updates before this one, and the state without them."""
        state = self.estimate(state)
        taken = [observation for observation in state.observations if observation.update.update < before]
        return taken, state._replace(observations=state.observations[len(taken) :])

    def columns(self, state: NoiseState) -> dict[str, float | None]:
        """The averages by name, infinity as None; {} without an estimate. `state` has no pending updates."""
        return _columns(state.averages) | _columns(state.layer_norm, _LAYER_NORM)

    def summary(self, state: NoiseState, last: Update | None) -> dict[str, Any]:
        """The averages after the last update, or why there are none. `state` has no pending updates."""
        columns, reason = self.columns(state), gradient_noise.reason(state.averages)
        if state.averages.weight == 0 and last is not None:
            reason = "one microbatch on one device: at least two are needed"
            if self.num_shards(last.batch_size) == 0:
                reason = "devices share ghosts, whose parts are not independent: larger microbatches are needed"
        found: dict[str, Any] = dict.fromkeys(_NAMES) | columns | {"gradient_noise_scale_reason": reason}
        if state.layer_norm.weight:
            found[f"{_LAYER_NORM}gradient_noise_scale_reason"] = gradient_noise.reason(state.layer_norm)
        return found


def _columns(averages: Averages, prefix: str = "") -> dict[str, float | None]:
    if averages.weight == 0:
        return {}
    scale, interval = gradient_noise.gradient_noise_scale(averages), gradient_noise.confidence_interval(averages)
    numbers = zip(_NAMES, (scale, *interval, averages.grad_sq, averages.trace), strict=True)
    return {prefix + name: float(number) if math.isfinite(number) else None for name, number in numbers}


def noise_in_units(task: Task, noise: Mapping[str, Any]) -> dict[str, float | None]:
    """The noise scales in what people count, where an example has several of them, such as tokens."""
    if task.units_per_example == 1:
        return {}
    names = [name for name in noise if name.endswith("noise_scale")]
    return {f"{name}_{task.unit}": noise[name] and noise[name] * task.units_per_example for name in names}
