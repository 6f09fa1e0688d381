"""Slow input is measured and told; damaged examples are listed; streaming that is resumed has the same bits."""

import io
import json
import time

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bsjax import Plan, Recipe
from bsjax.data import ArraySource, ImageFolder, ImageSource
from bsjax.engine import Engine
from bsjax.engine.devices import first_replica
from bsjax.errors import RunError
from bsjax.run import Intervals, Progress, ProgressLine, read_metrics, train
from bsjax.run.input import warning
from bsjax.run.log import Times
from bsjax.tasks import from_loss

N = 32


def squares(params, examples, keys, train):
    pixels = jnp.asarray(examples["image"], jnp.float32).mean(axis=(1, 2)) / 255 - 0.5
    return ((pixels @ params - jnp.asarray(examples["label"], jnp.float32)) ** 2).astype(jnp.float32)


def make_engine(source, batch_sizes, **options):
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=0.0)
    task = from_loss(squares, lambda key: jnp.zeros(3))
    return Engine(task, tx, source, source, batch_sizes, **{"microbatch_size": 8, "examples_on": "host"} | options)


class Timed(ArraySource):
    """Takes some seconds for each microbatch."""

    def __init__(self, wait_s):
        images = np.random.RandomState(0).randint(256, size=(N, 4, 4, 3)).astype(np.uint8)
        super().__init__({"image": images, "label": np.arange(N, dtype=np.int32) % 2})
        self.wait_s = wait_s

    def gather(self, indices):
        time.sleep(self.wait_s if np.ndim(indices) > 1 else 0.0)  # those of microbatches are [devices, n]
        return super().gather(indices)


def times_of(workdir):
    return [line["input_wait_s"] for line in read_metrics(workdir / "metrics.jsonl") if "train_loss" in line]


def test_waits_for_a_slow_source_are_in_the_metrics_and_told_once(tmp_path, capsys):
    """Eight examples in 0.2 s hold up any machine; four microbatches go ahead while the first update compiles."""
    plan = Plan(N, [8] * 24, [0.1] * 24, [0.0] * 24)
    intervals = Intervals(log_every_epochs=3.0, eval_every_epochs=6.0)
    summary = train(make_engine(Timed(0.2), [8]), plan, tmp_path, intervals)
    waits = times_of(tmp_path)
    assert len(waits) == 2 and all(1.0 < waited < 12 * 0.2 + 1.0 for waited in waits)
    assert summary["input_wait_s"] == pytest.approx(sum(waits), abs=1e-2)
    assert summary["input_wait_s"] <= summary["wall_time_s"]
    told = capsys.readouterr().err
    assert told.count("warning: updates waited for examples") == 1
    assert "of the time: the source is slower than the devices" in told
    assert "  waits for input " in told


def test_a_source_that_is_ahead_is_not_waited_for(tmp_path):
    """The device is busy for as long as a gather of the slow source takes, and four go ahead."""
    waits, plan = {}, Plan(N, [8] * 12, [0.1] * 12, [0.0] * 12)
    for name, gather_s, update_s in (("fast", 0.0, 0.1), ("slow", 0.1, 0.0)):
        engine = make_engine(Timed(gather_s), [8])
        update = engine.update

        def takes_time(*arguments, update=update, update_s=update_s):
            time.sleep(update_s)
            return update(*arguments)

        engine.update = takes_time
        waits[name] = train(engine, plan, tmp_path / name, show="none")["input_wait_s"]
    assert 0 <= waits["fast"] < waits["slow"]


def test_examples_on_the_devices_are_not_waited_for(tmp_path):
    plan = Plan(N, [8] * 2, [0.1] * 2, [0.0] * 2)
    summary = train(make_engine(Timed(0.0), [8], examples_on="device"), plan, tmp_path, show="none")
    assert "input_wait_s" not in {**summary, **read_metrics(tmp_path / "metrics.jsonl")[0]}


@pytest.mark.parametrize(
    ("times", "is_told"),
    [
        (Times(10.0, 3.0, 0.11), True),
        (Times(10.0, 3.0, 0.1), False),  # a tenth is no more than a tenth
        (Times(10.0, 0.9, 0.5), False),  # such as the first microbatch of a short run
        (Times(10.0, None, 0.0), False),
    ],
)
def test_only_a_large_share_of_some_seconds_is_told(times, is_told):
    assert bool(warning(times)) == is_told


