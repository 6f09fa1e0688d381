"""Images on the devices and images on the host: the same numbers; and what is gathered ahead of time."""

import threading
import time

import jax
import numpy as np
import pytest
from PIL import Image

from bsjax import InvalidArgument, Update
from bsjax.data import ArraySource, ExampleStream, ImageFolder, ImageSource
from bsjax.engine import Engine, feed
from bsjax.engine.feed import DeviceFeed, HostFeed, create_feeds
from bsjax.models import CNN
from bsjax.optimizers import create_optimizer
from bsjax.tasks import Classification

TRAIN_SIZE = 45
KEY = jax.random.PRNGKey(5)
# Batch sizes of consecutive updates: several microbatches, growing, one microbatch, shrinking; all with padding.
BATCH_SIZES = (40, 40, 56, 8, 72, 24, 24, 16)


@pytest.fixture(scope="module")
def dataset(make_dataset):
    return make_dataset(TRAIN_SIZE)


@pytest.fixture
def make_feed(dataset):
    """A function that makes a feed of the training examples on some devices."""

    def make(kind, num_devices=1):
        return kind(dataset.train, ExampleStream(TRAIN_SIZE, seed=2), KEY, jax.devices()[:num_devices])

    return make


def read(pool, address):
    """What the programs read there: images, labels and positions where there is an example, and the key."""
    examples, key, address = jax.tree.map(np.asarray, (*pool, address))
    images, labels = examples["image"], examples["label"]
    found = []
    for device, (index, position_hi, position_lo) in enumerate(address):
        for i, hi, lo in zip(index, position_hi, position_lo, strict=True):
            found.append((images[device, i].tobytes(), int(labels[device, i]), hi, lo) if i >= 0 else None)
    return found, key.tolist()


@pytest.mark.parametrize(("num_devices", "microbatch_size"), [(1, 16), (2, 8), (8, 2), (8, 16)])
def test_both_feeds_read_the_same(make_feed, num_devices, microbatch_size):
    feeds = [make_feed(kind, num_devices) for kind in (DeviceFeed, HostFeed)]
    start = 0
    for batch_size in BATCH_SIZES:
        batches = [
            [read(*microbatch) for microbatch in one.microbatches(start, batch_size, microbatch_size)] for one in feeds
        ]
        assert batches[0] == batches[1]
        assert sum(example is not None for found, _ in batches[0] for example in found) == batch_size
        start += batch_size


class Positioned(ArraySource):
    """Adds the index and the position to each example, as a source with crops on the host does in its way."""

    takes_positions = True

    def gather(self, indices, positions=None):
        positions = np.asarray(indices if positions is None else positions, np.int64)
        halves = {"upper": (positions >> 32).astype(np.int32), "lower": positions.astype(np.uint32)}
        return {**super().gather(indices), **halves, "index": np.asarray(indices)}


@pytest.mark.parametrize(("num_devices", "microbatch_size"), [(1, 16), (8, 2)])
@pytest.mark.parametrize("start", [0, 2**32 - 30])
def test_a_source_may_depend_on_positions(dataset, num_devices, microbatch_size, start):
    source, stream = Positioned(dataset.train.examples), ExampleStream(TRAIN_SIZE, seed=2)
    devices = jax.devices()[:num_devices]
    train, test = create_feeds("auto", source, source, stream, KEY, devices)
    assert (type(train), type(test)) == (HostFeed, HostFeed)
    for one, begin, batch_size in ((train, start, 40), (train, start + 40, 24), (test, 0, TRAIN_SIZE)):
        indices, positions = [], []
        for (examples, _), address in one.microbatches(begin, batch_size, microbatch_size):
            real = np.asarray(address)[:, 0] >= 0
            indices += np.asarray(examples["index"])[real].tolist()
            upper, lower = (np.asarray(examples[half])[real].astype(np.int64) for half in ("upper", "lower"))
            positions += (upper << 32 | lower).tolist()
        assert positions == list(range(begin, begin + batch_size))
        assert indices == (stream.indices(begin, batch_size).tolist() if one is train else positions)


