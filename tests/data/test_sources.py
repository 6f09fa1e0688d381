"""Sources of arrays: any pytree, gathered by index, with a fingerprint of all the data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bsjax import InvalidArgument
from bsjax.data import ArraySource

X = np.random.RandomState(0).standard_normal((300, 5, 3))
Y = np.arange(300, dtype=np.int32)


@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (4, 6)])
@pytest.mark.parametrize("examples", [X, {"x": X, "y": Y}, (X, [Y, {"z": Y.astype(jnp.bfloat16)}])])
def test_gathers_examples_of_indices_of_any_shape_as_new_arrays(examples, shape):
    source = ArraySource(examples)
    indices = np.random.RandomState(1).randint(300, size=shape)
    gathered = source.gather(indices)
    assert len(source) == 300
    assert jax.tree.structure(gathered) == jax.tree.structure(examples)
    for part, whole in zip(jax.tree.leaves(gathered), jax.tree.leaves(examples), strict=True):
        expected = np.empty((*shape, *whole.shape[1:]), whole.dtype)
        for where in np.ndindex(shape):
            expected[where] = whole[indices[where]]
        np.testing.assert_array_equal(part, expected, strict=True)
        assert not np.shares_memory(part, whole)


def test_memory_maps_stay_on_the_disk_and_read_the_same(tmp_path):
    np.save(tmp_path / "x.npy", X)
    mapped = ArraySource({"x": np.load(tmp_path / "x.npy", mmap_mode="r"), "y": Y})
    in_memory = ArraySource({"x": X, "y": Y})
    assert mapped.fingerprint == in_memory.fingerprint
    assert mapped.nbytes == in_memory.nbytes == X.nbytes + Y.nbytes
    np.testing.assert_array_equal(mapped.gather(Y[:9])["x"], X[:9])
    assert isinstance(mapped.examples["x"].base, np.memmap)


def changes():
    """Each differs from {"x": X, "y": Y} in one way."""
    for position in (0, 2250, X.size - 1):
        x = X.copy()
        x.reshape(-1)[position] += 1e-12
        yield {"x": x, "y": Y}
    yield {"x": X, "y": np.append(Y[:-1], np.int32(0))}
    yield {"x": X, "y": Y.astype(np.int64)}
    yield {"x": X, "y": Y.view(np.float32)}
    yield {"x": X.reshape(300, 3, 5), "y": Y}
    yield {"x": X[::-1], "y": Y}
    yield {"x": X, "z": Y}
    yield {"x": X}
    yield (X, Y)


def test_the_fingerprint_changes_with_any_of_the_data_and_with_nothing_else():
    fingerprint = ArraySource({"x": X, "y": Y}).fingerprint
    assert "\n" not in fingerprint
    assert ArraySource({"y": Y.copy(), "x": np.asfortranarray(X)}).fingerprint == fingerprint
    others = [ArraySource(examples).fingerprint for examples in changes()]
    assert len({fingerprint, *others}) == 1 + len(others)


def test_a_fingerprint_that_is_known_is_not_computed():
    assert ArraySource(X, fingerprint="known").fingerprint == "known"


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ({"x": X, "y": Y[:-1]}, r"lengths is {\"examples\['x'\]\": 300, \"examples\['y'\]\": 299}; it must be equal"),
        ({"x": X[:0]}, r"examples\['x'\] is 'float64 \[0, 5, 3\]'; it must be an array .* of at least one example"),
        ({"x": np.float32(1)}, r"examples\['x'\] is 'float32'; it must be a numpy array"),
        ({"x": np.array(1.0)}, r"examples\['x'\] is 'float64 \[\]'; it must be an array \[N, ...\]"),
        ({"x": [1, 2]}, r"examples\['x'\]\[0\] is 'int'; it must be a numpy array"),
        (np.array(["a", None], object), r"examples is 'object \[2\]'; it must be an array of numbers"),
        ((Y, np.array(["a"] * 300)), r"examples\[1\] is '<U1 \[300\]'; it must be an array of numbers"),
        ({"x": X.astype(">f8")}, r"examples\['x'\] is '>f8 \[300, 5, 3\]'; it must be an array of numbers in this"),
        ({}, r"examples is {}; it must be a pytree of at least one array"),
    ],
)
def test_what_is_no_source(examples, message):
    with pytest.raises(InvalidArgument, match=message) as error:
        ArraySource(examples)
    assert "\n" not in str(error.value)