def test_the_progress_shows_a_large_share():
    file = io.StringIO()
    for share in (0.05, 0.25):
        progress = Progress(ProgressLine(100, 10), file=file)
        progress.update(update=1, examples_seen=10, batch_size=1, learning_rate=1.0, input_share=share)
        progress.evaluated(test_loss=1.0)
    quiet, told = file.getvalue().splitlines()
    assert "waits" not in quiet and told.endswith("  waits for input 25 %")


@pytest.fixture(scope="module")
def root(write_class_folders, tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    write_class_folders(root, N)
    return root


def test_streaming_that_stops_within_an_epoch_continues_to_the_same_bits(root, tmp_path):
    """It stops after each update, with a batch that grows across the ends of epochs, and has other threads."""
    steps = optax.piecewise_constant_schedule(0.1, {1: 0.5, 2: 0.5})
    plan = Recipe(steps, 8, N, num_epochs=3, momentum=0.0).increase_batch_size(max_batch_size=24).plan()
    assert len(plan.phases) == 3 and any(start % N for start in plan.examples_seen[1:])
    sizes = set(plan.batch_sizes.tolist())
    engines = [
        make_engine(ImageSource(ImageFolder(root), 6, train=True, seed=1, num_threads=threads), sizes)
        for threads in (1, 3)
    ]
    intervals = Intervals(log_every_epochs=0.2, eval_every_epochs=1.0)
    whole = train(engines[0], plan, tmp_path / "whole", intervals, show="none")
    stops = 0
    while (pieces := train(engines[1], plan, tmp_path / "pieces", intervals, lambda: True, show="none")) is None:
        stops += 1
    assert stops == plan.num_updates - 1
    for name in ("final_train_loss", "final_test_loss", "num_updates"):
        assert pieces[name] == whole[name]
    kept = [
        [{name: line[name] for name in line if name not in ("examples_per_second", "input_wait_s")} for line in lines]
        for lines in (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "pieces"))
    ]
    assert kept[0] == kept[1]
    assert pieces["input_wait_s"] > 0


def test_damaged_examples_are_listed_in_the_folder_of_the_run(root, tmp_path):
    for path in root.rglob("*.JPEG"):
        (tmp_path / "images" / path.parent.name).mkdir(parents=True, exist_ok=True)
        data = path.read_bytes()
        is_bad = path.name in ("04.JPEG", "07.JPEG")
        (tmp_path / "images" / path.parent.name / path.name).write_bytes(data[: len(data) // 2] if is_bad else data)
    plan, files = Plan(N, [8] * 8, [0.1] * 8, [0.0] * 8), ImageFolder(tmp_path / "images")
    engine = make_engine(ImageSource(files, 6, train=True, on_bad_example="skip_with_record"), [8])
    assert train(engine, plan, tmp_path / "skips", should_stop=lambda: True, show="none") is None
    while train(engine, plan, tmp_path / "skips", should_stop=lambda: True, show="none") is None:
        pass
    listed = json.loads((tmp_path / "skips" / "bad_examples.json").read_text())
    assert list(listed) == ["train", "test"] and listed["train"] == listed["test"]
    assert [(index, text.split(":")[0]) for index, text in listed["train"].items()] == [
        ("2", "ant/04.JPEG"),
        ("19", "bee/07.JPEG"),
    ]
    with pytest.raises(RunError, match=r"^example (2|19) is damaged, .*; with on_bad_example=skip_with"):
        train(make_engine(ImageSource(files, 6, train=True), [8]), plan, tmp_path / "fails", show="none")


def test_parameters_do_not_depend_on_threads_and_microbatches(root):
    """Two batches, whose bits are those of one thread and of one microbatch."""
    found = []
    for threads, microbatch in ((1, 8), (4, 8), (2, 4)):
        engine = make_engine(
            ImageSource(ImageFolder(root), 6, train=True, num_threads=threads), [8], microbatch_size=microbatch
        )
        state = engine.init()
        for update in Plan(N, [8] * 2, [0.1] * 2, [0.0] * 2):
            state, _ = engine.update(state, update)
        found.append(np.asarray(first_replica(state).params))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_allclose(found[0], found[2], rtol=1e-5)
