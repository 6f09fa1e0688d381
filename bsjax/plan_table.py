"""The table of a plan: a row for each phase."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bsjax.noise import kept_noise, sgd_noise_scale

if TYPE_CHECKING:
    from bsjax.plan import Phase, Plan


def table(plan: "Plan", max_rows: int, more: Mapping[str, Callable[["Phase"], str]]) -> str:
    """What `bsjax.Plan.table` returns."""
    rho, context = float(plan.scaling), plan.tokens_per_example
    noise_header = "noise scale" if rho == 1 else f"lr·(N/B)^{rho:g}/(1-m)"
    units = ("from epoch", "batch size") if context is None else ("from token", "batch in examples", "in tokens")
    rows = [("updates", *units, "learning rate", "momentum", *plan.others, noise_header, *more)]
    rows += [(*_row(plan, phase), *(text_of(phase) for text_of in more.values())) for phase in plan.phases]
    left_out = len(rows) - 1 - max_rows
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    if left_out > 0:
        head = max_rows // 2
        lines[1 + head : 1 + head + left_out] = [f"... {left_out:,} more phases ...".center(len(lines[0])).rstrip()]
    examples = plan.num_examples - plan.start
    tokens = "" if context is None else f" of {context:,} tokens, {examples * context:,} tokens"
    epochs = f"{examples / plan.dataset_size:.2f} epochs"
    return "\n".join([*lines, f"{plan.num_updates:,} updates, {examples:,} examples{tokens}, {epochs}"])


def _row(plan: "Plan", phase: "Phase") -> tuple[str, ...]:
    """A phase: its updates, where it starts and its batch in the table's units, and its hyperparameters' ends."""
    first, last = phase.start_update, phase.start_update + phase.num_updates - 1
    others = [values[[first, last]] for values in plan.others.values()]
    rates, momentums, rho = np.array(phase.learning_rate), np.array(phase.momentum), float(plan.scaling)
    if rho == 1:
        noise = sgd_noise_scale(rates, phase.batch_size, plan.dataset_size, momentums)
    else:
        noise = kept_noise(rates, phase.batch_size, plan.dataset_size, momentums, rho)
    pairs = map(_format_pair, (phase.learning_rate, phase.momentum, *others, noise))
    if (context := plan.tokens_per_example) is None:
        where = f"{phase.examples_seen / plan.dataset_size:.2f}", f"{phase.batch_size:,}"
    else:
        counts = phase.examples_seen * context, phase.batch_size, phase.batch_size * context
        where = tuple(f"{count:,}" for count in counts)  # type: ignore[assignment]
    return f"{phase.num_updates:,}", *where, *pairs


def _format_pair(pair: Sequence[float]) -> str:
    first, last = (f"{value:.4g}" for value in pair)
    return first if first == last else f"{first} -> {last}"
