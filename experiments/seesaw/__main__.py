"""Seesaw: where a cosine divides Adam's learning rate by a, divide it by √a only, and multiply the batch by a.

    python -m experiments.seesaw --search --seeds=3 --workdir=runs/seesaw
    python -m experiments.seesaw --seeds=5 --workdir=runs/seesaw

A column of the picture for each start: a batch well below the critical one, with the half cosine that optax has and
with the paper's quarter cosine, and a batch above it. All schedules see the same tokens, except for the control with as
few updates as Seesaw at the start's batch. Above: the training loss, of the tokens since the point before, against
tokens and against updates. Below: the final test loss minus that of the decay with the same seed, and its 95 %
interval. A held rate is beyond Adam's bound of stability. The other control has no decay: where it is no worse, the
decay does not matter, and nothing is shown. `--search` finds the learning rates at which it is five standard deviations
worse, on seeds that no report uses; `--learning_rates` takes them.

docs/language_models.md derives what theory predicts: 50 % fewer updates after the warm-up with the half cosine and
36.3 % with the quarter cosine, at the same loss below the critical batch size, and at a larger one above it.

Reference: https://arxiv.org/abs/2510.14717.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from absl import flags

from bsjax.errors import InvalidArgument, check_positive, nearest_multiples
from experiments.harness import build, cli, config_flags, figures, studies
from experiments.harness.config import text
from experiments.harness.curves import Curve
from experiments.harness.language_studies import loss_curve, loss_rows
from experiments.harness.runs import Result
from experiments.harness.tables import margin_of
from experiments.seesaw import search
from experiments.seesaw.predictions import predictions, print_predictions
from experiments.seesaw.schedules import NAMES, PRESETS, Group, SeesawPreset, Start, groups, plan_rows

_VARIED = (
    *("optimizer", "momentum", "schedule", "scale_learning_rate", "scale_momentum", "seed"),
    *("batch_size", "learning_rate", "lr_schedule", "lr_decay_epochs", "lr_decay_factor"),
    *("batch_scaling", "batch_share", "batch_warmup_epochs", "batch_warmup_factors"),
)
_GROUP = "Starts"
_NOTE = "Bar: 95 % interval, paired by seed. Stripe: the margin."

Results = dict[str, list[Result]]


def define_flags() -> None:
    """Defines the flags of a study, and those of the starts and of the search."""
    figures.define_flags(preset="shakespeare_cpu", choices=PRESETS, varied=_VARIED)
    sizes = "Batch sizes to start with, in examples, comma-separated; default, the preset's."
    rates = "Their learning rates, comma-separated; default, the preset's, or by the square-root rule."
    tried = "Factors of --learning_rates that --search tries, comma-separated."
    flags.DEFINE_list("batch_sizes", None, sizes, module_name=_GROUP)
    flags.DEFINE_list("learning_rates", None, rates, module_name=_GROUP)
    flags.DEFINE_bool("search", False, "Try learning rates on seeds that no report uses.", module_name=_GROUP)
    flags.DEFINE_list("factors", ["0.25", "0.5", "1", "2"], tried, module_name=_GROUP)


def main() -> None:
    """Trains the missing runs, then draws the picture and prints the tables; or searches learning rates."""
    study = studies.study_from_flags(PRESETS)
    starts, margin = starts_from_flags(study.preset), margin_of(study, "loss")
    dataset_size = len(build.dataset(study.config, study.control.data_dir).train)  # refuses one that is not prepared
    if flags.FLAGS.search:
        factors = config_flags.numbers_of("factors", flags.FLAGS.factors, float, "0.25,0.5,1,2")
        rows = search.search(study, starts, factors)
        search.report(rows, starts, margin)
        studies.write_csv(study.workdir / "seesaw_search.csv", rows)
        return
    configs, compared = groups(study.preset, study.config, starts)
    results = figures.train(study, configs, lambda: compared)
    found: dict[Group, Results] = {}
    for (group, name), ended in results.items():
        found.setdefault(group, {})[name] = ended
    report(study, found, plan_rows(dataset_size, {key: (configs | compared)[key] for key in results}))


def starts_from_flags(preset: SeesawPreset) -> tuple[Start, ...]:
    """The starts that the command line gives; a rate that it leaves out is the preset's, or goes with √size.

    Raises:
      InvalidArgument: they do not increase, are no multiples of 4, or have another number of learning rates.
    """
    sizes, rates = flags.FLAGS.batch_sizes, flags.FLAGS.learning_rates
    known, first = dict(preset.starts), preset.starts[0]
    chosen = tuple(known) if sizes is None else config_flags.numbers_of("batch_sizes", sizes, int, "12,96")
    for size in chosen:
        if size < 1 or size % 4:
            allowed = "a multiple of 4, of which the batch warm-up takes a quarter"
            raise InvalidArgument("batch_sizes", size, allowed, nearest_multiples(size, 4))
    if not chosen or list(chosen) != sorted(set(chosen)):
        increasing = text(tuple(sorted(set(chosen)))) or "12,96"
        raise InvalidArgument("batch_sizes", text(chosen), "sizes in increasing order", increasing)
    if rates is None:
        by_root = {size: float(f"{first.learning_rate * (size / first.batch_size) ** 0.5:.6g}") for size in chosen}
        return tuple(Start(size, (by_root | known)[size]) for size in chosen)
    given = config_flags.numbers_of("learning_rates", rates, float, "0.004,0.008")
    if len(given) != len(chosen):
        raise InvalidArgument("learning_rates", text(given), f"one for each of the {len(chosen)} batch sizes")
    for rate in given:
        check_positive("learning_rates", rate)
    return tuple(map(Start, chosen, given))


def report(study: studies.Study, found: Mapping[Group, Results], plans: Sequence[dict[str, Any]]) -> None:
    """Prints the tables and what was predicted, and writes the picture and the numbers."""
    margin, context = margin_of(study, "loss"), study.config.task.context_length
    curves = {group: {name: loss_curve(one, context) for name, one in its.items()} for group, its in found.items()}
    table, points = [], []
    for group, results in found.items():
        about = {"start": group.batch_size, "decay": NAMES[group.decay]}
        print(f"\n{group}", end="")
        table += figures.print_results(results, study, "loss", **about)
        points += loss_rows(curves[group], **about)
    figures.print_notes(study, table)
    print_plans(plans)
    said = predictions(found, plans, margin)
    print_predictions(said)
    scale = figures.Scale("Training loss (nats)", margin=margin)
    figure = draw(curves, found, scale)
    figures.caption(figure, study, scale, _NOTE)
    studies.write_csv(study.workdir / "seesaw_plans.csv", plans)
    about_runs = {"jobs": figures.jobs_of(study), "predictions": said}
    figures.save(figure, study.workdir, "seesaw", points, table, **about_runs)


def print_plans(rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints how many updates each schedule saves."""
    lines = [["start", "decay", "schedule", "updates", "fewer after the warm-up", "in theory", "largest batch"]]
    for row in rows:
        in_theory = "" if np.isnan(row["theory"]) else f"{100 * row['theory']:.1f} %"
        numbers = [f"{row['updates']:,}", f"{100 * row['fewer']:.1f} %", in_theory, f"{row['largest_batch']:,}"]
        lines.append([f"{row['start']:,}", row["decay"], row["schedule"], *numbers])
    print()
    figures.print_table(lines)


