"""The FLOPs in the summary of a run."""

import math

import jax
import pytest

from bsjax import InvalidArgument
from bsjax.engine import Cost, ModelFlops
from bsjax.plan import Plan
from bsjax.run import train

N = 40
PLAN = Plan(N, [8] * 5 + [24] * 5, [0.1] * 10, [0.9] * 10)
MEAN_BATCH_SIZE = 160 / 10


@pytest.fixture
def summary_of(fake_engine, tmp_path):
    """A function that trains a fake engine, whose updates cost 100 FLOPs per example, and 50 of these the model's."""

    def run(name="run", engine=None, **options):
        return train(engine or fake_engine(N), PLAN, tmp_path / name, show="none", **options)

    return run


def test_utilisation_is_of_the_models_flops_and_all_devices(summary_of, fake_engine):
    engine = fake_engine(N)
    engine.num_devices = 4
    summary = summary_of(engine=engine, peak_flops_per_s=1e3)
    assert summary["flops_per_update"] == 100 * MEAN_BATCH_SIZE
    assert summary["bytes_accessed_per_update"] is None
    speed = summary["examples_per_second"]
    assert summary["flops_per_s"] == pytest.approx(100 * speed, rel=1e-4)
    assert summary["model_flop_utilisation"] == pytest.approx(50 * speed / (4 * 1e3), rel=1e-4)


def test_without_a_peak_or_an_analysis_it_is_null(summary_of, fake_engine):
    assert summary_of()["model_flop_utilisation"] is None
    engine = fake_engine(N)
    engine.model_flops, engine.cost_of = ModelFlops(None, None), lambda batch_size: Cost(None, 2.0)
    summary = summary_of("unknown", engine=engine, peak_flops_per_s=1e3)
    assert [summary[name] for name in ("flops_per_update", "flops_per_s", "model_flop_utilisation")] == [None] * 3
    assert summary["bytes_accessed_per_update"] == 2.0


def test_a_resumed_run_counts_all_its_updates(summary_of, fake_engine):
    """Also those of batch sizes that it has not compiled anew."""
    expected, stops = summary_of("whole"), 0
    while (summary := summary_of("pieces", should_stop=lambda: True)) is None:
        stops += 1
    assert stops == len(PLAN) - 1
    assert summary["flops_per_update"] == expected["flops_per_update"] == 100 * MEAN_BATCH_SIZE


@pytest.mark.parametrize("peak", [0, -1.0, math.nan, math.inf])
def test_a_peak_is_positive(summary_of, tmp_path, peak):
    with pytest.raises(InvalidArgument, match=r"^peak_flops_per_s is .*; it must be a positive finite number"):
        summary_of(peak_flops_per_s=peak)
    assert not list(tmp_path.iterdir()) and jax.devices()
