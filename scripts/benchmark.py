"""What the engine costs, side by side with the loop that one would write by hand.

    python scripts/benchmark.py --output=benchmark.json

--part=throughput: images/s of the engine over images/s of a bare jit loop (same model, loss, optimizer, data and order;
  nothing is read back), in pairs that take turns; with microbatches as large as the batch, then of the engine's choice.
--part=memory: how far training raises the peak, at batch 64 and 4096 with microbatches of 64, each in fresh processes:
  of resident memory on a CPU, of the device's own elsewhere.
--part=gradient_noise: time of training the digits preset's CNN with the gradient noise scale over that without it, in
  pairs that take turns; batches of 128 in microbatches of 32.
--part=checkpoints: time of the digits preset with a growing batch, with the checkpoints that it writes by default, over
  that without any; the last one, which the run waits for, included; in pairs that take turns.
--part=batch_size_change: compilations, as XLA counts them, and pauses in a run through eight batch sizes.

12 minutes on 2 shared CPU cores. There, with jax 0.10.2: ratios of images/s (quartiles) 0.99 (0.97-0.99), 1.01
(0.98-1.01), 1.00 (0.98-1.03) at batch 32, 128, 512; 2.19 (2.15-2.21), 2.55 (2.53-2.58) at 512, 2048 with microbatches
of 32. Memory at batch 4096 over that at 64: 0.98 to 1.07; the loop's, 13.2. Time with the gradient noise 0.99
to 1.01 in six measurements, with checkpoints 1.015 to 1.019 in three. After 4 compilations at the start no more; the
loop 7, of 1.3 to 1.5 s. Where an update works mostly on parameters, the engine is slower: --model=mlp, 0.87 at 32.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging
from flax import linen as nn

from bsjax import InvalidArgument, Plan, loop
from bsjax.data import Dataset, ExampleStream, Split, load_dataset
from bsjax.engine import Engine
from bsjax.models import MODELS, create_model
from bsjax.optimizers import create_optimizer
from bsjax.parallel import first_replica
from bsjax.train_log import TrainLog
from experiments import presets, runs

PARTS = ("memory", "throughput", "gradient_noise", "checkpoints", "batch_size_change")
_PARTS = flags.DEFINE_multi_enum("part", PARTS, PARTS, "What to measure; may be given several times. Default, all.")
_MODEL = flags.DEFINE_enum("model", "cnn", MODELS, "Model.")
_DEPTH = flags.DEFINE_integer("model_depth", None, "Layers of the model; default, the model's own.", 1)
_WIDTH = flags.DEFINE_integer("model_width", None, "Width of the model; default, the model's own.", 1)
_GHOST_BATCH_SIZE = flags.DEFINE_integer("ghost_batch_size", 32, "Examples that share batch-norm statistics.", 1)
_FIXED = flags.DEFINE_list("fixed", ["32", "128", "512"], "Batch sizes with a microbatch as large as the batch.")
_AUTOMATIC = flags.DEFINE_list("automatic", ["512", "2048"], "Batch sizes with the engine's choice of microbatch.")
_REPEATS = flags.DEFINE_integer("repeats", 15, "Pairs of measurements in a row of throughput.", 1)
_SECONDS = flags.DEFINE_float("seconds", 1.0, "Length of each of them.", 0.0)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")
_QUICK = flags.DEFINE_bool("quick", False, "Little of everything, to see that it runs; the numbers mean nothing.")
_PROBE = flags.DEFINE_string("memory_probe", None, "Internal: measure the memory of loop:batch_size, and print it.")

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, BATCH_NORM_DECAY = 0.02, 0.9, 5e-4, 0.99
MICROBATCH_SIZE = 64
MEMORY_BATCH_SIZES = (64, 4096)
CHANGING_BATCH_SIZES = (64, 96, 128, 256, 512, 1024, 2048, 4096)
COMPILATION = "/jax/core/compile/backend_compile_duration"


class EngineLoop:
    """Updates by the engine, on one device."""

    def __init__(self, batch_sizes: Sequence[int], microbatch_size: int | None):
        tx = create_optimizer("momentum", weight_decay=WEIGHT_DECAY)
        devices = jax.devices()[:1]
        self.engine = Engine(_model(), tx, _dataset(), batch_sizes, microbatch_size=microbatch_size, devices=devices)
        self.state = self.engine.init()
        self.examples_seen = 0

    def update(self, batch_size: int) -> jax.Array:
        """Dispatches an update; its loss is the first of the metrics."""
        self.state, metrics = self.engine.update(self.state, self.examples_seen, batch_size, LEARNING_RATE, MOMENTUM)
        self.examples_seen += batch_size
        return metrics


class BareLoop:
    """What one writes by hand: one jitted step with donated state, which is compiled for each batch size."""

    def __init__(self) -> None:
        model, dataset, device = _model(), _dataset(), jax.devices()[0]
        kernels = functools.partial(jax.tree.map, lambda parameter: parameter.ndim > 1)
        tx = optax.chain(optax.add_decayed_weights(WEIGHT_DECAY, kernels), optax.sgd(LEARNING_RATE, MOMENTUM))

        def step(state, images, labels, index):
            params, batch_stats, opt_state = state
            x = (images[index].astype(jnp.float32) - dataset.mean) / dataset.std
            y = labels[index]

            def mean_loss(params):
                variables = {"params": params, "batch_stats": batch_stats}
                logits, updated = model.apply(variables, x, train=True, mutable=["ghost_stats"])
                loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
                return loss, (logits, updated.get("ghost_stats", {}))

            (loss, (logits, ghost_stats)), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
            updates, opt_state = tx.update(grads, opt_state, params)
            kept = BATCH_NORM_DECAY ** (len(y) // _GHOST_BATCH_SIZE.value)
            batch_stats = jax.tree.map(lambda r, s: kept * r + (1 - kept) * s.mean(0), batch_stats, ghost_stats)
            accuracy = (logits.argmax(axis=-1) == y).mean()
            return (optax.apply_updates(params, updates), batch_stats, opt_state), jnp.stack([loss, accuracy])

        self._step = jax.jit(step, donate_argnums=0)
        self._data = jax.device_put((dataset.train.images, dataset.train.labels), device)
        params, batch_stats, _ = first_replica(EngineLoop([], None).state)
        self.state = jax.device_put((params, batch_stats, tx.init(params)), device)
        self._stream = ExampleStream(len(dataset.train.labels), seed=0)
        self.examples_seen = 0

    def update(self, batch_size: int) -> jax.Array:
        """Dispatches an update; its loss is the first of the metrics."""
        index = self._stream.indices(self.examples_seen, batch_size)
        self.state, metrics = self._step(self.state, *self._data, index)
        self.examples_seen += batch_size
        return metrics


def seconds_of(loop: EngineLoop | BareLoop, batch_size: int, num_updates: int = 1) -> tuple[float, float]:
    """Wall time, and this process's CPU time, of updates that are waited for at the end only."""
    start = time.perf_counter(), time.process_time()
    for _ in range(num_updates):
        metrics = loop.update(batch_size)
    jax.block_until_ready((loop.state, metrics))
    return time.perf_counter() - start[0], time.process_time() - start[1]


