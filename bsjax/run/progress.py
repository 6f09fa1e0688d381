"""The display of a run: a progress bar or plain lines."""

import dataclasses
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO


@dataclasses.dataclass(frozen=True)
class ProgressLine:
    """Formats the progress of a run as a line.

    Speed and time left are computed from examples, so they stay right while the batch grows.

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
    """

    num_examples: int
    dataset_size: int
    unit: str = "examples"
    units_per_example: int = 1
    show_noise: bool = False

    def __call__(self, latest: Mapping[str, Any]) -> str:
        """The line for the latest values, whose names are those in the run's files."""
        parts = [
            f"epoch {latest['examples_seen'] / self.dataset_size:.1f}/{self.num_examples / self.dataset_size:.4g}",
            f"update {latest['update']:,}",
            f"B {latest['batch_size']:,}",
            f"lr {latest['learning_rate']:.4g}",
        ]
        if "train_loss" in latest:
            parts.append(f"loss {latest['train_loss']:.4f}")
        if "test_accuracy" in latest:
            parts.append(f"test {100 * latest['test_accuracy']:.2f} %")
        elif "test_loss" in latest:
            parts.append(f"test loss {latest['test_loss']:.4f}")
        if self.show_noise:
            parts.append(self._noise(latest))
        if speed := latest.get("examples_per_second"):
            seconds = max(0, self.num_examples - latest["examples_seen"]) / speed
            parts += [f"{speed * self.units_per_example:,.0f} {self.unit}/s", f"{_clock(seconds)} left"]
        return "  ".join(parts)

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
      show: "auto" or "noise"; "none" to show nothing.
      file: default, stderr.
    """

    def __init__(self, line: ProgressLine, start: int = 0, show: str = "auto", file: TextIO | None = None):
        self._line, self._start, self._show, self._file = line, start, show, file or sys.stderr
        self._latest: dict[str, Any] = {}
        self._shown_at = 0.0
        self._bar = None
        if show != "none" and self._file.isatty():
            import tqdm  # here because only terminals need it

            layout, total = "{percentage:3.0f}% |{bar:20}| {desc}", line.num_examples - start
            self._bar = tqdm.tqdm(total=total, bar_format=layout, file=self._file, dynamic_ncols=True)

    def update(self, **latest: Any) -> None:
        """Takes the latest values; redraws a bar a few times a second."""
        self._latest.update(latest)
        now = time.perf_counter()
        if self._bar is not None and now - self._shown_at > 0.2:
            self._shown_at = now
            self._draw()

    def evaluated(self, **latest: Any) -> None:
        """Takes the results of an evaluation; without a bar, prints the line."""
        self._latest.update(latest)
        if self._bar is None and self._show != "none":
            print(self._line(self._latest), file=self._file, flush=True)

    def note(self, text: str) -> None:
        """Prints a line of its own, unless it is empty."""
        if text and self._show != "none":
            print(text, file=self._file, flush=True)

    def close(self) -> None:
        """Draws the bar for the last time."""
        if self._bar is not None:
            self._draw()
            self._bar.close()

    def _draw(self) -> None:
        assert self._bar is not None
        self._bar.n = self._latest.get("examples_seen", self._start) - self._start
        self._bar.set_description_str(self._line(self._latest) if self._latest else "")


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}" if minutes >= 60 else f"{minutes}:{second:02}"
