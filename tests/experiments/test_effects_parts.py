"""The parts of the study of what the batch size does: its search, its trainings, its measurements, its verdicts."""

import dataclasses
import doctest
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest

from bsjax import InvalidArgument
from bsjax.analysis.statistics import Comparison, Interval
from experiments.effects import claim, distance, memory, pictures, rates, study, training, variance
from experiments.effects.training import Data, Outcome, Setup, Training
from experiments.harness.control import Control
from experiments.harness.pool import StoppedEarly

_QUICK = study.BASES["digits"].config.replace(model_width=8)


@pytest.fixture
def setup():
    return Setup(_QUICK, num_eval_examples=100, control=Control(devices="1"))


class _Parabola:
    """A study whose test loss is a parabola of the log learning rate with its minimum at 0.11; above 2 it diverges."""

    def __init__(self):
        self.tried = []

    def train(self, trainings):
        found = []
        for one in trainings:
            rate = one.config.optimizer.learning_rate
            self.tried.append((rate, one.config.run.seed))
            loss = 1 + math.log2(rate / 0.11) ** 2
            found.append(Outcome(one, [{"test_loss": loss}], diverged=rate > 2))
        return found


@pytest.mark.parametrize("start", [0.001, 0.1, 1.6, 30.0])
def test_the_search_ends_between_two_worse_rates(start):
    fake = _Parabola()
    first = Training(_QUICK.replace(learning_rate=start), (10,))
    [best], tried = rates.searches(fake, [first], num_seeds=2)
    assert 0.11 / 2**0.5 <= best <= 0.11 * 2**0.5
    assert min(row["learning_rate"] for row in tried) < best < max(row["learning_rate"] for row in tried)
    assert len(set(fake.tried)) == len(fake.tried) == 2 * len(tried)  # nothing twice, and not with the study's seeds
    assert {seed for _, seed in fake.tried} == {100, 101}


def test_the_search_goes_by_its_score():
    first = Training(_QUICK.replace(learning_rate=0.1), (10,))

    def score(outcome):  # least at 0.8
        return math.log2(outcome.training.config.optimizer.learning_rate / 0.8) ** 2

    [best], tried = rates.searches(_Parabola(), [first], num_seeds=1, score=score)
    assert best == pytest.approx(0.8)
    assert min(tried, key=lambda row: row["test_loss"])["learning_rate"] == best


