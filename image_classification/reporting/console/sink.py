"""The run on the screen: a live display on a terminal, plain lines anywhere else.

Everything prints through the rich Console it is given, which honours ``NO_COLOR``, ``COLUMNS``
and the width of the terminal. Only rank 0 has one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from image_classification.config.schema import RunConfig
from image_classification.core.types import Record
from image_classification.core.units import printable
from image_classification.reporting.console.lines import Line, RecordLines
from image_classification.reporting.console.live_view import LiveView, Packed
from image_classification.reporting.sinks import Sink

_INDENT = 4


def open_console_sink(console: Console, config: RunConfig) -> Sink:
    """Return the sink that suits ``console``: live on a terminal, plain lines otherwise."""
    return LiveSink(console, config) if console.is_terminal else PlainSink(console, config)


class PlainSink:
    """One line a record: log files, pipes and continuous integration."""

    def __init__(self, console: Console, config: RunConfig) -> None:
        self._console = console
        self._config = config
        self._lines = RecordLines()

    def write(self, record: Record) -> None:
        """Print the record's lines."""
        if record.kind == "start":
            _print_start(self._console, self._config, record)
        line = self._lines.of(record)
        if line is not None:
            _print_line(self._console, line)

    def close(self) -> None:
        """Nothing is held."""


class LiveSink:
    """A progress bar that stays at the bottom; epochs, validations and warnings scroll above."""

    def __init__(
        self,
        console: Console,
        config: RunConfig,
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._config = config
        self._lines = RecordLines()
        self._view = LiveView(monotonic_s)
        self._live: Live | None = None

    def write(self, record: Record) -> None:
        """Update the display, and print what is to stay."""
        if record.kind == "start":
            _print_start(self._console, self._config, record)
            if record.values.get("total_steps"):
                self._start_live()
        self._view.update(record)
        line = self._lines.of(record)
        if line is not None and record.kind != "step":
            _print_line(self._console, line)
        if record.kind == "end":
            self.close()

    def close(self) -> None:
        """Remove the progress display; may be called twice."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _start_live(self) -> None:
        self._live = Live(
            get_renderable=lambda: self._view,
            console=self._console,
            refresh_per_second=4,
            transient=True,
        )
        self._live.start()


def _print_line(console: Console, line: Line) -> None:
    # Paths and other programs' messages may hold what would drive the terminal.
    figures = [printable(figure) for figure in line.figures]
    if console.is_terminal:
        console.print(Packed(figures, line.style, indent=_INDENT))
    else:
        console.print(Text("  ".join(figures), style=line.style), soft_wrap=True)


def _print_start(console: Console, config: RunConfig, record: Record) -> None:
    values, names = record.values, config.names
    rows = [
        ("run", " ".join([names.model, names.precision, names.mode, names.platform, names.recipe])),
        ("device", _device(values)),
        ("data", _data(values)),
        ("batch", _batch(config)),
    ]
    if values.get("num_parameters") is not None:
        rows.append(("model", f"{names.model}, {values['num_parameters']:,} parameters"))
    if values.get("total_steps"):
        rows.append(("length", _length(values)))
    if values.get("start_step"):
        rows.append(("resumed", f"at step {values['start_step']:,}"))
    rows = [(label, printable(text)) for label, text in rows]
    if not console.is_terminal:
        for label, text in rows:
            console.print(f"{label:<8}{text}", soft_wrap=True, markup=False, highlight=False)
        return
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(style="bold", width=7)
    for label, text in rows:
        table.add_row(label, Text(text, overflow="fold"))
    console.print(table)


def _device(values: Mapping[str, Any]) -> str:
    count = values.get("world_size") or 1
    return f"{count} x {values.get('device') or 'unknown'}"


def _data(values: Mapping[str, Any]) -> str:
    counts = [
        f"{values[key]:,} {split} images"
        for key, split in (("num_train_images", "train"), ("num_val_images", "validation"))
        if values.get(key) is not None
    ]
    return ", ".join([str(values.get("data") or "-"), *counts])


def _batch(config: RunConfig) -> str:
    batch = config.batch
    return (
        f"global {batch.global_batch} = per device {batch.per_device_batch} x "
        f"devices {config.world_size} x accumulation {batch.accumulation}"
    )


def _length(values: Mapping[str, Any]) -> str:
    text = f"{values['total_steps']:,} steps"
    if values.get("steps_per_epoch"):
        text += f" of {values['steps_per_epoch']:,} an epoch"
    if values.get("epochs"):
        text += f"; schedule of {values['epochs']} epochs"
    return text
