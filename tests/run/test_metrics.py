"""The files and the display of a run."""

import io
import json
import os
import re

import pytest

from bsjax.errors import RunError
from bsjax.run import Progress, ProgressLine, read_json, read_metrics, read_summary, write_json
from bsjax.run.metrics import MetricWriter, holds


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_line_is_in_the_file_as_soon_as_it_is_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = MetricWriter(path)
    writer.write(update=3, train_loss=0.123456789, name="a")
    assert path.read_text() == '{"update": 3, "train_loss": 0.1234568, "name": "a"}\n'
    writer.write(examples_seen=2**53 + 1, train_loss=1e-12, nan=float("nan"), infinite=float("inf"))
    exact = {"examples_seen": 2**53 + 1, "train_loss": 1e-12, "nan": None, "infinite": None}
    assert read_metrics(path)[1:] == [exact]
    writer.close()


def test_a_json_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "summary.json"
    write_json(path, {"completed": False})
    with pytest.raises(TypeError):
        write_json(path, {"completed": True, "bad": object()})
    assert json.loads(path.read_text()) == {"completed": False}
    write_json(path, {"completed": True})
    assert json.loads(path.read_text()) == {"completed": True}
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_a_json_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append((os.fstat(file), sorted(os.listdir(tmp_path)))))
    write_json(tmp_path / "summary.json", [1])
    [(file, names)] = synced
    assert (file.st_size, names) == (len("[\n 1\n]\n"), ["summary.json.tmp"])
    assert os.listdir(tmp_path) == ["summary.json"]


LINE = ProgressLine(num_examples=2000, dataset_size=100, unit="images")


def show(progress, examples_seen, batch_size, **more):
    progress.update(update=7, examples_seen=examples_seen, batch_size=batch_size, learning_rate=0.1, **more)


@pytest.mark.parametrize(
    ("examples_seen", "speed", "left"),
    [(1000, 100.0, "0:10"), (0, 1.0, "33:20"), (1500, 0.1, "1:23:20"), (2100, 100.0, "0:00")],
)
def test_time_left_is_that_of_the_examples_left(examples_seen, speed, left):
    for batch_size in (10, 500):  # whatever the batch
        latest = {"update": 7, "examples_seen": examples_seen, "batch_size": batch_size, "learning_rate": 0.1}
        assert LINE(latest | {"examples_per_second": speed}).endswith(f"images/s  {left} left")


def test_a_terminal_has_a_bar(monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    file = Terminal()
    progress = Progress(LINE, file=file)
    show(progress, 500, 10)
    progress.evaluated(test_accuracy=0.5)
    show(progress, 1500, 400)
    progress.close()
    last = file.getvalue().rstrip().split("\r")[-1]
    assert last.startswith(" 75% |")
    assert "epoch 15.0/20  update 7  B 400  lr 0.1  test 50.00 %" in last
    assert file.getvalue().count("\n") == 1  # one bar and no lines


def test_a_bar_of_80_columns_has_speed_and_time_left_before_the_first_line_of_the_log(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    progress = Progress(LINE, file=(file := Terminal()))
    show(progress, 500, 10)
    show(progress, 1500, 12_345)
    progress.evaluated(test_accuracy=0.5)
    progress.close()
    last = file.getvalue().rstrip().split("\r")[-1]
    assert re.fullmatch(r" 75% \|#{7}5  \| epoch 15.0/20  .*test 50.00 %  [\d,]+ images/s  0:00 left *", last)
    assert len(last) <= 80


def test_a_function_takes_the_place_of_the_display():
    told = []
    progress = Progress(LINE, show=lambda latest: told.append(dict(latest)), file=(file := io.StringIO()))
    show(progress, 500, 10)
    show(progress, 600, 10)  # too soon
    progress.evaluated(test_accuracy=0.5)
    progress.close()
    assert [(latest["examples_seen"], latest.get("test_accuracy")) for latest in told] == [(500, None), (600, 0.5)]
    assert file.getvalue() == ""


@pytest.mark.parametrize("file", [io.StringIO(), Terminal()], ids=["file", "terminal"])
def test_show_nothing(file):
    progress = Progress(LINE, show="none", file=file)
    show(progress, 500, 10)
    progress.evaluated(test_accuracy=0.5)
    progress.close()
    assert file.getvalue() == ""
    Progress(LINE, file=file).close()  # before any update


def test_flush_returns_the_position_on_the_disk(tmp_path, monkeypatch):
    on_disk = []
    monkeypatch.setattr(os, "fsync", lambda file: on_disk.append(os.fstat(file).st_size))
    path = tmp_path / "metrics.jsonl"
    writer = MetricWriter(path)
    writer.write(update=1)
    assert on_disk == []  # not at each line, which would take too long
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
    with pytest.raises(RunError, match=r"summary.json cannot be read: No such file"):
        read_json(tmp_path / "summary.json")


@pytest.mark.parametrize("text", ["{}", "[]", "3", '{"completed"', '{"completed": true}'])
def test_a_damaged_summary_is_one_line_with_the_way_out(tmp_path, text):
    assert read_summary(tmp_path) is None
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(RunError, match=rf"^{tmp_path}/summary.json .*; remove it, and the run continues from its last"):
        read_summary(tmp_path)
    (tmp_path / "summary.json").write_text("")  # a machine has crashed
    assert read_summary(tmp_path) is None


def test_the_noise_scale_is_shown_on_demand():
    latest = {"update": 50, "examples_seen": 1000, "batch_size": 20, "learning_rate": 0.1, "train_loss": 0.5}
    line = ProgressLine(2000, 100, show_noise=True)
    assert line(latest).endswith("loss 0.5000  noise scale unknown")
    assert line(latest | {"gradient_noise_scale": 1234.5}).endswith("loss 0.5000  noise scale 1,234")


def test_the_noise_scale_is_shown_in_tokens_too_and_that_of_layer_norms_if_there_is_no_other():
    latest = {"update": 50, "examples_seen": 1000, "batch_size": 20, "learning_rate": 0.1, "train_loss": 0.5}
    line = ProgressLine(2000, 100, unit="tokens", units_per_example=64, show_noise=True)
    latest |= {"layer_norm_gradient_noise_scale": 10.0}
    assert line(latest).endswith("loss 0.5000  layer norms' noise scale 10 (640 tokens)")
    assert line(latest | {"gradient_noise_scale": 20.0}).endswith("loss 0.5000  noise scale 20 (1,280 tokens)")
    assert line(latest | {"gradient_noise_scale": None}).endswith("loss 0.5000  noise scale unknown")
