"""The demo's claims on the digits preset, with seeds that neither its search nor its table has used."""

import pytest

from experiments.harness import presets, runs
from experiments.harness.control import Control

SEEDS = (20, 21)


@pytest.fixture(scope="module")
def accuracies(tmp_path_factory):
    """Test accuracies by schedule, one for each seed."""
    preset = presets.get("digits")
    schedules = presets.section_5_2(preset, preset.config) | presets.controls(preset, preset.config)
    labels = ("Original training schedule", "Increasing batch size")
    labels += ("Control: constant learning rate", "Control: as few updates, small batch")
    configs = [schedules[label].replace(seed=seed, microbatch_size="auto") for label in labels for seed in SEEDS]
    control = Control(devices="1")
    results = runs.train_all(configs, preset.config, tmp_path_factory.mktemp("demo"), jobs=1, control=control)
    found = [result.summary["final_test_accuracy"] for result in results]
    return {label: found[i * len(SEEDS) : (i + 1) * len(SEEDS)] for i, label in enumerate(labels)}


def mean(values):
    return sum(values) / len(values)


def test_the_growing_batch_does_as_well_as_the_decay_and_the_controls_do_worse(accuracies):
    """Five seeds keep these margins: see the demo's table for their sizes."""
    original, grown, constant, few = map(mean, accuracies.values())
    assert abs(grown - original) < 0.02
    assert constant < grown - 0.02
    assert few < grown - 0.02
