"""What the engine costs, side by side with the loop that a user would write by hand.

    python scripts/benchmark.py --output=benchmark.json

--part=throughput: images/s of the engine over images/s of a bare jit loop (same model, loss, optimizer, data and order;
  nothing is read back); with microbatches as large as the batch, then with microbatches that the engine measures,
  over the bare loop at the batch of at most this size that is its fastest.
--part=memory: how far training raises the peak, at batch 64 and 4096 with microbatches of 64: of resident memory on a
  CPU, of the device's own elsewhere. Each measurement is a fresh process.
--part=gradient_noise: time of training the digits preset's CNN with the gradient noise scale over that without it;
  batches of 128 in microbatches of 32.
--part=layer_norm_noise: time of updates of the shakespeare_cpu preset's transformer that measure the gradient of every
  example for the layer normalisations, over that of updates which do not; one microbatch of 12, then of 64 windows.
--part=checkpoints: time of the digits preset with a growing batch and its default checkpoints, over that without any.
  It includes the last checkpoint, which the run waits for.
--part=batch_size_change: compilations, as XLA counts them, and pauses in a run through eight batch sizes.
--part=pytorch: images/s of the engine over PyTorch's, see scripts/benchmark_pytorch.py; only if it is asked for.
--part=tokens: tokens/s of a transformer by the engine, a bare jit loop and PyTorch, see scripts/benchmark_tokens.py;
  only if it is asked for.
--part=input: images/s of decoding and cropping JPEGs, see scripts/benchmark_input.py; only if it is asked for.

--accelerator measures the paper's network on an accelerator instead, see scripts/benchmark_accelerator.py.

Ratios are medians of pairs that take turns. 12 minutes on 2 CPU cores; docs/cost.md has the numbers.
"""

import contextlib
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

import benchmark_accelerator
import benchmark_input
import benchmark_loops as loops
import benchmark_pytorch
import benchmark_tokens
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging
from flax import linen as nn

from bsjax import InvalidArgument, Plan, Recipe, run
from bsjax.data import load_dataset
from bsjax.engine import Engine
from bsjax.models import AUTOENCODERS, CLASSIFIERS, Transformer, create_model, ghost_batch_size_of
from bsjax.optimizers import create_optimizer
from bsjax.run.noise import NoiseMeter

PARTS = ("memory", "throughput", "gradient_noise", "layer_norm_noise", "checkpoints", "batch_size_change")
_PARTS = flags.DEFINE_multi_enum(
    *("part", PARTS, (*PARTS, "pytorch", "tokens", "input")),
    "What to measure; may be given several times. Default, all but pytorch, tokens and input.",
)
_MODEL = flags.DEFINE_enum("model", "cnn", (*CLASSIFIERS, *AUTOENCODERS), "Model.")
_DEPTH = flags.DEFINE_integer("model_depth", None, "Layers of the model; default, the model's own.", 1)
_WIDTH = flags.DEFINE_integer("model_width", None, "Width of the model; default, the model's own.", 1)
_GHOST_BATCH_SIZE = flags.DEFINE_integer("ghost_batch_size", 32, "Examples that share batch-norm statistics.", 1)
_FIXED = flags.DEFINE_list("fixed", ["32", "128", "512"], "Batch sizes with a microbatch as large as the batch.")
_AUTOMATIC = flags.DEFINE_list("automatic", ["512", "2048"], "Batch sizes with the engine's choice of microbatch.")
_REPEATS = flags.DEFINE_integer("repeats", 15, "Pairs of measurements for each ratio.", 1)
_SECONDS = flags.DEFINE_float("seconds", 1.0, "Length of each measurement of throughput.", 0.0)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")
_ACCELERATOR = flags.DEFINE_bool("accelerator", False, "Measure the paper's network, in less than ten minutes.")
_QUICK = flags.DEFINE_bool("quick", False, "Run a little of everything, as a test; the numbers mean nothing.")

MICROBATCH_SIZE = 64
MEMORY_BATCH_SIZES = (64, 4096)
CHANGING_BATCH_SIZES = (64, 96, 128, 256, 512, 1024, 2048, 4096)
COMPILATION = "/jax/core/compile/backend_compile_duration"


