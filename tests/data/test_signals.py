"""Signals whose classes are spectra: no linear function of the samples tells them apart, and their power does."""

import numpy as np
import pytest

from bsjax.data import create_signals, load_dataset


@pytest.fixture(scope="module")
def signals():
    return create_signals(seed=3, train_size=4000, test_size=500)


def samples_of(source):
    return (source.examples["image"][:, 0, :, 0].astype(np.float64) - 128) / 32


def nearest_means(features, labels, test_features):
    means = np.array([features[labels == c].mean(axis=0) for c in range(10)])
    return np.square(test_features[:, None] - means).sum(axis=2).argmin(axis=1)


def test_the_class_is_in_the_power_alone(signals):
    labels, test_labels = (source.examples["label"] for source in (signals.train, signals.test))
    samples, test_samples = samples_of(signals.train), samples_of(signals.test)
    assert samples.var() == pytest.approx(1 + 0.5**2, rel=0.05)  # of the harmonics and the noise
    for c in range(10):
        own = samples[labels == c]
        assert np.abs(own.mean(axis=0)).max() < 5 * samples.std() / len(own) ** 0.5
    by_samples = nearest_means(samples, labels, test_samples)
    assert (by_samples == test_labels).mean() < 0.2
    power, test_power = (np.log(np.abs(np.fft.rfft(x)) ** 2 + 1) for x in (samples, test_samples))
    assert (nearest_means(power, labels, test_power) == test_labels).mean() > 0.6


def test_signals_are_functions_of_the_seed():
    sizes = {"train_size": 20, "test_size": 5}
    fingerprints = [create_signals(seed, **sizes).train.fingerprint for seed in (0, 0, 1)]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
    loaded = load_dataset("signals")
    assert (len(loaded.train), len(loaded.test), loaded.num_classes) == (1440, 360, 10)
    assert loaded.train.fingerprint == create_signals().train.fingerprint
