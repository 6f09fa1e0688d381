"""The engine against PyTorch on the same CPU: `scripts/benchmark.py --part=pytorch`.

    python scripts/benchmark.py --part=pytorch --output=pytorch.json
    python scripts/benchmark.py --part=pytorch --check   # only compares the numbers that the two compute

The engine and PyTorch each have a process with all cores, and take turns: one is idle while the other works.
docs/speed.md says what is compared. The benchmark begins with `--check`, and refuses to time what differs.
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from bsjax.errors import InvalidArgument, check_choice

MICROBATCH_SIZE: int | None = None  # of the engine
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.02, 0.9, 5e-4
GHOST_BATCH_SIZE, NUM_EXAMPLES, NUM_CLASSES = 32, 4096, 10
MEAN, STD = 127.5, 73.9  # of the pixels
TOLERANCE = 1e-4
MIN_PAIRS, TRIAL_UPDATES, TRIAL_SECONDS = 5, 2, 0.5
ROOT = pathlib.Path(__file__).resolve().parent.parent


@dataclasses.dataclass(frozen=True)
class Contest:
    """A model and its images, height, width, channels."""

    model: str
    image_shape: tuple[int, int, int]
    sizes: dict[str, int] = dataclasses.field(default_factory=dict)

    def examples(self) -> tuple[np.ndarray, np.ndarray]:
        """Random images, uint8, and labels, int32."""
        random = np.random.default_rng(0)
        images = random.integers(0, 256, (NUM_EXAMPLES, *self.image_shape), np.uint8)
        return images, random.integers(0, NUM_CLASSES, NUM_EXAMPLES, np.int32)


CONTESTS = {
    "mlp 28×28": Contest("mlp", (28, 28, 1)),
    "cnn 8×8": Contest("cnn", (8, 8, 1)),
    "cnn 28×28": Contest("cnn", (28, 28, 1)),
    "cnn 32×32×3": Contest("cnn", (32, 32, 3)),
    "wide_resnet 16-1": Contest("wide_resnet", (32, 32, 3), {"depth": 16, "width": 1}),
    "wide_resnet 16-4": Contest("wide_resnet", (32, 32, 3), {"depth": 16, "width": 4}),
    "resnet18": Contest("resnet18", (32, 32, 3)),
}
_WAITS: dict[str, dict[str, str]] = {"actively": {}, "passively": {"OMP_WAIT_POLICY": "PASSIVE"}}
_QUICK_CONTESTS = ("mlp 28×28", "cnn 8×8")

_CHECK = flags.DEFINE_bool("check", False, "--part=pytorch: compare what the engine and PyTorch compute; time nothing.")
_CONTESTS = flags.DEFINE_list("pytorch_models", list(CONTESTS), f"--part=pytorch: of {', '.join(CONTESTS)}.")
_BATCHES = flags.DEFINE_list("pytorch_batches", ["8", "32", "128", "512", "2048"], "--part=pytorch: batch sizes.")
_COMPILE = flags.DEFINE_bool("pytorch_compile", True, "--part=pytorch: also try torch.compile, which takes minutes.")
_ROW_SECONDS = flags.DEFINE_float("pytorch_row_seconds", 120.0, "--part=pytorch: leave out rows that take longer.")


def measure(seconds: float, repeats: int, quick: bool) -> dict[str, Any]:
    """Checks that both compute the same, then times every model at every batch size.

    Args:
      seconds: length of a turn.
      repeats: pairs of turns.
      quick: few models and batch sizes, turns of 0.1 s, and no torch.compile.

    Raises:
      InvalidArgument: PyTorch is missing, or a flag names an unknown model.
      subprocess.CalledProcessError: the two compute something else.
    """
    if importlib.util.find_spec("torch") is None:
        raise InvalidArgument("part", "pytorch", "left out without PyTorch: pip install bsjax[benchmark]")
    names = [check_choice("pytorch_models", name, CONTESTS) for name in _CONTESTS.value]
    batch_sizes = [int(size) for size in _BATCHES.value]
    compiles = _COMPILE.value and not quick
    if quick:
        names, seconds = [name for name in names if name in _QUICK_CONTESTS or len(names) < len(CONTESTS)], 0.1
        batch_sizes = batch_sizes if _BATCHES.present else [8, 128]
    check = _Worker("check").ask(names=names, compiles=compiles)
    print(f"largest difference of logits {check['logits']:.1e}, of losses {check['losses']:.1e}", flush=True)
    if not max(check.values()) <= TOLERANCE:
        sys.exit(f"error: PyTorch computes something else than the engine, by more than {TOLERANCE:g}: {check}")
    results: dict[str, Any] = {"check": check, "rows": [], "left_out": []}
    if _CHECK.value:
        return results
    results["pytorch_waits"] = waits = _faster_wait(names[0])
    print(f"PyTorch's threads wait for each other: {waits}", flush=True)
    for name in names:
        workers = _Worker("engine"), _Worker("pytorch", waits)
        speed = 0.0  # images/s of both together, at the batch size before
        for batch_size in batch_sizes:
            if speed and (need := _seconds_of_row(batch_size / speed, compiles)) > _ROW_SECONDS.value:
                left_out = (
                    f"{name}, batch {batch_size}: {MIN_PAIRS} pairs of updates and the trials would take {need:.0f} s"
                )
                print(f"left out: {left_out}", flush=True)
                results["left_out"].append(left_out)
                continue
            row = _measure_row(workers, name, batch_size, seconds, repeats, compiles)
            results["rows"].append(row)
            print(_line(row), flush=True)
            speed = 1 / sum(1 / row[f"{which}_images_per_second"] for which in ("engine", "pytorch"))
        for worker in workers:
            worker.close()
    print("\n" + markdown(results), flush=True)
    return results


def _faster_wait(name: str) -> str:
    """How OpenMP's threads wait, "actively" for milliseconds or "passively": active suits a quiet machine only."""
    seconds = {}
    for waits in _WAITS:
        worker = _Worker("pytorch", waits)
        seconds[waits] = worker.ask(name=name, batch_size=32, compiles=False)["seconds_per_update"]
        worker.close()
    return min(seconds, key=lambda waits: seconds[waits])