def measure_throughput(batch_size: int, microbatch_size: int | str) -> dict[str, Any]:
    """Engine over bare loop in images/s."""
    pair = loops.EngineLoop(_model(), [batch_size], microbatch_size), loops.BareLoop(_model())
    # Compiles, and shows whether the two do the same.
    losses = [[loop.update(batch_size)() for _ in range(3)] for loop in pair]
    sizes = batch_size, _fastest(pair[1], batch_size) if microbatch_size == "measure" else batch_size
    num_updates = [max(1, round(_SECONDS.value / _seconds_of_one(pair[i], sizes[i]))) for i in (0, 1)]
    num_examples = [size * count for size, count in zip(sizes, num_updates, strict=True)]

    def seconds_per_example(is_bare: bool) -> float:
        return loops.seconds_of(pair[is_bare], sizes[is_bare], num_updates[is_bare]) / num_examples[is_bare]

    turns = _in_turns(seconds_per_example)
    bare_ips, engine_ips = (1 / seconds for seconds in turns.pop("seconds"))
    row = {
        "batch_size": batch_size,
        "bare_batch_size": sizes[1],
        "microbatch_size": pair[0].engine.layout(batch_size).microbatch_size,
        "automatic": microbatch_size == "measure",
        "engine_images_per_second": engine_ips,
        "bare_images_per_second": bare_ips,
        **turns,
        "updates_per_measurement": num_updates[0],
        "max_loss_difference": max(abs(a - b) for a, b in zip(*losses, strict=True)),
    }
    print(
        f"throughput, batch {batch_size}, {'automatic ' if microbatch_size == 'measure' else ''}microbatch "
        f"{row['microbatch_size']}: engine {engine_ips:.0f}, bare loop at {sizes[1]} {bare_ips:.0f} images/s, "
        f"ratio {_ratio(row)}",
        flush=True,
    )
    return row


def _seconds_of_one(loop: loops.EngineLoop | loops.BareLoop, batch_size: int) -> float:
    loops.seconds_of(loop, batch_size)  # compiles
    return min(loops.seconds_of(loop, batch_size) for _ in range(3))


def _fastest(loop: loops.BareLoop, batch_size: int) -> int:
    """The batch size, of whole ghosts and at most `batch_size`, with the most examples per second."""
    ghost = ghost_batch_size_of(_model())
    sizes = [size for size in (8 * 2**power for power in range(10)) if size <= batch_size and size % ghost == 0]
    return min(sizes or [batch_size], key=lambda size: _seconds_of_one(loop, size) / size)


def measure_gradient_noise(batch_size: int = 128, microbatch_size: int = 32) -> dict[str, Any]:
    """Time of training with the gradient noise scale over that without."""
    digits = load_dataset("digits")
    num_updates = max(3, round(300 * _SECONDS.value))
    batch_sizes, rates, momentums = (np.full(num_updates, x) for x in (batch_size, loops.LEARNING_RATE, loops.MOMENTUM))
    plan = Plan(len(digits.train), batch_sizes, rates, momentums)
    model, tx = create_model("cnn", 10, 8), create_optimizer("momentum")
    engines = [loops.make_engine(model, tx, digits, [batch_size], microbatch_size) for _ in range(2)]
    intervals = run.Intervals(eval_every_epochs=1e9, log_every_epochs=1e9)
    without = (
        mock.patch("bsjax.engine.step.shard_term", lambda *_: jnp.zeros(())),
        mock.patch.object(NoiseMeter, "add", lambda meter, state, read: state),
    )

    def seconds(is_measuring: bool) -> float:
        """As the loop counts them: without compilation, evaluation and checkpoints."""
        summary = _train(engines[is_measuring], plan, intervals, () if is_measuring else without)
        assert (summary["gradient_noise_scale"] is not None) == is_measuring or _QUICK.value
        return summary["examples_seen"] / summary["examples_per_second"]

    row = {"batch_size": batch_size, "microbatch_size": microbatch_size, **_in_turns(seconds)}
    print(f"gradient noise, batch {batch_size}: time with it over time without {_ratio(row)}", flush=True)
    return row


def measure_layer_norm_noise(batch_size: int) -> dict[str, Any]:
    """Time of a transformer's updates with the noise of its layer normalisations over that without."""
    small = {"context_length": 8, "depth": 1, "width": 8, "num_heads": 2}
    sizes: dict[str, Any] = small if _QUICK.value else {}
    model = Transformer(vocab_size=65, **sizes)
    pair = [loops.LanguageModelLoop(model, batch_size, is_measuring) for is_measuring in (False, True)]
    losses = [[loop.update(batch_size)() for _ in range(3)] for loop in pair]  # compiles, too
    num_updates = max(1, round(_SECONDS.value / _seconds_of_one(pair[False], batch_size)))
    turns = _in_turns(lambda is_measuring: loops.seconds_of(pair[is_measuring], batch_size, num_updates))
    row = {
        "batch_size": batch_size,
        "updates_per_measurement": num_updates,
        **turns,
        "max_loss_difference": max(abs(a - b) for a, b in zip(*losses, strict=True)),
    }
    print(f"layer norm noise, batch {batch_size}: time with it over time without {_ratio(row)}", flush=True)
    return row