def test_a_training_is_read_again_and_ends_at_its_target(setup, tmp_path):
    one = Training(_QUICK.replace(batch_size=32, learning_rate=0.1), (1, 5, 10))
    outcome = training.train(setup, one, tmp_path)
    assert [point["update"] for point in outcome.points] == [1, 5, 10]
    assert outcome.points[-1]["train_loss"] < outcome.points[0]["train_loss"]
    assert training.read(setup, one, tmp_path) == outcome
    assert training.read(setup, one.replace(seed=1), tmp_path) is None
    assert training.read(setup, Training(one.config, (2, 10)), tmp_path) is None  # which another claim may train

    # The target ends it at the first evaluation that reaches it; other batch sizes and rates use the same engine.
    target = outcome.points[1]["train_loss"] + 1e-6
    short = training.train(setup, Training(one.config, (1, 5, 10), target_train_loss=target), tmp_path)
    assert short.points == outcome.points[:2]
    wild = training.train(setup, one.replace(learning_rate=1e30, batch_size=64), tmp_path)
    assert wild.diverged and math.isnan(wild.final("test_loss"))
    late = setup._replace(control=Control(devices="1", stop_at=0.0))
    with pytest.raises(StoppedEarly):
        training.train(late, one.replace(seed=2), tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_the_learning_rate_drops_after_so_many_updates(setup, tmp_path):
    one = Training(_QUICK.replace(batch_size=32, learning_rate=0.1, lr_decay_factor=4.0), (2, 4))

    def losses(name, drops, **fields):
        found = training.train(setup, dataclasses.replace(one.replace(**fields), drops=drops), tmp_path / name)
        return [point["train_loss"] for point in found.points]

    plain, low = losses("plain", ()), losses("low", (), learning_rate=0.025)
    assert losses("at once", (0,)) == low and losses("after the end", (4,)) == plain
    dropped = losses("between", (2,))
    assert dropped[0] == plain[0] and dropped[1] != plain[1]
    twice = losses("twice", (0, 0), learning_rate=0.4)
    assert twice == low


def test_one_seed_has_no_bar():
    figure, [[axes]] = pictures.panels(1)
    alone = claim.exp(Interval(math.log(2), -math.inf, math.inf))
    pictures.against_batch(axes, {"loss": [(8, alone), (16, Interval(3.0, 2.5, 3.5))]}, "Loss", log=True)
    [bars] = axes.containers[0].lines[2]
    np.testing.assert_allclose([segment[:, 1] for segment in bars.get_segments()], [[2, 2], [2.5, 3.5]])
    plt.close(figure)


def test_verdicts_follow_from_comparisons():
    def compared(verdict, low, high):
        return Comparison(Interval((low + high) / 2, low, high), verdict)

    worse, better, equal = compared("different", -2, -1), compared("different", 1, 2), compared("equal", -0.1, -0.05)
    open_ = compared("undecided", -1, 1)
    assert [claim.is_worse(one) for one in (worse, better, equal, open_)] == [True, False, False, None]
    assert [claim.is_more(one) for one in (worse, better, equal, open_)] == [False, True, False, None]
    assert [claim.is_equal(one) for one in (worse, better, equal, open_)] == [False, False, True, None]


@pytest.mark.parametrize("module", [claim, distance, rates, training, variance])
def test_examples_in_docstrings(module):
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


def test_a_measurement_is_kept_and_refuses_other_settings(setup, tmp_path):
    one = study.Study("digits", True, study.BASES["digits"], tmp_path, range(2), 1, setup, None)
    assert one.kept("speed", {"batch_size": 8}, lambda: [1.5, 2.0]) == [1.5, 2.0]
    assert one.kept("speed", {"batch_size": 8}, lambda: pytest.fail("measured again")) == [1.5, 2.0]
    with pytest.raises(InvalidArgument, match=r"recipe.batch_size 8 there, 9 here"):
        one.kept("speed", {"batch_size": 9}, list)


def test_an_even_order_belongs_to_the_identity_of_a_run(setup):
    lab = training.create_lab(setup, _QUICK.replace(batch_size=1), Data(imbalance=30.0, even=True))
    assert lab.engine.identity["engine"].keys() == {"seed", "classes"}
    plain = training.create_lab(setup, _QUICK.replace(batch_size=1), Data())
    assert plain.engine.identity["engine"].keys() == {"seed"}


@pytest.mark.parametrize("preset", ["digits", "cifar10"])
def test_each_measurement_of_memory_has_a_file_of_its_own(preset):
    class Kept:
        """A study that measures a byte for each example of a microbatch."""

        def __init__(self):
            self.names = []

        def kept(self, name, about, measure):
            self.names.append(name)
            return dict.fromkeys(("xla_bytes", "measured_bytes"), about["microbatch_size"])

    fake = Kept()
    findings = memory.measure(fake, memory.CLAIM.settings[preset])
    assert len(set(fake.names)) == len(fake.names) == len(findings.table)
    whole, accumulated = ([way in name for name in findings.cases] for way in ("one microbatch", "accumulated"))
    assert list(findings.cases.values()) == whole and not all(whole) and any(accumulated)
    plt.close(findings.figure)


def test_the_logarithm_is_told_from_a_power():
    updates = np.geomspace(1, 1000, 20)
    assert distance.log_residual(updates, 1 + np.log(updates)) < 1e-12 < 0.05 < distance.log_residual(updates, updates)
