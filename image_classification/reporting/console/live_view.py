"""The live display's few lines: where the run is, and its latest figures, in fixed places."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich.cells import cell_len, chop_cells
from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from image_classification.core.types import Record
from image_classification.core.units import (
    duration,
    number,
    percent,
    rate,
    size,
)
from image_classification.reporting.console.lines import lr_text

_BETWEEN = "  "
_BAR_WIDTH = 30


class Packed:
    """Figures side by side, as many on a line as its width takes; none is broken in two."""

    def __init__(self, figures: Sequence[str], style: str = "", indent: int = 0) -> None:
        """indent: columns that lines after the first begin with."""
        self._figures = tuple(figures)
        self._style = style
        self._indent = indent

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield one line at a time; only a figure longer than a whole line is folded."""
        width = options.max_width
        for line in pack(self._figures, width, self._indent):
            # Prose breaks between words; a path longer than the line has no such place.
            fits = max(map(cell_len, line.split()), default=0) <= width - self._indent
            for part in [line] if fits else chop_cells(line, width):
                yield Text(part, style=self._style)


def pack(figures: Iterable[str], width: int, indent: int = 0) -> list[str]:
    """Join ``figures`` into lines of at most ``width`` columns where each of them is shorter."""
    lines: list[str] = []
    for figure in figures:
        joined = f"{lines[-1]}{_BETWEEN}{figure}" if lines else figure
        if lines and cell_len(joined) > width:
            joined = " " * indent + figure
            lines.append(joined)
        elif lines:
            lines[-1] = joined
        else:
            lines.append(joined)
    return [line.rstrip() for line in lines]


class LiveView:
    """What the live display shows.

    Each figure has its own place, wide enough for all it will be, so that nothing jumps from one
    refresh to the next. What is not measured has none.
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
        self._values: dict[str, Any] = {}
        self._telemetry: dict[str, Any] = {}
        self._top1: dict[str, float] = {}
        self._best: tuple[float, int] | None = None

    def update(self, record: Record) -> None:
        """Take what the record says about the run's progress."""
        values = record.values
        if record.kind == "start":
            self._start_s = self._step_at_s = self._monotonic_s()
            self._start_step = self._step = values.get("start_step") or 0
            self._total_steps = values.get("total_steps") or 0
            self._epochs = values.get("epochs") or 0
            steps_per_epoch = values.get("steps_per_epoch")
            self._epoch = self._step // steps_per_epoch if steps_per_epoch else 0
        elif record.kind == "step":
            self._step, self._epoch, self._values = record.step, record.epoch, dict(values)
            self._step_at_s = self._monotonic_s()
        elif record.kind == "telemetry":
            self._telemetry = dict(values)
        elif record.kind in ("validation", "validation_ema") and values.get("top1") is not None:
            self._top1 = {**self._top1, record.kind: values["top1"]}
            if values.get("is_best"):
                self._best = (values["top1"], record.epoch)

    def eta_s(self) -> float | None:
        """Seconds left, from the pace so far with evaluation and saving; None before any step."""
        steps = self._step - self._start_step
        if steps <= 0:
            return None
        pace_s = (self._step_at_s - self._start_s) / steps
        since_s = self._monotonic_s() - self._step_at_s
        return max(0.0, pace_s * (self._total_steps - self._step) - since_s)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """How far and how long still, on one line; below it, how it goes."""
        share = self._step / self._total_steps if self._total_steps else 0.0
        at = f"epoch {self._epoch + 1}/{self._epochs}"
        done = f"{percent(share, 0):>5}"
        left = f"{duration(self.eta_s())} left"
        rest = options.max_width - sum(map(cell_len, (at, done, left))) - 3 * len(_BETWEEN)
        cells: list[Text | ProgressBar] = [Text(at, style="bold", no_wrap=True)]
        if rest > 0:
            bar = ProgressBar(total=1.0, completed=share, width=min(rest, _BAR_WIDTH))
            cells.append(bar)
        cells += [Text(done, no_wrap=True), Text(left, style="bold", no_wrap=True)]
        progress = Table.grid(padding=(0, len(_BETWEEN)), pad_edge=False)
        progress.add_row(*cells)
        yield progress
        yield Packed(self._figures())

    def _figures(self) -> list[str]:
        total = f"{self._total_steps:,}"
        step = _place(f"step {self._step:,}/{total}", 6 + 2 * len(total))
        if not self._values:
            return [step, "waiting for the first steps", *self._of_top1(), *self._of_devices()]
        values = self._values
        figures = [
            step,
            _place(f"loss {number(values.get('loss'), 4)}", 12),
            _place(f"lr {lr_text(values.get('lr'))}", 12),
            _place(f"{rate(values.get('images_per_s'))} images/s", 16),
        ]
        step_time_s, data_wait_s = values.get("step_time_s"), values.get("data_wait_s")
        if step_time_s and data_wait_s is not None:
            figures.append(_place(f"data wait {percent(data_wait_s / step_time_s)}", 17))
        figures += [*self._of_top1(), *self._of_devices()]
        if values.get("memory_bytes") is not None:
            figures.append(_place(f"peak memory {size(values['memory_bytes'])}", 22))
        if values.get("loss_scale") is not None:
            figures.append(_place(f"loss scale {_scale_text(values['loss_scale'])}", 17))
        if values.get("skipped_steps"):
            figures.append(f"skipped {values['skipped_steps']:,}")
        return figures

    def _of_devices(self) -> list[str]:
        """What the node's devices do at present, as far as it is measured."""
        values, figures = self._telemetry, []
        if values.get("memory_bytes") is not None:
            figures.append(_place(f"memory {size(values['memory_bytes'])}", 17))
        if values.get("power_w") is not None:
            figures.append(_place(f"power {number(values['power_w'], 0)} W", 14))
        if values.get("utilization") is not None:
            figures.append(_place(f"busy {percent(values['utilization'], 0)}", 10))
        if values.get("temperature_c") is not None:
            figures.append(_place(f"{number(values['temperature_c'], 0)} °C", 6))
        return figures

    def _of_top1(self) -> list[str]:
        names = (("validation", "top-1"), ("validation_ema", "EMA top-1"))
        figures = [
            _place(f"{name} {number(self._top1[kind])} %", len(name) + 9)
            for kind, name in names
            if kind in self._top1
        ]
        if self._best is not None:
            best, epoch = self._best
            text = f"best {number(best)} % (epoch {epoch + 1})"
            figures.append(_place(text, 21 + len(str(self._epochs))))
        return figures


def _place(figure: str, width: int) -> str:
    return figure.ljust(width)


def _scale_text(scale: float) -> str:
    """A loss scale; large ones are powers of two and are written so, which keeps to their place."""
    fraction, exponent = math.frexp(scale)
    return f"2^{exponent - 1}" if fraction == 0.5 and exponent > 17 else f"{scale:g}"
