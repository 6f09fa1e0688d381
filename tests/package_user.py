"""A user's program, which scripts/package.sh checks with mypy --strict against the installed wheel, and runs."""

import sys
import tempfile
from collections.abc import Mapping

import jax
import numpy as np
import optax  # type: ignore[import-untyped]

import bsjax
from bsjax import Plan, Recipe, Update, run
from bsjax.analysis.statistics import Interval, mean_interval
from bsjax.data import ArraySource, ExampleStream
from bsjax.engine import Engine, UpdateMetrics
from bsjax.interop import BatchSampler
from bsjax.tasks import from_loss


class Printer:
    """Charts of one's own."""

    def write(self, update: int, values: Mapping[str, float]) -> None:
        print(update, sorted(values))

    def close(self) -> None:
        print("closed")


def init_fn(key: jax.Array) -> dict[str, jax.Array]:
    return {"w": jax.random.normal(key, (2,))}


def loss_fn(params: dict[str, jax.Array], examples: dict[str, jax.Array], keys: jax.Array, train: bool) -> jax.Array:
    return (examples["x"] @ params["w"] - examples["y"]) ** 2


def make_plan(size: int) -> Plan:
    recipe: Recipe = Recipe.from_milestones(0.1, [1, 2], batch_size=16, dataset_size=size, num_epochs=3, momentum=0.0)
    larger = recipe.scale_learning_rate(2).increase_batch_size(max_batch_size=64)
    rate: float = larger.at(0).learning_rate.item()
    assert rate == 0.2 and larger.conversions[0] == bsjax.ScaleLearningRate(2)
    return larger.plan()


def main() -> int:
    x = np.random.default_rng(0).standard_normal((64, 2), np.float32)
    source = ArraySource({"x": x, "y": x[:, 0]})
    plan = make_plan(len(source))
    first: Update = plan[0]
    lengths: list[int] = [len(indices) for indices in BatchSampler(plan, ExampleStream(64, seed=0))]
    assert lengths == plan.batch_sizes.tolist() and lengths[0] == first.batch_size
    schedule: optax.Schedule = plan.microsteps(16)
    assert int(schedule(0)) == 2 and plan.to_csv() is not None
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=0.0, momentum=0.0)
    engine = Engine(from_loss(loss_fn, init_fn), tx, source, source, batch_sizes=lengths)
    state = engine.init()
    metrics: UpdateMetrics
    state, metrics = engine.update(state, first)
    with tempfile.TemporaryDirectory() as folder:
        summary = run.train(engine, plan, folder, show="none", log_to=[Printer()])
    interval: Interval = mean_interval([metrics.loss, 1.0])
    try:
        Recipe(0.1, batch_size=0, dataset_size=10, num_epochs=1)
    except bsjax.InvalidArgument as error:
        print(error.nearest, interval.low < interval.high, summary is not None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