def measure_throughput(batch_size: int, microbatch_size: int | None) -> dict[str, Any]:
    """Engine over bare loop in images/s, of wall and of CPU time: median and quartiles of pairs, each first in turn."""
    engine, bare = EngineLoop([batch_size], microbatch_size), BareLoop()
    # Compiles, and shows whether the two do the same.
    losses = [[loop.update(batch_size).flatten()[0].item() for _ in range(3)] for loop in (engine, bare)]
    num_updates = max(1, round(_SECONDS.value / (seconds_of(bare, batch_size, 2)[0] / 2)))
    times = np.empty((2, _REPEATS.value, 2))  # engine and bare loop; repeats; wall and CPU time
    for repeat in range(_REPEATS.value):
        for which in (0, 1) if repeat % 2 else (1, 0):
            times[which, repeat] = seconds_of((engine, bare)[which], batch_size, num_updates)
    engine_ips, bare_ips = (batch_size * num_updates / np.median(times[..., 0], axis=1)).tolist()
    (low, ratio, high), cpu_ratios = np.quantile(times[1] / times[0], (0.25, 0.5, 0.75), axis=0).T.tolist()
    row = {
        "batch_size": batch_size,
        "microbatch_size": engine.engine.layout(batch_size).microbatch_size,
        "automatic": microbatch_size is None,
        "engine_images_per_second": engine_ips,
        "bare_images_per_second": bare_ips,
        "ratio": ratio,
        "ratio_quartiles": [low, high],
        "cpu_time_ratio": cpu_ratios[1],
        "cpu_time_ratio_quartiles": cpu_ratios[::2],
        "updates_per_measurement": num_updates,
        "max_loss_difference": max(abs(a - b) for a, b in zip(*losses, strict=True)),
    }
    print(
        f"throughput, batch {batch_size}, {'automatic ' if microbatch_size is None else ''}microbatch "
        f"{row['microbatch_size']}: engine {engine_ips:.0f}, bare loop {bare_ips:.0f} images/s, ratio {ratio:.3f} "
        f"({low:.3f} to {high:.3f}), of CPU time {cpu_ratios[1]:.3f} ({cpu_ratios[0]:.3f} to {cpu_ratios[2]:.3f})",
        flush=True,
    )
    return row


