"""What the schedules of ImageNet's figures would take and cost on clusters: predicted, from assumptions, not measured.

    python -m experiments.imagenet_costs
    python -m experiments.imagenet_costs --clusters=v5e-256 --price=0.6 --utilisation=0.25 --images_per_core_s=150

An update takes as long as `bsjax.analysis.time_model` says, or as long as the hosts need to decode its images, if that
is longer: examples are decoded while earlier ones train. The limit of a phase is the largest of decoding, computing and
the all-reduce. Half a minute on a CPU, which counts the operations of both models and computes nothing.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import NamedTuple

from absl import flags

from bsjax import InvalidArgument, Plan
from bsjax.analysis.time_model import Costs, PhaseTime, predict
from bsjax.engine import StepTimes
from bsjax.errors import check_choice
from experiments.harness import build, cli, clusters, figures, imagenet
from experiments.harness.clusters import CLUSTERS, Cluster
from experiments.harness.concerns import TaskConfig
from experiments.harness.config import Config
from experiments.scaling import step_times

_LARGEST = 64  # images in a microbatch of a device: assumed to fit 16 GB in bfloat16, not measured

_CLUSTERS = flags.DEFINE_list("clusters", list(CLUSTERS), f"Some of {', '.join(CLUSTERS)}.")
_PRICE = flags.DEFINE_float("price", None, "Dollars per device and hour; default, the list price of each cluster.")
_UTILISATION = flags.DEFINE_float("utilisation", None, "Share of the peak operations that a device reaches, in (0, 1].")
_PER_CORE = flags.DEFINE_float("images_per_core_s", clusters.IMAGES_PER_CORE_S, "Images a core decodes per second.")
_BANDWIDTH = flags.DEFINE_float("bytes_per_s", None, "Bandwidth of a device in an all-reduce, in one direction.")


class Estimate(NamedTuple):
    """A schedule on a cluster."""

    seconds: float
    limits: tuple[str, ...]  # of the phases, without repetitions
    dollars: float
    all_reduce_share: float  # of the time


def estimate(plan: Plan, costs: Costs, cluster: Cluster, images_per_core_s: float) -> Estimate:
    """Time and cost of a plan, phase by phase.

    Args:
      plan: the updates.
      costs: of an update on the cluster's devices.
      cluster: the devices, their hosts and their price.
      images_per_core_s: decoded by each core.
    """
    cores = cluster.num_hosts * cluster.cores_per_host
    seconds, limits = 0.0, []
    prediction = predict(plan, cluster.num_devices, costs)
    for phase in prediction.phases:
        decode_s = phase.phase.batch_size / (cores * images_per_core_s)
        seconds += phase.phase.num_updates * max(decode_s, phase.update.seconds)
        limits.append(limit_of(phase, decode_s))
    dollars = seconds / 3600 * cluster.num_devices * cluster.price
    return Estimate(seconds, tuple(dict.fromkeys(limits)), dollars, prediction.all_reduce_s / seconds)


def limit_of(phase: PhaseTime, decode_s: float) -> str:
    """What an update of a phase takes longest for."""
    update = phase.update
    if decode_s > update.seconds:
        return "input"
    return "all-reduce" if update.all_reduce_s > update.accumulate_s + update.apply_update_s else "compute"


@functools.cache
def counted(settings: TaskConfig, shape: tuple[int, int, int]) -> tuple[float, int]:
    """Operations of an image's loss and gradient, and the bytes that an update sums over the devices."""
    model = build.model(dataclasses.replace(Config(), task=settings), num_classes=1000)
    return step_times.flops_per_example(model, shape), step_times.num_bytes(step_times.model_shapes(model, shape))


def costs_on(cluster: Cluster, config: Config) -> Costs:
    """The assumed costs of an update."""
    flops, num_bytes = counted(config.task, imagenet.image_shape(config))
    example_s = flops / cluster.flops_per_s
    times = StepTimes.affine(clusters.MICROBATCH_S, example_s, clusters.APPLY_UPDATE_S, _LARGEST)
    return Costs(times, cluster.all_reduce, num_bytes, config.task.ghost_batch_size)


def schedules() -> Iterable[tuple[str, Config, Plan]]:
    """The seven schedules: figure and label, recipe, and plan."""
    makers = {
        "Figure 6": (imagenet.FIGURE6, imagenet.decayed_and_grown),
        "Figure 7": (imagenet.FIGURE7, imagenet.raised_momentum),
        "ResNet-50": (imagenet.RESNET50, imagenet.decayed_and_grown),
    }
    for figure, (choices, make) in makers.items():
        preset = choices["imagenet"]
        for label, config in make(preset, preset.config).items():
            yield f"{figure}: {label.lower()}", config, build.recipe(config, preset.dataset_size).plan()


