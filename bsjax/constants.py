"""What functions close over, so that a run notices when it changes."""

import functools
import types
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


def describe_constants(functions: Any) -> dict[str, Any]:
    """The constants that functions were made with, such as those of an optax transformation.

    They are the values that the functions close over. A function is described by its name, an array by its checksum,
    any other object by its type; the code of a function, and what it reads from its module, are not described.

    Args:
      functions: a function, or a tuple, a mapping or a partial of functions and constants.

    Returns:
      JSON: the constants by the names of the functions and the variables that hold them.

    >>> import optax
    >>> describe_constants(optax.sgd(0.1)) == describe_constants(optax.sgd(0.2))
    False
    >>> describe_constants(functools.partial(print, sep="-"))["sep"]
    '-'
    """
    found: dict[str, list[Any]] = {}
    for name, value in _constants(functions, "", set()):
        found.setdefault(name, []).append(value)
    distinct = {name: sorted(set(values), key=str) for name, values in sorted(found.items())}
    return {name: values[0] if len(values) == 1 else values for name, values in distinct.items()}


def _constants(value: Any, name: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """The constants that a value holds, each with the name of its holder."""
    if value is None or isinstance(value, bool | int | float | str):
        yield name, value
    elif id(value) in seen:
        return
    elif isinstance(value, functools.partial):
        seen.add(id(value))
        yield from _constants((value.func, value.args, value.keywords), name, seen)
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _constants(entry, f"{name}.{key}".lstrip("."), seen)
    elif isinstance(value, list | tuple | set | frozenset):
        for entry in value:
            yield from _constants(entry, name, seen)
    elif isinstance(value, types.FunctionType):
        seen.add(id(value))
        yield f"{name} is".strip(), value.__qualname__
        owner = value.__qualname__.split(".")[0]
        for variable, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            yield from _constants(cell.cell_contents, f"{owner}.{variable}", seen)
    elif hasattr(value, "__wrapped__"):
        yield from _constants(value.__wrapped__, name, seen)
    elif hasattr(value, "dtype") and hasattr(value, "shape"):
        array = np.ascontiguousarray(value)
        yield name, f"{array.dtype}{list(array.shape)} {zlib.crc32(array.tobytes()):08x}"
    else:
        yield f"{name} is".strip(), type(value).__qualname__
