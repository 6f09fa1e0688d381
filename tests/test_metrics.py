"""What a run writes and shows."""

import io
import json
import os

import pytest

from bsjax.errors import RunError
from bsjax.metrics import MetricWriter, Progress, holds, read_json, read_metrics, write_json


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_line_is_there_as_soon_as_it_is_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = MetricWriter(path)
    writer.write(update=3, train_loss=0.123456789, name="a")
    assert read_metrics(path) == [{"update": 3, "train_loss": 0.1234568, "name": "a"}]
    writer.write(update=4, train_loss=1e-12)
    assert read_metrics(path)[1:] == [{"update": 4, "train_loss": 1e-12}]
    writer.close()
    assert path.read_text().count("\n") == 2


def test_large_whole_numbers_are_exact(tmp_path):
    writer = MetricWriter(tmp_path / "metrics.jsonl")
    writer.write(examples_seen=2**53 + 1)
    writer.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"examples_seen": 2**53 + 1}]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_a_number_is_null(tmp_path, value):
    writer = MetricWriter(tmp_path / "metrics.jsonl")
    writer.write(train_grad_norm=value)
    writer.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"train_grad_norm": null}\n'


def test_a_json_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "summary.json"
    write_json(path, {"completed": False})
    with pytest.raises(TypeError):
        write_json(path, {"completed": True, "bad": object()})
    assert json.loads(path.read_text()) == {"completed": False}
    write_json(path, {"completed": True})
    assert json.loads(path.read_text()) == {"completed": True}
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def show(progress, examples_seen, batch_size, **more):
    progress.update(update=7, examples_seen=examples_seen, batch_size=batch_size, learning_rate=0.1, **more)


@pytest.mark.parametrize(
    ("examples_seen", "speed", "left"),
    [(1000, 100.0, "0:10"), (0, 1.0, "33:20"), (1500, 0.1, "1:23:20"), (2100, 100.0, "0:00")],
)
def test_time_left_is_that_of_the_examples_left(examples_seen, speed, left):
    for batch_size in (10, 500):  # whatever the batch
        progress = Progress(num_examples=2000, dataset_size=100, show="none")
        show(progress, examples_seen, batch_size, examples_per_second=speed)
        assert progress.line().endswith(f"images/s  {left} left")


def test_without_a_terminal_an_evaluation_is_a_line():
    file = io.StringIO()
    progress = Progress(2000, 100, file=file)
    show(progress, 100, 10)
    assert file.getvalue() == ""
    progress.evaluated(test_accuracy=0.5)
    show(progress, 200, 1000, train_loss=0.25)
    progress.evaluated(test_accuracy=0.75)
    progress.close()
    assert file.getvalue().splitlines() == [
        "epoch 1.0/20  update 7  B 10  lr 0.1  test 50.00 %",
        "epoch 2.0/20  update 7  B 1,000  lr 0.1  loss 0.2500  test 75.00 %",
    ]


def test_a_terminal_has_a_bar():
    file = Terminal()
    progress = Progress(2000, 100, file=file)
    show(progress, 500, 10)
    progress.evaluated(test_accuracy=0.5)
    show(progress, 1500, 400)
    progress.close()
    last = file.getvalue().rstrip().split("\r")[-1]
    assert last.startswith(" 75% |")
    assert "epoch 15.0/20  update 7  B 400  lr 0.1  test 50.00 %" in last
    assert file.getvalue().count("\n") == 1  # one bar and no lines


@pytest.mark.parametrize("file", [io.StringIO(), Terminal()], ids=["file", "terminal"])
def test_show_nothing(file):
    progress = Progress(2000, 100, show="none", file=file)
    show(progress, 500, 10)
    progress.evaluated(test_accuracy=0.5)
    progress.close()
    assert file.getvalue() == ""


def test_a_bar_that_saw_nothing_closes():
    Progress(2000, 100, file=Terminal()).close()


def test_flush_tells_what_is_on_the_disk(tmp_path, monkeypatch):
    on_disk = []
    monkeypatch.setattr(os, "fsync", lambda file: on_disk.append(os.fstat(file).st_size))
    path = tmp_path / "metrics.jsonl"
    writer = MetricWriter(path)
    writer.write(update=1)
    assert on_disk == []  # not at each line: it would take too long
    position = writer.flush()
    assert [position.size] == on_disk == [len('{"update": 1}\n')]
    writer.write(update=2)
    writer.close()
    assert holds(path, position)
    path.write_bytes(path.read_bytes().replace(b"1", b"3"))
    assert not holds(path, position)
    path.write_bytes(b"")
    assert not holds(path, position)
    path.unlink()
    assert not holds(path, position)


def test_damaged_metrics_are_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"update": 1}\n{"upd')
    with pytest.raises(RunError, match=rf"^{path} cannot be read: "):
        read_metrics(path)
    with pytest.raises(RunError, match=r"summary.json cannot be read: .*No such file"):
        read_json(tmp_path / "summary.json")


def test_the_noise_scale_is_shown_on_demand():
    progress = Progress(2000, 100, show="noise", file=io.StringIO())
    progress.update(update=50, examples_seen=1000, batch_size=20, learning_rate=0.1, train_loss=0.5)
    assert "loss 0.5000  noise scale unknown" in progress.line()
    progress.update(gradient_noise_scale=1234.5)
    assert "loss 0.5000  noise scale 1,234" in progress.line()