def _seconds_of_row(seconds_per_pair: float, compiles: bool) -> float:
    """Least time of a row whose turns have an update each."""
    return seconds_per_pair * (1 + MIN_PAIRS + (TRIAL_UPDATES + 1) * (5 if compiles else 3) / 2)


def _measure_row(
    workers: Sequence["_Worker"], name: str, batch_size: int, seconds: float, repeats: int, compiles: bool
) -> dict[str, Any]:
    about = [worker.ask(name=name, batch_size=batch_size, compiles=compiles) for worker in workers]
    per_update = [each["seconds_per_update"] for each in about]
    num_updates = max(1, round(seconds / statistics.mean(per_update)))
    affordable = int(_ROW_SECONDS.value / (num_updates * sum(per_update)))
    repeats = max(min(repeats, MIN_PAIRS), min(repeats, affordable))
    times, idle = np.empty((1 + repeats, 2)), []
    for repeat in range(1 + repeats):
        for which in (0, 1) if repeat % 2 else (1, 0):
            answer = workers[which].ask(num_updates=num_updates)
            times[repeat, which] = answer["seconds"]
            idle.append((answer["idle_cpu_s"], times[repeat, 1 - which]))
    burnt = sum(cpu for cpu, _ in idle[3:]) / sum(other for _, other in idle[3:])
    low, ratio, high = np.quantile(times[1:, 1] / times[1:, 0], (0.25, 0.5, 0.75)).tolist()
    engine, pytorch = (batch_size * num_updates / np.median(times[1:], axis=0)).tolist()
    return {
        "model": name,
        "batch_size": batch_size,
        "engine_images_per_second": engine,
        "pytorch_images_per_second": pytorch,
        "ratio": ratio,
        "ratio_quartiles": [low, high],
        "pairs": repeats,
        "updates_per_turn": num_updates,
        "microbatch_size": about[0]["microbatch_size"],
        "pytorch_form": about[1]["form"],
        "pytorch_trials": about[1]["trials"],
        "idle_cores": burnt,  # CPU time of the one that waits, over the time that it waits
    }


def _line(row: dict[str, Any]) -> str:
    low, high = row["ratio_quartiles"]
    return (
        f"{row['model']}, batch {row['batch_size']}: engine {row['engine_images_per_second']:.0f} (microbatch "
        f"{row['microbatch_size']}), PyTorch {row['pytorch_images_per_second']:.0f} images/s ({row['pytorch_form']}), "
        f"ratio {row['ratio']:.2f} ({low:.2f} to {high:.2f}); {row['pairs']} pairs, idle {row['idle_cores']:.3f} cores"
    )


