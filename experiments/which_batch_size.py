"""Which batch size should I use? It times steps on this machine, makes a short run, and answers in words and a picture.

    python -m experiments.which_batch_size --preset=digits --workdir=runs/which_batch_size
    python -m experiments.which_batch_size --preset=cifar10 --run_share=0.01 --workdir=runs/which_batch_size

The answer: the fastest microbatch, up to what the memory holds; the smallest batch that uses 1, 8 and 64 devices; the
gradient noise scale along the first 5 % of the recipe, and the critical batch size that it predicts, now and later; a
recipe of the same noise to start from, with its updates and its predicted time; and what is uncertain. Times of steps
are kept in the cache folder, so the second call takes them from there: measure on a machine that does nothing else.

Left: throughput against the batch size; dots, the smallest batch at 90 % of full speed. Middle: B_simple with 95 %
intervals, the critical batch size so far (line and band), and the extrapolation to the end of the recipe (dashes).
Right: the recipe and the suggested one.

It takes a recipe of a preset and of the flags of experiments.train. For a task of your own, call
`bsjax.analysis.batch_size_advice.advise_batch_size`, as docs/which_batch_size.md shows.
`experiments.which_batch_size_check` compares the answer with sweeps of the batch size.
"""

import dataclasses
import math
import pathlib
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from absl import flags

from bsjax.analysis import advice_in_words
from bsjax.analysis.batch_size_advice import Advice, AdviceOptions, advise_batch_size
from bsjax.analysis.time_model import AllReduce, smallest_batch_size, throughput
from bsjax.errors import InvalidArgument
from bsjax.plan import Plan
from bsjax.run import identity
from experiments.harness import build, cli, config_flags, figures, language_models, studies
from experiments.harness.config import CONCERNS, Config

_NAME = "which_batch_size"
_DEFAULTS = AdviceOptions()

# What the advice answers, or a short run without evaluation does not use.
_VARIED = (
    *("schedule", "scale_learning_rate", "scale_momentum", "max_batch_size", "batch_growth", "scale_adam"),
    *("batch_warmup_epochs", "batch_warmup_factors", "microbatch_size", "measure_noise"),
    *("eval_every_epochs", "log_every_epochs", "noise_half_life_epochs"),
    *(one.name for one in dataclasses.fields(CONCERNS["controller"])),
)


def define_flags() -> None:
    """Defines --preset, --workdir, what is assumed and measured, and the recipe's flags."""
    presets = ", ".join(language_models.ALL)
    flags.DEFINE_string("preset", "digits", f"Defaults of the others. One of {presets}.")
    flags.DEFINE_string("workdir", None, "Folder for the picture and the numbers.", required=True)
    flags.DEFINE_string("data_dir", None, "Folder of prepared data sets; default, see scripts/prepare_data.py.")
    flags.DEFINE_float("run_share", _DEFAULTS.run_share, "Length of the short run, as a share of the recipe.")
    flags.DEFINE_integer("num_batches", _DEFAULTS.num_batches, "Batches that measure the noise at each moment.")
    flags.DEFINE_float(
        "excess", _DEFAULTS.excess, "Share of examples, beyond the fewest, that the first batch may cost."
    )
    flags.DEFINE_list("device_counts", [str(count) for count in _DEFAULTS.device_counts], "Numbers of devices.")
    flags.DEFINE_float("latency_s", 1e-5, "All-reduce: seconds per message, assumed.")
    flags.DEFINE_float("bytes_per_s", 2.5e10, "All-reduce: bandwidth of a device; 2.5e10 is 200 Gbit/s.")
    config_flags.define_flags(except_for=_VARIED)


def main() -> None:
    """Measures, prints the answer and draws the picture. Nothing is written if a flag is wrong."""
    values = flags.FLAGS
    workload = language_models.get(values.preset)
    config = with_adams_rule(config_flags.config_from_flags(workload.config))
    config.replace(schedule="increase_batch_size")  # refuses an optimizer without a rule for other batch sizes
    options = options_from_flags(config)
    workdir = pathlib.Path(values.workdir).expanduser()
    identity.is_claimed(workdir, "study")
    if config.data == workload.config.data:  # its size is known before it is read
        build.recipe(config, workload.dataset_size)
    dataset = build.dataset(config, values.data_dir)
    recipe, task = build.recipe(config, len(dataset.train)), build.task(config, dataset)
    with build.argument_is_flag(build.unit_of(config), group_size="ghost_batch_size"):
        advice = advise_batch_size(task, build.optimizer(config), dataset.train, recipe, options, config.run.seed)
    print(advice_in_words.text(advice))
    studies.make_workdir(workdir)
    speeds = [{"microbatch_size": size, "examples_per_s": speed} for size, speed in advice.examples_per_s.items()]
    studies.write_csv(workdir / f"{_NAME}_microbatches.csv", speeds)
    figures.save(draw(advice), workdir, _NAME, noise_rows(advice), time_rows(advice), answer=answer(advice))


def options_from_flags(config: Config) -> AdviceOptions:
    """What the command line assumes."""
    values = flags.FLAGS
    counts = config_flags.numbers_of("device_counts", values.device_counts, int, "1,8,64")
    if not counts or min(counts) < 1:
        raise InvalidArgument("device_counts", ",".join(values.device_counts), "whole numbers >= 1", "1,8,64")
    with build.argument_is_flag(growth_share="batch_share", scaling="batch_scaling"):
        return AdviceOptions(
            values.run_share,
            values.num_batches,
            values.excess,
            config.conversion.batch_scaling,
            config.conversion.batch_share,
            tuple(sorted(set(counts))),
            AllReduce(values.latency_s, values.bytes_per_s),
        )


