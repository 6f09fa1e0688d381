"""A linear probe: how well a linear classifier of an encoder's features does, which is how good they are."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from scipy import optimize, special

from bsjax.analysis.microbatches import microbatches
from bsjax.data import ArraySource
from experiments.effects.training import Lab

_MICROBATCH = 512


def fit(features: np.ndarray, labels: np.ndarray, num_classes: int, decay: float) -> np.ndarray:
    r"""Multinomial logistic regression by L-BFGS from zero: no randomness, and one minimum.

    .. math:: \min_{W, b} \frac{1}{n} \sum_{i=1}^{n} -\log \mathrm{softmax}(W^\top x_i + b)_{y_i}
       + \frac{\lambda}{2} |W|^2

    Args:
      features: x, float [n, d].
      labels: y, int [n].
      num_classes: C.
      decay: λ, positive.

    Returns:
      W, and b as the last row: float64 [d + 1, C].

    >>> weights = fit(np.array([[-1.0], [1.0]]), np.array([0, 1]), num_classes=2, decay=0.1)
    >>> predict(weights, np.array([[-3.0], [3.0]])).argmax(axis=1)
    array([0, 1])
    """
    x = np.asarray(features, np.float64)
    targets = np.eye(num_classes)[labels]

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(-1, num_classes)
        log_probabilities = predict(weights, x)
        errors = (np.exp(log_probabilities) - targets) / len(x)
        grads = np.concatenate([x.T @ errors + decay * weights[:-1], errors.sum(axis=0, keepdims=True)])
        loss = -(targets * log_probabilities).sum() / len(x) + decay / 2 * np.square(weights[:-1]).sum()
        return loss, grads.ravel()

    options = {"maxiter": 10_000, "maxfun": 20_000, "ftol": 0.0, "gtol": 1e-7}
    begin = np.zeros((x.shape[1] + 1) * num_classes)
    return optimize.minimize(objective, begin, jac=True, method="L-BFGS-B", options=options).x.reshape(-1, num_classes)


def predict(weights: np.ndarray, features: np.ndarray) -> np.ndarray:
    """The logarithms of the classes' probabilities, float64 [n, C]."""
    return special.log_softmax(np.asarray(features, np.float64) @ weights[:-1] + weights[-1], axis=1)


def standardise(features: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Features less the mean and over the standard deviation of some others; one that never changes becomes 0."""
    mean, std = (np.asarray(of(axis=0), np.float64) for of in (reference.mean, reference.std))
    return (features - mean) / np.where(std > 1e-6 * std.max(initial=1e-6), std, np.inf)


@dataclasses.dataclass(frozen=True)
class LinearProbe:
    """The probe: test accuracy and test loss of a linear classifier of standardised features.

    Args:
      num_labels: the classifier sees the first training examples only, this many.
      of: "features", or "pixels", which no training changes.
      decay: of the classifier's weights.
    """

    num_labels: int
    of: str = "features"
    decay: float = 0.01

    @property
    def name(self) -> str:
        """Of the files."""
        return f"linear_probe={self.num_labels}" + (",pixels" if self.of == "pixels" else "")

    def __call__(self, lab: Lab, params: Any, batch_stats: Any) -> dict[str, float]:
        """Fits the classifier, and tests it on the first test examples."""
        del batch_stats
        features, test_features = (self._features(lab, params, source) for source in (lab.train, lab.test))
        labels, test_labels = (source.examples["label"] for source in (lab.train, lab.test))
        features, labels = features[: self.num_labels], labels[: self.num_labels]
        num_classes = int(max(labels.max(), test_labels.max())) + 1
        weights = fit(standardise(features, features), labels, num_classes, self.decay)
        predicted = predict(weights, standardise(test_features, features))
        accuracy = (predicted.argmax(axis=1) == test_labels).mean()
        loss = -predicted[np.arange(len(test_labels)), test_labels].mean()
        return {"probe_accuracy": float(accuracy), "probe_loss": float(loss)}

    def _features(self, lab: Lab, params: Any, source: ArraySource) -> np.ndarray:
        if self.of == "pixels":
            return source.examples["image"].reshape(len(source), -1).astype(np.float64)
        parts = microbatches(source, _MICROBATCH)
        found = [np.asarray(_encoder(lab)(params, examples))[index >= 0] for examples, index in parts]
        return np.concatenate(found).astype(np.float64)


@functools.lru_cache(maxsize=8)
def _encoder(lab: Lab) -> Any:
    task: Any = lab.task
    return jax.jit(lambda params, examples: task.features(params, examples))
