"""What a claim is, the verdicts, and how one is reported."""

import dataclasses
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bsjax.analysis.statistics import Comparison, Interval
from experiments.effects.study import Study
from experiments.harness import figures

HOLDS, HOLDS_WHEN, FAILS, UNDECIDED = "holds", "holds when", "does not hold", "undecided"


class Findings(NamedTuple):
    """What a claim's measurement gives."""

    cases: Mapping[str, bool | None]  # is the claim true under each condition? None: undecided with so few seeds
    lines: Sequence[Sequence[str]]  # the table that is printed, with its head
    table: Sequence[Mapping[str, Any]]  # the same for a CSV file
    points: Sequence[Mapping[str, Any]]  # what the picture shows
    figure: Any
    notes: Sequence[str] = ()  # printed below the table


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim as people state it, and how it is checked.

    Attributes:
      name: of the flag's value and of the files.
      question: that somebody asks.
      claim: as people state it.
      prediction: of theory, made before the measurement.
      measurement: what is measured, and what the intervals are of.
      margin: the difference that does not matter, named before the runs.
      settings: a frozen dataclass for each preset that suits the claim, and for "quick".
      measure: does it.
    """

    name: str
    question: str
    claim: str
    prediction: str
    measurement: str
    margin: str
    settings: Mapping[str, Any]
    measure: Callable[[Study, Any], Findings]

    def settings_of(self, study: Study) -> Any:
        """The settings of a study."""
        return self.settings["quick" if study.quick else study.preset]


class Verdict(NamedTuple):
    """The answer to a claim's question."""

    verdict: str  # HOLDS, HOLDS_WHEN, FAILS or UNDECIDED
    detail: str

    def __str__(self) -> str:
        return f"{self.verdict}: {self.detail}" if self.detail else self.verdict


def verdict_of(cases: Mapping[str, bool | None]) -> Verdict:
    """One verdict of all conditions.

    >>> print(verdict_of({"SGD": True, "Adam": False, "momentum": None}))
    holds when: SGD; not: Adam; undecided: momentum
    >>> print(verdict_of({"SGD": True, "Adam": True}), "|", verdict_of({"SGD": False, "Adam": None}))
    holds | undecided: Adam; not: SGD
    >>> print(verdict_of({"SGD": False}))
    does not hold
    """
    true, false, open_ = ([name for name, value in cases.items() if value is one] for one in (True, False, None))
    parts = {"": true, "not: ": false, "undecided: ": open_}
    if true and not (false or open_):
        return Verdict(HOLDS, "")
    if false and not (true or open_):
        return Verdict(FAILS, "")
    if not true:
        open_first = ", ".join(open_) + ("; not: " + ", ".join(false) if false else "")
        return Verdict(UNDECIDED, open_first)
    return Verdict(HOLDS_WHEN, "; ".join(label + ", ".join(names) for label, names in parts.items() if names))


def report(claim: Claim, study: Study) -> Verdict:
    """Measures a claim, prints its table and verdict, and writes its files."""
    print(f"\n== {claim.name}: {claim.question}", flush=True)
    settings = claim.settings_of(study)
    findings = claim.measure(study, settings)
    verdict = verdict_of(findings.cases)
    said = {"claim": claim.claim, "prediction": claim.prediction, "measurement": claim.measurement}
    said |= {"margin": claim.margin}
    for name, text in said.items():
        print(textwrap.fill(f"{name.capitalize()}: {text}", 118, subsequent_indent="  "))
    print()
    figures.print_table(findings.lines)
    for note in findings.notes:
        print(textwrap.fill(note, 118))
    print(textwrap.fill(f"Verdict: {verdict}", 118, subsequent_indent="  "))
    about: dict[str, Any] = {"question": claim.question, **said, "verdict": verdict.verdict, "detail": verdict.detail}
    about |= {"cases": dict(findings.cases), "preset": study.preset, "quick": study.quick, "seeds": len(study.seeds)}
    about["settings"] = dataclasses.asdict(settings)
    figures.save(findings.figure, study.workdir, claim.name, _rows(findings.points), _rows(findings.table), **about)
    return verdict


def is_worse(comparison: Comparison) -> bool | None:
    """Whether a comparison shows a loss: a difference below 0, and not an equal one; None if it is undecided."""
    return None if comparison.verdict == "undecided" else comparison.verdict == "different" and comparison[0].high < 0


def is_more(comparison: Comparison) -> bool | None:
    """Whether a comparison shows a gain: a difference above 0, and not an equal one; None if it is undecided."""
    return None if comparison.verdict == "undecided" else comparison.verdict == "different" and comparison[0].low > 0


def is_equal(comparison: Comparison) -> bool | None:
    """Whether a comparison shows no difference that matters; None if it is undecided."""
    return None if comparison.verdict == "undecided" else comparison.verdict == "equal"


def is_inside(interval: Interval, low: float, high: float) -> bool | None:
    """Whether an interval lies within bounds; False if it lies outside, None if it lies across one.

    >>> [is_inside(Interval(0.0, -1.0, end), -2.0, 2.0) for end in (1.0, 3.0)], is_inside(Interval(5, 4, 6), -2.0, 2.0)
    ([True, None], False)
    """
    if low < interval.low and interval.high < high:
        return True
    return False if interval.low > high or interval.high < low else None


def text(interval: Interval, digits: int = 2, factor: float = 1.0) -> str:
    """An interval as people read it.

    >>> (
    ...     text(Interval(0.5, 0.4, 0.6), 1, factor=100),
    ...     text(Interval(0.5, -math.inf, math.inf)),
    ...     text(Interval(*[math.nan] * 3)),
    ... )
    ('50.0 [40.0, 60.0]', '0.50', '-')
    """
    if math.isnan(interval.estimate):
        return "-"
    estimate, low, high = (f"{factor * x:,.{digits}f}" for x in interval)
    return f"{estimate} [{low}, {high}]" if np.isfinite(interval[1:]).all() else estimate


def exp(interval: Interval) -> Interval:
    """The interval of a geometric mean, or of a ratio, from that of logarithms.

    >>> exp(Interval(0.0, -math.inf, 1e4))
    Interval(estimate=1.0, low=0.0, high=inf)
    """
    with np.errstate(over="ignore"):
        return Interval(*np.exp(interval).tolist())


def columns(name: str, interval: Interval) -> dict[str, float]:
    """An interval as columns of a CSV file."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), map(float, interval), strict=True))


def _rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [dict(row) for row in rows]
