"""What a task, an optimizer and an update owe each other, and the errors that say so."""

import contextlib
import linecache
import pathlib
import sysconfig
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bsjax.errors import InvalidArgument, TaskError
from bsjax.gradient_noise import layer_norm_params
from bsjax.tasks import Task

_ENGINES_OWN = {
    *("loss", "grad_norm", "weighted_grad_sq", "layer_norm_example_sq", "layer_norm_mean_sq"),
    *("num_stops", "num_examples"),
}
_LIBRARIES = tuple(
    str(path)
    for path in (
        pathlib.Path(__file__).parents[1],
        *(sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")),
    )
)


@contextlib.contextmanager
def in_the_users_words(task: Task) -> Iterator[None]:
    """Reports an error in a task's functions by the user's own line, not by a page of JAX's.

    Raises:
      TaskError: with the line that was at fault, and what was wrong with it.
    """
    try:
        yield
    except (InvalidArgument, TaskError):
        raise
    except Exception as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
        where = f"in the functions of {type(task).__name__}"
        if frames:
            innermost = frames[-1]
            line = linecache.getline(innermost.filename, innermost.lineno or 0).strip()
            where = f"{innermost.filename}:{innermost.lineno}, in {innermost.name}: {line}"
        raise TaskError(f"{where}\n  {type(error).__name__}: {error}") from None


def _is_users(filename: str) -> bool:
    return not filename.startswith((*_LIBRARIES, "<"))


def check_arguments(task: Task, tx: Any, train: Any, test: Any) -> Any:
    """Refuses arguments of the engine that cannot be what they should; returns a training example, [1, ...]."""
    if not hasattr(tx, "init") or not hasattr(tx, "update"):
        raise InvalidArgument("tx", tx, "an optimizer, such as optax.inject_hyperparams(optax.sgd)(learning_rate=0.0)")
    if not hasattr(task, "losses"):
        raise InvalidArgument("task", type(task).__name__, "a task, such as bsjax.tasks.from_loss makes")
    if taken := sorted(_ENGINES_OWN & set(task.metrics)):
        raise InvalidArgument("metrics", taken[0], "another name: the engine has a metric of this one", f"{taken[0]}_")
    for name, source in (("train", train), ("test", test)):
        if not hasattr(source, "gather"):
            allowed = "a source of examples, such as bsjax.data.ArraySource makes of a pytree of arrays"
            raise InvalidArgument(name, type(source).__name__, allowed)
    examples = [source.gather(np.zeros(1, np.int32)) for source in (train, test)]
    shapes = [str(jax.tree.map(lambda array: f"{array.dtype}{list(array.shape[1:])}", one)) for one in examples]
    if shapes[0] != shapes[1]:
        raise InvalidArgument("test", shapes[1], f"of examples like those of train, {shapes[0]}")
    for name, source in (("train", train), ("test", test)):
        if hasattr(task, "check_source"):  # a task need not inherit from Task
            task.check_source(name, source)
    return examples[0]


def check_devices(devices: Sequence[jax.Device]) -> int:
    """Refuses processes with different numbers of devices; returns the number of processes."""
    processes = [device.process_index for device in devices]
    counts = {process: processes.count(process) for process in processes}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} in process {process}" for process, count in counts.items())
        raise InvalidArgument("devices", listed, "as many in each process", min(counts.values()))
    return len(counts)


def check_params(params: Any) -> None:
    """Refuses initial parameters that cannot be trained.

    Raises:
      TaskError: with the first one.
    """
    for path, leaf in jax.tree.leaves_with_path(params):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.inexact):
            raise TaskError(f"the parameter{jax.tree_util.keystr(path)} must be of floats, not {dtype}: it is trained")


def check_layer_norm_noise(task: Task, params: Any) -> None:
    """Refuses to measure the gradients of examples that have none of their own, or none in a normalisation layer.

    Args:
      task: what is trained.
      params: arrays or shapes.

    Raises:
      InvalidArgument: it cannot be measured.
    """
    if task.group_size > 1:
        why = f"with group size {task.group_size}, because the examples of a group have no gradients of their own"
    elif not layer_norm_params(params):
        why = "with this model, because no parameter belongs to a normalisation layer by its name, as norm/scale does"
    else:
        return
    raise InvalidArgument("layer_norm_noise", True, f"False {why}", False)


def check_losses(task: Task, result: Any, size: int, batch_stats: Any, train: bool) -> tuple:
    """What `task.losses` returned for n examples, if it is what the contract says.

    Raises:
      TaskError: it is not.
    """
    kind = type(task).__name__
    try:
        losses, metrics, group_stats = result
    except (TypeError, ValueError):
        raise TaskError(f"losses of {kind} must return (losses [n], metrics, group_stats)") from None
    for name, values in {"losses": losses, **metrics}.items():
        if jnp.shape(values) != (size,) or not jnp.issubdtype(jnp.result_type(values), jnp.floating):
            given = f"{jnp.result_type(values)}{list(jnp.shape(values))}"
            why = "the engine takes the mean" if name == "losses" else "the engine takes its mean too"
            raise TaskError(f"{name} must be floats of shape [{size}], one per example, not {given}: {why}")
    if set(metrics) != set(task.metrics):
        raise TaskError(f"the metrics are named {tuple(metrics)}; the task announces metrics={tuple(task.metrics)}")
    if train and jax.tree.map(lambda _: 0, group_stats) != jax.tree.map(lambda _: 0, batch_stats):
        raise TaskError(
            f"{kind} returns no statistics of its groups for its running averages; a model with batch normalisation "
            "needs bsjax.models.GhostBatchNorm"
        )
    return losses, metrics, group_stats


def hyperparameter_names(opt_state: optax.OptState, given: Mapping[str, float]) -> dict[str, str]:
    """The optimizer's name for each of an update's hyperparameters; a momentum of 0 may have none.

    Raises:
      TypeError: the learning rate cannot be set from outside.
      InvalidArgument: the optimizer has no such hyperparameter.
    """
    scheduled = getattr(opt_state, "hyperparams_states", {})
    available = [name for name in getattr(opt_state, "hyperparams", {}) if name not in scheduled]
    if "learning_rate" not in available:
        raise TypeError(
            "tx must be made by optax.inject_hyperparams with a number, not a schedule, for learning_rate: "
            "each update sets its own"
        )
    names = {}
    for name, value in given.items():
        if name in available:
            names[name] = name
        elif name == "momentum" and "b1" in available:
            if "b1" in given:
                raise InvalidArgument("b1", given["b1"], f"left out: the momentum, {value!r}, is the optimizer's b1")
            names[name] = "b1"
        elif name != "momentum" or value != 0:
            has = ", ".join(available)
            also = " (or b1)" if name == "momentum" else ""
            nearest = "0, or an optimizer made with optax.inject_hyperparams and a number for it"
            allowed = f"a hyperparameter{also} of the optimizer, which has {has}"
            raise InvalidArgument(name, value, allowed, nearest if name == "momentum" else None)
    return names


def check_same_names(opt_state: optax.OptState, names: Mapping[str, str], given: Mapping[str, float]) -> None:
    """Refuses an update whose hyperparameters have other names than those of the first update.

    Raises:
      InvalidArgument: with the first such name.
    """
    for name, value in given.items():
        if name not in names and (name, value) != ("momentum", 0):
            hyperparameter_names(opt_state, {name: value})
            raise InvalidArgument(name, value, f"left out, since the first update sets only {', '.join(names)}")
