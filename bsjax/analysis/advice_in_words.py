"""An advice on the batch size in sentences, with what is uncertain about it."""

import math
import textwrap

from bsjax.analysis.batch_size_advice import Advice, decays
from bsjax.analysis.critical_batch import Interval
from bsjax.analysis.time_model import FULL_SPEED, smallest_batch_size, throughput

_WRAPPER = textwrap.TextWrapper(118, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
_START = "Where to start"


def text(advice: Advice) -> str:
    """The whole advice as paragraphs, with the suggested plan as a table."""
    paragraphs = []
    for title, sentences in sections(advice).items():
        filled = [_WRAPPER.fill(one) for one in sentences]
        if title == _START:
            filled.append(textwrap.indent(str(advice.suggested.plan().table(max_rows=8)), "    "))
        paragraphs.append("\n".join([title, *filled]))
    return "\n\n".join(paragraphs)


def sections(advice: Advice) -> dict[str, list[str]]:
    """The sentences, by title."""
    return {
        "The machine": _machine(advice),
        "The gradient noise": _noise(advice),
        _START: _start(advice),
        "Predicted time": _times(advice),
        "What is uncertain": uncertainties(advice),
    }


def uncertainties(advice: Advice) -> list[str]:
    """What the advice does not know."""
    costs, suggested, recipe = advice.costs, advice.suggested.plan()[0], advice.recipe.plan()[0]
    share = advice.noise.examples_seen[-1] / advice.recipe.num_examples
    found = [
        "The noise scale stands in for the critical batch size, which only many trainings can find. In this project's "
        "own sweeps, its average over one training to the target was between half of the critical batch size and 2.3 "
        "times as much, and less in trainings that ended early: see docs/which_batch_size.md.",
        f"The critical batch size is that of the training so far, {_percent(share)} of the recipe. Later it is larger, "
        "above all after each decay of the learning rate. What is said about later is extrapolated.",
        "Intervals are about the measurement in one training. Another seed moves the numbers as well.",
        "The suggested recipe has the recipe's noise at every instant, but nobody has trained it: compare the two.",
    ]
    if suggested.learning_rate > recipe.learning_rate * (1 + 1e-9):
        found.append(
            f"Its learning rate is {suggested.learning_rate / recipe.learning_rate:.3g} times the recipe's. If that "
            "diverges, begin with smaller batches (`warm_up_batch_size`), or start with the recipe's own batch."
        )
    all_reduce = costs.all_reduce
    found.append(
        f"Step times are {advice.timed}. The prediction leaves out compilation, evaluation, checkpoints and late "
        f"input. More devices are assumed to be like this one, and to sum {costs.num_bytes / 1e6:.3g} MB at "
        f"{all_reduce.latency_s:.3g} s per message and {all_reduce.bytes_per_s:.3g} bytes/s. Other machines differ."
    )
    return found


def interval_text(interval: Interval) -> str:
    """An interval of examples as people read it.

    >>> interval_text(Interval(123.4, 56.78, 1234.5)), interval_text(Interval(40.0, 0.0, math.inf))
    ('123 (56.8 to 1,234)', '40 (any interval is unbounded)')
    >>> interval_text(Interval(math.inf, 0.0, math.inf))
    'too large to be measured'
    """
    if not math.isfinite(interval.value):
        return "too large to be measured"
    if math.isnan(interval.low):
        return _number(interval.value)
    if not math.isfinite(interval.high):
        return f"{_number(interval.value)} (any interval is unbounded)"
    return f"{_number(interval.value)} ({_number(interval.low)} to {_number(interval.high)})"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours.

    >>> duration(0.5), duration(600.0), duration(36_000.0)
    ('0.5 s', '10 min', '10 h')
    """
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def _machine(advice: Advice) -> list[str]:
    costs, speeds, size = advice.costs, advice.examples_per_s, advice.microbatch_size
    by_size = ", ".join(f"{microbatch}: {speed:,.0f}" for microbatch, speed in speeds.items())
    smallest = _listed(
        [f"{smallest_batch_size(costs, count):,} on {_devices(count)}" for count in advice.options.device_counts]
    )
    first = advice.times(1)[0].phases[0]
    own = first.phase.batch_size
    share = own / first.update.seconds / max(throughput(costs, 1).values())
    return [
        f"The fastest microbatch has {size} examples per device, {speeds[size]:,.0f} examples/s. By microbatch: "
        f"{by_size} ({advice.timed}).",
        f"The smallest batch at {_percent(FULL_SPEED)} of full speed: {smallest}.",
        f"The recipe's batch of {own} runs at {_percent(share)} of full speed on one device.",
    ]


def _noise(advice: Advice) -> list[str]:
    noise, total = advice.noise, advice.recipe.num_examples
    seen = noise.examples_seen.tolist()
    moments = "; ".join(
        f"{interval_text(scale)} after {at:,} examples" for scale, at in zip(noise.noise_scales(), seen, strict=True)
    )
    lines = [
        f"A short run of the recipe: {len(noise.batch_sizes):,} updates, {seen[-1]:,} examples, "
        f"{_percent(seen[-1] / total)} of its length. Brackets: 95 % intervals.",
        f"Gradient noise scale B_simple, in examples: {moments}.",
        f"Critical batch size so far, in examples: {interval_text(advice.critical_batch_size)}.",
    ]
    if seen[-1] < total:
        lines.append(
            f"Later: B_simple grew like the examples to the power of {noise.growth():.2f}. If it goes on like this, it "
            f"is {interval_text(advice.later_noise_scale)} at the end of the recipe, after {total / seen[-1]:.3g} "
            "times as many examples as were measured."
        )
    return lines


def _start(advice: Advice) -> list[str]:
    first, own, limit = advice.suggested.plan()[0], advice.recipe.plan()[0], _percent(advice.options.excess)
    critical = advice.critical_batch_size.value
    if first.batch_size > own.batch_size:
        start = (
            f"Start with batches of {first.batch_size:,} and learning rate {first.learning_rate:.4g}; the recipe has "
            f"{own.batch_size:,} and {own.learning_rate:.4g}. By the critical batch size so far this costs "
            f"{_percent(first.batch_size / critical)} more examples than the fewest, and up to {limit} were allowed."
        )
    elif not math.isfinite(critical):
        start = f"Start with the recipe's batch of {own.batch_size:,}: the noise is too large for its scale to be seen."
    else:
        why = f"cost more than the {limit} allowed"
        if 2 * own.batch_size <= advice.options.excess * critical:
            why = "take the recipe's largest batch beyond the data set"
        start = (
            f"Start with the recipe's batch of {own.batch_size:,}. By the critical batch size so far it costs "
            f"{_percent(own.batch_size / critical)} more examples than the fewest; twice the batch would {why}."
        )
    grown = "The learning rate never decays, so the batch does not grow."
    if decays(advice.recipe):
        largest = int(advice.suggested.plan().batch_sizes.max())
        grown = f"Where the recipe decays its learning rate, let the batch grow instead, up to {largest:,} examples."
    before, after = advice.recipe.plan().num_updates, advice.suggested.plan().num_updates
    return [start, grown, f"That is {after:,} updates instead of {before:,}, over as many examples:"]


def _times(advice: Advice) -> list[str]:
    lines = []
    for count in advice.options.device_counts:
        before, after = advice.times(count)
        share = after.all_reduce_s / after.wall_time_s
        reduces = f", of which {_percent(share)} are all-reduces" if share else ""
        took = duration(before.wall_time_s)
        lines.append(f"On {_devices(count)}: {duration(after.wall_time_s)}{reduces}; the recipe takes {took}.")
    return lines


def _devices(count: int) -> str:
    return "1 device" if count == 1 else f"{count:,} devices"


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
