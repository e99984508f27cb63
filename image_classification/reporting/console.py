"""The run on the screen: a live display on a terminal, one line per record anywhere else.

Everything is printed through the given rich Console, which honors ``NO_COLOR``, ``COLUMNS`` and
the width of the terminal. Only rank 0 has one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import table
from rich.cells import cell_len, chop_cells
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from image_classification.config.schema import RunConfig
from image_classification.core.types import Record
from image_classification.core.units import (
    counted,
    duration,
    number,
    other_topk,
    percent,
    printable,
    rate,
    size,
)
from image_classification.reporting.figures import LATENCY_NAMES
from image_classification.reporting.sinks import Sink
from image_classification.reporting.table import Column, Table, print_table

_BETWEEN = "  "


def open_console_sink(console: Console, config: RunConfig) -> Sink:
    """Return the sink that suits ``console``: live on a terminal, plain lines otherwise."""
    return LiveSink(console, config) if console.is_terminal else PlainSink(console, config)


class PlainSink:
    """One line per record: for log files, pipes and continuous integration."""

    def __init__(self, console: Console, config: RunConfig) -> None:
        self._console = console
        self._config = config
        self._start: Mapping[str, Any] = {}

    def write(self, record: Record) -> None:
        """Print the record's lines."""
        if record.kind == "start":
            self._start = record.values
            _print_start(self._console, self._config, record.values)
            return
        figures, style = _record_line(record, self._start)
        # Paths and messages of other programs may contain terminal control characters.
        figures = [printable(figure) for figure in figures]
        if figures and self._console.is_terminal:
            self._console.print(_Packed(figures, style, indent=4))
        elif figures:
            self._console.print(Text(_BETWEEN.join(figures), style=style), soft_wrap=True)

    def close(self) -> None:
        """Do nothing; nothing is open."""


