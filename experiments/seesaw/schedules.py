"""The schedules that the study compares, their plans, and what theory says of them. Nothing here trains."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bsjax.plan import Plan
from experiments.harness import build, language_models, presets
from experiments.harness.config import Config

COSINE, SEESAW, WARM_UP = "Cosine decay", "Seesaw", "Batch warm-up"
LINEAR, SQRT = "Linear rule, rate held", "Square-root rule, rate held"
HALF, QUARTER = "cosine", "quarter_cosine"
NAMES = {HALF: "half cosine", QUARTER: "quarter cosine"}

# The mean over the decay of the p-th power of the learning rate over its peak: a batch that grows as the inverse of
# this power leaves this share of the updates.
_MEANS = {(HALF, 1): 1 / 2, (HALF, 2): 3 / 8, (QUARTER, 1): 2 / math.pi, (QUARTER, 2): 1 / 2}
_POWERS = {SEESAW: 1, LINEAR: 1, SQRT: 2}

# The batch warm-up: a quarter of the batch for 3 % of the tokens, and half of it up to 10 %.
_FACTORS, _ENDS = (0.25, 0.5), (0.03, 0.1)


class Start(NamedTuple):
    """What schedules start with."""

    batch_size: int
    learning_rate: float  # after the warm-up


class Group(NamedTuple):
    """Schedules that are compared with each other: those of a start and a decay."""

    batch_size: int
    decay: str  # HALF or QUARTER

    def __str__(self) -> str:
        return f"{self.batch_size:,} windows, {NAMES[self.decay]}"


Schedules = dict[tuple[Group, str], Config]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeesawPreset(presets.Workload):
    """A language model's recipe with a cap of the batch, and the starts, the smallest batch first."""

    starts: tuple[Start, ...]


# The decays end at 0. All runs of the first preset shall take an hour on two cores. The margin is 1 % of the loss. The
# learning rates lie above nanoGPT's 1e-3, at which the decay hardly matters: `--search` with the seeds 100 to 102 found
# 4e-3 for 12 windows, where the decay gains 0.076 nats, and the same for 48, which costs 0.10 nats on the same tokens.
# 96 windows cost 0.28: so few updates are better off without any decay.
PRESETS = {
    "shakespeare_cpu": SeesawPreset(
        language_models.get("shakespeare_cpu").config.replace(
            lr_end_factor=0.0, max_batch_size=384, **language_models.lengths(15_685, 12, 864, warmup=80, every=864)
        ),
        dataset_size=15_685,
        margins={"loss": 0.02},
        starts=(Start(12, 4e-3), Start(48, 4e-3)),
    ),
    "shakespeare": SeesawPreset(
        language_models.get("shakespeare").config.replace(
            lr_end_factor=0.0, max_batch_size=1024, **language_models.lengths(3_921, 64, 2000, warmup=200, every=2000)
        ),
        dataset_size=3_921,
        margins={"loss": 0.02},
        starts=(Start(64, 2e-3), Start(512, 4e-3)),
    ),
}


def schedules(config: Config) -> dict[str, Config]:
    """The decay, and then what grows the batch on the same tokens.

    Args:
      config: the recipe, with a cap of the batch.
    """
    growing = config.replace(schedule="increase_batch_size", batch_scaling="sqrt")
    ends = tuple(float(f"{share * config.recipe.num_epochs:.6g}") for share in _ENDS)
    return {
        COSINE: config,
        SEESAW: growing.replace(batch_share=0.5),
        LINEAR: growing.replace(batch_scaling="linear"),
        SQRT: growing,
        WARM_UP: config.replace(batch_scaling="sqrt", batch_warmup_epochs=ends, batch_warmup_factors=_FACTORS),
    }


def controls(preset: presets.Workload, config: Config) -> dict[str, Config]:
    """The recipe without its decay, and with as few updates as Seesaw at its own batch size."""
    return {
        presets.CONSTANT: config.replace(lr_schedule="constant"),
        presets.FEW_UPDATES: presets.shortened(preset, config, schedules(config)[SEESAW]),
    }


def groups(preset: presets.Workload, config: Config, starts: Sequence[Start]) -> tuple[Schedules, Schedules]:
    """All schedules, and all controls. Of the quarter cosine, which only the first start has, there are a few."""
    found: tuple[Schedules, Schedules] = ({}, {})
    for start in starts:
        for decay in (HALF, QUARTER) if start == starts[0] else (HALF,):
            base = config.replace(**start._asdict(), lr_schedule=decay)
            for into, made in zip(found, (schedules(base), controls(preset, base)), strict=True):
                names = [name for name in made if decay == HALF or name in (COSINE, SEESAW, presets.CONSTANT)]
                into.update({(Group(start.batch_size, decay), name): made[name] for name in names})
    return found


def after_warm_up(config: Config, plan: Plan) -> int:
    """How many updates of a config's plan begin after its warm-up."""
    return int((plan.examples_seen >= round(config.recipe.warmup_epochs * plan.dataset_size)).sum())


def theory(decay: str, name: str) -> float:
    """The share of updates after the warm-up that a schedule saves with batches of any size; NaN if it has none.

    >>> theory(HALF, SEESAW), theory(QUARTER, SEESAW), theory(HALF, SQRT)
    (0.5, 0.3634, 0.625)
    """
    return 1 - _MEANS[decay, _POWERS[name]] if name in _POWERS else math.nan


def plan_rows(dataset_size: int, configs: Mapping[tuple[Group, str], Config]) -> list[dict[str, Any]]:
    """What each schedule's plan says: its updates, and the share after the warm-up that it saves of the decay's."""
    plans = {key: build.recipe(config, dataset_size).plan() for key, config in configs.items()}
    decaying = {key: after_warm_up(configs[key], plan) for key, plan in plans.items()}
    rows = []
    for (group, name), plan in sorted(plans.items(), key=lambda item: item[0][0]):  # controls with their group
        row = {"start": group.batch_size, "decay": NAMES[group.decay], "schedule": name, "updates": plan.num_updates}
        row["fewer"] = 1 - decaying[group, name] / decaying[group, COSINE]
        row |= {"theory": theory(group.decay, name), "largest_batch": int(plan.batch_sizes.max())}
        rows.append({**row, "examples": plan.num_examples})
    return rows
