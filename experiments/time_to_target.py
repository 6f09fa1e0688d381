"""Seconds and updates to a target: the recipe, the same with a growing batch, and the recipe in plain PyTorch.

    python -m experiments.time_to_target
    python -m experiments.time_to_target --presets=digits

Each run is a process with all cores, one after another, on a machine that does nothing else. Its clock counts training
and the evaluation after each epoch; set-up and compilation that the run waits for are a column of their own. Finished
runs are kept in --workdir and not repeated. The targets were chosen from runs with other seeds, see `TARGETS`.
PyTorch's column needs `pip install bsjax[benchmark]`; docs/speed.md says what it runs.
"""

import dataclasses
import datetime
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from absl import flags

from bsjax import run as bsjax_run
from bsjax.data import load_dataset
from bsjax.engine import Engine, TrainState, UpdateMetrics
from bsjax.errors import DivergedError, InvalidArgument, check_choice, check_whole
from bsjax.plan import Update
from bsjax.run import workdir as workdirs
from bsjax.run.metrics import read_json
from experiments.harness import build, cli, config_flags, presets, runs
from experiments.harness.config import Config
from experiments.harness.control import Control
from experiments.harness.pool import StoppedEarly, is_worker_to_stop, worker_pool

_PRESETS = flags.DEFINE_list("presets", ["digits", "fashion_mnist", "cifar10_small"], "Data sets and recipes.")
_WORKDIR = flags.DEFINE_string("workdir", "experiments/results/time_to_target", "Folder of the results.")
_SEEDS = flags.DEFINE_integer("seeds", None, "Number of seeds; default, five, and three for cifar10_small.")
_TARGET = flags.DEFINE_string("target", None, "Such as test_loss=0.3 or test_accuracy=0.9; default, the preset's.")
_PYTORCH = flags.DEFINE_bool("pytorch", True, "Also run PyTorch.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of prepared data sets; default, see scripts/prepare_data.py.")

DECAYED, GROWN, PYTORCH = "Decaying learning rate", "Increasing batch size", "PyTorch, decaying learning rate"
FIRST_SEED = 10
_TRIAL_UPDATES = 50


class Target(NamedTuple):
    """What the evaluation reaches first: at most this loss, or at least this accuracy."""

    metric: str
    value: float

    def __str__(self) -> str:
        return f"{self.metric.replace('_', ' ')} {self.value:g}"


# What the recipe reached at its end, less a margin: loss 0.096 with the seeds 100 to 109, which all reach the target,
# but none with a constant learning rate; 0.239 with the seeds 0 to 4; 0.427 with 0. This script's seeds begin at 10.
TARGETS = {
    "digits": Target("test_loss", 0.13),
    "fashion_mnist": Target("test_loss", 0.245),
    "cifar10_small": Target("test_loss", 0.45),
}


class Point(NamedTuple):
    """An evaluation."""

    updates: int
    seconds: float  # of training and evaluation so far
    waited_s: float  # for set-up and compilation so far
    test_loss: float
    test_accuracy: float

    def reaches(self, target: Target) -> bool:
        value = getattr(self, target.metric)
        return value <= target.value if target.metric == "test_loss" else value >= target.value


class _Timed:
    """An engine that notes the time of each evaluation; it starts its clock at the first update."""

    def __init__(self, engine: Engine, set_up_began: float):
        self._engine, self._set_up_began, self._began = engine, set_up_began, 0.0
        self._updates, self._stalled, self.points = 0, 0.0, list[Point]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def update(self, state: TrainState, update: Update, stop: bool = False) -> tuple[TrainState, UpdateMetrics]:
        if not self._began:
            self._began, self._stalled = time.perf_counter(), self._engine.stall_time_s
        self._updates = update.update + 1
        return self._engine.update(state, update, stop)

    def evaluate(self, state: TrainState) -> dict[str, float]:
        means = self._engine.evaluate(state)
        stall = self._engine.stall_time_s - self._stalled
        seconds, waited = time.perf_counter() - self._began - stall, self._began - self._set_up_began + stall
        self.points.append(Point(self._updates, seconds, waited, means["test_loss"], means["test_accuracy"]))
        return means


