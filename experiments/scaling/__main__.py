"""Time and device-hours of the paper's schedules on up to 1,024 devices, predicted before anything is paid for.

    python -m experiments.scaling --preset=cifar10 --workdir=runs/scaling
    python -m experiments.scaling --preset=cifar10 --dataset=synthetic --measure --workdir=runs/scaling
    python -m experiments.scaling --preset=fashion_mnist --dataset=synthetic --model_depth=3 --validate --repeats=30 \\
        --workdir=runs/scaling

The first assumes the step times of an accelerator, from the flags, and prints this. The second measures them on this
machine's device, and the sum over devices if there are several. The third trains on 1 and on 2 cores, and prints the
error of the prediction. See `bsjax.analysis.time_model` for the model.

Left: the four schedules of Figure 5 of a preset. Right: ImageNet as in Section 5.3 of the paper (N = 1,281,167, 90
epochs, batches from 8,192 to 65,536), with the operations and parameters of ResNet-50. Lines: D devices throughout;
rings: in each phase, as many as speed it up, D at most. Below: the number at which each phase stops speeding up,
which depends on its batch size alone.

Five seconds on a CPU. Under the default assumptions, batches of 128, 640, 3,200 and 5,120 on CIFAR-10 stop speeding up
at 8, 64, 256 and 512 devices; ImageNet's of 8,192 and 65,536 at 2,048 and 16,384. The original schedule hardly gains
beyond 8 devices and is slower beyond 16, because more and more devices share a ghost of 128 examples, and wait for each
other at every batch norm.

--validate on 2 shared cores, a CNN of three layers, 1 to 16 microbatches per update: on one core the prediction errs by
6 % at most; on two by 6 % from step times on two, and by 12 to 21 % from step times on one, because two cores that
work at once slow each other down, which the model leaves out. 70 seconds with 8 repeats.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import optax
from absl import flags

from bsjax import InvalidArgument, Plan, Recipe
from bsjax.analysis.time_model import AllReduce, Costs, best_num_devices, predict
from bsjax.data import load_dataset
from bsjax.engine import StepTimes, max_microbatch_size
from bsjax.run.metrics import write_json
from experiments.harness import build, cli, config_flags, figures, presets, runs, studies
from experiments.harness.studies import Study, write_csv
from experiments.scaling import step_times, validation
from experiments.scaling.picture import BEYOND, Line, draw

_IMAGE_SHAPES = {"digits": (8, 8, 1), "fashion_mnist": (28, 28, 1)}  # others: 32×32×3
_NUM_CLASSES = 10

_COUNTS = flags.DEFINE_list("device_counts", [str(2**power) for power in range(11)], "Numbers of devices.")
_LATENCY = flags.DEFINE_float("latency_s", 1e-5, "All-reduce: seconds per message.")
_BANDWIDTH = flags.DEFINE_float("bytes_per_s", 2.5e10, "All-reduce: bandwidth of a device; 2.5e10 is 200 Gbit/s.")
_FLOPS = flags.DEFINE_float("flops_per_s", 2e13, "Assumed operations per second that a device sustains.")
_MICROBATCH = flags.DEFINE_float("microbatch_s", 1e-3, "Assumed seconds per microbatch in addition to its operations.")
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
_NUM_MICROBATCHES = flags.DEFINE_integer(
    "num_microbatches", 32, "Microbatches of each training that validates, per device.", 1
)


class Workload(NamedTuple):
    """The plans of some schedules, and their costs."""

    name: str
    plans: dict[str, Plan]
    costs: Costs
    origin: str  # of the costs

    @property
    def title(self) -> str:
        return f"{self.name}; step times {self.origin.split()[0].strip(',').lower()}"


def preset_workload(study: Study[presets.Preset]) -> Workload:
    """Figure 5's schedules of a preset."""
    config = study.config
    shape, model = _IMAGE_SHAPES.get(config.data.dataset, (32, 32, 3)), build.model(config, _NUM_CLASSES)
    shapes = step_times.model_shapes(model, shape)
    num_norms = len(jax.tree.leaves(shapes[1])) // 2
    all_reduce = AllReduce(_LATENCY.value, _BANDWIDTH.value)
    largest = _MAX_MICROBATCH.value
    if _MEASURE.value:
        times, all_reduce, origin = _measured(study, all_reduce)
    else:
        flops = step_times.flops_per_example(model, shape)
        largest = largest or max_microbatch_size("accelerator", math.prod(shape))
        times, origin = _assumed(flops, largest)
    costs = Costs(
        times,
        all_reduce,
        num_bytes=step_times.num_bytes(shapes),
        ghost_batch_size=config.task.ghost_batch_size if num_norms else 1,
        num_shared_means=2 * num_norms,  # forward and backward
        microbatch_size=build.fixed_microbatch_size(config),
    )
    size = study.preset.dataset_size
    schedules = presets.section_5_2(study.preset, config)
    name = f"{flags.FLAGS.preset}, {config.task.model}"
    return Workload(name, {label: build.recipe(run, size).plan() for label, run in schedules.items()}, costs, origin)


