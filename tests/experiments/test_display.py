"""The display of many runs: time left from all examples, in place on a terminal, and a line a minute elsewhere."""

import io
import time

import pytest

from experiments.harness import display
from experiments.harness.display import Display, Status, Task
from experiments.harness.pool import Board
from experiments.harness.tables import table_lines

TASKS = [Task("learning_rate=0.004,batch_size=48,schedule=increase_batch_size,batch_scaling=sqrt,seed=0", 12.5)] * 3


class Terminal(io.StringIO):
    def isatty(self):
        return True


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_no_line_is_wider_than_the_terminal_and_names_keep_their_ends():
    at_work = {0: (12.5, 81_920), 2: (0.1, 12)}
    lines = Status(TASKS).lines(at_work, seconds=100, width=79)
    assert max(map(len, lines)) == 79
    assert lines[1].endswith("batch_scaling=sqrt,seed=0  epoch 12.5/12.5  B 81,920")
    assert len(lines) == 3


def test_the_time_left_counts_what_was_trained_here_only():
    status = Status(TASKS[:2], num_complete=1)
    status.lines({0: (10.0, 8)}, seconds=1)  # it continues from epoch 10
    status.end(0)
    [first] = status.lines({0: (12.5, 8)}, seconds=5)  # 2.5 epochs in 5 s; its last report is of no interest any more
    assert first == " 50 %  2 of 3 runs  0:25 left"
    status.lines({1: (0.0, 8)}, seconds=5)
    status.end(1)
    assert status.lines({}, seconds=30) == ["100 %  3 of 3 runs  0:00 left"]


def test_a_terminal_is_drawn_in_place_and_results_come_above(monkeypatch, capsys):
    monkeypatch.setattr(display, "_REDRAW_S", 0.01)
    monkeypatch.setenv("COLUMNS", "80")
    file, board = Terminal(), Board(2)
    with Display(Status(TASKS), board, file=file) as shown:
        board.write(1, run=1, epoch=0.5, batch_size=640)
        wait_for(lambda: "epoch 0.5/12.5  B 640" in file.getvalue())
        shown.end(1, "[1/3] seed=0: 95.00 %")
        wait_for(lambda: "1 of 3 runs" in file.getvalue())
    assert "[1/3] seed=0: 95.00 %\n" in capsys.readouterr().out
    assert max(len(line) for part in file.getvalue().split("\r") for line in part.split("\n")) < 80 + len("\x1b[A")


def test_a_file_has_whole_lines(monkeypatch, capsys):
    monkeypatch.setattr(display, "_LINE_S", 0.01)
    file, board = io.StringIO(), Board(1)
    board.write(0, run=2, epoch=2.5, batch_size=12)
    with Display(Status(TASKS), board, file=file) as shown:
        wait_for(lambda: file.getvalue().count("\n") > 1)
        shown.end(2, "done")
    first, *_ = file.getvalue().splitlines()
    assert first == f"  7 %  0 of 3 runs  starting; {TASKS[2].name}  epoch 2.5/12.5  B 12".lstrip()
    assert capsys.readouterr().out == "done\n"


def test_quiet(capsys, monkeypatch):
    monkeypatch.setattr(display, "_LINE_S", 0.001)
    with Display(Status(TASKS), Board(1), is_quiet=True, file=(file := io.StringIO())) as shown:
        time.sleep(0.02)
        shown.end(0, "done")
    assert (file.getvalue(), capsys.readouterr().out) == ("", "done\n")


@pytest.mark.parametrize("width", [10, 24, 40, None])
def test_a_table_fits_where_its_widest_two_columns_do(width):
    rows = [["schedule", "updates", "difference", "verdict"], ["a", "1,000", "-0.1 [-0.2, 0]", "equal"]]
    lines = table_lines(rows, width=width)
    cells = {cell for row in rows for cell in row}
    assert cells <= {part for line in lines for part in line.split("  ") for part in (part.strip(),)}
    if width is None:
        assert len(lines) == 2
    elif width >= len("schedule  -0.1 [-0.2, 0]"):
        assert max(map(len, lines)) <= width