@pytest.fixture
def images(tmp_path):
    """A function that makes a source of random crops of 45 JPEGs."""
    random = np.random.RandomState(0)
    for number in range(TRAIN_SIZE):
        path = tmp_path / str(number % 3) / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        pixels = random.randint(256, size=(*random.randint(9, 30, 2), 3)).astype(np.uint8)
        Image.fromarray(pixels).save(path)
    return lambda num_threads: ImageSource(ImageFolder(tmp_path), 6, True, 1, num_threads)


def test_crops_are_the_same_for_all_threads_processes_and_batches(images, monkeypatch):
    """Process k of two has device k of two, and gathers its part of each microbatch."""

    def crops(source, process, num_devices, microbatch_size, batch_sizes):
        part = slice(0, num_devices) if process is None else slice(process, process + 1)
        monkeypatch.setattr(feed, "local_part", lambda devices: part)
        monkeypatch.setattr(feed, "place", lambda examples, devices: examples)
        devices, found, start = jax.devices()[:num_devices], {}, 0
        one = HostFeed(source, ExampleStream(TRAIN_SIZE, seed=2), KEY, devices)
        for batch_size in batch_sizes:
            for (examples, _), address in one.microbatches(start, batch_size, microbatch_size):
                where = zip(*np.nonzero(address[:, 0] >= 0), strict=True)
                found |= {
                    int(address[at][2, i]): (examples["image"][at, i].tobytes(), int(examples["label"][at, i]))
                    for at, i in where
                }
            start += batch_size
        return found

    expected = crops(images(1), None, 1, 40, [120])  # by one thread, all at once
    assert sorted(expected) == list(range(120))
    assert crops(images(2), None, 1, 8, [8, 16, 40, 56]) == expected
    assert crops(images(4), None, 8, 2, [40, 24, 56]) == expected
    halves = [crops(images(2), process, 2, 4, [8, 40, 72]) for process in (0, 1)]
    assert not halves[0].keys() & halves[1].keys()
    assert halves[0] | halves[1] == expected


def test_shapes_are_those_of_microbatches(make_feed):
    for kind in (DeviceFeed, HostFeed):
        one = make_feed(kind, 2)
        [microbatch] = one.microbatches(0, 16, 8)
        shapes = jax.tree.map(lambda x: (x.shape, x.dtype), one.shapes(8))
        assert shapes == jax.tree.map(lambda x: (x.shape, x.dtype), microbatch)


@pytest.mark.parametrize("num_devices", [1, 8])
def test_training_and_evaluation_are_the_same_to_the_last_bit(dataset, random_state, num_devices):
    """With augmentation, dropout, ghosts that span devices, and batches of one and of several microbatches."""
    devices, model = jax.devices()[:num_devices], CNN(10, depth=1, width=2, dropout=0.3, ghost_batch_size=8)
    outcomes = []
    for examples_on in ("device", "host"):
        engine = Engine(
            Classification(model, augmentation="crop_flip", mean=dataset.mean, std=dataset.std),
            create_optimizer("momentum"),
            dataset.train,
            dataset.test,
            BATCH_SIZES,
            microbatch_size=16 // num_devices,
            examples_on=examples_on,
            devices=devices,
        )
        state = engine.place(random_state(model, create_optimizer("momentum"), (8, 8, 1)))
        start, all_metrics = 0, []
        for batch_size in BATCH_SIZES:
            state, metrics = engine.update(state, Update(0, start, batch_size, 0.1, 0.9))
            all_metrics.append(metrics.read())
            start += batch_size
        outcomes.append((state.params, all_metrics, engine.evaluate(state), engine.num_compilations))
    jax.tree.map(np.testing.assert_array_equal, *outcomes)


