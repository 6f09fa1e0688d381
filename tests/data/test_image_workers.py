"""Processes that decode: the same examples as threads, one clear error when they die, and none that hangs."""

import multiprocessing
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from bsjax.data import ImageFolder, ImageSource
from bsjax.errors import RunError

N = 12


@pytest.fixture(scope="module")
def root(write_class_folders, tmp_path_factory):
    """A folder of two classes, of which two images are damaged."""
    root = tmp_path_factory.mktemp("images")
    paths = write_class_folders(root, N)
    for number in (4, 7):
        paths[number].write_bytes(paths[number].read_bytes()[:200])
    return root


@pytest.fixture(scope="module")
def expected(root):
    """Eight batches of six, by one thread."""
    source = ImageSource(ImageFolder(root), 8, True, 5, num_threads=1, on_bad_example="skip_with_record")
    random = np.random.RandomState(1)
    indices, positions = random.randint(N, size=(8, 2, 3)), random.randint(2**40, size=(8, 2, 3))
    return indices, positions, source.gather(indices, positions), source.bad_examples


@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_workers_and_batches_change_nothing(root, expected, num_workers):
    """All at once, and then in batches of other sizes and in another order."""
    indices, positions, examples, bad = expected
    files = ImageFolder(root)
    source = ImageSource(files, 8, True, 5, on_bad_example="skip_with_record", num_workers=num_workers)
    assert source.fingerprint == ImageSource(files, 8, True, 5, num_threads=1).fingerprint
    for part in (slice(None), slice(5, 8), slice(0, 1), slice(1, 5)):
        found = source.gather(indices[part], positions[part])
        for name, array in found.items():
            np.testing.assert_array_equal(array, examples[name][part], strict=True)
    assert source.bad_examples == bad and len(bad) == 2


def test_the_first_damaged_image_is_named(root):
    source = ImageSource(ImageFolder(root), 8, train=False, num_workers=2)
    for _ in range(2):  # the processes live on
        with pytest.raises(RunError, match=r"^example 2 is damaged, ant/04.JPEG: .*; with on_bad_example="):
            source.gather(np.arange(N))
    assert source.gather(np.array([0, 1, 3]))["label"].tolist() == [0, 0, 0]


def wait_until_ready(worker):
    """Until a worker leaves SIGTERM to its parent; one may do all of the first request, before the other has begun."""
    bit = 1 << (signal.SIGTERM - 1)
    while not int(re.search(r"SigBlk:\s*(\w+)", Path(f"/proc/{worker.pid}/status").read_text())[1], 16) & bit:
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks /proc which signals a process blocks")
def test_a_worker_that_dies_is_one_error(root):
    before = set(multiprocessing.active_children())
    source = ImageSource(ImageFolder(root), 8, train=False, num_workers=2)
    source.gather(np.array([0, 1]))
    [worker, other] = set(multiprocessing.active_children()) - before
    wait_until_ready(other)
    subprocess.run(["kill", "-TERM", str(other.pid)], check=True)  # as to the whole group: the parent answers it
    assert source.gather(np.array([0, 1]))["label"].tolist() == [0, 0]
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    for _ in range(2):
        with pytest.raises(RunError, match=r"^a process that decodes images was killed, .*; --num_workers=2 sets"):
            for _ in range(100):  # the pool notices it a moment later
                source.gather(np.array([0, 1, 3]))
    other.join(60)
    assert not other.is_alive()


def test_a_single_example_starts_no_process(root):
    before = set(multiprocessing.active_children())
    source = ImageSource(ImageFolder(root), 8, train=False, num_workers=2)
    assert source.gather(np.array([3]))["image"].shape == (1, 8, 8, 3)
    assert set(multiprocessing.active_children()) <= before
