"""Time and device-hours of the paper's schedules on up to 1,024 devices, predicted before anything is paid for.

    python -m experiments.scaling --preset=cifar10 --workdir=runs/scaling
    python -m experiments.scaling --preset=cifar10 --dataset=synthetic --measure --workdir=runs/scaling
    python -m experiments.scaling --preset=cifar10_small --dataset=synthetic --validate --repeats=30 \\
        --workdir=runs/scaling

The first takes the step times of an accelerator from the flags: assumptions, which the output says. The second measures
them on this machine's device; the sum over devices too, if there are several. The third trains for real on 1 and on 2
cores, and says by how much the prediction errs. See `bsjax.scaling` for the model.

Left: the four schedules of Figure 5 of a preset. Right: ImageNet as in Section 5.3 of the paper (N = 1,281,167, 90
epochs, batches from 8,192 to 65,536), with the operations and parameters of ResNet-50. Lines: D devices throughout;
rings: as many in each phase as still speed it up, D at most. Below: how many those would be.

Five seconds on a CPU. Under the default assumptions, batches of 128, 640, 3,200 and 5,120 on CIFAR-10 stop speeding up
at 8, 64, 256 and 512 devices; ImageNet's of 8,192 and 65,536 at 2,048 and 16,384. The original schedule hardly gains
beyond 8 devices, and loses beyond 16: ever more of them share a ghost of 128 examples, and wait for each other at every
batch norm.

--validate on 2 shared cores, a CNN of three layers, 1 to 16 microbatches per update: on one core the prediction errs by
2 % at most; on two by 2 % from step times on two, and by 11 to 13 % from step times on one, because two cores that work
at once slow each other down, which the model does not know. 4 minutes.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from absl import flags
from matplotlib.ticker import NullFormatter

from bsjax import InvalidArgument, Plan, Recipe
from bsjax.data import load_dataset
from bsjax.engine import max_microbatch_size
from bsjax.metrics import write_json
from bsjax.scaling import AllReduce, Costs, Prediction, StepTimes, best_num_devices, predict
from experiments import cli, figures, presets, runs, scaling_validation, step_times, studies
from experiments.studies import Study, write_csv

_IMAGE_SHAPES = {"digits": (8, 8, 1), "fashion_mnist": (28, 28, 1)}  # others: 32×32×3
_NUM_CLASSES = 10
_BEYOND = 6  # doublings of the largest number of devices among which a phase may stop speeding up

_COUNTS = flags.DEFINE_list("device_counts", [str(2**power) for power in range(11)], "Numbers of devices.")
_LATENCY = flags.DEFINE_float("latency_s", 1e-5, "All-reduce: seconds per message.")
_BANDWIDTH = flags.DEFINE_float("bytes_per_s", 2.5e10, "All-reduce: bandwidth of a device; 2.5e10 is 200 Gbit/s.")
_FLOPS = flags.DEFINE_float("flops_per_s", 2e13, "Assumed operations per second that a device sustains.")
_MICROBATCH = flags.DEFINE_float("microbatch_s", 1e-3, "Assumed seconds per microbatch beside its operations.")
_APPLY = flags.DEFINE_float("apply_update_s", 3e-4, "Assumed seconds of apply_update without the all-reduce.")
_MAX_MICROBATCH = flags.DEFINE_integer("max_microbatch_size", None, "Largest per device; default, the engine's.")
_MIN_GAIN = flags.DEFINE_float("min_gain", 0.1, "Devices speed up if doubling them saves this share of the time.")
_MEASURE = flags.DEFINE_bool("measure", False, "Measure the preset's step times on this machine's device.")
_SIZES = flags.DEFINE_list(
    "microbatch_sizes", None, "Those to measure; default, 1/16, 1/4 and 1 ghost, and the largest."
)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Measurements of everything; the shortest counts.", 1)
_SECONDS = flags.DEFINE_float("measure_s", 0.3, "Length of each measurement of a step time.", 0.0)
_VALIDATE = flags.DEFINE_bool("validate", False, "Only compare predictions with real trainings on 1 and 2 cores.")
_NUM_MICROBATCHES = flags.DEFINE_integer("num_microbatches", 32, "Of each training that validates, per device.", 1)


class Workload(NamedTuple):
    """What is trained, and what it costs."""

    name: str
    plans: dict[str, Plan]
    costs: Costs
    origin: str  # of the costs

    @property
    def title(self) -> str:
        return f"{self.name}; step times {self.origin.split()[0].strip(',').lower()}"


class Line(NamedTuple):
    """A schedule on every number of devices."""

    plan: Plan
    fixed: dict[int, Prediction]  # on so many throughout
    growing: dict[int, Prediction]  # on as many as still speed up a phase, and so many at most
    stops: tuple[int, ...]  # the number of devices at which each phase stops speeding up; may be beyond the others


def preset_workload(study: Study) -> Workload:
    """Figure 5's schedules of a preset."""
    config = study.config
    shape = _IMAGE_SHAPES.get(config.dataset, (32, 32, 3))
    model = step_times.model_shapes(config, shape, _NUM_CLASSES)
    num_norms = len(jax.tree.leaves(model.get("batch_stats", {}))) // 2
    all_reduce = AllReduce(_LATENCY.value, _BANDWIDTH.value)
    largest = _MAX_MICROBATCH.value
    if _MEASURE.value:
        times, all_reduce, origin = _measured(study, all_reduce)
        largest = largest or max_microbatch_size(jax.devices()[0].platform, shape[:2])
    else:
        flops = step_times.flops_per_example(config, shape, _NUM_CLASSES)
        largest = largest or max_microbatch_size("accelerator", shape[:2])
        times, origin = _assumed(flops, largest)
    costs = Costs(
        times,
        all_reduce,
        num_bytes=step_times.num_bytes(model),
        ghost_batch_size=config.ghost_batch_size if num_norms else 1,
        num_shared_means=2 * num_norms,  # forward and backward
        max_microbatch_size=largest,
        microbatch_size=config.microbatch_size,
    )
    size = study.preset.dataset_size
    schedules = presets.section_5_2(study.preset, config)
    name = f"{flags.FLAGS.preset}, {config.model}"
    return Workload(name, {label: run.recipe(size).plan() for label, run in schedules.items()}, costs, origin)


