"""The display of a run: a progress bar or plain lines."""

import dataclasses
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TextIO

from bsjax.run.input import LARGE_SHARE

# "auto", "noise", "none", or a function of the latest values; see `Progress`.
Show = str | Callable[[Mapping[str, Any]], None]

_REDRAW_S = 0.2
_BEFORE_THE_TEXT = len("100% |") + 10 + len("| ")


@dataclasses.dataclass(frozen=True)
class ProgressLine:
    """Formats the progress of a run as a line.

    Speed and time left are computed from examples, so they stay right while the batch grows. The share of the time that
    updates waited for examples is shown if it is more than a tenth.

    Args:
      num_examples: position in the example stream where the run ends.
      dataset_size: examples in an epoch.
      unit, units_per_example: see `bsjax.tasks.Task`.
      show_noise: include the gradient noise scale.

    >>> line = ProgressLine(num_examples=2000, dataset_size=100, unit="images")
    >>> line(dict(update=50, examples_seen=1000, batch_size=20, learning_rate=0.1, train_loss=0.5, test_accuracy=0.75))
    'epoch 10.0/20  update 50  B 20  lr 0.1  loss 0.5000  test 75.00 %'
    >>> line = ProgressLine(num_examples=2000, dataset_size=100, unit="tokens", units_per_example=64)
    >>> line(dict(update=1, examples_seen=1000, batch_size=9, learning_rate=0.1, test_loss=3, examples_per_second=500))
    'epoch 10.0/20  update 1  B 9  lr 0.1  test loss 3.0000  32,000 tokens/s  0:02 left'

    Where a width is given, the parts that matter least are left out until the line fits.

    >>> line(dict(update=1, examples_seen=1000, batch_size=9, learning_rate=0.1, examples_per_second=500), width=44)
    'epoch 10.0/20  32,000 tokens/s  0:02 left'
    """

    num_examples: int
    dataset_size: int
    unit: str = "examples"
    units_per_example: int = 1
    show_noise: bool = False

    def __call__(self, latest: Mapping[str, Any], width: int | None = None) -> str:
        """The line for the latest values, whose names are those in the run's files.

        Args:
          latest: the values.
          width: of the line at most, in characters.
        """
        epochs = f"{latest['examples_seen'] / self.dataset_size:.1f}/{self.num_examples / self.dataset_size:.4g}"
        # Each part with its rank: the last ones are the first to be left out.
        parts = [
            (0, f"epoch {epochs}"),
            (6, f"update {latest['update']:,}"),
            (4, f"B {latest['batch_size']:,}"),
            (7, f"lr {latest['learning_rate']:.4g}"),
        ]
        if "train_loss" in latest:
            parts.append((5, f"loss {latest['train_loss']:.4f}"))
        if "test_accuracy" in latest:
            parts.append((2, f"test {100 * latest['test_accuracy']:.2f} %"))
        elif "test_loss" in latest:
            parts.append((2, f"test loss {latest['test_loss']:.4f}"))
        if self.show_noise:
            parts.append((2, self._noise(latest)))
        if speed := latest.get("examples_per_second"):
            seconds = max(0, self.num_examples - latest["examples_seen"]) / speed
            parts.append((3, f"{speed * self.units_per_example:,.0f} {self.unit}/s"))
            parts.append((1, f"{clock(seconds)} left"))
        if (share := latest.get("input_share", 0.0)) > LARGE_SHARE:
            parts.append((3, f"waits for input {100 * share:.0f} %"))
        while width is not None and len(_joined(parts)) > width and len(parts) > 1:
            parts.remove(max(parts))
        return _joined(parts)

    def _noise(self, latest: Mapping[str, Any]) -> str:
        """The gradient noise scale; that of the normalisation layers where they alone are measured."""
        name, text = "gradient_noise_scale", "noise scale"
        if name not in latest and f"layer_norm_{name}" in latest:
            name, text = f"layer_norm_{name}", "layer norms' noise scale"
        if (scale := latest.get(name)) is None:
            return f"{text} unknown"
        units = f" ({scale * self.units_per_example:,.0f} {self.unit})" if self.units_per_example > 1 else ""
        return f"{text} {scale:,.0f}{units}"


class Progress:
    """Shows the line with a bar on a terminal; elsewhere, prints it after each evaluation.

    Args:
      line: formats it.
      start: position in the example stream where the run begins.
      show: "auto" or "noise"; "none" to show nothing; or a function of the latest values, which is called instead, a
        few times a second and after each evaluation.
      file: default, stderr.
    """

    def __init__(
        self,
        line: ProgressLine,
        start: int = 0,
        show: Show = "auto",
        file: TextIO | None = None,
    ):
        self._line, self._start, self._file = line, start, file or sys.stderr
        self._tell = show if callable(show) else None
        self._is_shown = not callable(show) and show != "none"
        self._latest: dict[str, Any] = {}
        self._first: tuple[float, int] | None = None  # when the first values came, and the position then
        self._shown_at = 0.0
        self._bar = None
        if self._is_shown and self._file.isatty():
            import tqdm  # here because only terminals need it

            layout, total = "{percentage:3.0f}% |{bar:10}| {desc}", line.num_examples - start
            self._bar = tqdm.tqdm(total=total, bar_format=layout, file=self._file, dynamic_ncols=True)

    def update(self, **latest: Any) -> None:
        """Takes the latest values; redraws a bar a few times a second."""
        self._latest.update(latest)
        now = time.perf_counter()
        self._first = self._first or (now, self._latest["examples_seen"])
        if now - self._shown_at > _REDRAW_S:
            self._shown_at = now
            self._show()

    def evaluated(self, **latest: Any) -> None:
        """Takes the results of an evaluation; without a bar, prints the line."""
        self._latest.update(latest)
        if self._tell is not None:
            self._tell(self._latest)
        elif self._bar is None and self._is_shown:
            print(self._line(self._latest), file=self._file, flush=True)

    def note(self, text: str) -> None:
        """Prints a line of its own, unless it is empty."""
        if text and self._is_shown:
            print(text, file=self._file, flush=True)

    def close(self) -> None:
        """Draws the bar for the last time."""
        if self._bar is not None:
            self._show()
            self._bar.close()

    def _show(self) -> None:
        if self._tell is not None:
            self._tell(self._latest)
        if self._bar is not None:
            self._bar.n = self._latest.get("examples_seen", self._start) - self._start
            width = shutil.get_terminal_size().columns - _BEFORE_THE_TEXT - 1
            text = self._line(self._estimated_speed() | self._latest, width) if self._latest else ""
            self._bar.set_description_str(text)

    def _estimated_speed(self) -> dict[str, float]:
        """Examples per second since the first update, until the run's log tells it."""
        if self._first is None:
            return {}
        then, position = self._first
        seconds, examples = time.perf_counter() - then, self._latest["examples_seen"] - position
        return {"examples_per_second": examples / seconds} if examples and seconds > 0 else {}


def clock(seconds: float) -> str:
    """A duration, rounded to seconds.

    >>> clock(59.6), clock(3661)
    ('1:00', '1:01:01')
    """
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}" if minutes >= 60 else f"{minutes}:{second:02}"


def _joined(parts: Iterable[tuple[int, str]]) -> str:
    return "  ".join(text for _, text in parts)