def measure_checkpoints() -> dict[str, Any]:
    """Time of the digits preset with its checkpoints over that without."""
    digits, num_epochs = load_dataset("digits"), 1 if _QUICK.value else 60
    steps = optax.piecewise_constant_schedule(0.05, {num_epochs * share: 0.2 for share in (1 / 3, 2 / 3, 5 / 6)})
    recipe = Recipe(steps, 8, len(digits.train), num_epochs)
    plan = recipe.increase_batch_size(max_batch_size=144, multiple_of=8).plan()
    tx = create_optimizer("momentum", weight_decay=loops.WEIGHT_DECAY)
    engine = loops.make_engine(create_model("cnn", 10, 8), tx, digits, np.unique(plan.batch_sizes).tolist(), "auto")
    intervals = run.Intervals(checkpoint_every_epochs=10.0, checkpoint_min_s=2.0, keep_checkpoints=99)
    without = (mock.patch("bsjax.run.checkpoint.Checkpoints.save", lambda *_: None),)
    num_written = []

    def seconds(is_writing: bool) -> float:
        summary = _train(engine, plan, intervals, () if is_writing else without)
        if is_writing:
            num_written.append(summary["num_checkpoints"])
        return summary["seconds"]

    turns = _in_turns(seconds)
    row = {"num_updates": plan.num_updates, "num_checkpoints": statistics.median(num_written), **turns}
    about = f"checkpoints, {row['num_checkpoints']:g} in {row['seconds'][0]:.1f} s"
    print(f"{about}: time with them over time without {_ratio(row)}", flush=True)
    return row


def _train(
    engine: Engine, plan: Plan, intervals: run.Intervals, patches: Sequence[contextlib.AbstractContextManager]
) -> dict[str, Any]:
    """The summary of a run, with its wall time and the number of its checkpoints."""
    with contextlib.ExitStack() as exits:
        for patch in patches:
            exits.enter_context(patch)
        folder = pathlib.Path(exits.enter_context(tempfile.TemporaryDirectory()))
        start = time.perf_counter()
        summary = run.train(engine, plan, folder, intervals, show="none")
        seconds = time.perf_counter() - start
        num_checkpoints = sum(path.name.isdigit() for path in folder.glob("checkpoints/*"))
    assert summary is not None
    return {**summary, "seconds": seconds, "num_checkpoints": num_checkpoints}


def _in_turns(seconds: Callable[[bool], float]) -> dict[str, Any]:
    """seconds(True) over seconds(False): median and quartiles of pairs, without the first pair, which compiles."""
    times = np.empty((1 + _REPEATS.value, 2))
    for repeat in range(1 + _REPEATS.value):
        for which in (0, 1) if repeat % 2 else (1, 0):
            times[repeat, which] = seconds(which == 0)
    low, ratio, high = np.quantile(times[1:, 0] / times[1:, 1], (0.25, 0.5, 0.75)).tolist()
    return {"seconds": np.median(times[1:], axis=0).tolist(), "ratio": ratio, "ratio_quartiles": [low, high]}


def _ratio(row: dict[str, Any]) -> str:
    low, high = row["ratio_quartiles"]
    return f"{row['ratio']:.3f} ({low:.3f} to {high:.3f})"


def measure_memory(name: str, batch_sizes: tuple[int, int]) -> dict[str, Any]:
    """Medians of `probe_memory`, over fresh processes."""

    def probe(batch_size: int) -> int:
        command = [sys.executable, *sys.argv, f"{name}:{batch_size}"]
        return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])

    probes = [[probe(size) for size in batch_sizes] for _ in range(1 if _QUICK.value else 3)]
    small, large = (statistics.median(column) for column in zip(*probes, strict=True))
    mib = f"{small / 2**20:.0f} and {large / 2**20:.0f} MiB"
    print(f"memory, {name}, batch {batch_sizes[0]} and {batch_sizes[1]}: {mib}, ratio {large / small:.3f}", flush=True)
    return {"loop": name, "batch_sizes": batch_sizes, "bytes": [small, large], "ratio": large / small, "probes": probes}


def probe_memory(name: str, batch_size: int) -> int:
    """Bytes by which compiling, and training on as many examples as the larger batch has, raise the peak."""
    _ = loops.synthetic_twice().mean, loops.synthetic_twice().std
    jax.block_until_ready(jnp.zeros(()))
    with contextlib.suppress(OSError):  # Linux can forget the peak of making the data
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = _peak_resident_bytes()
    loop = loops.BareLoop(_model()) if name == "bare" else loops.EngineLoop(_model(), [batch_size], MICROBATCH_SIZE)
    if name == "engine":  # the same programs at either batch size: those for one microbatch, and for several
        loop.update(MICROBATCH_SIZE)
        loop.update(2 * MICROBATCH_SIZE)
    loops.seconds_of(loop, batch_size, MEMORY_BATCH_SIZES[-1] // batch_size)
    stats = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] if stats else _peak_resident_bytes() - before