def imagenet_workload() -> Workload:
    """Section 5.3's recipe and its conversions, at the cost of ResNet-50 on images of 224×224 pixels."""
    decay = optax.piecewise_constant_schedule(3.0, {30: 0.1, 60: 0.1, 80: 0.1})
    recipe = Recipe(decay, batch_size=8192, dataset_size=1_281_167, num_epochs=90, momentum=0.9)
    recipes = {"Decaying learning rate": recipe, "Increasing batch size": recipe.increase_batch_size(65_536)}
    for momentum in (0.95, 0.975):
        recipes[f"Momentum {momentum:g}"] = recipe.scale_momentum(momentum).increase_batch_size(65_536)
    largest = 256  # what the activations of such images leave room for
    times, origin = _assumed(flops=24e9, largest=largest)
    costs = Costs(
        times,
        AllReduce(_LATENCY.value, _BANDWIDTH.value),
        num_bytes=4 * 25_600_000,
        ghost_batch_size=32,
        num_shared_means=2 * 53,
        max_microbatch_size=largest,
    )
    return Workload("ImageNet, ResNet-50", {label: one.plan() for label, one in recipes.items()}, costs, origin)


def _assumed(flops: float, largest: int) -> tuple[StepTimes, str]:
    for flag in (_FLOPS, _MICROBATCH):
        if not 0 < flag.value < math.inf:
            raise InvalidArgument(flag.name, flag.value, "positive", flag.default)
    times = StepTimes.affine(_MICROBATCH.value, flops / _FLOPS.value, _APPLY.value, largest)
    origin = (
        f"ASSUMED, not measured: {flops / 1e9:.3g} GFLOP per example at {_FLOPS.value:.3g} FLOP/s and "
        f"{_MICROBATCH.value:.3g} s per microbatch; apply_update {_APPLY.value:.3g} s; "
        "the all-reduce ASSUMED too"
    )
    return times, origin


