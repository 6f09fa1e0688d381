"""The linear probe: a minimum that its gradient shows, features of one scale, and the examples that it sees."""

import doctest

import numpy as np

from experiments.effects import linear_probe


def test_a_probe_is_where_its_gradient_is_zero():
    random = np.random.RandomState(0)
    labels = random.randint(3, size=60)
    x = random.standard_normal((60, 5)) + np.eye(3, 5)[labels]
    weights = linear_probe.fit(x, labels, num_classes=3, decay=0.05)
    logits = x @ weights[:-1] + weights[-1]
    errors = np.eye(3)[labels] - np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(0.05 * weights[:-1], x.T @ errors / 60, atol=1e-6)
    np.testing.assert_allclose(errors.mean(axis=0), 0, atol=1e-6)  # each class is predicted as often as it is there
    np.testing.assert_array_equal(linear_probe.fit(x, labels, 3, 0.05), weights)
    np.testing.assert_allclose(np.exp(linear_probe.predict(weights, x)).sum(axis=1), 1)


def test_a_probe_sees_features_of_one_scale():
    features = np.random.RandomState(0).uniform(5, 9, (100, 3)) * [1.0, 1e3, 0.0]
    scaled = linear_probe.standardise(features, features)
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(scaled.std(axis=0), [1, 1, 0])  # a unit that is dead says nothing


def test_examples_in_docstrings():
    result = doctest.testmod(linear_probe)
    assert result.attempted and not result.failed
