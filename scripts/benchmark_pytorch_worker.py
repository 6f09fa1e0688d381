"""The processes of scripts/benchmark_pytorch.py: updates by the engine, updates by PyTorch, a comparison of both."""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

MICROBATCH_SIZE: int | str = "measure"  # of the engine
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.02, 0.9, 5e-4
GHOST_BATCH_SIZE, NUM_EXAMPLES, NUM_CLASSES = 32, 4096, 10
MEAN, STD = 127.5, 73.9  # of the pixels
TRIAL_UPDATES, TRIAL_SECONDS = 2, 0.5


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
        return {"seconds_per_update": seconds_per_update(self.run), "microbatch_size": microbatch_size}

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
            trainers[form], trials[form] = self._trainer, seconds_per_update(self.run)
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


def seconds_per_update(run: Callable[[int], None]) -> float:
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

    batch_size, ghost, found = 32, 16, {"logits": [0.0], "losses": [0.0]}
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
                theirs = trainer.logits(torch.from_numpy(index)).numpy()
                found["logits"].append(np.abs(theirs - np.array(logits)).max())
            their_losses = [trainer.update(torch.from_numpy(index), LEARNING_RATE).item() for _ in range(2)]
            found["losses"] += [abs(a - b) for a, b in zip(losses, their_losses, strict=True)]
    return {name: float(np.max(differences)) for name, differences in found.items()}  # NaN if one of them is


def _stream_indices(count: int) -> np.ndarray:
    from bsjax.data import ExampleStream

    return np.array(ExampleStream(NUM_EXAMPLES, seed=0).indices(0, count), np.int64)


def serve(role: str, sides: Mapping[str, Callable[[], Any]], check: Callable[..., dict[str, float]]) -> None:
    """Answers the questions on standard input: what to prepare, then how many updates to run; or what differs.

    Args:
      role: of `sides`, or "check".
      sides: make what has `prepare` and `run`.
      check: the largest differences between the sides.
    """
    side, used = None if role == "check" else sides[role](), time.process_time()
    for line in sys.stdin:
        question = json.loads(line)
        idle, start = time.process_time() - used, time.perf_counter()
        if side is None:
            answer: dict[str, Any] = check(**question)
        elif "num_updates" in question:
            side.run(**question)
            answer = {"seconds": time.perf_counter() - start, "idle_cpu_s": idle}
            time.sleep(0.02)  # until OpenMP's threads no longer wait actively
        else:
            answer = side.prepare(**question)
        used = time.process_time()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], {"engine": _EngineSide, "pytorch": _PyTorchSide}, _largest_differences)