def imagenet_workload() -> Workload:
    """Section 5.3's recipe and its conversions, at the cost of ResNet-50 on images of 224×224 pixels."""
    decay = optax.piecewise_constant_schedule(3.0, {30: 0.1, 60: 0.1, 80: 0.1})
    recipe = Recipe(decay, batch_size=8192, dataset_size=1_281_167, num_epochs=90, momentum=0.9)
    recipes = {"Decaying learning rate": recipe, "Increasing batch size": recipe.increase_batch_size(65_536)}
    for momentum in (0.95, 0.975):
        recipes[f"Momentum {momentum:g}"] = recipe.scale_momentum(momentum).increase_batch_size(65_536)
    largest = 256  # the activations of such images leave room for this many
    times, origin = _assumed(flops=24e9, largest=largest)
    costs = Costs(
        times,
        AllReduce(_LATENCY.value, _BANDWIDTH.value),
        num_bytes=4 * 25_600_000,
        ghost_batch_size=32,
        num_shared_means=2 * 53,
    )
    return Workload("ImageNet, ResNet-50", {label: one.plan() for label, one in recipes.items()}, costs, origin)


def _assumed(flops: float, largest: int) -> tuple[StepTimes, str]:
    for flag in (_FLOPS, _MICROBATCH):
        if not 0 < flag.value < math.inf:
            raise InvalidArgument(flag.name, flag.value, "positive", flag.default)
    times = StepTimes.affine(_MICROBATCH.value, flops / _FLOPS.value, _APPLY.value, largest)
    origin = (
        f"ASSUMED, not measured: {flops / 1e9:.3g} GFLOP per example at {_FLOPS.value:.3g} FLOP/s and "
        f"{_MICROBATCH.value:.3g} s per microbatch; apply_update {_APPLY.value:.3g} s; the all-reduce ASSUMED too"
    )
    return times, origin


