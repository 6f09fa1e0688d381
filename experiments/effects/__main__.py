"""What the batch size does: each claim that people make about it, measured.

    python -m experiments.effects --claim=variance --seeds=5 --workdir=runs/effects
    python -m experiments.effects --claim=all --seeds=5 --workdir=runs/effects

Every claim has a file beside this one, with the question, the claim as people state it, the prediction of theory, what
is measured, and a margin that was named before the runs. It prints a table and a verdict, and writes a picture (PNG,
SVG), its numbers (CSV) and how it was made (JSON) into the workdir. Claims share trainings, and complete ones are not
repeated. --preset=cifar10 is the version for an accelerator, and ResNet-18 has presets of its own. docs/batch_size.md
has the answers.
"""

import textwrap

from absl import flags

from bsjax.errors import InvalidArgument, check_choice
from experiments.effects import (
    autoencoders,
    contrastive,
    distance,
    early_stopping,
    extremes,
    generalisation,
    ghosts,
    imbalance,
    memory,
    momentum,
    powers_of_two,
    resnet18,
    rules,
    sharpness,
    variance,
)
from experiments.effects.claim import Claim, report
from experiments.effects.study import BASES, define_flags, jobs_from_flags, study_from_flags
from experiments.harness import cli, pool, studies

_MODULES = (
    variance,
    generalisation,
    early_stopping,
    sharpness,
    distance,
    rules,
    momentum,
    extremes,
    ghosts,
    powers_of_two,
    memory,
    imbalance,
    autoencoders,
    resnet18,
    contrastive,
)
CLAIMS: dict[str, Claim] = {module.CLAIM.name: module.CLAIM for module in _MODULES}


def main() -> None:
    """Checks one claim, or all of them."""
    chosen = _chosen(flags.FLAGS.claim, "quick" if flags.FLAGS.quick else flags.FLAGS.preset)
    jobs = jobs_from_flags()
    with pool.side_by_side(jobs) as side_by_side:
        study = study_from_flags(side_by_side, jobs)
        verdicts = {claim.name: report(claim, study) for claim in chosen}
    if len(chosen) > 1:
        print()
        for one, verdict in verdicts.items():
            print(textwrap.fill(f"{one}: {verdict}", 118, subsequent_indent="  "))
        rows = [{"claim": one, **verdict._asdict()} for one, verdict in verdicts.items()]
        studies.write_csv(study.workdir / "verdicts.csv", rows)


def _chosen(name: str, preset: str) -> list[Claim]:
    """The claim of that name, or all that have settings for a preset."""
    check_choice("claim", name, [*CLAIMS, "all"])
    if preset != "quick":
        check_choice("preset", preset, BASES)
    if name == "all":
        return [claim for claim in CLAIMS.values() if preset in claim.settings]
    presets = [preset for preset in BASES if preset in CLAIMS[name].settings]
    if preset not in CLAIMS[name].settings:
        raise InvalidArgument("preset", preset, f"one of {', '.join(presets)} with --claim={name}", presets[0])
    return [CLAIMS[name]]


if __name__ == "__main__":
    define_flags(CLAIMS)
    cli.run(main, caches=True, presets=BASES)
