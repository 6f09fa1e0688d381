"""What functions close over and what their code is, so that a run notices when it changes."""

import functools
import inspect
import sys
import types
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


def describe_constants(functions: Any) -> dict[str, Any]:
    """The constants that functions were made with, such as those of an optax transformation.

    They are the values that the functions close over. A function is described by its name, an array by its checksum,
    any other object by its type; the code of a function, and what it reads from its module, are not described here.

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


def describe_code(function: Any) -> str:
    """The Python version, and a checksum of a function's code and of what it reads by name from its own package.

    The code is what Python compiles it to: comments, formatting and the names of variables do not count. It comes with
    the default values, and with the functions of the package (its top-level module), and the numbers and texts of the
    module, that it reads directly. Methods of classes, attributes of modules and other packages are not described.
    Another minor version of Python compiles the same function to another code.

    >>> describe_code(lambda x: x + 1) == describe_code(lambda x: x + 1) != describe_code(lambda x: x + 2)
    True
    """
    parts = list(_code_of(function, None, set()))
    return f"python {sys.version_info.major}.{sys.version_info.minor} {zlib.crc32(repr(parts).encode()):08x}"


def _code_of(value: Any, package: str | None, seen: set[int]) -> Iterator[str]:
    """The parts of a function's code; nothing for other values, and for functions of another package."""
    while isinstance(value, functools.partial):
        value = value.func
    value = inspect.unwrap(value) if callable(value) else value
    function = getattr(value, "__func__", value)
    if not isinstance(function, types.FunctionType):
        function = type(value).__call__ if callable(value) else None
    if not isinstance(function, types.FunctionType) or id(function) in seen:
        return
    own = function.__module__.split(".")[0]
    if package not in (None, own):
        return
    seen.add(id(function))
    yield from map(_plain, (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).items()))
    for cell in function.__closure__ or ():
        yield from _code_of(cell.cell_contents, own, seen)
    codes = [function.__code__]
    for code in codes:  # which grows by those inside
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
        yield from (code.co_code.hex(), *code.co_names, *map(_plain, code.co_consts))
        for name in code.co_names:
            if name in function.__globals__:
                read = function.__globals__[name]
                yield f"{name} = {_plain(read)}"
                yield from _code_of(read, own, seen)


def _plain(value: Any) -> str:
    """The text of a constant, the same in every process; "" for other objects."""
    if isinstance(value, frozenset):
        return str(sorted(map(_plain, value)))
    if isinstance(value, tuple):
        return str(list(map(_plain, value)))
    return repr(value) if isinstance(value, bool | int | float | complex | str | bytes | None) else ""


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