def _measured(study: Study[presets.Preset], all_reduce: AllReduce) -> tuple[StepTimes, AllReduce, str]:
    config, devices = study.config, jax.local_devices()
    dataset = load_dataset(config.data.dataset, study.control.data_dir)
    ghost, shape = config.task.ghost_batch_size, step_times.image_shape_of(dataset)
    largest = max_microbatch_size(devices[0].platform, math.prod(shape))
    default = [max(1, ghost // 16), max(1, ghost // 4), ghost, max(ghost, largest // ghost * ghost)]
    sizes = _whole_numbers("microbatch_sizes", _SIZES.value or default)
    time_updates = step_times.update_timer(config, dataset, sizes, 1, _SECONDS.value)
    times = step_times.step_times([time_updates() for _ in range(_REPEATS.value)])
    origin = f"measured on {devices[0].device_kind}: {times}"
    if len(devices) > 1:
        shapes = step_times.model_shapes(build.model(config, dataset.num_classes), shape)
        time_sums = step_times.all_reduce_timer(shapes, devices, _SECONDS.value)
        all_reduce = step_times.all_reduce([time_sums() for _ in range(_REPEATS.value)])
        origin += f"; the all-reduce between {len(devices)} of them"
    else:
        origin += "; the all-reduce ASSUMED"
    return times, all_reduce, origin


def predict_line(plan: Plan, costs: Costs, counts: Sequence[int]) -> Line:
    """A schedule on each number of devices, in increasing order."""

    def best(choices: Sequence[int]) -> tuple[int, ...]:
        return best_num_devices(plan, choices, costs, _MIN_GAIN.value)

    return Line(
        plan,
        fixed={count: predict(plan, count, costs) for count in counts},
        growing={count: predict(plan, best(counts[: i + 1]), costs) for i, count in enumerate(counts)},
        stops=best([*counts, *(counts[-1] * 2**power for power in range(1, BEYOND + 1))]),
    )


def print_lines(workload: Workload, lines: dict[str, Line], counts: Sequence[int]) -> None:
    """The table: time and device-hours, on some of the numbers of devices."""
    costs = workload.costs
    print(f"\n{workload.name}. Step times {workload.origin}.")
    print(
        f"All-reduce of {costs.num_bytes / 1e6:.3g} MB: {costs.all_reduce.latency_s:.3g} s per message, "
        f"{costs.all_reduce.bytes_per_s:.3g} bytes/s. "
        f"Microbatches of {costs.microbatch_size or max(costs.step_times.accumulate_s)} at most.\n"
        f"A phase stops speeding up where doubling the devices saves less than {_MIN_GAIN.value:.3g} of its time."
    )
    width = max(map(len, lines))
    some = sorted({*counts[::3], counts[-1]})
    print(f"{'schedule':{width}}{'updates':>9}{'devices':>9}{'hours':>11}{'device-hours':>14}{'all-reduce':>12}")
    for label, line in lines.items():
        rows = [(f"{count:,}", line.fixed[count]) for count in some] + [("growing", line.growing[counts[-1]])]
        for devices, prediction in rows:
            share = prediction.all_reduce_s / prediction.wall_time_s
            print(
                f"{label:{width}}{line.plan.num_updates:>9,}{devices:>9}{prediction.wall_time_s / 3600:>11.4g}"
                f"{prediction.device_hours:>14.4g}{share:>12.1%}"
            )
        first = zip(line.plan.phases[:8], line.stops[:8], strict=True)
        phases = [f"batch {phase.batch_size:,} at {line.text(stop)}" for phase, stop in first]
        more = f", {len(line.stops) - 8:,} more" if len(line.stops) > 8 else ""
        print(f"{'':{width}}  stops speeding up: {', '.join(phases)}{more}")


def csv_rows(workload: Workload, lines: dict[str, Line]) -> list[dict[str, Any]]:
    """The points of the picture."""
    seconds = ("wall_time_s", "device_hours", "all_reduce_s")
    return [
        {"workload": workload.name, "schedule": label, "devices": devices, "num_devices": count}
        | {name: getattr(prediction, name) for name in seconds}
        for label, line in lines.items()
        for devices, predictions in (("fixed", line.fixed), ("growing", line.growing))
        for count, prediction in predictions.items()
    ]


def phase_rows(workload: Workload, lines: dict[str, Line]) -> list[dict[str, Any]]:
    """Every phase, on the number of devices at which it stops speeding up."""
    return [
        {
            "workload": workload.name,
            "schedule": label,
            "start_epoch": time.phase.examples_seen / line.plan.dataset_size,
            "batch_size": time.phase.batch_size,
            "updates": time.phase.num_updates,
            "stops_at_devices": time.num_devices,
            "microbatch_size": time.update.microbatch_size,
            "num_microbatches": time.update.num_microbatches,
            "wall_time_s": time.wall_time_s,
        }
        for label, line in lines.items()
        for time in predict(line.plan, line.stops, workload.costs).phases
    ]


def _whole_numbers(name: str, texts: Sequence[Any]) -> list[int]:
    numbers = sorted(set(config_flags.numbers_of(name, texts, int, "1,8,64")))
    if not numbers or numbers[0] < 1:
        raise InvalidArgument(name, ",".join(map(str, texts)), "whole numbers >= 1", 1)
    return numbers


def validate(study: Study[presets.Preset]) -> None:
    """Prints predicted and measured times, and writes them."""
    task = validation.make_task(study.config, study.control.data_dir, _NUM_MICROBATCHES.value, _SECONDS.value)
    studies.make_workdir(study.workdir)
    rows, times, all_reduce = validation.validate(task, _REPEATS.value)
    config = task.config
    print(
        f"{config.task.model} on {config.data.dataset}, microbatches of {config.run.microbatch_size}, the shortest of "
        f"{_REPEATS.value} repeats.\nOne device: {times[1]}.\nTwo: {times[2]}; their sum alone: {all_reduce}."
    )
    figures.print_table([list(rows[0]), *(list(map(str, row.values())) for row in rows)], str.rjust)
    write_csv(study.workdir / "validation.csv", rows)
    write_json(study.workdir / "validation.json", runs.surroundings())


def main() -> None:
    """Predicts, prints the table and draws; or validates."""
    study = studies.study_from_flags()
    counts = _whole_numbers("device_counts", _COUNTS.value)
    if _VALIDATE.value:
        validate(study)
        return
    workloads = [preset_workload(study), imagenet_workload()]
    studies.make_workdir(study.workdir)
    points, phases, pictured = [], [], {}
    for workload in workloads:
        lines = {label: predict_line(plan, workload.costs, counts) for label, plan in workload.plans.items()}
        print_lines(workload, lines, counts)
        points += csv_rows(workload, lines)
        phases += phase_rows(workload, lines)
        pictured[workload.title] = lines
    figures.save(draw(pictured), study.workdir, "scaling", points, phases)


if __name__ == "__main__":
    studies.define_flags(preset="cifar10")
    cli.run(main, caches=True)
