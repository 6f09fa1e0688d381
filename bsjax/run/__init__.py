"""A training run: its loop and its files.

| part | file |
|---|---|
| `train`: the loop | loop.py |
| `Run`: an update, a decision, an evaluation, a checkpoint | run.py |
| `RunState`: what changes, as a checkpoint writes it | state.py |
| `Intervals`: how often it evaluates, logs and writes checkpoints | intervals.py |
| the means over the updates between two lines of the log | log.py |
| the gradient noise; the time; the FLOPs | noise.py, timing.py, cost.py |
| a slow or damaged input | input.py |
| a trace of some updates | profile.py |
| `Progress`: its display | progress.py |
| its files; its checkpoints | metrics.py, checkpoint.py |
| `Charts`: TensorBoard, Weights & Biases, trackio | charts.py |
| its folder, and the signals that stop it; the owner of a folder | workdir.py, identity.py |
"""

from bsjax.run.charts import CHARTS, Charts
from bsjax.run.checkpoint import Checkpoint, Checkpoints
from bsjax.run.identity import check_same, claim, differences, is_claimed
from bsjax.run.intervals import Intervals
from bsjax.run.loop import train
from bsjax.run.metrics import read_json, read_metrics, read_summary, write_json
from bsjax.run.progress import Progress, ProgressLine
from bsjax.run.workdir import Interrupted, catch_signals, caught_signal, lock, make

__all__ = [
    "train",
    "Intervals",
    "CHARTS",
    "Charts",
    "Checkpoint",
    "Checkpoints",
    "check_same",
    "claim",
    "differences",
    "is_claimed",
    "read_json",
    "read_metrics",
    "read_summary",
    "write_json",
    "Progress",
    "ProgressLine",
    "Interrupted",
    "catch_signals",
    "caught_signal",
    "lock",
    "make",
]