def measure_gradient_noise(batch_size: int = 128, microbatch_size: int = 32) -> dict[str, Any]:
    """Time of training with the gradient noise scale over that without: median and quartiles of pairs."""
    digits = load_dataset("digits")
    num_updates = max(3, round(300 * _SECONDS.value))
    batch_sizes, rates, momentums = (np.full(num_updates, value) for value in (batch_size, LEARNING_RATE, MOMENTUM))
    plan = Plan(len(digits.train.labels), batch_sizes, rates, momentums)
    engines = [
        Engine(create_model("cnn", 10, 8), create_optimizer("momentum"), digits, [batch_size], 0, microbatch_size)
        for _ in range(2)
    ]

    def forget(log: TrainLog) -> None:
        log._not_taken_up.clear()

    def seconds(is_measuring: bool) -> float:
        """As the loop counts them: without compilation, evaluation and checkpoints."""
        with contextlib.ExitStack() as exits:
            if not is_measuring:
                exits.enter_context(mock.patch("bsjax.step.shard_term", lambda *_: jnp.zeros(())))
                exits.enter_context(mock.patch("bsjax.train_log.TrainLog._take_up", forget))
            folder = pathlib.Path(exits.enter_context(tempfile.TemporaryDirectory()))
            summary = loop.train(engines[is_measuring], plan, folder, 1e9, 1e9, show="none")
        assert summary is not None
        assert (summary["gradient_noise_scale"] is not None) == is_measuring or _QUICK.value
        return summary["examples_seen"] / summary["examples_per_second"]

    row = {"batch_size": batch_size, "microbatch_size": microbatch_size, **_in_turns(seconds)}
    print(f"gradient noise, batch {batch_size}: {_ratio(row)}", flush=True)
    return row


def measure_checkpoints() -> dict[str, Any]:
    """Time of the digits preset with its checkpoints over that without: median and quartiles of pairs."""
    config = presets.get("digits").config
    config = dataclasses.replace(config, schedule="increase_batch_size", max_batch_size=144)
    if _QUICK.value:
        config = dataclasses.replace(config, num_epochs=1, lr_decay_epochs=(0.5,), model_depth=1, model_width=2)
    digits, control = load_dataset(config.dataset), runs.Control()
    plan = config.recipe(len(digits.train.labels)).plan()
    engine = config.create_engine(digits, plan)
    num_written = []

    def seconds(is_writing: bool) -> float:
        with contextlib.ExitStack() as exits:
            if not is_writing:
                exits.enter_context(mock.patch("bsjax.checkpoint.Checkpoints.save", lambda *_: None))
            folder = pathlib.Path(exits.enter_context(tempfile.TemporaryDirectory()))
            start = time.perf_counter()
            loop.train(
                engine,
                plan,
                folder,
                config.eval_every_epochs,
                config.log_every_epochs,
                control.checkpoint_every_epochs,
                control.checkpoint_min_s,
                keep_checkpoints=99,
                show="none",
            )
            taken = time.perf_counter() - start
            if is_writing:
                num_written.append(sum(path.name.isdigit() for path in (folder / "checkpoints").iterdir()))
        return taken

    row = _in_turns(seconds)
    row = {"num_updates": plan.num_updates, "num_checkpoints": statistics.median(num_written), **row}
    print(f"checkpoints, {row['num_checkpoints']:g} in {row['seconds'][0]:.1f} s: {_ratio(row)}", flush=True)
    return row


