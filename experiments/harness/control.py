"""Settings that do not change a run's numbers, and their flags."""

import dataclasses
import math
import time
from typing import Any

import jax
from absl import flags

from bsjax.engine.feed import EXAMPLES_ON
from bsjax.errors import InvalidArgument, check_choice, check_positive, check_whole
from bsjax.run import CHARTS, Intervals, charts
from experiments.harness import config_flags
from experiments.harness.concerns import field
from experiments.harness.config import Config

_GROUP = "Files and devices"
_WHERE = f"Where examples are kept in training. One of {', '.join(EXAMPLES_ON)} (on the devices if they fit)."


@dataclasses.dataclass(frozen=True)
class Control:
    """Where a run's data is, which devices it uses, and when it writes or stops: this does not change its numbers."""

    data_dir: str | None = field(None, "Folder of prepared data sets; default $BSJAX_DATA_DIR, else ~/.cache/bsjax.")
    images_on: str = field("auto", _WHERE)
    num_workers: int = field(0, "Processes that decode images of many sizes; 0: threads of this one, one per core.")
    devices: str = field("all", "all, a number of them, or auto: as many as make a batch fastest.")
    shard_optimizer: bool = field(False, "Each device keeps a share of the optimizer's state, not all of it.")
    checkpoint_every_epochs: float = field(
        10.0, "Checkpoint this often, in epochs; also where the batch size changes, and at the end."
    )
    checkpoint_min_s: float = field(
        2.0, "Least seconds from one checkpoint to the next of a single process; the last one does not wait."
    )
    keep_checkpoints: int = field(2, "How many of the newest checkpoints stay.")
    profile_updates: tuple[int, int] | None = field(
        None, "FIRST,END: write a profiler's trace of these updates, without END, into the folder profile of the run."
    )
    peak_flops_per_s: float | None = field(
        None, "Of one device, for the model FLOP utilisation; default, the vendor's where it is known."
    )
    show_noise: bool = field(False, "Show the gradient noise scale in the progress.")
    quiet: bool = field(False, "Show no progress: print results, warnings and errors only.")
    log_to: tuple[str, ...] = field(
        (), f"Charts beside metrics.jsonl, comma-separated, of {', '.join(CHARTS)}; each needs its extra."
    )
    stop_at: float = math.inf  # in seconds of time.time()

    def intervals(self, config: Config) -> Intervals:
        """How often a run evaluates, logs and writes checkpoints."""
        settings = dataclasses.asdict(self) | dataclasses.asdict(config.run)
        return Intervals(**{one.name: settings[one.name] for one in dataclasses.fields(Intervals)})


def define_flags() -> None:
    """Defines a flag for each field of Control, with --stop_after_s for `stop_at`."""
    config_flags.define_flags_of(Control, _GROUP)
    text = "Stop cleanly after this many seconds; the same command continues."
    flags.DEFINE_float("stop_after_s", None, text, module_name=_GROUP)


def control_from_flags() -> Control:
    """The Control that the command line gives."""
    values = flags.FLAGS
    given: dict[str, Any] = {one.name: values[one.name].value for one in dataclasses.fields(Control) if one.metadata}
    if (seconds := values.stop_after_s) is not None:
        if not seconds > 0:
            raise InvalidArgument("stop_after_s", seconds, "positive", 1)
        given["stop_at"] = time.time() + seconds
    if given["profile_updates"] is not None:
        example = "10,20"
        given["profile_updates"] = config_flags.numbers_of("profile_updates", given["profile_updates"], int, example)
    given["log_to"] = charts.check(given["log_to"] or ())
    control = Control(**given)
    if control.peak_flops_per_s is not None:
        check_positive("peak_flops_per_s", control.peak_flops_per_s)
    check_choice("images_on", control.images_on, EXAMPLES_ON)
    check_whole("num_workers", control.num_workers, 0)
    _check_devices(control.devices)
    control.intervals(Config())  # refuses wrong intervals
    return control


def _check_devices(choice: str) -> None:
    if choice in ("all", "auto"):
        return
    available, per_process = jax.device_count(), jax.process_count()
    if choice.isdigit() and int(choice) in range(per_process, available + 1, per_process):
        return
    multiple = f", a multiple of the {per_process} processes" if per_process > 1 else ""
    raise InvalidArgument("devices", choice, f"all, auto, or a number up to {available}{multiple}", "all")
