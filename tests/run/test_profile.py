"""The trace of some updates, and that it changes nothing else."""

import gzip
import json
import re

import jax
import numpy as np
import pytest

from bsjax import InvalidArgument
from bsjax.controllers import Planned
from bsjax.engine import Engine
from bsjax.models import MLP
from bsjax.optimizers import create_optimizer
from bsjax.plan import Plan
from bsjax.run import Intervals, read_metrics, train
from bsjax.tasks import Classification

N = 40
BATCH_SIZES = [8] * 5 + [24] * 5
PLAN = Plan(N, BATCH_SIZES, np.linspace(0.2, 0.1, 10), np.full(10, 0.9))


@pytest.fixture
def run(make_dataset, tmp_path):
    """A function that trains with a real engine; returns the summary and the lines, without times."""
    dataset = make_dataset(N)
    task = Classification(MLP(10, depth=1, width=8), mean=dataset.mean, std=dataset.std)

    def run(name, profile_updates=None, plan=PLAN, **options):
        tx, devices = create_optimizer("momentum"), jax.devices()[:2]
        engine = Engine(task, tx, dataset.train, dataset.test, [8, 24], microbatch_size=4, devices=devices)
        intervals = Intervals(profile_updates=profile_updates)
        summary = train(engine, plan, tmp_path / name, intervals, show="none", **options)
        return [_untimed(values) for values in (summary or {}, *read_metrics(tmp_path / name / "metrics.jsonl"))]

    return run


def _untimed(values):
    timed = "_s$|_per_second$|num_compilations"  # a resumed run does not compile for the batch sizes before
    return {name: value for name, value in values.items() if not re.search(timed, name)}


def traced(workdir):
    """The numbers of the updates in each trace of a folder, in order."""
    traces = []
    for path in sorted(workdir.glob("profile/plugins/profile/*/*.trace.json.gz")):
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        numbers = [int(event["args"]["step_num"]) for event in events if event.get("name") == "update"]
        traces.append(sorted(numbers))
    return traces


def test_a_trace_holds_its_updates_and_changes_no_number(run, tmp_path, capsys):
    assert run("traced", profile_updates=(3, 7)) == run("plain")
    assert traced(tmp_path / "traced") == [[3, 4, 5, 6]]
    assert not (tmp_path / "plain" / "profile").exists()
    folder = tmp_path / "traced" / "profile"
    assert capsys.readouterr().err == f"profile: a trace of updates 3 to 7 is in {folder}\n"


def test_a_resumed_run_traces_what_is_left(run, tmp_path, capsys):
    pieces = iter([False] * 4 + [True] + [False] * 3 + [True])
    for _ in range(2):  # stops after updates 4 and 8
        assert run("run", profile_updates=(3, 7), should_stop=lambda: next(pieces))[0] == {}
    assert run("run", profile_updates=(3, 7)) == run("plain")
    assert sorted(traced(tmp_path / "run")) == [[3, 4], [5, 6]]
    said = capsys.readouterr().err.splitlines()
    assert [line.partition(" is in ")[0] for line in said] == [
        "profile: a trace of updates 3 to 5",
        "profile: a trace of updates 5 to 7",
        "profile: no trace of updates 3 to 7: the run continues at update 9",
    ]


@pytest.mark.parametrize(
    ("updates", "message"),
    [
        ((5, 11), r"profile_updates is '5,11'; it must be within the run's 10 updates; nearest: 5,10$"),
        ((20, 30), r"profile_updates is '20,30'; it must be within the run's 10 updates; nearest: 9,10$"),
        ((3, 3), r"profile_updates is '3,3'; it must be 0 <= FIRST < END; nearest: 3,4$"),
        ((-2, 0), r"profile_updates is '-2,0'; it must be 0 <= FIRST < END; nearest: 0,1$"),
        ((3,), r"profile_updates is '3'; it must be two whole numbers, FIRST,END; nearest: 10,20$"),
        ((1.5, 3), r"profile_updates is '1.5,3'; it must be two whole numbers"),
        (7, r"profile_updates is '7'; it must be two whole numbers"),
    ],
)
def test_a_wrong_range_is_refused(run, tmp_path, updates, message):
    with pytest.raises(InvalidArgument, match=message):
        run("run", profile_updates=updates)
    assert not list(tmp_path.iterdir())


def test_a_run_whose_length_nobody_knows_says_that_it_was_too_short(run, tmp_path, capsys):
    planned = Planned(PLAN)

    class Controller:
        """Hides that it is a plan."""

        def __getattr__(self, name):
            return getattr(planned, name)

    run("late", profile_updates=(20, 30), plan=Controller())
    assert capsys.readouterr().err == "profile: no trace: the run ended before update 20\n"
    run("short", profile_updates=(8, 30), plan=Controller())
    assert traced(tmp_path / "short") == [[8, 9]]
    assert "a trace of updates 8 to 10 is in" in capsys.readouterr().err
