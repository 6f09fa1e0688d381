"""The idea in half a minute: `python -m bsjax.demo` trains with a decayed learning rate and with a growing batch.

It needs nothing but the installed package: the handwritten digits come with it. The recipe is that of the preset
"digits" of the repository's `experiments.figure5`, which compares more schedules, seeds and controls.
"""

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import optax

from bsjax import Plan, Recipe
from bsjax.data import Dataset, load_dataset
from bsjax.engine import Engine
from bsjax.errors import InvalidArgument, check_positive, check_whole
from bsjax.models import create_model
from bsjax.optimizers import create_optimizer
from bsjax.tasks import Classification

_GHOST_BATCH_SIZE = 8  # examples that share batch-norm statistics, in small and large batches
_MAX_BATCH_SIZE = 144  # a tenth of the examples, as in the paper


class Result(NamedTuple):
    """A training of one plan with one seed."""

    num_updates: int
    test_accuracy: float
    seconds: float  # without compilation


def schedules(dataset_size: int, num_epochs: float) -> dict[str, Plan]:
    """The same recipe with a decayed learning rate and with a growing batch."""
    decays = {share * num_epochs: 0.2 for share in (0.3, 0.6, 0.8)}
    steps = optax.piecewise_constant_schedule(0.02, decays)
    recipe = Recipe(steps, batch_size=_GHOST_BATCH_SIZE, dataset_size=dataset_size, num_epochs=num_epochs)
    growing = recipe.increase_batch_size(max_batch_size=_MAX_BATCH_SIZE, multiple_of=_GHOST_BATCH_SIZE)
    return {"decaying learning rate": recipe.plan(), "growing batch": growing.plan()}


def create_engine(dataset: Dataset, plans: Iterable[Plan], seed: int) -> Engine:
    """A small convolutional network, which the same compiled programs train by every plan."""
    model = create_model("cnn", num_classes=dataset.num_classes, ghost_batch_size=_GHOST_BATCH_SIZE)
    task = Classification(model, augmentation="crop", mean=dataset.mean, std=dataset.std)
    tx = create_optimizer("momentum", weight_decay=5e-3)
    sizes = sorted({size for plan in plans for size in plan.batch_sizes.tolist()})
    return Engine(task, tx, dataset.train, dataset.test, batch_sizes=sizes, seed=seed)


def train(engine: Engine, plan: Plan) -> Result:
    """Trains from new parameters."""
    state, start, waited = engine.init(), time.perf_counter(), engine.stall_time_s
    for update in plan:
        state, _ = engine.update(state, update)
    accuracy = engine.evaluate(state)["test_accuracy"]
    return Result(plan.num_updates, accuracy, time.perf_counter() - start - (engine.stall_time_s - waited))


def table(results: dict[str, list[Result]]) -> str:
    """A row for each schedule, with means over seeds."""
    rows = [("schedule", "updates", "test accuracy %", "seconds")]
    for label, group in results.items():
        accuracy, seconds = (sum(values) / len(group) for values in list(zip(*group, strict=True))[1:])
        rows.append((label, f"{group[0].num_updates:,}", f"{100 * accuracy:.1f}", f"{seconds:.1f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join([first.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]) for first, *cells in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains, prints the table, and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bsjax.demo", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each schedule (default: 2)")
    parser.add_argument("--num_epochs", type=float, default=40, help="length of each training (default: 40)")
    given = parser.parse_args(arguments)
    try:
        check_whole("seeds", given.seeds)
        check_positive("num_epochs", given.num_epochs)
        dataset = load_dataset("digits")
        plans = schedules(len(dataset.train), given.num_epochs)
    except InvalidArgument as error:
        print(f"error: --{error}", file=sys.stderr)
        return 2
    print(f"Growing batch:\n{plans['growing batch']}\n", flush=True)
    engines = [create_engine(dataset, plans.values(), seed) for seed in range(given.seeds)]
    results = {label: [train(engine, plan) for engine in engines] for label, plan in plans.items()}
    print(f"{table(results)}\nSeeds: {given.seeds}. One digit of the test set is {100 / len(dataset.test):.1f} %.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
