"""The identity of a run, which is its settings nested by owner, and the owner of a folder.

An identity is JSON, with an entry for each of "task", "train", "test", "optimizer", "engine", "controller", "config".
A folder holds it in `identity.json`, with the kind of the folder. Every checkpoint holds it too.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from bsjax.errors import InvalidArgument
from bsjax.run.metrics import read_json, write_json

_FILE = "identity.json"
_LONGEST_TEXT = 60  # an error shows only the part that differs of a longer value


def of_run(engine: Mapping[str, Any], controller: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of a run.

    Args:
      engine: `Engine.identity`, which is nested by owner.
      controller: what `Controller.identity` returns.
      config: settings of the caller that neither of them knows.
    """
    return json.loads(json.dumps({**engine, "controller": controller, "config": config}))


def flatten(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Each setting by the path to it.

    >>> flatten({"optimizer": {"name": "sgd", "weight_decay": 0.1}, "seed": 0})
    {'optimizer.name': 'sgd', 'optimizer.weight_decay': 0.1, 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for name, value in identity.items():
        if isinstance(value, Mapping) and value:
            flat |= {f"{name}.{inner}": setting for inner, setting in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What differs between two identities, as a phrase; "" if nothing does.

    A setting that only `here` has did not exist when `there` was written, and is no difference.

    Args:
      there: of a folder or a checkpoint.
      here: of what is to be run; JSON. Owners that it does not name are not compared.

    >>> differences({"optimizer": {"weight_decay": 0.1}}, {"optimizer": {"weight_decay": 0.2, "nesterov": False}})
    'optimizer.weight_decay 0.1 there, 0.2 here'
    """
    ours, phrases = flatten(json.loads(json.dumps(here))), []
    for name, value in flatten(
        {owner: there[owner] for owner in there if owner in here and there[owner] != {}}
    ).items():
        if name not in ours:
            phrases.append(f"{name} {value!r} there, nothing here")
        elif ours[name] != value:
            phrases.append("{} {} there, {} here".format(name, *_texts(value, ours[name])))
    return "; ".join(phrases)


def check_same(workdir: pathlib.Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuses a folder or its checkpoint if its identity differs; the arguments are those of `differences`.

    Raises:
      InvalidArgument: with all that differs, and the way out.
    """
    if found := differences(there, here):
        raise _refused(workdir, f"it has {found}")


def is_kept(workdir: pathlib.Path) -> bool:
    """Whether the folder of a run holds what the run goes on with: a checkpoint, or its summary."""
    return any(workdir.glob("checkpoints/[0-9]*[0-9]")) or (workdir / "summary.json").exists()


def is_claimed(workdir: str | pathlib.Path, kind: str, identity: Mapping[str, Any] | None = None) -> bool:
    """Whether a folder belongs to this run or study; False if it belongs to nobody.

    The folder of a run that ended before its first checkpoint, as when its loss fails, belongs to any run.

    Args:
      workdir: may be missing.
      kind: "run" or "study".
      identity: its settings; None accepts any settings.

    Raises:
      InvalidArgument: it belongs to another one.
      RunError: its identity.json is damaged.
    """
    workdir = pathlib.Path(workdir)
    path = workdir / _FILE
    if not path.exists():
        for other, name in (("study", "runs"), ("run", "checkpoints"), ("run", "summary.json")):
            if other != kind and (workdir / name).exists():
                raise _refused(workdir, f"it is the folder of a {other}", kind)
        return False
    there = read_json(path, ("kind", "identity"), "remove it, and the run checks its last checkpoint instead")
    if there["kind"] != kind:
        raise _refused(workdir, f"it is the folder of a {there['kind']}", kind)
    if identity is not None and is_kept(workdir):
        check_same(workdir, there["identity"] or {}, identity)
    return True


def claim(workdir: str | pathlib.Path, kind: str, identity: Mapping[str, Any] | None = None) -> None:
    """Makes a folder belong to a run or a study; the arguments and errors are those of `is_claimed`."""
    if not is_claimed(workdir, kind, identity) or identity is not None:
        write_json(pathlib.Path(workdir) / _FILE, {"kind": kind, "identity": identity})


def _refused(workdir: pathlib.Path, reason: str, kind: str = "run") -> InvalidArgument:
    return InvalidArgument("workdir", str(workdir), f"empty or of this {kind}: {reason}; choose another, or remove it")


def _texts(there: Any, here: Any) -> tuple[str, str]:
    """Both values, or the parts of long ones that differ."""
    texts = repr(there), repr(here)
    if max(map(len, texts)) <= _LONGEST_TEXT:
        return texts
    same = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
    start = max(0, same - 20)
    stop = start + _LONGEST_TEXT
    first, second = (("..." if start else "") + text[start:stop] + ("..." if text[stop:] else "") for text in texts)
    return first, second