def run_bsjax(config: Config, data_dir: str | None) -> dict[str, Any]:
    """Trains as experiments.train does, and returns the evaluations with their times."""
    began = time.perf_counter()
    dataset = load_dataset(config.data.dataset, data_dir)
    controller = build.controller(config, len(dataset.train))
    timed = _Timed(build.engine(config, dataset, controller), began)
    with tempfile.TemporaryDirectory() as folder:
        intervals = Control().intervals(config)
        try:
            engine = cast(Engine, timed)
            ended = bsjax_run.train(engine, controller, folder, intervals, is_worker_to_stop, show="none") is not None
        except DivergedError:
            ended = True
    if not ended:
        raise StoppedEarly("Stopped; the same command continues.")
    return {"points": [_rounded(point) for point in timed.points]}


def run_pytorch(config: Config, data_dir: str | None) -> dict[str, Any]:
    """Trains the recipe in PyTorch, eager or compiled, whichever is faster, as `run_bsjax` does."""
    import torch

    from experiments.harness import pytorch

    began = time.perf_counter()
    dataset, task, settings = load_dataset(config.data.dataset, data_dir), config.task, config.optimizer
    train, test = (split.gather(np.arange(len(split))) for split in (dataset.train, dataset.test))
    plan = build.recipe(config, len(dataset.train)).plan()
    ghosts = config.recipe.batch_size / task.ghost_batch_size  # batch norm is over the batch, and decays as fast
    sizes: dict[str, Any] = {
        name: size for name, size in (("depth", task.model_depth), ("width", task.model_width)) if size
    }

    def trainer(form: pytorch.Form) -> pytorch.Trainer:
        torch.manual_seed(config.run.seed)
        model = pytorch.create_model(
            task.model,
            train["image"].shape[1:],
            dataset.num_classes,
            momentum=1 - task.batch_norm_decay**ghosts,
            **sizes,
        )
        data, crops = (
            (train["image"], train["label"], dataset.mean, dataset.std),
            (task.augmentation, task.crop_padding),
        )
        return pytorch.Trainer(model, *data, settings.weight_decay, plan[0].momentum, form, None, *crops)

    read_s = time.perf_counter() - began
    form = _faster_form(trainer, plan[0], len(dataset.train))
    began = time.perf_counter()
    fastest = trainer(form)
    order = torch.cat([torch.randperm(len(dataset.train)) for _ in range(-(-plan.num_examples // len(dataset.train)))])
    test_images, test_labels = torch.from_numpy(test["image"]), torch.from_numpy(test["label"].astype(np.int64))
    every, points = config.run.eval_every_epochs * len(dataset.train), list[Point]()
    for update in plan:
        end = update.examples_seen + update.batch_size
        fastest.update(order[update.examples_seen : end], update.learning_rate)
        if update.update == 0:  # it has compiled
            waited, began = read_s + time.perf_counter() - began, time.perf_counter()
        if end // every > update.examples_seen // every or update.update == plan.num_updates - 1:
            evaluation = fastest.evaluate(test_images, test_labels)
            points.append(Point(update.update + 1, time.perf_counter() - began, waited, *evaluation))
        if is_worker_to_stop():
            raise StoppedEarly("Stopped; the same command continues.")
    return {"points": [_rounded(point) for point in points], "form": str(form)}


def _faster_form(trainer: Callable[[Any], Any], update: Update, dataset_size: int) -> Any:
    """Eager or compiled, by a short trial; eager where compiling fails, such as without a C++ compiler."""
    import torch

    from experiments.harness.pytorch import Form

    seconds = {}
    for form in (Form(), Form(compiled=True)):
        tried, index = trainer(form), torch.randperm(dataset_size)[: update.batch_size]
        try:
            for _ in range(2):  # the first time warms up
                start = time.perf_counter()
                for _ in range(_TRIAL_UPDATES):
                    tried.update(index, update.learning_rate)
                seconds[form] = time.perf_counter() - start
        except Exception:
            if not form.compiled:
                raise
    torch._dynamo.reset()
    return min(seconds, key=lambda form: seconds[form])


def _rounded(point: Point) -> list[float]:
    return [float(f"{value:.6g}") for value in point]


class Results:
    """The finished runs of a preset, in a JSON file with a line for each.

    Args:
      path: of the file.
      config: the recipe, which the file must have been made with.

    Raises:
      InvalidArgument: it was made with another recipe.
    """

    def __init__(self, path: pathlib.Path, config: Config):
        self._path = path
        self._config = json.loads(json.dumps(dataclasses.asdict(config)))
        self.runs: list[dict[str, Any]] = []
        if path.exists():
            before = read_json(path, ("config", "runs"))
            if before["config"] != self._config:
                raise InvalidArgument("workdir", str(path.parent), f"one without a {path.name} of other settings")
            self.runs = before["runs"]

    def has(self, contestant: str, seed: int) -> bool:
        return any((run["contestant"], run["seed"]) == (contestant, seed) for run in self.runs)

    def add(self, run: dict[str, Any]) -> None:
        """Adds a run, and writes the file whole."""
        self.runs.append(run)
        about = runs.surroundings() | {"date": datetime.date.today().isoformat()}
        if importlib.util.find_spec("torch"):
            about["versions"]["torch"] = importlib.metadata.version("torch")
        head = json.dumps({**about, "config": self._config})[:-1]
        lines = ",\n".join(json.dumps(run) for run in self.runs)
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text(f'{head}, "runs": [\n{lines}\n]}}\n', encoding="utf-8")
        os.replace(temporary, self._path)


def table(name: str, target: Target, ended: Sequence[dict[str, Any]]) -> str:
    """Markdown: medians over the seeds that reach the target, with the least and the greatest seconds."""
    columns = ("reached", "updates", "seconds", "set-up and compilation, s", "whole run, s", "final test accuracy")
    lines = [f"| {name}, {target} | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for contestant in dict.fromkeys(run["contestant"] for run in ended):
        curves = [[Point(*point) for point in run["points"]] for run in ended if run["contestant"] == contestant]
        firsts = [next((point for point in curve if point.reaches(target)), None) for curve in curves]
        reached = [point for point in firsts if point is not None]
        cells = [f"{len(reached)} of {len(curves)}"]
        if reached:
            seconds = [point.seconds for point in reached]
            cells += [f"{statistics.median(point.updates for point in reached):,.0f}"]
            cells += [f"{statistics.median(seconds):,.1f} ({min(seconds):,.1f}-{max(seconds):,.1f})"]
            cells += [f"{statistics.median(point.waited_s for point in reached):,.1f}"]
        else:
            cells += ["", "", ""]
        ends = [curve[-1] for curve in curves if curve]
        cells += [f"{statistics.median(end.seconds for end in ends):,.1f}" if ends else ""]
        cells += [f"{100 * statistics.mean(end.test_accuracy for end in ends):.2f} %" if ends else "diverged"]
        lines.append(f"| {contestant} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _contestants(preset: presets.Preset, config: Config) -> dict[str, tuple[Callable, Config]]:
    growing = presets.section_5_2(preset, config)["Increasing batch size"]
    found = {DECAYED: (run_bsjax, config), GROWN: (run_bsjax, growing)}
    return found | ({PYTORCH: (run_pytorch, config)} if _PYTORCH.value and importlib.util.find_spec("torch") else {})


def _target(name: str) -> Target:
    if _TARGET.value is None:
        return TARGETS[name]
    metric, _, value = _TARGET.value.partition("=")
    check_choice("target", metric, ("test_loss", "test_accuracy"))
    try:
        return Target(metric, float(value))
    except ValueError:
        raise InvalidArgument("target", _TARGET.value, "a metric and a number", f"{metric}=0.5") from None


def main() -> None:
    """Trains the missing runs, and prints a table for each data set."""
    workdir, tables = pathlib.Path(_WORKDIR.value).expanduser(), []
    todo = []
    for name in _PRESETS.value:
        preset = presets.get(check_choice("presets", name, TARGETS))
        config = config_flags.config_from_flags(preset.config)
        seeds = (3 if name == "cifar10_small" else 5) if _SEEDS.value is None else check_whole("seeds", _SEEDS.value)
        todo.append(
            (name, _target(name), _contestants(preset, config), seeds, Results(workdir / f"{name}.json", config))
        )
    if _PYTORCH.value and not importlib.util.find_spec("torch"):
        print("PyTorch is missing and left out: pip install bsjax[benchmark]", flush=True)
    workdirs.make(workdir)
    for name, target, contestants, seeds, results in todo:
        for seed in range(FIRST_SEED, FIRST_SEED + seeds):
            for contestant, (work, config) in contestants.items():
                if not results.has(contestant, seed):
                    with worker_pool(1) as submit:  # a new process
                        ended = submit(work, config.replace(seed=seed), _DATA_DIR.value).result()
                    results.add({"contestant": contestant, "seed": seed, **ended})
                    end = f"{Point(*ended['points'][-1]).seconds:.1f} s" if ended["points"] else "diverged"
                    print(f"{name}, {contestant}, seed {seed}: {end}", flush=True)
        tables.append(table(name, target, results.runs))
    print("\n" + "\n\n".join(tables), flush=True)


if __name__ == "__main__":
    config_flags.define_flags(except_for=("seed", "dataset", "schedule", "max_batch_size", "optimizer", "dropout"))
    cli.run(main)
