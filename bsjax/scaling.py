"""Wall time and device-hours of a plan on any number of devices, predicted from the times of its parts.

An update of B examples on D devices, in k microbatches of M per device, takes

    k · (accumulate(M) + shared means) + apply_update + all_reduce(D),    k = ceil(B / (M·D)),

with the M that the engine would choose. The parts follow each other, as in the engine: its one all-reduce needs the
sums of all microbatches. Not in it: compilation, evaluation, checkpoints, images that arrive too late, and devices that
wait for the slowest of them.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from bsjax import layout
from bsjax.errors import InvalidArgument
from bsjax.plan import Phase, Plan


@dataclasses.dataclass(frozen=True)
class AllReduce:
    r"""What a sum over devices takes.

    .. math:: t = 2 \lceil \log_2 D \rceil \cdot latency + 2 \frac{D - 1}{D} \cdot \frac{bytes}{bandwidth}

    That of recursive halving and doubling; a ring moves as many bytes in 2 (D - 1) messages. One latency and one
    bandwidth stand for all links, whether inside a machine or between machines.

    Args:
      latency_s: seconds per message.
      bytes_per_s: bandwidth of each device, in one direction.

    Raises:
      InvalidArgument: a negative latency, or no bandwidth.

    >>> all_reduce = AllReduce(latency_s=1e-5, bytes_per_s=1e10)
    >>> [round(all_reduce.seconds(10_000_000, num_devices), 6) for num_devices in (1, 2, 4, 1024)]
    [0.0, 0.00102, 0.00154, 0.002198]

    References: Thakur, Rabenseifner and Gropp, 2005 (https://doi.org/10.1177/1094342005051521), Section 4.5; Goyal et
    al., 2017 (https://arxiv.org/abs/1706.02677), Section 4.
    """

    latency_s: float
    bytes_per_s: float

    def __post_init__(self):
        if not 0 <= self.latency_s < math.inf:
            raise InvalidArgument("latency_s", self.latency_s, "a number of seconds >= 0", 0)
        if not self.bytes_per_s > 0:
            raise InvalidArgument("bytes_per_s", self.bytes_per_s, "positive")

    def seconds(self, num_bytes: float, num_devices: int) -> float:
        """Of one all-reduce of `num_bytes` per device."""
        messages = 2 * (num_devices - 1).bit_length()
        return messages * self.latency_s + 2 * (num_devices - 1) / num_devices * num_bytes / self.bytes_per_s


@dataclasses.dataclass(frozen=True)
class StepTimes:
    """What the engine's two steps take on one device.

    Between the microbatch sizes that are given, times are interpolated. A smaller one takes as long as the smallest,
    a larger one as long per example as the largest: what would hold at worst.

    Args:
      accumulate_s: seconds of `accumulate`, by microbatch size.
      apply_update_s: seconds of `apply_update`, without its all-reduce.

    Raises:
      InvalidArgument: no size, or a time that cannot be.

    >>> times = StepTimes({8: 0.002, 32: 0.005}, apply_update_s=0.001)
    >>> [times.accumulate(size) for size in (4, 8, 16, 32, 64)]
    [0.002, 0.002, 0.003, 0.005, 0.01]
    """

    accumulate_s: Mapping[int, float]
    apply_update_s: float

    def __post_init__(self):
        if not self.accumulate_s:
            raise InvalidArgument("accumulate_s", self.accumulate_s, "seconds of at least one microbatch size")
        for size, seconds in self.accumulate_s.items():
            if not (size >= 1 and 0 < seconds < math.inf):
                allowed = "positive seconds by microbatch size"
                raise InvalidArgument("accumulate_s", {size: seconds}, allowed)
        if not 0 <= self.apply_update_s < math.inf:
            raise InvalidArgument("apply_update_s", self.apply_update_s, "a number of seconds >= 0", 0)

    @classmethod
    def affine(
        cls, microbatch_s: float, example_s: float, apply_update_s: float, max_microbatch_size: int = 1024
    ) -> "StepTimes":
        """A time per microbatch and one per example, up to a size.

        >>> StepTimes.affine(0.001, 0.0001, apply_update_s=0).accumulate(10)
        0.002
        """
        sizes = {1, max_microbatch_size}
        return cls({size: microbatch_s + size * example_s for size in sizes}, apply_update_s)

    def accumulate(self, microbatch_size: int) -> float:
        """Seconds of one microbatch."""
        sizes = sorted(self.accumulate_s)
        seconds = np.interp(microbatch_size, sizes, [self.accumulate_s[size] for size in sizes])
        return float(seconds) * max(1.0, microbatch_size / sizes[-1])


@dataclasses.dataclass(frozen=True)
class Costs:
    """What the updates of a model take on devices of one kind, and how the engine lays them out there.

    Args:
      step_times: of one device.
      all_reduce: between them.
      num_bytes: that an update sums over the devices: gradients and batch-norm statistics.
      ghost_batch_size: 1 without batch norm.
      num_shared_means: all-reduces per microbatch among the devices that share a ghost, where a device's microbatch is
        smaller than one: two per batch norm, forward and backward. They are so small that only their latency counts.
      max_microbatch_size: the largest per device.
      microbatch_size: per device, for all batch sizes; None: chosen for each, as by `bsjax.engine.Engine`.

    Raises:
      InvalidArgument: a number is out of range.
    """

    step_times: StepTimes
    all_reduce: AllReduce
    num_bytes: int
    ghost_batch_size: int = 1
    num_shared_means: int = 0
    max_microbatch_size: int = 1024
    microbatch_size: int | None = None

    def __post_init__(self):
        least = {"num_bytes": 0, "ghost_batch_size": 1, "num_shared_means": 0, "max_microbatch_size": 1}
        for name, lowest in least.items():
            if not getattr(self, name) >= lowest:
                raise InvalidArgument(name, getattr(self, name), f"a whole number >= {lowest}", lowest)


class UpdateTime(NamedTuple):
    """How one update runs, and the seconds that it takes."""

    microbatch_size: int  # per device
    num_microbatches: int  # on each device
    accumulate_s: float  # all of them, the means of shared ghosts included
    apply_update_s: float  # without the all-reduce
    all_reduce_s: float

    @property
    def seconds(self) -> float:
        return self.accumulate_s + self.apply_update_s + self.all_reduce_s


class PhaseTime(NamedTuple):
    """A phase of a plan, on the devices that it runs on."""

    phase: Phase
    num_devices: int
    update: UpdateTime  # each of them

    @property
    def wall_time_s(self) -> float:
        return self.phase.num_updates * self.update.seconds


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The time of a plan, phase by phase."""

    phases: tuple[PhaseTime, ...]

    @property
    def wall_time_s(self) -> float:
        return math.fsum(phase.wall_time_s for phase in self.phases)

    @property
    def all_reduce_s(self) -> float:
        """The part of it that is the all-reduces of the gradients."""
        return math.fsum(phase.phase.num_updates * phase.update.all_reduce_s for phase in self.phases)

    @property
    def device_hours(self) -> float:
        """Of the devices that each phase runs on."""
        return math.fsum(phase.num_devices * phase.wall_time_s for phase in self.phases) / 3600


def predict(plan: Plan, num_devices: int | Sequence[int], costs: Costs) -> Prediction:
    """The time that a plan takes.

    Args:
      plan: what is to be trained.
      num_devices: D; or one for each phase, such as `best_num_devices` gives: devices that come as the batch grows.
      costs: of an update.

    Raises:
      InvalidArgument: not a number of devices, or batches that do not hold whole ghosts.

    >>> plan = Plan(100, batch_sizes=[8, 8, 32], learning_rates=[0.1] * 3, momentums=[0.9] * 3)
    >>> costs = Costs(StepTimes({8: 2.0}, apply_update_s=0.5), AllReduce(0.25, math.inf), 0, max_microbatch_size=8)
    >>> predict(plan, 1, costs).wall_time_s, predict(plan, 4, costs).wall_time_s  # a device takes 2 s for 1 to 8
    (13.5, 10.5)
    >>> prediction = predict(plan, [1, 4], costs)
    >>> [phase.wall_time_s for phase in prediction.phases], 3600 * prediction.device_hours
    ([5.0, 3.5], 19.0)
    """
    counts = list(num_devices) if isinstance(num_devices, Sequence) else [num_devices] * len(plan.phases)
    if len(counts) != len(plan.phases):
        allowed = f"one number, or one for each of the plan's {len(plan.phases)} phases"
        raise InvalidArgument("num_devices", counts, allowed)
    _check_counts("num_devices", counts)
    time_of = _update_times(plan, costs)
    return Prediction(
        tuple(
            PhaseTime(phase, count, time_of(phase.batch_size, count))
            for phase, count in zip(plan.phases, counts, strict=True)
        )
    )


def best_num_devices(plan: Plan, device_counts: Sequence[int], costs: Costs, min_gain: float = 0.1) -> tuple[int, ...]:
    r"""The number of devices at which each phase stops speeding up.

    The smallest D from which no larger D' pays: :math:`t(D') \ge t(D) (1 - min\_gain)^{\log_2 (D'/D)}`.

    Args:
      plan: what is to be trained.
      device_counts: the choices.
      costs: of an update.
      min_gain: by which each doubling must shorten a phase, in [0, 1); 0 asks for the shortest time at any price.

    Returns:
      One of the choices for each of `plan.phases`.

    Raises:
      InvalidArgument: no choice, or an argument is out of range.

    >>> plan = Plan(100, batch_sizes=[8, 8, 32], learning_rates=[0.1] * 3, momentums=[0.9] * 3)
    >>> costs = Costs(StepTimes({1: 1.0, 8: 8.0}, 0.0), AllReduce(0.1, math.inf), num_bytes=0)
    >>> best_num_devices(plan, [1, 2, 4, 8, 16, 32, 64], costs)
    (8, 32)
    """
    if not 0 <= min_gain < 1:
        raise InvalidArgument("min_gain", min_gain, "in [0, 1)", 0.1)
    if not device_counts:
        raise InvalidArgument("device_counts", list(device_counts), "at least one number of devices", [1])
    _check_counts("device_counts", device_counts)
    time_of = _update_times(plan, costs)
    counts = sorted(set(device_counts))

    @functools.cache
    def best(batch_size: int) -> int:
        seconds = [time_of(batch_size, count).seconds for count in counts]

        def pays(i: int, j: int) -> bool:
            # Rounding is no gain.
            return seconds[j] < seconds[i] * (1 - min_gain) ** math.log2(counts[j] / counts[i]) * (1 - 1e-9)

        return next(count for i, count in enumerate(counts) if not any(pays(i, j) for j in range(i + 1, len(counts))))

    return tuple(best(phase.batch_size) for phase in plan.phases)


def _update_times(plan: Plan, costs: Costs) -> Callable[[int, int], UpdateTime]:
    """A function from a batch size of the plan and a number of devices to what an update takes."""
    batch_sizes = set(plan.batch_sizes.tolist())
    ghost_batch_size = costs.ghost_batch_size

    @functools.cache
    def layouts(num_devices: int) -> layout.Layouts:
        return layout.Layouts(
            batch_sizes, ghost_batch_size, [num_devices], costs.max_microbatch_size, costs.microbatch_size
        )

    @functools.cache
    def time_of(batch_size: int, num_devices: int) -> UpdateTime:
        size = layouts(num_devices)(batch_size).microbatch_size
        count = layout.num_microbatches(batch_size, size, num_devices)
        num_sharing = max(1, ghost_batch_size // size)
        shared_means_s = costs.num_shared_means * costs.all_reduce.seconds(0, num_sharing)
        return UpdateTime(
            microbatch_size=size,
            num_microbatches=count,
            accumulate_s=count * (costs.step_times.accumulate(size) + shared_means_s),
            apply_update_s=costs.step_times.apply_update_s,
            all_reduce_s=costs.all_reduce.seconds(costs.num_bytes, num_devices),
        )

    return time_of


def _check_counts(name: str, counts: Sequence[int]) -> None:
    for count in counts:
        if count < 1:
            raise InvalidArgument(name, count, "a whole number >= 1", 1)