def _in_turns(seconds: Callable[[bool], float]) -> dict[str, Any]:
    """Seconds with something over those without it: median and quartiles of pairs, after a first one that compiles."""
    times = np.empty((1 + _REPEATS.value, 2))
    for repeat in range(1 + _REPEATS.value):
        for which in (0, 1) if repeat % 2 else (1, 0):
            times[repeat, which] = seconds(which == 0)
    low, ratio, high = np.quantile(times[1:, 0] / times[1:, 1], (0.25, 0.5, 0.75)).tolist()
    return {"seconds": np.median(times[1:], axis=0).tolist(), "ratio": ratio, "ratio_quartiles": [low, high]}


def _ratio(row: dict[str, Any]) -> str:
    low, high = row["ratio_quartiles"]
    return f"{row['ratio']:.3f} of the time without ({low:.3f} to {high:.3f})"


def measure_memory(name: str, batch_sizes: tuple[int, int]) -> dict[str, Any]:
    """Medians of `probe_memory`, over fresh processes."""

    def probe(batch_size: int) -> int:
        command = [sys.executable, *sys.argv, f"--memory_probe={name}:{batch_size}"]
        return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])

    probes = [[probe(size) for size in batch_sizes] for _ in range(1 if _QUICK.value else 3)]
    small, large = (statistics.median(column) for column in zip(*probes, strict=True))
    mib = f"{small / 2**20:.0f} and {large / 2**20:.0f} MiB"
    print(f"memory, {name}, batch {batch_sizes[0]} and {batch_sizes[1]}: {mib}, ratio {large / small:.3f}", flush=True)
    return {"loop": name, "batch_sizes": batch_sizes, "bytes": [small, large], "ratio": large / small, "probes": probes}


def probe_memory(name: str, batch_size: int) -> int:
    """Bytes by which training on as many examples as the larger batch has raises the peak, compilation included."""
    _ = _dataset().mean, _dataset().std
    jax.block_until_ready(jnp.zeros(()))
    with contextlib.suppress(OSError):  # Linux can forget the peak of making the data
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = _peak_resident_bytes()
    loop = BareLoop() if name == "bare" else EngineLoop([batch_size], MICROBATCH_SIZE)
    if name == "engine":  # the same programs at either batch size: those for one microbatch, and for several
        loop.update(MICROBATCH_SIZE)
        loop.update(2 * MICROBATCH_SIZE)
    seconds_of(loop, batch_size, MEMORY_BATCH_SIZES[-1] // batch_size)
    stats = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] if stats else _peak_resident_bytes() - before