class Recording(ArraySource):
    """Keeps the threads that have gathered from it."""

    def __init__(self, source):
        super().__init__(source.examples)
        self.threads = []

    def gather(self, indices):
        self.threads.append(threading.current_thread().name)
        return super().gather(indices)

    def wait_for(self, count):
        deadline = time.monotonic() + 60
        while len(self.threads) < count and time.monotonic() < deadline:
            time.sleep(0.001)
        assert len(self.threads) == count


def test_microbatches_are_gathered_before_they_are_needed(dataset):
    source = Recording(dataset.train)
    one = HostFeed(source, ExampleStream(TRAIN_SIZE, seed=2), KEY, jax.devices()[:1])
    assert len(list(one.microbatches(0, 8, 2))) == 4
    source.wait_for(8)  # those of the next update as well
    assert all(name.startswith("gather") for name in source.threads)
    list(one.microbatches(8, 8, 2))
    source.wait_for(12)
    list(one.microbatches(16, 12, 2))  # a larger batch begins with the microbatches that were expected
    source.wait_for(18)


def test_examples_without_a_stream_are_not_gathered_beyond_their_end(dataset):
    source = Recording(dataset.test)
    one = HostFeed(source, None, KEY, jax.devices()[:1])
    for count in (1, 2):
        found = [read(*microbatch)[0] for microbatch in one.microbatches(0, 37, 8)]
        labels = [example[1] for part in found for example in part if example]
        np.testing.assert_array_equal(labels, dataset.test.examples["label"])
        assert len(source.threads) == 5 * count


def test_an_error_while_gathering_is_not_lost(dataset):
    class Broken(ArraySource):
        def gather(self, indices):
            raise OSError("the disk is gone")

    one = HostFeed(Broken(dataset.train.examples), ExampleStream(TRAIN_SIZE, seed=2), KEY, jax.devices()[:1])
    with pytest.raises(OSError, match="the disk is gone"):
        list(one.microbatches(0, 8, 2))


@pytest.mark.parametrize(("memory", "expected"), [(4, DeviceFeed), (3.99, HostFeed)])
def test_examples_live_on_the_devices_where_they_take_a_quarter_of_the_memory_at_most(
    dataset, monkeypatch, memory, expected
):
    size = dataset.train.nbytes + dataset.test.nbytes
    monkeypatch.setattr(feed, "memory_bytes", lambda devices: memory * size)
    arguments = dataset.train, dataset.test, ExampleStream(TRAIN_SIZE, 0), KEY, jax.devices()[:1]
    assert [type(one) for one in create_feeds("auto", *arguments)] == [expected] * 2


class Streamed:
    """A source that cannot live on a device."""

    nbytes = None
    fingerprint = "streamed"

    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def gather(self, indices):
        return self.source.gather(indices)


@pytest.mark.parametrize(
    ("examples_on", "message"),
    [
        ("devise", "examples_on is 'devise'; it must be one of auto, device, host; nearest: device"),
        (
            "device",
            "examples_on is 'device'; it must be auto or host for a Streamed, which cannot live on a device; "
            "nearest: host",
        ),
    ],
)
def test_bad_input(dataset, examples_on, message):
    with pytest.raises(InvalidArgument) as refusal:
        arguments = Streamed(dataset.train), dataset.test, ExampleStream(TRAIN_SIZE, 0), KEY, jax.devices()[:1]
        create_feeds(examples_on, *arguments)
    assert str(refusal.value) == message


def test_what_depends_on_positions_cannot_live_on_a_device(dataset):
    source = Positioned(dataset.train.examples)
    with pytest.raises(
        InvalidArgument, match="it must be auto or host for a Positioned, which cannot live on a device"
    ):
        create_feeds("device", source, dataset.test, ExampleStream(TRAIN_SIZE, 0), KEY, jax.devices()[:1])


def test_what_cannot_live_on_a_device_stays_on_the_host(dataset):
    arguments = Streamed(dataset.train), dataset.test, ExampleStream(TRAIN_SIZE, 0), KEY, jax.devices()[:1]
    assert [type(one) for one in create_feeds("auto", *arguments)] == [HostFeed] * 2
