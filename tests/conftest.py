"""Eight devices on the CPU, and what the tests of the engine share."""

import gc
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from bsjax.data import ArraySource, Dataset
from bsjax.engine.step import TrainState

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Compiling is most of what these tests do: this makes it three times faster. (At level 0 some gradients are NaN.)
_XLA_FLAGS = ["--xla_backend_optimization_level=1"]
if jax.__version_info__ < (0, 11):  # another 1.6 times: the older emitter of fusions, which later XLA lacks
    _XLA_FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_XLA_FLAGS])
# Data sets and measured times that a test writes are not the user's; its processes inherit this.
_CACHE = tempfile.TemporaryDirectory(prefix="bsjax-tests-")
os.environ["BSJAX_DATA_DIR"] = _CACHE.name
# Tests compile some programs several times, such as for another engine. Each process has a folder of its own, because
# JAX's files may be read while they are written; of 2,800 programs, sharing would save 70.
jax.config.update("jax_compilation_cache_dir", os.path.join(_CACHE.name, "compiled"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.02)
gc.freeze()  # what is imported stays, so no collection need go through it


# Files with tests that take long begin first, so that no process is left with one at the end.
_SLOW = (
    "test_scripts",
    "test_faults",
    "test_multihost",
    "test_benchmark",
    "test_checkpoint",
    "test_tasks",
    "test_engine",
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem not in _SLOW)


@pytest.fixture
def float64():
    """Lets JAX compute in float64, in this thread."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def make_dataset():
    """A function that makes a small data set of noisy patterns, which a model can learn."""

    def make(train_size, test_size=37, image_shape=(8, 8, 1), num_classes=10):
        random = np.random.RandomState(1)
        patterns = random.uniform(0, 255, (num_classes, *image_shape))

        def split(size):
            labels = random.randint(num_classes, size=size).astype(np.int32)
            noise = random.uniform(0, 255, (size, *image_shape))
            return ArraySource({"image": ((patterns[labels] + noise) / 2).astype(np.uint8), "label": labels})

        return Dataset("small", split(train_size), split(test_size), tuple(map(str, range(num_classes))))

    return make


@pytest.fixture(scope="session")
def assert_same_dataset():
    """A function that compares everything of two data sets."""

    def check(dataset, expected):
        assert (dataset.name, dataset.class_names) == (expected.name, expected.class_names)
        for split in ("train", "test"):
            examples, expected_examples = (getattr(either, split).examples for either in (dataset, expected))
            assert examples.keys() == expected_examples.keys() == {"image", "label"}
            for key, array in examples.items():
                np.testing.assert_array_equal(array, expected_examples[key], strict=True)

    return check


@pytest.fixture(scope="session")
def random_state():
    """A function that makes a state with every parameter and statistic at random, without compiling anything."""

    def make(model, tx, image_shape, dtype=np.float32):
        shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *image_shape)), train=False))
        random = np.random.RandomState(2)

        def draw(path, shape):
            center = 1.0 if path[-1].key in ("scale", "var") else 0.0
            spread = 0.3 if len(shape.shape) == 1 else 1 / np.sqrt(np.prod(shape.shape[:-1]))
            return (center + spread * random.uniform(-1, 1, shape.shape)).astype(dtype)

        variables = jax.tree.map_with_path(draw, dict(shapes))
        params = variables["params"]
        return TrainState(params, variables.get("batch_stats", {}), tx.init(jax.tree.map(jnp.asarray, params)))

    return make


@pytest.fixture(scope="session")
def psum_program():
    """A Python program for several processes: each adds up the processes' numbers, from 1."""
    return """
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize()
total = jax.pmap(lambda x: jax.lax.psum(x, "i"), "i")(jax.numpy.array([jax.process_index() + 1.0]))
print(f"process {jax.process_index()} of {jax.process_count()} total {total}", flush=True)
"""


@pytest.fixture(scope="session", autouse=True)
def heed_interrupts():
    """Undoes what a shell's background job has inherited: that SIGINT is ignored, here and in what is started."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def run_python(tmp_path_factory):
    """A function that runs a script, given as Python takes it, in a process that need not import JAX: a fork."""
    outputs = [tmp_path_factory.mktemp("outputs") / name for name in ("stdout", "stderr")]
    # With one thread, because a fork keeps no others.
    server = [sys.executable, str(pathlib.Path(__file__).with_name("forking.py"))]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": os.environ | {"OPENBLAS_NUM_THREADS": "1"}}
    with subprocess.Popen(server, text=True, **streams) as process:

        def run(*arguments, cwd="."):
            for path in outputs:
                path.write_text("")
            arguments, folder = [str(argument) for argument in arguments], os.path.abspath(cwd)
            request = json.dumps([arguments, folder, dict(os.environ), list(map(str, outputs))])
            print(request, file=process.stdin, flush=True)
            code = int(process.stdout.readline())
            return subprocess.CompletedProcess(arguments, code, *(path.read_text() for path in outputs))

        yield run


@pytest.fixture(scope="session")
def write_class_folders():
    """A function that writes small JPEGs of many sizes into the folders of two classes, and returns their paths."""

    def write(root, count):
        random, paths = np.random.RandomState(0), []
        for number in range(count):
            path = root / ("ant", "bee")[number % 2] / f"{number:02}.JPEG"
            path.parent.mkdir(exist_ok=True)
            pixels = random.randint(256, size=(*random.randint(9, 40, 2), 3)).astype(np.uint8)
            Image.fromarray(pixels).save(path)
            paths.append(path)
        return paths

    return write


@pytest.fixture
def slurm_job_id():
    """A job's number, from which `jax.distributed.initialize` computes a port that is free."""
    for port in range(61441, 65535):
        with socket.socket() as candidate:
            if candidate.connect_ex(("localhost", port)):
                return str(port - 61440)
    raise AssertionError("no port is free")
