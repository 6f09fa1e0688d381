"""The columns of a plan: as schedules, as runs of equal values in JSON, and as a table for other programs."""

import csv
import io
import json
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
import optax

from bsjax.errors import InvalidArgument

if TYPE_CHECKING:
    from bsjax.plan import Plan

_INT32_MAX = 2**31 - 1


def read_only(values: Any, dtype: type) -> np.ndarray:
    """A copy that nobody can change."""
    values = np.array(values, dtype)
    values.setflags(write=False)
    return values


def table_schedule(values: np.ndarray) -> optax.Schedule:
    """A schedule that looks up values by update count and holds the last one; it stores one entry per constant run."""
    starts = run_starts(values)
    run_values = values[starts]
    largest = int(values.max()) if values.dtype == np.int64 else 0

    def schedule(count):
        run = jnp.searchsorted(jnp.asarray(starts, jnp.int32), count, side="right") - 1
        dtype = jnp.int32 if values.dtype == np.int64 else jnp.result_type(float)
        if largest > _INT32_MAX:
            dtype = jnp.result_type(int)
            if dtype == jnp.int32:
                allowed = f"at most {_INT32_MAX} in a schedule without jax_enable_x64; plan.batch_sizes holds it"
                raise InvalidArgument("batch_size", largest, allowed, _INT32_MAX)
        return jnp.asarray(run_values, dtype)[jnp.maximum(run, 0)]

    return schedule


def run_starts(values: np.ndarray) -> np.ndarray:
    """Where each run of equal values starts.

    >>> run_starts(np.array([5, 5, 7, 5])).tolist()
    [0, 2, 3]
    """
    return np.concatenate([[0], np.flatnonzero(values[1:] != values[:-1]) + 1])


def encode_runs(values: np.ndarray) -> list[list[float]]:
    """Pairs [number of updates, value].

    >>> encode_runs(np.array([0.1, 0.1, 0.3])), decode_runs([[2, 0.1], [1, 0.3]]).tolist()
    ([[2, 0.1], [1, 0.3]], [0.1, 0.1, 0.3])
    """
    starts = run_starts(values)
    counts = np.diff([*starts, len(values)])
    return [[int(count), value] for count, value in zip(counts, values[starts].tolist(), strict=True)]


def decode_runs(runs: list[list[float]]) -> np.ndarray:
    """The values that `encode_runs` wrote."""
    counts, values = zip(*runs, strict=True)
    return np.repeat(values, counts)


def to_json(plan: "Plan", names: Sequence[str]) -> str:
    """What `bsjax.Plan.to_json` returns, with the columns of these names and the further ones."""
    fields: dict[str, Any] = {"dataset_size": plan.dataset_size, "start": plan.start}
    fields |= {name: encode_runs(getattr(plan, name)) for name in names}
    if plan.others:
        fields["others"] = {name: encode_runs(values) for name, values in plan.others.items()}
    if plan.scaling != 1.0:
        fields["scaling"] = plan.scaling
    if plan.tokens_per_example is not None:
        fields["tokens_per_example"] = plan.tokens_per_example
    return json.dumps(fields)


def from_json(text: str, names: Sequence[str]) -> dict[str, Any]:
    """The arguments of the plan that `to_json` wrote."""
    fields = json.loads(text)
    fields |= {name: decode_runs(fields[name]) for name in names}
    fields["others"] = {name: decode_runs(runs) for name, runs in fields.get("others", {}).items()}
    return fields


def columns_of(plan: "Plan") -> dict[str, np.ndarray]:
    """Each column of a plan's table by its name, [num_updates]: where an update starts, and its hyperparameters."""
    examples = plan.examples_seen
    columns = {"update": np.arange(plan.num_updates), "examples_seen": examples, "epoch": examples / plan.dataset_size}
    columns |= {"batch_size": plan.batch_sizes, "learning_rate": plan.learning_rates, "momentum": plan.momentums}
    return {**columns, **plan.others}


def to_csv(plan: "Plan", path: str | pathlib.Path | None) -> str | None:
    """What `bsjax.Plan.to_csv` returns."""
    file, columns = io.StringIO(newline=""), columns_of(plan)
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*(values.tolist() for values in columns.values()), strict=True))
    if path is None:
        return file.getvalue()
    pathlib.Path(path).write_text(file.getvalue(), encoding="utf-8")
    return None


def as_dataframe(plan: "Plan") -> Any:
    """What `bsjax.Plan.as_dataframe` returns."""
    try:
        import pandas  # here because nothing else needs it
    except ImportError:
        raise ImportError("plan.as_dataframe() needs pandas (pip install pandas); plan.to_csv() does not") from None
    columns = columns_of(plan)
    return pandas.DataFrame({name: values for name, values in columns.items() if name != "update"}, columns["update"])