def _peak_resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure_batch_size_change(name: str, batch_sizes: Sequence[int], phase_size: int) -> dict[str, Any]:
    """Trains through phases of about `phase_size` examples and times each update, waiting for it.

    The pause at a change is what a phase's first update takes beyond the median of the others.

    "engine" has one microbatch size. "engine_automatic" chooses one for each phase, and compiles for it in the
    background from the first update of the phase before on, as `bsjax.loop` does.
    """
    engine = None if name == "bare" else EngineLoop(batch_sizes, MICROBATCH_SIZE if name == "engine" else None)
    loop = engine or BareLoop()
    events: list[str] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    # What is compiled before the run: its first update, and with one microbatch size also the programs for several.
    for batch_size in batch_sizes[: 2 if name == "engine" else 1]:
        seconds_of(loop, batch_size)
    at_start = events.count(COMPILATION)
    stall_at_start = engine.engine.stall_time_s if engine else 0.0
    pauses = []
    for batch_size, next_batch_size in zip(batch_sizes, [*batch_sizes[1:], None], strict=True):
        seconds = []
        for update in range(max(4, phase_size // batch_size)):
            seconds.append(seconds_of(loop, batch_size)[0])
            if engine and name == "engine_automatic" and update == 0 and next_batch_size:
                engine.engine.compile_ahead(engine.state, next_batch_size)
        pauses.append(seconds[0] - statistics.median(seconds[1:]))
    jax.monitoring.unregister_event_duration_listener(listen)
    row = {
        "loop": name,
        "batch_sizes": batch_sizes,
        "compilations_at_start": at_start,
        "further_compilations": events.count(COMPILATION) - at_start,
        "compile_stall_s": engine.engine.stall_time_s - stall_at_start if engine else None,
        "pauses_s": pauses,
        "longest_pause_s": max(pauses),
    }
    stall = "" if engine is None else f"; engine waited for the compiler {row['compile_stall_s']:.2f} s"
    print(
        f"{len(batch_sizes)} batch sizes, {name}: {at_start} compilations at start, "
        f"{row['further_compilations']} further{stall}; pauses {' '.join(f'{pause:.2f}' for pause in pauses)} s",
        flush=True,
    )
    return row


@functools.cache
def _dataset() -> Dataset:
    """The synthetic data set twice over: 4,096 examples to train on."""
    synthetic = load_dataset("synthetic")
    images, labels = (np.concatenate([part, part]) for part in synthetic.train)
    return Dataset("synthetic twice", Split(images, labels), synthetic.test, synthetic.class_names)


def _model() -> nn.Module:
    sizes = {name: flag.value for name, flag in (("depth", _DEPTH), ("width", _WIDTH)) if flag.value}
    return create_model(_MODEL.value, 10, _GHOST_BATCH_SIZE.value, **sizes)


def measure() -> dict[str, Any]:
    """All the parts asked for."""
    results: dict[str, Any] = {}
    if "memory" in _PARTS.value:  # first: its processes need the device that this one takes and holds
        batch_sizes = (64, 128) if _QUICK.value else MEMORY_BATCH_SIZES
        results["memory"] = [measure_memory(name, batch_sizes) for name in ("engine", "bare")]
    if "throughput" in _PARTS.value:
        fixed = [measure_throughput(int(size), int(size)) for size in _FIXED.value]
        results["throughput"] = fixed + [measure_throughput(int(size), None) for size in _AUTOMATIC.value]
    if "gradient_noise" in _PARTS.value:
        results["gradient_noise"] = measure_gradient_noise()
    if "checkpoints" in _PARTS.value:
        results["checkpoints"] = measure_checkpoints()
    if "batch_size_change" in _PARTS.value:
        phases = (CHANGING_BATCH_SIZES[:4], 0) if _QUICK.value else (CHANGING_BATCH_SIZES, 8192)
        loops = ("bare", "engine", "engine_automatic")
        results["batch_size_change"] = [measure_batch_size_change(loop, *phases) for loop in loops]
    device = jax.devices()[0]
    return {"model": str(_model()), "device": device.device_kind, "jax": jax.__version__, **results}


def main(argv: list[str]) -> None:
    """Measures, prints, writes."""
    logging.set_verbosity(logging.WARNING)
    jax.config.update("jax_enable_compilation_cache", False)
    if _QUICK.value:
        quick = {"model_depth": 1, "model_width": 2, "fixed": "32", "automatic": "128", "repeats": 2, "seconds": 0}
        for name, value in quick.items():
            flags.FLAGS.set_default(name, value)
    try:
        if _PROBE.value:
            name, _, batch_size = _PROBE.value.partition(":")
            print(probe_memory(name, int(batch_size)))
            return
        results = measure()
    except (InvalidArgument, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
    if _OUTPUT.value:
        pathlib.Path(_OUTPUT.value).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
