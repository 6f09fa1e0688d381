"""Wall time and device-hours of a plan on any number of devices, predicted from the times of its parts.

An update of B examples on D devices, in k microbatches of M per device, takes

    k · (accumulate(M) + shared means) + apply_update + all_reduce(D),    k = ceil(B / (M·D)),

with the M that the engine would choose. The parts follow each other, as in the engine: its one all-reduce needs the
sums of all microbatches. The model leaves out compilation, evaluation, checkpoints, examples that arrive too late, and
the wait for the slowest device.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from bsjax.engine import layout
from bsjax.engine.layout import StepTimes
from bsjax.errors import InvalidArgument, check_number, check_whole
from bsjax.plan import Phase, Plan

FULL_SPEED = 0.9  # the share of the best throughput at which a batch counts as using the devices
_DOUBLINGS = 24  # of a group: the batch sizes of `throughput`


@dataclasses.dataclass(frozen=True)
class AllReduce:
    r"""The time of a sum over devices.

    .. math:: t = 2 \lceil \log_2 D \rceil \cdot latency + 2 \frac{D - 1}{D} \cdot \frac{bytes}{bandwidth}

    This is recursive halving and doubling; a ring moves as many bytes in 2 (D - 1) messages. One latency and one
    bandwidth stand for all links, inside a machine and between machines.

    Args:
      latency_s: seconds per message.
      bytes_per_s: bandwidth of each device, in one direction.

    Raises:
      InvalidArgument: the latency is negative, or the bandwidth is not positive.

    >>> all_reduce = AllReduce(latency_s=1e-5, bytes_per_s=1e10)
    >>> [round(all_reduce.seconds(10_000_000, num_devices), 6) for num_devices in (1, 2, 4, 1024)]
    [0.0, 0.00102, 0.00154, 0.002198]

    References: Thakur, Rabenseifner and Gropp, 2005 (https://doi.org/10.1177/1094342005051521), Section 4.5; Goyal et
    al., 2017 (https://arxiv.org/abs/1706.02677), Section 4.
    """

    latency_s: float
    bytes_per_s: float

    def __post_init__(self):
        _check_seconds("latency_s", self.latency_s)
        if not self.bytes_per_s > 0:
            raise InvalidArgument("bytes_per_s", self.bytes_per_s, "positive")

    def seconds(self, num_bytes: float, num_devices: int) -> float:
        """The time of one all-reduce of `num_bytes` per device."""
        messages = 2 * (num_devices - 1).bit_length()
        return messages * self.latency_s + 2 * (num_devices - 1) / num_devices * num_bytes / self.bytes_per_s


@dataclasses.dataclass(frozen=True)
class Costs:
    """The times of a model's updates on devices of one kind, and their layout.

    Args:
      step_times: of one device.
      all_reduce: between the devices.
      num_bytes: of the gradients and the batch-norm statistics, which an update sums over the devices.
      ghost_batch_size: of batch norm; 1 without it.
      num_shared_means: all-reduces per microbatch among the devices that share a ghost, where a device's microbatch is
        smaller than one: two per batch norm, forward and backward. They are so small that only their latency counts.
      microbatch_size: per device, for all batch sizes; None chooses the fastest for each, up to the largest size in
        `step_times`, as `bsjax.engine.Engine` does with the same times.

    Raises:
      InvalidArgument: a number is out of range.
    """

    step_times: StepTimes
    all_reduce: AllReduce
    num_bytes: int
    ghost_batch_size: int = 1
    num_shared_means: int = 0
    microbatch_size: int | None = None

    def __post_init__(self):
        least = {"num_bytes": 0, "ghost_batch_size": 1, "num_shared_means": 0}
        for name, lowest in least.items():
            check_whole(name, getattr(self, name), lowest)


class UpdateTime(NamedTuple):
    """The layout of an update, and its time."""

    microbatch_size: int  # per device
    num_microbatches: int  # on each device
    accumulate_s: float  # all microbatches, with the means of shared ghosts
    apply_update_s: float  # without the all-reduce, and less what a single microbatch saves
    all_reduce_s: float

    @property
    def seconds(self) -> float:
        return self.accumulate_s + self.apply_update_s + self.all_reduce_s


class PhaseTime(NamedTuple):
    """A phase of a plan on a number of devices."""

    phase: Phase
    num_devices: int
    update: UpdateTime  # of each update

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
        """The part of the wall time that the all-reduces of the gradients take."""
        return math.fsum(phase.phase.num_updates * phase.update.all_reduce_s for phase in self.phases)

    @property
    def device_hours(self) -> float:
        """Wall time times devices, added over the phases."""
        return math.fsum(phase.num_devices * phase.wall_time_s for phase in self.phases) / 3600


def predict(plan: Plan, num_devices: int | Sequence[int], costs: Costs) -> Prediction:
    """The time of a plan.

    Args:
      plan: the updates.
      num_devices: D; or one for each phase, such as `best_num_devices` returns.
      costs: of an update.

    Raises:
      InvalidArgument: a number of devices is not one, or a batch does not hold whole ghosts.

    >>> plan = Plan(100, batch_sizes=[8, 8, 32], learning_rates=[0.1] * 3, momentums=[0.9] * 3)
    >>> costs = Costs(StepTimes({8: 2.0}, apply_update_s=0.5), AllReduce(0.25, math.inf), 0)
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
    for count in counts:
        check_whole("num_devices", count)
    time_of = _update_times(plan, costs)
    pairs = zip(plan.phases, counts, strict=True)
    return Prediction(tuple(PhaseTime(phase, count, time_of(phase.batch_size, count)) for phase, count in pairs))


def best_num_devices(plan: Plan, device_counts: Sequence[int], costs: Costs, min_gain: float = 0.1) -> tuple[int, ...]:
    r"""The number of devices at which each phase stops speeding up.

    It is the smallest D from which no larger D' pays: :math:`t(D') \ge t(D) (1 - min\_gain)^{\log_2 (D'/D)}`.

    Args:
      plan: the updates.
      device_counts: the choices.
      costs: of an update.
      min_gain: the share by which each doubling must shorten a phase, in [0, 1); 0 asks for the shortest time.

    Returns:
      One of the choices for each of `plan.phases`.

    Raises:
      InvalidArgument: there is no choice, or an argument is out of range.

    >>> plan = Plan(100, batch_sizes=[8, 8, 32], learning_rates=[0.1] * 3, momentums=[0.9] * 3)
    >>> costs = Costs(StepTimes({1: 1.0, 8: 8.0}, 0.0), AllReduce(0.1, math.inf), num_bytes=0)
    >>> best_num_devices(plan, [1, 2, 4, 8, 16, 32, 64], costs)
    (8, 32)
    """
    if not 0 <= min_gain < 1:
        raise InvalidArgument("min_gain", min_gain, "in [0, 1)", 0.1)
    if not device_counts:
        raise InvalidArgument("device_counts", list(device_counts), "at least one number of devices", [1])
    counts, time_of = (
        sorted({check_whole("device_counts", count) for count in device_counts}),
        _update_times(plan, costs),
    )

    @functools.cache
    def best(batch_size: int) -> int:
        seconds = [time_of(batch_size, count).seconds for count in counts]

        def pays(i: int, j: int) -> bool:
            # Rounding is no gain.
            return seconds[j] < seconds[i] * (1 - min_gain) ** math.log2(counts[j] / counts[i]) * (1 - 1e-9)

        return next(count for i, count in enumerate(counts) if not any(pays(i, j) for j in range(i + 1, len(counts))))

    return tuple(best(phase.batch_size) for phase in plan.phases)


def throughput(costs: Costs, num_devices: int) -> dict[int, float]:
    """Examples per second of whole updates, by batch size: one group of examples, and its doublings.

    Args:
      costs: of an update.
      num_devices: D.

    >>> costs = Costs(StepTimes.affine(0.0, 0.001, apply_update_s=0.004), AllReduce(0.0, 1.0), num_bytes=0)
    >>> found = throughput(costs, num_devices=1)
    >>> [round(found[size], 3) for size in (1, 4, 1024)]
    [200.0, 500.0, 996.109]
    """
    sizes = costs.ghost_batch_size * 2 ** np.arange(_DOUBLINGS + 1)
    plan = Plan(int(sizes[-1]), sizes, np.ones(len(sizes)), np.zeros(len(sizes)))
    phases = predict(plan, num_devices, costs).phases
    return {phase.phase.batch_size: phase.phase.batch_size / phase.update.seconds for phase in phases}


def smallest_batch_size(costs: Costs, num_devices: int, share: float = FULL_SPEED) -> int:
    """The smallest batch, by doublings of a group, whose updates run at a share of the best throughput.

    Args:
      costs: of an update.
      num_devices: D.
      share: in (0, 1).

    >>> costs = Costs(StepTimes.affine(0.0, 0.001, apply_update_s=0.1), AllReduce(0.0, 1.0), num_bytes=0)
    >>> smallest_batch_size(costs, 1), smallest_batch_size(costs, 8)  # B / (B + 100 D) reaches 90 % at 900 D
    (1024, 8192)
    """
    check_number("share", share, lambda share: 0 < share < 1, "in (0, 1)", FULL_SPEED)
    found = throughput(costs, num_devices)
    best = max(found.values())
    return min(size for size, examples_per_s in found.items() if examples_per_s >= share * best)


def _update_times(plan: Plan, costs: Costs) -> Callable[[int, int], UpdateTime]:
    """A function from a batch size of the plan and a number of devices to what an update takes."""
    batch_sizes, ghost, times = set(plan.batch_sizes.tolist()), costs.ghost_batch_size, costs.step_times

    @functools.cache
    def layouts(num_devices: int) -> layout.Layouts:
        return layout.Layouts(batch_sizes, ghost, [num_devices], 1, costs.microbatch_size, times=times)

    @functools.cache
    def time_of(batch_size: int, num_devices: int) -> UpdateTime:
        size = layouts(num_devices)(batch_size).microbatch_size
        count = layout.num_microbatches(batch_size, size, num_devices)
        shared_means_s = costs.num_shared_means * costs.all_reduce.seconds(0, max(1, ghost // size))
        return UpdateTime(
            microbatch_size=size,
            num_microbatches=count,
            accumulate_s=count * (times.accumulate(size) + shared_means_s),
            apply_update_s=times.update(count, size) - count * times.accumulate(size),
            all_reduce_s=costs.all_reduce.seconds(costs.num_bytes, num_devices),
        )

    return time_of


def _check_seconds(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise InvalidArgument(name, value, "a number of seconds >= 0", 0)
