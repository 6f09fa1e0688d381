"""Checkpoints of a run: its state on the devices, and where it was."""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

from bsjax.step import TrainState


class Checkpoints:
    """The last checkpoints in a folder, written in the background (Orbax).

    A checkpoint holds the state of one device (all have the same), and `progress`, a JSON object. Its number
    is that of the next update.
    """

    def __init__(self, folder: pathlib.Path, keep: int = 2):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    @property
    def latest(self) -> int | None:
        """The number of the newest checkpoint."""
        return self._manager.latest_step()

    def save(self, next_update: int, state: TrainState, progress: dict[str, Any]) -> None:
        """Begins to write a checkpoint.

        Args:
          next_update: its number.
          state: numpy arrays, without the device axis.
          progress: anything that JSON can hold.
        """
        self._manager.save(
            next_update,
            args=ocp.args.Composite(state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress)),
        )

    def restore(self, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest checkpoint's state, as numpy arrays, and progress.

        Args:
          state: one of the same structure, shapes and dtypes.
        """
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
        restored = self._manager.restore(
            self.latest,
            args=ocp.args.Composite(state=ocp.args.StandardRestore(like), progress=ocp.args.JsonRestore()),
        )
        return restored.state, restored.progress

    def close(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()
        self._manager.close()