def markdown(results: dict[str, Any]) -> str:
    """The table for the documentation."""
    lines = ["| model | batch | engine, images/s | PyTorch, images/s | PyTorch's form | ratio (quartiles) |"]
    lines.append("|---|---|---|---|---|---|")
    for row in results["rows"]:
        low, high = row["ratio_quartiles"]
        speeds = f"{row['engine_images_per_second']:,.0f} | {row['pytorch_images_per_second']:,.0f}"
        ratio = f"{row['ratio']:.2f} ({low:.2f}-{high:.2f})"
        lines.append(f"| {row['model']} | {row['batch_size']:,} | {speeds} | {row['pytorch_form']} | {ratio} |")
    return "\n".join([*lines, *(f"\nLeft out: {left_out}." for left_out in results["left_out"])])


class _Worker:
    """A process that answers questions, a line of JSON each."""

    def __init__(self, role: str, waits: str = "actively"):
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        env = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"} | _WAITS[waits]
        command = [sys.executable, __file__, role]
        self._process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, **question: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("{"):  # libraries print other things
                return json.loads(line)
        raise subprocess.CalledProcessError(self._process.wait() or 1, self._process.args)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class _EngineSide:
    """Updates by the engine."""

    def prepare(self, name: str, batch_size: int, compiles: bool) -> dict[str, Any]:
        import jax

        from bsjax import Update

        del compiles
        self._engine = _engine(CONTESTS[name], batch_size, min(GHOST_BATCH_SIZE, batch_size))
        self._state = self._engine.init()
        self._update = lambda k: Update(k, k * batch_size, batch_size, LEARNING_RATE, MOMENTUM)
        self._updates, self._wait = 0, jax.block_until_ready
        self.run(1)
        microbatch_size = self._engine.layout(batch_size).microbatch_size
        return {"seconds_per_update": _seconds_per_update(self.run), "microbatch_size": microbatch_size}

    def run(self, num_updates: int) -> None:
        for _ in range(num_updates):
            self._state, _ = self._engine.update(self._state, self._update(self._updates))
            self._updates += 1
        self._wait(self._state)


class _PyTorchSide:
    """Updates by the fastest form of PyTorch."""

    def prepare(self, name: str, batch_size: int, compiles: bool) -> dict[str, Any]:
        import torch

        from experiments.harness.pytorch import Form

        ghost = min(GHOST_BATCH_SIZE, batch_size)
        norms = ("whole",) if batch_size == ghost or name.startswith("mlp") else ("whole", "ghosts", "accumulated")
        forms = [Form(False, norm) for norm in norms]
        # Compiling takes long, and what it compiles for "accumulated" is what it compiles at batch 32.
        forms += [Form(True, norm) for norm in norms] if compiles else []
        self._batch_size, trainers, trials, failed = batch_size, {}, {}, {}
        for form in forms:
            torch._dynamo.reset()
            self._trainer, self._order, self._at = _trainer(CONTESTS[name], ghost, form), torch.zeros(0), 0
            try:
                self.run(1)
            except Exception as error:  # such as a missing C++ compiler
                if not form.compiled:
                    raise
                failed[str(form)] = f"{type(error).__name__}: {error}".splitlines()[0]
                print(f"{name}, {form}: {failed[str(form)]}", file=sys.stderr)
                continue
            trainers[form], trials[form] = self._trainer, _seconds_per_update(self.run)
        best = min(trials, key=lambda form: trials[form])
        self._trainer = trainers[best]
        speeds = {str(form): batch_size / trial for form, trial in trials.items()} | failed
        return {"seconds_per_update": trials[best], "form": str(best), "trials": speeds}

    def run(self, num_updates: int) -> None:
        import torch

        for _ in range(num_updates):
            if self._at + self._batch_size > len(self._order):
                self._order, self._at = torch.randperm(NUM_EXAMPLES), 0
            self._trainer.update(self._order[self._at : self._at + self._batch_size], LEARNING_RATE)
            self._at += self._batch_size


def _seconds_per_update(run: Any) -> float:
    """Of the best of a few tries, after a warm-up."""
    num_updates, seconds = 1, 0.0
    while True:  # as many updates as fill a trial
        start = time.perf_counter()
        run(num_updates)
        seconds = time.perf_counter() - start
        if seconds > TRIAL_SECONDS / 4:
            break
        num_updates *= 2
    if seconds > TRIAL_SECONDS:
        return seconds / num_updates
    tries = []
    for _ in range(TRIAL_UPDATES):
        start = time.perf_counter()
        run(num_updates)
        tries.append((time.perf_counter() - start) / num_updates)
    return min(tries)


