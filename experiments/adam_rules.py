"""Adam with κ times the batch: how must the learning rate follow, and b2, eps and the weight decay?

    python -m experiments.adam_rules --search --seeds=3 --workdir=runs/adam_rules
    python -m experiments.adam_rules --seeds=3 --workdir=runs/adam_rules

A language model trains on the same tokens with κ = 1, 2, 4, 8 and 16 times the batch. Above in the picture, the
learning rate is held, or multiplied by √κ or κ; below, it is multiplied by √κ, and one of Adam's constants follows, or
all do, by `bsjax.ScaleAdam`. Columns: the training loss minus that of κ = 1 with the same seed, against tokens; and, in
the last one, the final test loss minus that of κ = 1, against κ. Bands and bars are 95 % intervals. The tables say what
each rule costs, and which constants matter: the final test loss with a constant that follows minus that without.

A constant that is left as it is means another number of tokens with a larger batch. The controls give it this meaning
at κ = 1, so they tell what the constant does from what the batch does. The learning rate at κ = 1 is the best of
`--search`, on seeds that no report uses; otherwise the rule with the larger rate could win because the rate was small.

References: docs/language_models.md has them, with what they predict.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from absl import flags

import bsjax
from bsjax.analysis.statistics import compare, paired_difference
from bsjax.errors import InvalidArgument
from experiments.harness import build, cli, config_flags, figures, language_models, studies
from experiments.harness.config import Config, text
from experiments.harness.curves import Curve
from experiments.harness.language_studies import loss_curve, loss_rows, try_rates
from experiments.harness.presets import Workload
from experiments.harness.runs import Result
from experiments.harness.tables import margin_of


class Rule(NamedTuple):
    """What follows the batch."""

    exponent: float  # the learning rate goes with this power of κ
    follows: tuple[str, ...] = ()  # of Adam's constants, by optax's names


_CONSTANTS = {"b2": "b2", "eps": "eps", "weight_decay": "weight decay"}  # by optax's names, as people read them
BASE, SQRT = "κ = 1", "rate ∝ √κ"
RATES = {"rate held": Rule(0.0), SQRT: Rule(0.5), "rate ∝ κ": Rule(1.0)}
FOLLOWING = {f"√κ, {said} follows": Rule(0.5, (name,)) for name, said in _CONSTANTS.items()}
FOLLOWING["√κ, all follow"] = Rule(0.5, tuple(_CONSTANTS))
RULES = RATES | FOLLOWING

_VARIED = (
    *("optimizer", "momentum", "schedule", "scale_learning_rate", "scale_momentum", "seed", "max_batch_size"),
    *("batch_growth", "batch_scaling", "batch_share", "batch_warmup_epochs", "batch_warmup_factors", "scale_adam"),
)
_GROUP = "Rules"

# A batch so small that κ = 8 may still be below the critical one; b2 has nanoGPT's half-life in tokens. All runs of the
# first preset shall take an hour on two cores. The margin is 1 % of the loss.
PRESETS = {
    "shakespeare_cpu": Workload(
        language_models.get("shakespeare_cpu").config.replace(
            batch_size=6,
            learning_rate=2e-3,
            b2=0.995,
            **language_models.lengths(15_685, 6, 1248, warmup=128, every=1248),
        ),
        dataset_size=15_685,
        margins={"loss": 0.02},
    ),
    "shakespeare": Workload(
        language_models.get("shakespeare").config.replace(
            batch_size=16,
            learning_rate=1e-3,
            b2=0.9975,
            **language_models.lengths(3_921, 16, 8000, warmup=800, every=8000),
        ),
        dataset_size=3_921,
        margins={"loss": 0.02},
    ),
}


def scaled(config: Config, kappa: int, rule: Rule) -> Config:
    """A config with κ times the batch, and what follows it."""
    rate = _six_digits(config.optimizer.learning_rate * kappa**rule.exponent)
    batch_size = kappa * config.recipe.batch_size
    return config.replace(batch_size=batch_size, learning_rate=rate, **constants(config, kappa, rule))


def constants(config: Config, kappa: float, rule: Rule) -> dict[str, float]:
    """Those of Adam's constants that follow the batch by a rule, as fields of a config.

    >>> config = PRESETS["shakespeare_cpu"].config.replace(b2=0.9, epsilon=1e-8, weight_decay=0.1)
    >>> constants(config, 4, RULES["√κ, all follow"])
    {'b2': 0.6561, 'epsilon': 5e-09, 'weight_decay': 0.2}
    """
    given, chosen = config.optimizer, set(rule.follows)
    if not chosen:
        return {}
    conversion = bsjax.ScaleAdam(
        "half_life" if "b2" in chosen else None, "eps" in chosen, "time_scale" if "weight_decay" in chosen else None
    )
    one = np.ones(1)
    own = bsjax.Hyperparameters(given.learning_rate * one, one, one)
    larger = own._replace(learning_rate=own.learning_rate * kappa**rule.exponent, batch_size=kappa * one)
    before = {"b2": given.b2, "eps": given.epsilon, "weight_decay": given.weight_decay}
    _, after = conversion.complete(own, larger, {name: before[name] * one for name in rule.follows})
    fields = {"eps": "epsilon"}
    return {fields.get(name, name): _six_digits(value.item()) for name, value in after.items()}


def schedules(config: Config, kappas: Sequence[int]) -> dict[tuple[int, str], Config]:
    """The recipe, and each rule at each κ."""
    larger = {(kappa, name): scaled(config, kappa, rule) for kappa in kappas for name, rule in RULES.items()}
    return {(1, BASE): config, **larger}


def controls(config: Config, kappa: int) -> dict[tuple[int, str], Config]:
    """At κ = 1, each constant as it is in tokens where a batch of another κ leaves it behind."""
    found = {}
    for name, said in _CONSTANTS.items():
        label = f"Control: {said} as κ = {kappa} leaves it"
        found[1, label] = config.replace(**constants(config, 1 / kappa, Rule(0.5, (name,))))
    return found


def what_matters(found: Mapping[tuple[int, str], list[Result]], margin: float | None) -> list[dict[str, Any]]:
    """For each κ and constant, the final test loss with the constant following, minus that without, paired by seed."""
    rows = []
    for (kappa, name), results in found.items():
        if name not in FOLLOWING:
            continue
        following, without = (figures.finals(one, "final_test_loss") for one in (results, found[kappa, SQRT]))
        interval = paired_difference(following, without)
        row: dict[str, Any] = {"kappa": kappa, "follows": name.removeprefix("√κ, ").rsplit(" ", 1)[0]}
        row |= dict(zip(("difference", "difference_low", "difference_high"), interval, strict=True))
        verdict = "" if margin is None else compare(following, without, margin).verdict
        rows.append({**row, "verdict": verdict, "margin": "" if margin is None else margin})
    return rows


def main() -> None:
    """Trains the missing runs, then draws the picture and prints the tables; or searches the learning rate."""
    study = studies.study_from_flags(PRESETS)
    kappas = config_flags.numbers_of("kappas", flags.FLAGS.kappas, int, "2,4,8,16")
    if not kappas or list(kappas) != sorted(set(kappas)) or kappas[0] < 2:
        raise InvalidArgument("kappas", text(kappas), "whole numbers of at least 2, in increasing order", "2,4,8,16")
    build.dataset(study.config, study.control.data_dir)  # refuses one that is not prepared
    if flags.FLAGS.search:
        search(study)
        return
    found = figures.train(study, schedules(study.config, kappas), lambda: controls(study.config, kappas[-1]))
    report(study, found, kappas)


def search(study: studies.Study) -> None:
    """Prints the final test loss at κ = 1 for several learning rates, and the best of them."""
    factors = config_flags.numbers_of("factors", flags.FLAGS.factors, float, "0.5,1,2,4")
    losses = try_rates(study, {BASE: study.config}, factors)
    rows = [{"learning_rate": rate, "test_loss": one.mean(), "seeds": len(one)} for (_, rate), one in losses.items()]
    print()
    figures.print_table(
        [["learning rate", "test loss"], *([f"{row['learning_rate']:g}", f"{row['test_loss']:.4f}"] for row in rows)]
    )
    known = [row for row in rows if np.isfinite(row["test_loss"])]
    if known:
        best = min(known, key=lambda row: row["test_loss"])["learning_rate"]
        ends = "; it is an end of the grid" * (best in (rows[0]["learning_rate"], rows[-1]["learning_rate"]))
        print(f"Least loss: --learning_rate={best:g}{ends}")
    studies.write_csv(study.workdir / "adam_rules_search.csv", rows)


def report(study: studies.Study, found: Mapping[tuple[int, str], list[Result]], kappas: Sequence[int]) -> None:
    """Prints the tables, and writes the picture and the numbers."""
    margin, context = margin_of(study, "loss"), study.config.task.context_length
    base = found[1, BASE]
    curves = {key: loss_curve(results, context) for key, results in found.items()}
    table, points = [], []
    for kappa in (1, *kappas):
        names = [name for its, name in found if its == kappa and name != BASE]
        if not names:
            continue
        print(f"\nκ = {kappa}", end="")
        compared = {BASE: base} | {name: found[kappa, name] for name in names}
        table += figures.print_results(compared, study, "loss", kappa=kappa)
        points += loss_rows({BASE: curves[1, BASE], **{name: curves[kappa, name] for name in names}}, kappa=kappa)
    figures.print_notes(study, table)
    matters = what_matters(found, margin)
    print_what_matters(matters, kappas)
    studies.write_csv(study.workdir / "adam_rules_constants.csv", matters)
    scale = figures.Scale("Training loss (nats)", margin=margin)
    figure = draw(found, curves, kappas, scale)
    figures.caption(figure, study, scale, "Bands and bars: 95 % intervals, paired by seed. Stripe: the margin.")
    figures.save(figure, study.workdir, "adam_rules", points, table, jobs=figures.jobs_of(study))


def print_what_matters(rows: Sequence[Mapping[str, Any]], kappas: Sequence[int]) -> None:
    """Prints a row for each constant and a column for each κ."""
    cells = {(row["follows"], row["kappa"]): f"{row['difference']:+.4f} {row['verdict']}".rstrip() for row in rows}
    print("\nFinal test loss if this follows as well, minus that of the learning rate ∝ √κ alone")
    names = dict.fromkeys(row["follows"] for row in rows)
    head = ["follows", *(f"κ = {kappa}" for kappa in kappas)]
    figures.print_table([head, *([name, *(cells[name, kappa] for kappa in kappas)] for name in names)])


def draw(
    found: Mapping[tuple[int, str], list[Result]],
    curves: Mapping[tuple[int, str], Curve],
    kappas: Sequence[int],
    scale: figures.Scale,
) -> Any:
    """The picture: a row for the learning rates and one for the constants, a column for each κ and one for the ends."""
    size = 2.2 * (len(kappas) + 1) + 2.5, 6
    figure, panels = plt.subplots(2, len(kappas) + 1, figsize=size, layout="constrained")
    for row, names in zip(panels, (tuple(RATES), (SQRT, *FOLLOWING)), strict=True):
        for axes, kappa in zip(row, kappas, strict=False):
            its = {name: curves[kappa, name] for name in names}
            figures.plot_differences(axes, {BASE: curves[1, BASE], **its}, scale)
            axes.set(title=f"κ = {kappa}", xlabel="Million tokens", ylabel="")
        row[0].set_ylabel("Training loss (nats):\ndifference to κ = 1")
        ends = {name: {kappa: found[kappa, name] for kappa in kappas} for name in names}
        plot_ends(row[-1], ends, found[1, BASE], scale.margin)
        row[-1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def plot_ends(
    axes: Any, groups: Mapping[str, Mapping[int, list[Result]]], base: list[Result], margin: float | None
) -> None:
    """Draws the difference of the final test loss to κ = 1 against κ, slightly apart so that all bars are seen."""
    at_base = figures.finals(base, "final_test_loss")
    for i, (name, by_kappa) in enumerate(groups.items()):
        ends = [figures.finals(results, "final_test_loss") for results in by_kappa.values()]
        middle, low, high = np.array([paired_difference(one, at_base) for one in ends]).T
        bars = [np.where(np.isfinite(low), middle - low, 0), np.where(np.isfinite(high), high - middle, 0)]
        look = {**figures.style_of(name), "marker": figures.marker_of(name), "markersize": 4, "label": name}
        axes.errorbar(np.array(list(by_kappa)) * 1.05**i, middle, bars, **look, elinewidth=1, capsize=2)
    axes.axhline(0, color="black", linewidth=0.8, zorder=1)
    if margin is not None:
        axes.axhspan(-margin, margin, color="#F0E442", alpha=0.3, linewidth=0, zorder=0)
    axes.set(title="final test loss", xlabel="κ")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")


def _six_digits(value: float) -> float:
    """As files are named after it."""
    return float(f"{value:.6g}")


def define_flags() -> None:
    """Defines the flags of a study, and those of the rules and of the search."""
    figures.define_flags(preset="shakespeare_cpu", choices=PRESETS, varied=_VARIED)
    kappas = "Factors of the batch size, comma-separated."
    tried = "Factors of the learning rate that --search tries, comma-separated."
    flags.DEFINE_list("kappas", ["2", "4", "8", "16"], kappas, module_name=_GROUP)
    flags.DEFINE_bool("search", False, "Try learning rates on seeds that no report uses.", module_name=_GROUP)
    flags.DEFINE_list("factors", ["0.5", "1", "2", "4"], tried, module_name=_GROUP)


if __name__ == "__main__":
    define_flags()
    cli.run(main, multihost=True, presets=PRESETS)
