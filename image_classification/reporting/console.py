"""The run on the screen: a live display on a terminal, one line per record anywhere else.

Everything is printed through the given rich Console, which honors ``NO_COLOR``, ``COLUMNS`` and
the width of the terminal. Only rank 0 has one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from image_classification.config.schema import RunConfig
from image_classification.core.types import Activity, Record
from image_classification.core.units import (
    counted,
    duration,
    number,
    other_topk,
    printable,
    rate,
    size,
)
from image_classification.reporting.build_report import cpu_name
from image_classification.reporting.figures import LATENCY_NAMES
from image_classification.reporting.live_view import (
    BETWEEN,
    LiveView,
    Packed,
    data_wait_text,
    lr_text,
    num_epochs,
)
from image_classification.reporting.report import cores_text
from image_classification.reporting.sinks import Sink
from image_classification.reporting.table import Column, Table, print_table

REFRESHES_PER_S = 1


def open_console_sink(console: Console, config: RunConfig, activity: Activity) -> Sink:
    """Return the sink that suits ``console``: live on a terminal, plain lines otherwise."""
    if console.is_terminal:
        return LiveSink(console, config, activity)
    return PlainSink(console, config)


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
            self._console.print(Packed(figures, style, indent=4))
        elif figures:
            self._console.print(Text(BETWEEN.join(figures), style=style), soft_wrap=True)

    def close(self) -> None:
        """Do nothing; nothing is open."""


class LiveSink(PlainSink):
    """Progress that stays at the bottom from construction to `close`, redrawn every second.

    Epochs, validations and warnings scroll above it.
    """

    def __init__(
        self,
        console: Console,
        config: RunConfig,
        activity: Activity,
        *,
        now_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(console, config)
        activity.watched = True
        self._activity = activity
        self._view = LiveView(activity, config.batch.global_batch, now_s)
        self._live: Live | None = Live(
            self._view, console=console, auto_refresh=False, transient=True
        )
        self._live.start(refresh=True)
        self._closed = threading.Event()
        self._ticker = threading.Thread(target=self._redraw, name="live view", daemon=True)
        self._ticker.start()

    def write(self, record: Record) -> None:
        """Update the display, and print all records but those of steps above it."""
        self._view.update(record)
        if record.kind != "step":
            super().write(record)

    def _redraw(self) -> None:
        while not self._closed.wait(1 / REFRESHES_PER_S):
            live = self._live
            if live is not None and not self._activity.quiet:
                live.refresh()

    def close(self) -> None:
        """Remove the progress display; may be called twice."""
        self._closed.set()
        self._ticker.join()
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
        ("device", _devices_text(config, values)),
        ("data", data),
        (
            "batch",
            f"global {batch.global_batch} = per device {batch.per_device_batch} x "
            f"devices {config.world_size} x accumulation {batch.accumulation}",
        ),
    ]
    if values.get("num_parameters") is not None:
        rows.append(("model", f"{names.model}, {values['num_parameters']:,} parameters"))
    if values.get("weights"):
        rows.append(("weights", values["weights"]))
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


def _devices_text(config: RunConfig, values: Mapping[str, Any]) -> str:
    count, name = values.get("world_size") or 1, values.get("device") or "unknown"
    if config.platform.device != "cpu":
        return f"{count} x {name}"
    return f"{cores_text(cpu_name(Path('/proc/cpuinfo')), count)} ({name})"


def _record_line(record: Record, start: Mapping[str, Any]) -> tuple[list[str], str]:
    """Return the figures of a record's line and their rich style; no figures for other kinds.

    start: values of the run's start record, for its numbers of epochs and steps.
    """
    values = record.values
    epochs = num_epochs(start)
    epoch = f"epoch {record.epoch + 1}" + (f"/{epochs}" if epochs else "")
    total = f"/{start['total_steps']:,}" if start.get("total_steps") else ""
    step = f"{epoch}  step {record.step:,}{total}"
    speed = f"{rate(values.get('images_per_s'))} images/s"
    match record.kind:
        case "step":
            figures = [step, f"loss {number(values.get('loss'), 4)}"]
            figures += [f"lr {lr_text(values.get('lr'))}", speed]
            figures += data_wait_text(values, "step_time_s")
            return figures + _given(values, _STEP_FIGURES), ""
        case "epoch":
            figures = [epoch, f"train loss {number(values.get('loss'), 4)}", speed]
            return [
                *figures,
                duration(values.get("time_s")),
                *data_wait_text(values, "time_s"),
            ], ""
        case "validation" | "validation_ema":
            style = "bold" if values.get("is_best") else ""
            # An evaluation has no epochs.
            return [*([epoch] if epochs else []), *_validation_figures(record)], style
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
        *([] if values.get("top5") is None else [f"top-5 {number(values['top5'])} %"]),
        *(f"top-{name[3:]} {number(values[name])} %" for name in other_topk(values)),
        f"loss {number(values.get('loss'), 4)}",
    ]
    if values.get("images") is not None:
        figures.append(f"{values['images']:,} images in {duration(values.get('time_s'))}")
    if values.get("is_best"):
        figures.append("best so far")
    return figures
