"""What theory predicts of the study, named before the runs, and which predictions held."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bsjax.analysis.statistics import Comparison, compare
from experiments.harness import figures, presets
from experiments.harness.language_studies import FAR, separation
from experiments.harness.runs import Result
from experiments.seesaw.schedules import COSINE, SEESAW, SQRT, Group

# Batches are whole and capped: so far may the share of the updates be from the theory's.
SHARE_MARGIN = 0.03

_WORDS = {True: "held", False: "did not hold", None: "undecided with so few seeds"}


def predictions(
    found: Mapping[Group, Mapping[str, Sequence[Result]]], plans: Sequence[Mapping[str, Any]], margin: float | None
) -> dict[str, bool | None]:
    """Whether each prediction held; None: undecided.

    Args:
      found: the results of each group.
      plans: of `plan_rows`.
      margin: the largest difference of the loss that does not matter; None: only numbers of updates are compared.
    """
    said: dict[str, bool | None] = {}
    first, largest = min(found), max(found)
    for row in plans:
        if row["start"] == first.batch_size and row["schedule"] == SEESAW:
            name = f"Seesaw has {100 * row['theory']:.1f} % fewer updates with the {row['decay']}"
            said[name] = abs(row["fewer"] - row["theory"]) <= SHARE_MARGIN
    for group, results in found.items():
        if presets.CONSTANT in results:
            apart = separation(*(_losses(results[name]) for name in (presets.CONSTANT, COSINE)))
            far = None if math.isnan(apart) else apart >= FAR
            said[f"{group}: no decay is {FAR:g} standard deviations worse"] = far
    if margin is None:
        return said
    for group in found:
        if group.batch_size == first.batch_size:
            said[f"{group}: Seesaw is equal"] = _is("equal", _compare(found[group], SEESAW, COSINE, margin))
    worse = _is_worse(_compare(found[first], SQRT, SEESAW, margin))
    said[f"{first}: the square-root rule with the rate held is worse than Seesaw"] = worse
    if largest.batch_size > first.batch_size:
        said[f"{largest}: Seesaw is worse"] = _is_worse(_compare(found[largest], SEESAW, COSINE, margin))
    return said


def print_predictions(said: Mapping[str, bool | None]) -> None:
    """Prints a line for each."""
    print("\nPredicted before the runs:")
    figures.print_table([[name, _WORDS[value]] for name, value in said.items()])


def _losses(results: Sequence[Result]) -> Any:
    return figures.finals(results, "final_test_loss")


def _compare(results: Mapping[str, Sequence[Result]], name: str, other: str, margin: float) -> Comparison:
    return compare(_losses(results[name]), _losses(results[other]), margin)


def _is(verdict: str, comparison: Comparison) -> bool | None:
    return None if comparison.verdict == "undecided" else comparison.verdict == verdict


def _is_worse(comparison: Comparison) -> bool | None:
    """Whether the loss is larger, and not equal."""
    return _is("different", comparison) and comparison.difference.low > 0