class LiveSink(PlainSink):
    """Progress that stays at the bottom; epochs, validations and warnings scroll above it."""

    def __init__(
        self,
        console: Console,
        config: RunConfig,
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(console, config)
        self._view = LiveView(monotonic_s)
        self._live: Live | None = None

    def write(self, record: Record) -> None:
        """Update the display, and print all records but those of steps above it."""
        self._view.update(record)
        if record.kind != "step":
            super().write(record)
        if record.kind == "start" and record.values.get("total_steps"):
            self._live = Live(
                self._view, console=self._console, refresh_per_second=4, transient=True
            )
            self._live.start()
        elif record.kind == "end":
            self.close()

    def close(self) -> None:
        """Remove the progress display; may be called twice."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def _print_start(console: Console, config: RunConfig, values: Mapping[str, Any]) -> None:
    names, batch = config.names, config.batch
    data = str(values.get("data") or "-")
    for key, split in (("num_train_images", "train"), ("num_val_images", "validation")):
        if values.get(key) is not None:
            data += f", {values[key]:,} {split} images"
    rows = [
        ("run", " ".join([names.model, names.precision, names.mode, names.platform, names.recipe])),
        ("device", f"{values.get('world_size') or 1} x {values.get('device') or 'unknown'}"),
        ("data", data),
        (
            "batch",
            f"global {batch.global_batch} = per device {batch.per_device_batch} x "
            f"devices {config.world_size} x accumulation {batch.accumulation}",
        ),
    ]
    if values.get("num_parameters") is not None:
        rows.append(("model", f"{names.model}, {values['num_parameters']:,} parameters"))
    if values.get("total_steps"):
        length = f"{values['total_steps']:,} steps"
        if values.get("steps_per_epoch"):
            length += f", {values['steps_per_epoch']:,} per epoch"
        if values.get("epochs"):
            length += f"; schedule of {counted(values['epochs'], 'epoch')}"
        rows.append(("length", length))
    if values.get("start_step"):
        rows.append(("resumed", f"at step {values['start_step']:,}"))
    rows = [(label, printable(text)) for label, text in rows]
    if console.is_terminal:
        labels = Column(kind="label", width=7)
        print_table(console, Table((labels, Column()), rows, look="bare"))
    else:
        for label, text in rows:
            console.print(f"{label:<8}{text}", soft_wrap=True, markup=False, highlight=False)


def _record_line(record: Record, start: Mapping[str, Any]) -> tuple[list[str], str]:
    """Return the figures of a record's line and their rich style; no figures for other kinds.

    start: values of the run's start record, for its numbers of epochs and steps.
    """
    values = record.values
    epoch = f"epoch {record.epoch + 1}" + (f"/{start['epochs']}" if start.get("epochs") else "")
    total = f"/{start['total_steps']:,}" if start.get("total_steps") else ""
    step = f"{epoch}  step {record.step:,}{total}"
    speed = f"{rate(values.get('images_per_s'))} images/s"
    match record.kind:
        case "step":
            figures = [step, f"loss {number(values.get('loss'), 4)}"]
            figures += [f"lr {_lr_text(values.get('lr'))}", speed]
            figures += _data_wait_text(values, "step_time_s")
            return figures + _given(values, _STEP_FIGURES), ""
        case "epoch":
            figures = [epoch, f"train loss {number(values.get('loss'), 4)}", speed]
            return [
                *figures,
                duration(values.get("time_s")),
                *_data_wait_text(values, "time_s"),
            ], ""
        case "validation" | "validation_ema":
            style = "bold" if values.get("is_best") else ""
            return [epoch, *_validation_figures(record)], style
        case "checkpoint":
            figures = [step, f"saved {values.get('path')}", *_given(values, _CHECKPOINT_FIGURES)]
            return figures + ["best"] * bool(values.get("is_best")), "dim"
        case "inference":
            latencies = [
                f"{name} {number(values.get(f'latency_ms_{name}'))}"
                for name in LATENCY_NAMES
                if values.get(f"latency_ms_{name}") is not None
            ]
            figures = [f"batch {values.get('batch')}", speed]
            return figures + [f"latency in ms: {', '.join(latencies)}"] * bool(latencies), ""
        case "data":
            return ["data", speed], ""
        case "warning":
            return [f"warning: {values.get('message')}"], "bold yellow"
    return [], ""


# Figures that a line has only where they were measured: key and text.
_Given = Sequence[tuple[str, Callable[[Any], str]]]

_STEP_FIGURES: _Given = (
    ("memory_bytes", lambda v: f"memory {size(v)}"),
    ("loss_scale", lambda v: f"loss scale {v:g}"),
    ("skipped_steps", lambda v: f"skipped {v:,}" if v else ""),
)
_CHECKPOINT_FIGURES: _Given = (
    ("bytes", size),
    ("time_s", duration),
    ("stall_s", lambda v: f"stall {duration(v)}"),
)


def _given(values: Mapping[str, Any], figures: _Given) -> list[str]:
    texts = (text(values[key]) for key, text in figures if values.get(key) is not None)
    return [text for text in texts if text]


def _validation_figures(record: Record) -> list[str]:
    values = record.values
    ema = " (EMA)" if record.kind == "validation_ema" else ""
    figures = [
        f"validation{ema} top-1 {number(values.get('top1'))} %",
        f"top-5 {number(values.get('top5'))} %",
        *(f"top-{name[3:]} {number(values[name])} %" for name in other_topk(values)),
        f"loss {number(values.get('loss'), 4)}",
    ]
    if values.get("images") is not None:
        figures.append(f"{values['images']:,} images in {duration(values.get('time_s'))}")
    if values.get("is_best"):
        figures.append("best so far")
    return figures


def _lr_text(lr: float | None) -> str:
    return "-" if lr is None else f"{lr:.4g}"


def _data_wait_text(values: Mapping[str, Any], time_key: str) -> list[str]:
    """Return the share of a record's time spent waiting for data, if it was measured."""
    time_s, wait_s = values.get(time_key), values.get("data_wait_s")
    return [f"data wait {percent(wait_s / time_s)}"] if time_s and wait_s is not None else []


@dataclass(frozen=True)
class _Packed:
    """Figures side by side, as many per line as fit; indent: of the lines after the first."""

    figures: Sequence[str]
    style: str = ""
    indent: int = 0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield one line at a time; only a figure longer than a whole line is folded."""
        width = options.max_width
        for line in pack(self.figures, width, self.indent):
            # Prose breaks between words; a path longer than the line cannot.
            fits = max(map(cell_len, line.split()), default=0) <= width - self.indent
            for part in [line] if fits else chop_cells(line, width):
                yield Text(part, style=self.style)


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


# Width of the longest text of each figure of the telemetry.
_DEVICE_FIGURES: Sequence[tuple[str, Callable[[Any], str], int]] = (
    ("memory_bytes", lambda v: f"memory {size(v)}", 17),
    ("power_w", lambda v: f"power {number(v, 0)} W", 14),
    ("utilization", lambda v: f"busy {percent(v, 0)}", 10),
    ("temperature_c", lambda v: f"{number(v, 0)} °C", 6),
)


class LiveView:
    """What the live display shows.

    Each figure has its own place, wide enough for its longest text, so that nothing moves from
    one refresh to the next. Figures that are not measured are left out.
    """

    def __init__(self, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self._monotonic_s = monotonic_s
        self._start_s = self._step_at_s = monotonic_s()
        self._start_step = self._step = self._epoch = 0
        self._total_steps = self._epochs = 0
        self._values: Mapping[str, Any] = {}
        self._telemetry: Mapping[str, Any] = {}
        self._top1: dict[str, float] = {}
        self._best: tuple[float, int] | None = None

    def update(self, record: Record) -> None:
        """Store the record's progress and figures."""
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
            self._top1[record.kind] = values["top1"]
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
            cells.append(ProgressBar(total=1.0, completed=share, width=min(rest, 30)))
        cells += [Text(done, no_wrap=True), Text(left, style="bold", no_wrap=True)]
        progress = table.Table.grid(padding=(0, len(_BETWEEN)), pad_edge=False)
        progress.add_row(*cells)
        yield progress
        yield _Packed([figure.ljust(width) for figure, width in self._figures()])

    def _figures(self) -> list[tuple[str, int]]:
        """Return each figure with the width of its place."""
        values, total = self._values, f"{self._total_steps:,}"
        figures = [(f"step {self._step:,}/{total}", 6 + 2 * len(total))]
        if values:
            figures.append((f"loss {number(values.get('loss'), 4)}", 12))
            figures.append((f"lr {_lr_text(values.get('lr'))}", 12))
            figures.append((f"{rate(values.get('images_per_s'))} images/s", 16))
            figures += [(text, 17) for text in _data_wait_text(values, "step_time_s")]
        else:
            figures.append(("waiting for the first steps", 0))
        for kind, name in (("validation", "top-1"), ("validation_ema", "EMA top-1")):
            if kind in self._top1:
                figures.append((f"{name} {number(self._top1[kind])} %", len(name) + 9))
        if self._best is not None:
            best, epoch = self._best
            text = f"best {number(best)} % (epoch {epoch + 1})"
            figures.append((text, 21 + len(str(self._epochs))))
        for key, device_text, width in _DEVICE_FIGURES:
            if self._telemetry.get(key) is not None:
                figures.append((device_text(self._telemetry[key]), width))
        if values.get("memory_bytes") is not None:
            figures.append((f"peak memory {size(values['memory_bytes'])}", 22))
        if values.get("loss_scale") is not None:
            figures.append((f"loss scale {_scale_text(values['loss_scale'])}", 17))
        if values.get("skipped_steps"):
            figures.append((f"skipped {values['skipped_steps']:,}", 0))
        return figures


def _scale_text(scale: float) -> str:
    """Return a loss scale as text; large powers of two as ``2^N``, so that they fit their place."""
    fraction, exponent = math.frexp(scale)
    return f"2^{exponent - 1}" if fraction == 0.5 and exponent > 17 else f"{scale:g}"