def clusters_from_flags() -> list[Cluster]:
    """The chosen clusters, with the flags in place of what is assumed of them."""
    given = {flag.name: flag.value for flag in (_PRICE, _UTILISATION, _BANDWIDTH) if flag.value is not None}
    names = [check_choice("clusters", name, CLUSTERS) for name in _CLUSTERS.value]
    return [Cluster(**CLUSTERS[name]._asdict() | given) for name in names]


def _check_flags() -> None:
    for flag, most in ((_PRICE, math.inf), (_UTILISATION, 1.0), (_PER_CORE, math.inf), (_BANDWIDTH, math.inf)):
        if flag.value is not None and not (0 < flag.value <= most and math.isfinite(flag.value)):
            raise InvalidArgument(flag.name, flag.value, "positive" if most == math.inf else "in (0, 1]")


class Rates(NamedTuple):
    """Where the limits of a model on a cluster are."""

    computed: float  # images/s of all devices in large batches
    decoded: float  # images/s of all hosts
    cores: float  # of each host, that decode as many images as are computed
    smallest_batch_size: float  # below it, an update's all-reduce takes longer than its operations


def rates(costs: Costs, cluster: Cluster, images_per_core_s: float) -> Rates:
    """Where input and all-reduce would become the limit.

    Args:
      costs: of an update on the cluster's devices.
      cluster: the devices and their hosts.
      images_per_core_s: decoded by each core.
    """
    times, devices = costs.step_times, cluster.num_devices
    largest = max(times.accumulate_s)
    computed = devices * largest / times.accumulate(largest)
    decoded = cluster.num_hosts * cluster.cores_per_host * images_per_core_s
    first, example_s = times.accumulate(1), (times.accumulate(largest) - times.accumulate(1)) / (largest - 1)
    spare_s = costs.all_reduce.seconds(costs.num_bytes, devices) - times.apply_update_s - (first - example_s)
    return Rates(computed, decoded, computed / images_per_core_s / cluster.num_hosts, devices * spare_s / example_s)


def _print_assumptions(chosen: list[Cluster]) -> None:
    head = ["assumed", "devices", "TFLOP/s", "of the peak", "GB/s", "hosts", "cores", "$/device-hour"]
    numbers = [
        (
            one.num_devices,
            one.flops_per_s / 1e12,
            one.utilisation,
            one.bytes_per_s / 1e9,
            one.num_hosts,
            one.cores_per_host,
            one.price,
        )
        for one in chosen
    ]
    rows = [[one.name, *(f"{x:.4g}" for x in row)] for one, row in zip(chosen, numbers, strict=True)]
    figures.print_table([head, *rows])
    print(
        f"cores are of each host; each decodes {_PER_CORE.value:g} images/s. "
        f"A microbatch takes {clusters.MICROBATCH_S:g} s beyond its\noperations and has at most {_LARGEST} images. "
        f"The optimizer takes {clusters.APPLY_UPDATE_S:g} s, a message {clusters.LATENCY_S:g} s.\n"
    )


def _print_limits(chosen: list[Cluster], models: dict[str, Config]) -> None:
    head = ["model", "on", "GFLOP/image", "MB/update", "computed/s", "decoded/s", "cores wanted", "batch wanted"]
    rows = []
    for name, config in models.items():
        flops, num_bytes = counted(config.task, imagenet.image_shape(config))
        for cluster in chosen:
            found = rates(costs_on(cluster, config), cluster, _PER_CORE.value)
            cells = [f"{flops / 1e9:.1f}", f"{num_bytes / 1e6:.0f}", f"{found.computed:,.0f}", f"{found.decoded:,.0f}"]
            batch = f"{max(1, math.ceil(found.smallest_batch_size)):,}"
            rows.append([name, cluster.name, *cells, f"{math.ceil(found.cores)}", batch])
    print()
    figures.print_table([head, *rows])
    print(
        "Images/s. Input is the limit with fewer cores per host, the all-reduce with smaller batches than are wanted."
    )


def main() -> None:
    """Prints the assumptions, the schedules and the limits."""
    _check_flags()
    chosen, models = clusters_from_flags(), {}
    _print_assumptions(chosen)
    rows = [["schedule", "on", "updates", "hours", "images/s", "limit", "all-reduce, %", "dollars"]]
    for label, config, plan in schedules():
        models[config.task.model] = config
        for cluster in chosen:
            found = estimate(plan, costs_on(cluster, config), cluster, _PER_CORE.value)
            speed, share = sum(plan.batch_sizes) / found.seconds, 100 * found.all_reduce_share
            cells = [f"{plan.num_updates:,}", f"{found.seconds / 3600:.2f}", f"{speed:,.0f}", " → ".join(found.limits)]
            rows.append([label, cluster.name, *cells, f"{share:.1f}", f"{found.dollars:,.0f}"])
    figures.print_table(rows)
    _print_limits(chosen, models)
    print("PREDICTED from the assumptions; nothing was measured.")


if __name__ == "__main__":
    cli.run(main, presets={})