def _engine(contest: Contest, batch_size: int, ghost_batch_size: int) -> Any:
    import jax

    from bsjax.data import ArraySource
    from bsjax.engine import Engine
    from bsjax.models import create_model
    from bsjax.optimizers import create_optimizer
    from bsjax.tasks import Classification

    images, labels = contest.examples()
    source = ArraySource({"image": images, "label": labels})
    model = create_model(contest.model, NUM_CLASSES, ghost_batch_size, **contest.sizes)
    task = Classification(model, mean=MEAN, std=STD)
    tx, devices = create_optimizer("momentum", weight_decay=WEIGHT_DECAY), jax.devices()[:1]
    return Engine(task, tx, source, source, [batch_size], microbatch_size=MICROBATCH_SIZE, devices=devices)


def _trainer(contest: Contest, ghost_batch_size: int, form: Any, pads_as_flax: bool = False) -> Any:
    from experiments.harness import pytorch

    ghost = ghost_batch_size if form.norm == "ghosts" else None
    microbatch = ghost_batch_size if form.norm == "accumulated" else None
    options: dict[str, Any] = {"ghost_batch_size": ghost, "pads_as_flax": pads_as_flax, **contest.sizes}
    model = pytorch.create_model(contest.model, contest.image_shape, NUM_CLASSES, **options)
    moments = np.full(1, MEAN, np.float32), np.full(1, STD, np.float32)
    return pytorch.Trainer(model, *contest.examples(), *moments, WEIGHT_DECAY, MOMENTUM, form, microbatch)


def _largest_differences(names: Sequence[str], compiles: bool) -> dict[str, float]:
    """Of the logits before an update, and of the losses before and after it, from the engine's parameters."""
    import jax
    import torch

    from bsjax import Update
    from bsjax.engine.devices import first_replica
    from experiments.harness import pytorch

    batch_size, ghost, largest = 32, 16, {"logits": 0.0, "losses": 0.0}
    for name in names:
        contest = CONTESTS[name]
        engine = _engine(contest, batch_size, ghost)
        state = engine.init()
        params, batch_stats, _ = jax.tree.map(np.array, first_replica(state))
        losses = []
        for k in range(2):  # the same examples twice
            state, metrics = engine.update(state, Update(k, 0, batch_size, LEARNING_RATE, MOMENTUM))
            losses.append(metrics.loss)
        index = _stream_indices(batch_size)
        images = (contest.examples()[0][index].astype(np.float32) - np.float32(MEAN)) / np.float32(STD)
        variables, options = {"params": params, "batch_stats": batch_stats}, {"train": True, "mutable": ["ghost_stats"]}
        logits, _ = jax.jit(lambda v, x, m=engine.task.model, o=options: m.apply(v, x, **o))(variables, images)
        compiled = (False, True) if compiles and name.startswith("cnn 8") else (False,)
        for form in (pytorch.Form(c, norm) for c in compiled for norm in ("ghosts", "accumulated")):
            trainer = _trainer(contest, ghost, form, pads_as_flax=True)
            pytorch.copy_parameters(params, trainer.model)
            if form.norm == "ghosts":
                difference = np.abs(trainer.logits(torch.from_numpy(index)).numpy() - np.array(logits)).max().item()
                largest["logits"] = max(largest["logits"], difference)
            theirs = [trainer.update(torch.from_numpy(index), LEARNING_RATE).item() for _ in range(2)]
            difference = max(abs(a - b) for a, b in zip(losses, theirs, strict=True))
            print(f"{name}, {form}: {losses} {theirs}", file=sys.stderr, flush=True)
            largest["losses"] = max(largest["losses"], difference)
    return largest


def _stream_indices(count: int) -> np.ndarray:
    from bsjax.data import ExampleStream

    return np.array(ExampleStream(NUM_EXAMPLES, seed=0).indices(0, count), np.int64)


def _serve(role: str) -> None:
    """Answers the questions on standard input: what to prepare, then how many updates to run."""
    side, used = _EngineSide() if role == "engine" else _PyTorchSide(), time.process_time()
    for line in sys.stdin:
        question = json.loads(line)
        idle, start = time.process_time() - used, time.perf_counter()
        if role == "check":
            answer: dict[str, Any] = _largest_differences(**question)
        elif "name" in question:
            answer = side.prepare(**question)
        else:
            side.run(**question)
            answer = {"seconds": time.perf_counter() - start, "idle_cpu_s": idle}
            time.sleep(0.02)  # until OpenMP's threads no longer wait actively
        used = time.process_time()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1])