def _measured(study: Study, all_reduce: AllReduce) -> tuple[StepTimes, AllReduce, str]:
    config, devices = study.config, jax.local_devices()
    dataset = load_dataset(config.dataset, study.control.data_dir)
    ghost = config.ghost_batch_size
    largest = max_microbatch_size(devices[0].platform, dataset.train.images.shape[1:3])
    default = [max(1, ghost // 16), max(1, ghost // 4), ghost, max(ghost, largest // ghost * ghost)]
    sizes = _whole_numbers("microbatch_sizes", _SIZES.value or default)
    timer = step_times.UpdateTimer(config, dataset, sizes, 1, _SECONDS.value)
    times = step_times.step_times([timer.measure() for _ in range(_REPEATS.value)])
    origin = f"measured on {devices[0].device_kind}: {times}"
    if len(devices) > 1:
        shapes = step_times.model_shapes(config, dataset.train.images.shape[1:], dataset.num_classes)
        between = step_times.AllReduceTimer(shapes, devices, _SECONDS.value)
        all_reduce = step_times.all_reduce([between.measure() for _ in range(_REPEATS.value)])
        origin += f"; the all-reduce between {len(devices)} of them"
    else:
        origin += "; the all-reduce ASSUMED"
    return times, all_reduce, origin


def predict_lines(workload: Workload, counts: Sequence[int]) -> dict[str, Line]:
    """Each schedule on each number of devices."""
    lines = {}
    for label, plan in workload.plans.items():

        def best(choices: Sequence[int], plan: Plan = plan) -> tuple[int, ...]:
            return best_num_devices(plan, choices, workload.costs, _MIN_GAIN.value)

        def growing(largest: int, plan: Plan = plan) -> Prediction:
            return predict(plan, best([count for count in counts if count <= largest], plan), workload.costs)

        lines[label] = Line(
            plan,
            fixed={count: predict(plan, count, workload.costs) for count in counts},
            growing={count: growing(count) for count in counts},
            stops=best([*counts, *(counts[-1] * 2**power for power in range(1, _BEYOND + 1))]),
        )
    return lines


def print_lines(workload: Workload, lines: dict[str, Line], counts: Sequence[int]) -> None:
    """The table: time and device-hours, on some of the numbers of devices."""
    costs = workload.costs
    print(f"\n{workload.name}. Step times {workload.origin}.")
    print(
        f"All-reduce of {costs.num_bytes / 1e6:.3g} MB: {costs.all_reduce.latency_s:.3g} s per message, "
        f"{costs.all_reduce.bytes_per_s:.3g} bytes/s. "
        f"Microbatches of {costs.microbatch_size or costs.max_microbatch_size} at most.\n"
        f"A phase stops speeding up where doubling the devices saves less than {_MIN_GAIN.value:.3g} of its time."
    )
    width = max(map(len, lines))
    print(f"{'schedule':{width}}{'updates':>9}{'devices':>9}{'hours':>11}{'device-hours':>14}{'all-reduce':>12}")
    for label, line in lines.items():
        some = sorted({*counts[::3], counts[-1]})
        rows = [(f"{count:,}", line.fixed[count]) for count in some] + [("growing", line.growing[counts[-1]])]
        for devices, prediction in rows:
            share = prediction.all_reduce_s / prediction.wall_time_s
            print(
                f"{label:{width}}{line.plan.num_updates:>9,}{devices:>9}{prediction.wall_time_s / 3600:>11.4g}"
                f"{prediction.device_hours:>14.4g}{share:>12.1%}"
            )
        phases = [
            f"batch {phase.batch_size:,} at {stop:,}"
            for phase, stop in zip(line.plan.phases[:8], line.stops, strict=False)
        ]
        more = f", {len(line.stops) - 8:,} more" if len(line.stops) > 8 else ""
        print(f"{'':{width}}  stops speeding up: {', '.join(phases)}{more}")


def draw(workloads: dict[str, dict[str, Line]]) -> Any:
    """The picture: a column for each workload, by its title."""
    shape = 3, len(workloads)
    figure, panels = plt.subplots(*shape, figsize=(9, 9.5), layout="constrained", squeeze=False)
    for column, (title, lines) in zip(panels.T, workloads.items(), strict=True):
        time, cost, stops = column
        time.set_title(title, fontsize="medium")
        for i, (label, line) in enumerate(lines.items()):
            look = figures.line_style(i)
            ring = {"color": look["color"], "marker": "o", "markersize": 4, "markerfacecolor": "white"}
            for axes, value in ((time, _hours), (cost, _device_hours)):
                axes.plot(list(line.fixed), list(map(value, line.fixed.values())), **look, label=label)
                axes.plot(list(line.growing), list(map(value, line.growing.values())), **ring, linestyle="", zorder=3)
            epochs = [phase.examples_seen / line.plan.dataset_size for phase in line.plan.phases]
            end = line.plan.num_examples / line.plan.dataset_size
            # Beside each other where they coincide.
            stops.stairs(np.array(line.stops) * 1.07**i, [*epochs, end], baseline=None, **look)
        time.plot([], [], **ring | {"color": "grey"}, linestyle="", label="as many as speed up each phase")
        time.set(ylabel="Hours", yscale="log")
        cost.set(ylabel="Device-hours", yscale="log")
        for axes in (time, cost):
            axes.set_xlabel("Devices")
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.yaxis.set_major_formatter("{x:g}")
            low, high = axes.get_ylim()
            axes.set_ylim(top=max(high, 10 * low))  # a decade at least, so that small differences look small
            axes.yaxis.set_minor_formatter("{x:g}" if high <= 10 * low else NullFormatter())
        stops.set(xlabel="Epochs", ylabel="Devices where speeding up stops")
        stops.set_yscale("log", base=2)
        stops.set_ylim(stops.get_ylim()[0] / 2, stops.get_ylim()[1] * 2)
        stops.yaxis.set_major_formatter("{x:,.0f}")
        time.legend(loc="best", fontsize=7.5, handlelength=3.2)
    return figure


def csv_rows(workload: Workload, lines: dict[str, Line]) -> list[dict[str, Any]]:
    """The points of the picture."""
    return [
        {
            "workload": workload.name,
            "schedule": label,
            "devices": devices,
            "num_devices": count,
            "wall_time_s": f"{prediction.wall_time_s:.6g}",
            "device_hours": f"{prediction.device_hours:.6g}",
            "all_reduce_s": f"{prediction.all_reduce_s:.6g}",
        }
        for label, line in lines.items()
        for devices, predictions in (("fixed", line.fixed), ("growing", line.growing))
        for count, prediction in predictions.items()
    ]


def phase_rows(workload: Workload, lines: dict[str, Line]) -> list[dict[str, Any]]:
    """Every phase, on the number of devices at which it stops speeding up."""
    rows = []
    for label, line in lines.items():
        for time in predict(line.plan, line.stops, workload.costs).phases:
            rows.append(
                {
                    "workload": workload.name,
                    "schedule": label,
                    "start_epoch": f"{time.phase.examples_seen / line.plan.dataset_size:.6g}",
                    "batch_size": time.phase.batch_size,
                    "updates": time.phase.num_updates,
                    "stops_at_devices": time.num_devices,
                    "microbatch_size": time.update.microbatch_size,
                    "num_microbatches": time.update.num_microbatches,
                    "wall_time_s": f"{time.wall_time_s:.6g}",
                }
            )
    return rows


def _hours(prediction: Prediction) -> float:
    return prediction.wall_time_s / 3600


def _device_hours(prediction: Prediction) -> float:
    return prediction.device_hours


def _whole_numbers(name: str, texts: Sequence[Any]) -> list[int]:
    try:
        numbers = sorted({int(text) for text in texts})
    except ValueError:
        raise InvalidArgument(name, ",".join(map(str, texts)), "whole numbers separated by commas", "1,8,64") from None
    if not numbers or numbers[0] < 1:
        raise InvalidArgument(name, ",".join(map(str, texts)), "whole numbers >= 1", 1)
    return numbers


def validate(study: Study) -> None:
    """Prints predicted and measured times, and writes them."""
    task = scaling_validation.make_task(study.config, study.control.data_dir, _NUM_MICROBATCHES.value, _SECONDS.value)
    rows, times, all_reduce = scaling_validation.validate(task, _REPEATS.value)
    config = task.config
    print(
        f"{config.model} on {config.dataset}, microbatches of {config.microbatch_size}, the shortest of "
        f"{_REPEATS.value} repeats.\nOne device: {times[1]}.\nTwo: {times[2]}; their sum alone: {all_reduce}."
    )
    widths = {name: max(len(name), *(len(str(row[name])) for row in rows)) for name in rows[0]}
    for row in ({name: name for name in rows[0]}, *rows):
        print("  ".join(str(row[name]).rjust(width) for name, width in widths.items()))
    write_csv(study.workdir / "scaling_validation.csv", rows)
    write_json(study.workdir / "scaling_validation.json", runs.surroundings())


def main() -> None:
    """Predicts, prints the table and draws; or validates."""
    study = studies.study_from_flags()
    if _VALIDATE.value:
        validate(study)
        return
    counts = _whole_numbers("device_counts", _COUNTS.value)
    workloads = [preset_workload(study), imagenet_workload()]
    lines = {workload.name: predict_lines(workload, counts) for workload in workloads}
    for workload in workloads:
        print_lines(workload, lines[workload.name], counts)
    points, phases = (
        [row for workload in workloads for row in rows(workload, lines[workload.name])]
        for rows in (csv_rows, phase_rows)
    )
    picture = draw({workload.title: lines[workload.name] for workload in workloads})
    figures.save(picture, study.workdir, "scaling", points, phases)


if __name__ == "__main__":
    studies.define_flags(preset="cifar10")
    cli.run(main)
