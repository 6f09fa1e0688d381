"""What the tests of data sets share."""

import pathlib

import pytest


@pytest.fixture
def small(make_dataset):
    return make_dataset(train_size=50, test_size=10, image_shape=(12, 6, 3))


@pytest.fixture
def malicious(tmp_path):
    """An object that makes a file when it is unpickled, and the path of that file."""
    victim = tmp_path / "made by a pickle"

    class Malicious:
        def __reduce__(self):
            return pathlib.Path.touch, (victim,)

    return Malicious(), victim