def draw(curves: Mapping[Group, dict[str, Curve]], found: Mapping[Group, Results], scale: figures.Scale) -> Any:
    """The picture: a column for each group."""
    size = 1.5 + 3.2 * len(found), 8.5
    figure, panels = plt.subplots(3, len(found), figsize=size, layout="constrained", squeeze=False)
    for (tokens, updates, ends), (group, results) in zip(panels.T, found.items(), strict=True):
        figures.plot_curves(tokens, curves[group], "epoch", scale)
        figures.plot_curves(updates, curves[group], "update", scale)
        tokens.set(title=str(group), xlabel="Million tokens")
        _zoom((tokens, updates), curves[group])
        final = {name: figures.curve(one, "test_loss") for name, one in results.items()}
        figures.plot_final_differences(ends, final, scale)
        ends.set_xlabel("Final test loss (nats):\ndifference to the decay")
    figures.schedule_legend(figure, panels[0, 0])
    return figure


def _zoom(panels: Sequence[Any], curves: Mapping[str, Curve]) -> None:
    """Limits panels to the losses after a quarter of each training."""
    late = np.concatenate([one.spread()[0][len(one.update) // 4 :] for one in curves.values()])
    if len(late) and np.ptp(late) > 0:
        space = 0.05 * np.ptp(late)
        for panel in panels:
            panel.set_ylim(late.min() - space, late.max() + space)


if __name__ == "__main__":
    define_flags()
    cli.run(main, multihost=True, presets=PRESETS)