def with_adams_rule(config: Config) -> Config:
    """With Adam, the square-root rule and half of the decay as growth, unless a flag says otherwise."""
    values = flags.FLAGS
    if config.optimizer.optimizer not in ("adam", "adamw") or values["batch_scaling"].present:
        return config
    share = config.conversion.batch_share if values["batch_share"].present else 0.5
    return config.replace(batch_scaling="sqrt", batch_share=share)


def answer(advice: Advice) -> dict[str, Any]:
    """The numbers of the answer, as JSON; None where one could not be measured."""
    first, costs = advice.suggested.plan()[0], advice.costs
    intervals = {"critical_batch_size": advice.critical_batch_size, "later_noise_scale": advice.later_noise_scale}
    return {
        "microbatch_size": advice.microbatch_size,
        "smallest_batch_size": {count: smallest_batch_size(costs, count) for count in advice.options.device_counts},
        **{name: [x if math.isfinite(x) else None for x in interval] for name, interval in intervals.items()},
        "batch_size": first.batch_size,
        "learning_rate": first.learning_rate,
        "num_updates": advice.suggested.plan().num_updates,
        "uncertain": advice_in_words.uncertainties(advice),
    }


def noise_rows(advice: Advice) -> list[dict[str, Any]]:
    """The noise scale at each moment of the short run."""
    noise = advice.noise
    moments = zip(noise.updates.tolist(), noise.examples_seen.tolist(), noise.noise_scales(), strict=True)
    return [
        {"update": update, "examples_seen": seen, "noise_scale": scale.value, "low": scale.low, "high": scale.high}
        for update, seen, scale in moments
    ]


def time_rows(advice: Advice) -> list[dict[str, Any]]:
    """The predicted times of the recipe and of the suggested one."""
    return [
        {
            "recipe": name,
            "num_devices": count,
            "updates": sum(phase.phase.num_updates for phase in prediction.phases),
            "wall_time_s": prediction.wall_time_s,
            "all_reduce_s": prediction.all_reduce_s,
        }
        for count in advice.options.device_counts
        for name, prediction in zip(("own", "suggested"), advice.times(count), strict=True)
    ]


def draw(advice: Advice) -> Any:
    """The picture."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3.8), layout="constrained")
    _draw_throughput(left, advice)
    _draw_noise(middle, advice)
    plans = {"the recipe": advice.recipe.plan(), "suggested": advice.suggested.plan()}
    for i, (label, plan) in enumerate(plans.items()):
        _draw_plan(right, plan, label, figures.line_style(i))
    right.set(xlabel="Epochs", ylabel="Batch size", yscale="log")
    figures.plain_ticks(right.yaxis)
    for axes in (left, middle, right):
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.25), fontsize=7)
    return figure


def _draw_throughput(axes: Any, advice: Advice) -> None:
    costs, counts = advice.costs, advice.options.device_counts
    smallest = {count: smallest_batch_size(costs, count) for count in counts}
    for i, count in enumerate(counts):
        found = throughput(costs, count)
        sizes = [size for size in found if size <= 8 * max(smallest.values())]
        look = {"color": figures.COLORS[i % len(figures.COLORS)], "linewidth": 1.4}
        label = "1 device" if count == 1 else f"{count:,} devices"
        axes.plot(sizes, [found[size] for size in sizes], **look, label=label)
        axes.plot(smallest[count], found[smallest[count]], "o", color=look["color"], markersize=5)
    axes.set(xlabel="Batch size", ylabel="Examples per second", xscale="log", yscale="log")


def _draw_noise(axes: Any, advice: Advice) -> None:
    noise, critical, later = advice.noise, advice.critical_batch_size, advice.later_noise_scale
    seen, end = noise.examples_seen, advice.recipe.num_examples
    blue, red = figures.COLORS[:2]
    values = np.array(noise.noise_scales())
    known = np.isfinite(values[:, 0])
    x, (middle, low, high) = seen[known], values[known].T
    bars = [middle - low, np.where(np.isfinite(high), high - middle, 0.0)]
    axes.errorbar(x, middle, bars, color=blue, marker="o", markersize=4, capsize=2, label="$B_{simple}$")
    if math.isfinite(later.value) and end > seen[-1]:
        last = noise.extrapolated(int(seen[-1])).value
        axes.plot([seen[-1], end], [last, later.value], "--", color=blue, linewidth=1, label="extrapolated")
    if math.isfinite(critical.value):
        axes.axhline(critical.value, color=red, linewidth=1, label="critical batch size so far")
        if math.isfinite(critical.high):
            axes.axhspan(critical.low, critical.high, color=red, alpha=0.12, linewidth=0)
    axes.axhline(advice.suggested.plan()[0].batch_size, color="grey", linestyle=":", label="suggested first batch")
    axes.set(xlabel="Examples seen", ylabel="Batch size", xscale="log", yscale="log")
    figures.plain_ticks(axes.yaxis)


def _draw_plan(axes: Any, plan: Plan, label: str, look: dict[str, Any]) -> None:
    starts = [phase.examples_seen / plan.dataset_size for phase in plan.phases]
    sizes, end = [phase.batch_size for phase in plan.phases], plan.num_examples / plan.dataset_size
    axes.stairs(sizes, [*starts, end], baseline=None, **look, label=f"{label}: {plan.num_updates:,} updates")


if __name__ == "__main__":
    define_flags()
    cli.run(main, caches=True, presets=language_models.ALL)
