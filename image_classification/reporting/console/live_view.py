"""The lines of the live display: progress and the latest figures, in fixed places."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.cells import cell_len, chop_cells
from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from image_classification.core.types import Record
from image_classification.core.units import duration, number, percent, rate, size

_BETWEEN = "  "
_BAR_WIDTH = 30


class Packed:
    """Figures side by side, as many per line as fit; none is broken in two."""

    def __init__(self, figures: Sequence[str], style: str = "", indent: int = 0) -> None:
        """indent: of the lines after the first, in columns."""
        self._figures = tuple(figures)
        self._style = style
        self._indent = indent

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield one line at a time; only a figure longer than a whole line is folded."""
        width = options.max_width
        for line in pack(self._figures, width, self._indent):
            # Prose breaks between words; a path longer than the line cannot.
            fits = max(map(cell_len, line.split()), default=0) <= width - self._indent
            for part in [line] if fits else chop_cells(line, width):
                yield Text(part, style=self._style)


def pack(figures: Iterable[str], width: int, indent: int = 0) -> list[str]:
    """Join ``figures`` into lines of at most ``width`` columns; a longer figure has its own."""
    lines: list[str] = []
    for figure in figures:
        joined = f"{lines[-1]}{_BETWEEN}{figure}" if lines else figure
        if lines and cell_len(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(" " * indent + figure if lines else figure)
    return [line.rstrip() for line in lines]


def lr_text(lr: float | None) -> str:
    """Write a learning rate with four significant digits; a dash for None."""
    return "-" if lr is None else f"{lr:.4g}"


def data_wait_text(values: Mapping[str, Any], time_key: str) -> list[str]:
    """Return the share of a record's time spent waiting for data, if it was measured."""
    time_s, wait_s = values.get(time_key), values.get("data_wait_s")
    return [f"data wait {percent(wait_s / time_s)}"] if time_s and wait_s is not None else []


class LiveView:
    """What the live display shows.

    Each figure has its own place, wide enough for its longest text, so that nothing moves from
    one refresh to the next. What is not measured has no place.
    """

    def __init__(self, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._monotonic_s = monotonic_s
        self._start_s = monotonic_s()
        self._start_step = 0
        self._step = 0
        self._step_at_s = self._start_s
        self._epoch = 0
        self._total_steps = 0
        self._epochs = 0
        self._values: Mapping[str, Any] = {}
        self._telemetry: Mapping[str, Any] = {}
        self._top1: dict[str, float] = {}
        self._best: tuple[float, int] | None = None

    def update(self, record: Record) -> None:
        """Take the record's progress and figures."""
        values = record.values
        if record.kind == "start":
            self._start_s = self._step_at_s = self._monotonic_s()
            self._start_step = self._step = values.get("start_step") or 0
            self._total_steps = values.get("total_steps") or 0
            self._epochs = values.get("epochs") or 0
            steps_per_epoch = values.get("steps_per_epoch")
            self._epoch = self._step // steps_per_epoch if steps_per_epoch else 0
        elif record.kind == "step":
            self._step, self._epoch, self._values = record.step, record.epoch, values
            self._step_at_s = self._monotonic_s()
        elif record.kind == "telemetry":
            self._telemetry = values
        elif record.kind in ("validation", "validation_ema") and values.get("top1") is not None:
            self._top1 = {**self._top1, record.kind: values["top1"]}
            if values.get("is_best"):
                self._best = (values["top1"], record.epoch)

    def eta_s(self) -> float | None:
        """Return the seconds left at the mean pace so far, evaluation and saving included.

        None before the first step.
        """
        steps = self._step - self._start_step
        if steps <= 0:
            return None
        pace_s = (self._step_at_s - self._start_s) / steps
        since_s = self._monotonic_s() - self._step_at_s
        return max(0.0, pace_s * (self._total_steps - self._step) - since_s)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield one line of progress and time left, then the figures."""
        share = self._step / self._total_steps if self._total_steps else 0.0
        at = f"epoch {self._epoch + 1}/{self._epochs}"
        done = f"{percent(share, 0):>5}"
        left = f"{duration(self.eta_s())} left"
        rest = options.max_width - sum(map(cell_len, (at, done, left))) - 3 * len(_BETWEEN)
        cells: list[Text | ProgressBar] = [Text(at, style="bold", no_wrap=True)]
        if rest > 0:
            cells.append(ProgressBar(total=1.0, completed=share, width=min(rest, _BAR_WIDTH)))
        cells += [Text(done, no_wrap=True), Text(left, style="bold", no_wrap=True)]
        progress = Table.grid(padding=(0, len(_BETWEEN)), pad_edge=False)
        progress.add_row(*cells)
        yield progress
        yield Packed([figure.ljust(width) for figure, width in self._figures()])

    def _figures(self) -> list[tuple[str, int]]:
        """Return each figure with the width of its place."""
        values, total = self._values, f"{self._total_steps:,}"
        step = (f"step {self._step:,}/{total}", 6 + 2 * len(total))
        if not values:
            return [step, ("waiting for the first steps", 0), *self._top1s(), *self._devices()]
        figures = [
            step,
            (f"loss {number(values.get('loss'), 4)}", 12),
            (f"lr {lr_text(values.get('lr'))}", 12),
            (f"{rate(values.get('images_per_s'))} images/s", 16),
            *((text, 17) for text in data_wait_text(values, "step_time_s")),
            *self._top1s(),
            *self._devices(),
        ]
        if values.get("memory_bytes") is not None:
            figures.append((f"peak memory {size(values['memory_bytes'])}", 22))
        if values.get("loss_scale") is not None:
            figures.append((f"loss scale {_scale_text(values['loss_scale'])}", 17))
        if values.get("skipped_steps"):
            figures.append((f"skipped {values['skipped_steps']:,}", 0))
        return figures

    def _devices(self) -> list[tuple[str, int]]:
        """Return the node's current telemetry, as far as it is measured."""
        values, figures = self._telemetry, []
        if values.get("memory_bytes") is not None:
            figures.append((f"memory {size(values['memory_bytes'])}", 17))
        if values.get("power_w") is not None:
            figures.append((f"power {number(values['power_w'], 0)} W", 14))
        if values.get("utilization") is not None:
            figures.append((f"busy {percent(values['utilization'], 0)}", 10))
        if values.get("temperature_c") is not None:
            figures.append((f"{number(values['temperature_c'], 0)} °C", 6))
        return figures

    def _top1s(self) -> list[tuple[str, int]]:
        names = (("validation", "top-1"), ("validation_ema", "EMA top-1"))
        figures = [
            (f"{name} {number(self._top1[kind])} %", len(name) + 9)
            for kind, name in names
            if kind in self._top1
        ]
        if self._best is not None:
            best, epoch = self._best
            text = f"best {number(best)} % (epoch {epoch + 1})"
            figures.append((text, 21 + len(str(self._epochs))))
        return figures


def _scale_text(scale: float) -> str:
    """Write a loss scale; large powers of two as such, so that they fit their place."""
    fraction, exponent = math.frexp(scale)
    return f"2^{exponent - 1}" if fraction == 0.5 and exponent > 17 else f"{scale:g}"
