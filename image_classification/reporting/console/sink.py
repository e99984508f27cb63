"""The run on the screen: a live display on a terminal, one line per record anywhere else.

Everything is printed through the given rich Console, which honors ``NO_COLOR``, ``COLUMNS`` and
the width of the terminal. Only rank 0 has one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from image_classification.config.schema import RunConfig
from image_classification.core.types import Record
from image_classification.core.units import duration, number, other_topk, printable, rate, size
from image_classification.reporting.console.live_view import (
    LiveView,
    Packed,
    data_wait_text,
    lr_text,
)
from image_classification.reporting.figures import LATENCY_NAMES
from image_classification.reporting.sinks import Sink
from image_classification.reporting.table import Column, Table, print_table

_INDENT = 4


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
        figures, style = record_line(record, self._start)
        # Paths and messages of other programs may hold what would control the terminal.
        figures = [printable(figure) for figure in figures]
        if not figures:
            return
        if self._console.is_terminal:
            self._console.print(Packed(figures, style, indent=_INDENT))
        else:
            self._console.print(Text("  ".join(figures), style=style), soft_wrap=True)

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


def record_line(record: Record, start: Mapping[str, Any]) -> tuple[list[str], str]:
    """Return the figures of a record's line and their rich style; no figures for other kinds.

    start: values of the run's start record, for its numbers of epochs and steps.
    """
    values = record.values
    epoch = f"epoch {record.epoch + 1}" + (f"/{start['epochs']}" if start.get("epochs") else "")
    total = f"/{start['total_steps']:,}" if start.get("total_steps") else ""
    step = f"{epoch}  step {record.step:,}{total}"
    match record.kind:
        case "step":
            return [step, *_step_figures(values)], ""
        case "epoch":
            return [epoch, *_epoch_figures(values)], ""
        case "validation" | "validation_ema":
            return [epoch, *_validation_figures(record)], "bold" if values.get("is_best") else ""
        case "checkpoint":
            return [step, *_checkpoint_figures(values)], "dim"
        case "inference":
            return _inference_figures(values), ""
        case "data":
            return ["data", f"{rate(values.get('images_per_s'))} images/s"], ""
        case "warning":
            return [f"warning: {values.get('message')}"], "bold yellow"
    return [], ""


def _step_figures(values: Mapping[str, Any]) -> list[str]:
    figures = [
        f"loss {number(values.get('loss'), 4)}",
        f"lr {lr_text(values.get('lr'))}",
        f"{rate(values.get('images_per_s'))} images/s",
        *data_wait_text(values, "step_time_s"),
    ]
    if values.get("memory_bytes") is not None:
        figures.append(f"memory {size(values['memory_bytes'])}")
    if values.get("loss_scale") is not None:
        figures.append(f"loss scale {values['loss_scale']:g}")
    if values.get("skipped_steps"):
        figures.append(f"skipped {values['skipped_steps']:,}")
    return figures


def _epoch_figures(values: Mapping[str, Any]) -> list[str]:
    return [
        f"train loss {number(values.get('loss'), 4)}",
        f"{rate(values.get('images_per_s'))} images/s",
        duration(values.get("time_s")),
        *data_wait_text(values, "time_s"),
    ]


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


def _checkpoint_figures(values: Mapping[str, Any]) -> list[str]:
    figures = [f"saved {values.get('path')}"]
    if values.get("bytes") is not None:
        figures.append(size(values["bytes"]))
    if values.get("time_s") is not None:
        figures.append(duration(values["time_s"]))
    if values.get("stall_s") is not None:
        figures.append(f"stall {duration(values['stall_s'])}")
    if values.get("is_best"):
        figures.append("best")
    return figures


def _inference_figures(values: Mapping[str, Any]) -> list[str]:
    figures = [f"batch {values.get('batch')}", f"{rate(values.get('images_per_s'))} images/s"]
    latencies = [
        f"{name} {number(values.get(f'latency_ms_{name}'))}"
        for name in LATENCY_NAMES
        if values.get(f"latency_ms_{name}") is not None
    ]
    return [*figures, f"latency in ms: {', '.join(latencies)}"] if latencies else figures


def _print_start(console: Console, config: RunConfig, values: Mapping[str, Any]) -> None:
    names, batch = config.names, config.batch
    images = [
        f", {values[key]:,} {split} images"
        for key, split in (("num_train_images", "train"), ("num_val_images", "validation"))
        if values.get(key) is not None
    ]
    rows = [
        ("run", " ".join([names.model, names.precision, names.mode, names.platform, names.recipe])),
        ("device", f"{values.get('world_size') or 1} x {values.get('device') or 'unknown'}"),
        ("data", "".join([str(values.get("data") or "-"), *images])),
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
            length += f"; schedule of {values['epochs']} epochs"
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