def _peak_resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure_batch_size_change(name: str, batch_sizes: Sequence[int], phase_size: int) -> dict[str, Any]:
    """Trains through phases of about `phase_size` examples, and waits for each update to time it.

    The pause at a change is what a phase's first update takes beyond the median of the others.

    "engine" has one microbatch size. "engine_automatic" chooses one for each phase, and compiles for the next phase in
    the background, as `bsjax.run.train` does.
    """
    microbatch_size = MICROBATCH_SIZE if name == "engine" else "auto"
    engine = None if name == "bare" else loops.EngineLoop(_model(), batch_sizes, microbatch_size)
    loop = engine or loops.BareLoop(_model())
    events: list[str] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    # Before the run, the first update compiles; with one microbatch size, so do the programs for several microbatches.
    for batch_size in batch_sizes[: 2 if name == "engine" else 1]:
        loops.seconds_of(loop, batch_size)
    at_start = events.count(COMPILATION)
    stall_at_start = engine.engine.stall_time_s if engine else 0.0
    pauses = []
    for batch_size, next_batch_size in zip(batch_sizes, [*batch_sizes[1:], None], strict=True):
        seconds = []
        for update in range(max(4, phase_size // batch_size)):
            seconds.append(loops.seconds_of(loop, batch_size))
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


def _model() -> nn.Module:
    sizes = {name: flag.value for name, flag in (("depth", _DEPTH), ("width", _WIDTH)) if flag.value}
    return create_model(_MODEL.value, 10, _GHOST_BATCH_SIZE.value, **sizes)


def measure() -> dict[str, Any]:
    """Measures the parts that --part names."""
    results: dict[str, Any] = {}
    if "memory" in _PARTS.value:  # first: its processes need the device that this one takes and holds
        batch_sizes = (64, 128) if _QUICK.value else MEMORY_BATCH_SIZES
        results["memory"] = [measure_memory(name, batch_sizes) for name in ("engine", "bare")]
    if "throughput" in _PARTS.value:
        fixed = [measure_throughput(int(size), int(size)) for size in _FIXED.value]
        results["throughput"] = fixed + [measure_throughput(int(size), "measure") for size in _AUTOMATIC.value]
    if "gradient_noise" in _PARTS.value:
        results["gradient_noise"] = measure_gradient_noise()
    if "layer_norm_noise" in _PARTS.value:
        results["layer_norm_noise"] = [measure_layer_norm_noise(size) for size in ((4,) if _QUICK.value else (12, 64))]
    if "checkpoints" in _PARTS.value:
        results["checkpoints"] = measure_checkpoints()
    if "batch_size_change" in _PARTS.value:
        phases = (CHANGING_BATCH_SIZES[:4], 0) if _QUICK.value else (CHANGING_BATCH_SIZES, 8192)
        names = ("bare", "engine", "engine_automatic")
        results["batch_size_change"] = [measure_batch_size_change(name, *phases) for name in names]
    if "pytorch" in _PARTS.value:
        results["pytorch"] = benchmark_pytorch.measure(_SECONDS.value, _REPEATS.value, _QUICK.value)
    if "tokens" in _PARTS.value:
        results["tokens"] = benchmark_tokens.measure(_SECONDS.value, _REPEATS.value, _QUICK.value)
    if "input" in _PARTS.value:
        results["input"] = benchmark_input.measure(_REPEATS.value, _QUICK.value)
    device = jax.devices()[0]
    return {"model": str(_model()), "device": device.device_kind, "jax": jax.__version__, **results}


def main(argv: list[str]) -> None:
    """Measures, prints and writes the results."""
    logging.set_verbosity(logging.WARNING)
    if _ACCELERATOR.value:
        settings = benchmark_accelerator.QUICK if _QUICK.value else benchmark_accelerator.Settings()
        sys.exit(benchmark_accelerator.run(settings, _OUTPUT.value))
    jax.config.update("jax_enable_compilation_cache", False)
    if _QUICK.value:
        quick = {"model_depth": 1, "model_width": 2, "fixed": "32", "automatic": "128", "repeats": 2, "seconds": 0}
        for name, value in quick.items():
            flags.FLAGS.set_default(name, value)
    try:
        if len(argv) > 1:  # one of the processes of `measure_memory`
            name, _, batch_size = argv[1].partition(":")
            print(probe_memory(name, int(batch_size)))
            return
        results = measure()
    except (InvalidArgument, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
    if _OUTPUT.value:
        pathlib.Path(_OUTPUT.value).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
