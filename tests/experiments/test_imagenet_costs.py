"""Predicted time and cost of ImageNet's schedules: limits, prices and refusals."""

import math

import pytest

from bsjax import Plan
from bsjax.analysis.time_model import AllReduce, Costs
from bsjax.engine import StepTimes
from experiments import imagenet_costs
from experiments.harness.clusters import CLUSTERS, Cluster

CLUSTER = Cluster("two", "TPU v4", 2, 1, 10, 1e9, 0.5, 3.0)
PLAN = Plan(800, batch_sizes=[80, 160], learning_rates=[0.1] * 2, momentums=[0.9] * 2)


def costs(example_s=0.01, bytes_per_s=math.inf):
    return Costs(StepTimes({1: example_s, 80: 80 * example_s}, 0.0), AllReduce(0.0, bytes_per_s), num_bytes=10**9)


def test_hours_and_dollars_are_those_of_the_devices_if_they_are_the_limit():
    found = imagenet_costs.estimate(PLAN, costs(), CLUSTER, images_per_core_s=1000)
    assert found.seconds == pytest.approx(0.4 + 0.8)  # 40 and 80 images on each of two devices
    assert found.dollars == pytest.approx(1.2 / 3600 * 2 * 3.0)
    assert (found.limits, found.all_reduce_share) == (("compute",), 0.0)


def test_decoding_is_the_limit_where_it_takes_longer():
    found = imagenet_costs.estimate(PLAN, costs(), CLUSTER, images_per_core_s=10)
    assert found.seconds == pytest.approx(240 / 100)
    assert found.limits == ("input",)


def test_the_all_reduce_is_the_limit_of_the_small_batch():
    found = imagenet_costs.estimate(PLAN, costs(bytes_per_s=1e9 / 0.6), CLUSTER, images_per_core_s=1000)
    assert found.limits == ("all-reduce", "compute")
    assert found.seconds == pytest.approx(1.2 + 2 * 0.6)
    assert found.all_reduce_share == pytest.approx(0.5)


def test_the_limits_are_where_the_times_are_equal():
    model = costs(bytes_per_s=1e9 / 0.6)
    found = imagenet_costs.rates(model, CLUSTER, images_per_core_s=4)
    assert found.computed == pytest.approx(200)
    assert (found.decoded, found.cores) == (40, pytest.approx(50))
    assert found.smallest_batch_size == pytest.approx(2 * 0.6 / 0.01)
    enough = CLUSTER._replace(cores_per_host=51)
    assert imagenet_costs.estimate(PLAN, costs(), enough, images_per_core_s=4).limits == ("compute",)
    assert imagenet_costs.estimate(PLAN, costs(), enough._replace(cores_per_host=49), 4).limits == ("input",)


def test_there_are_seven_schedules_and_every_cluster_has_a_peak():
    found = {label: plan.num_updates for label, _, plan in imagenet_costs.schedules()}
    assert list(found.values()) == [14_076, 5_631, 5_865, 3_519, 2_346, 14_076, 9_384]
    assert all(cluster.flops_per_s > 1e12 for cluster in CLUSTERS.values())
    assert CLUSTERS["v5e-256"].flops_per_s == pytest.approx(0.35 * 197e12)


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--clusters=v5e-25", "--clusters is 'v5e-25'; it must be one of v5e-256, v4-512, 8×H200; nearest: v5e-256"),
        ("--price=-1", "--price is -1.0; it must be positive"),
        ("--utilisation=1.5", "--utilisation is 1.5; it must be in (0, 1]"),
    ],
)
def test_bad_flags_are_refused_in_one_line(call, flag, said):
    result = call("imagenet_costs", flag)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"error: {said}\n"
