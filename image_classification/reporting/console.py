"""The run on the screen: a live display on a terminal, plain lines anywhere else.

Everything prints through the rich Console it is given, which honours ``NO_COLOR``, ``COLUMNS``
and the width of the terminal. Only rank 0 has one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from image_classification.config.schema import RunConfig
from image_classification.core.types import Record
from image_classification.reporting.plain import duration, number, other_topk, percent, rate, size
from image_classification.reporting.sinks import Sink


def open_console_sink(console: Console, config: RunConfig) -> Sink:
    """Return the sink that suits ``console``: live on a terminal, plain lines otherwise."""
    return LiveSink(console, config) if console.is_terminal else PlainSink(console, config)


class PlainSink:
    """One line a record: log files, pipes and continuous integration."""

    def __init__(self, console: Console, config: RunConfig) -> None:
        self._console = console
        self._config = config
        self._lines = _Lines()

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
        self._lines = _Lines()
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
            get_renderable=self._view.render,
            console=self._console,
            refresh_per_second=4,
            transient=True,
        )
        self._live.start()


class LiveView:
    """What the live display shows: where the run is, and its latest figures."""

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
        self._top1: float | None = None
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
        elif record.kind == "validation" and values.get("top1") is not None:
            self._top1 = values["top1"]
            if self._best is None or values["top1"] > self._best[0]:
                self._best = (values["top1"], record.epoch)

    def eta_s(self) -> float | None:
        """Seconds left, from the pace so far with evaluation and saving; None before any step."""
        steps = self._step - self._start_step
        if steps <= 0:
            return None
        pace_s = (self._step_at_s - self._start_s) / steps
        since_s = self._monotonic_s() - self._step_at_s
        return max(0.0, pace_s * (self._total_steps - self._step) - since_s)

    def render(self) -> Group:
        """How far and how long still, on one line; below it, how it goes."""
        share = self._step / self._total_steps if self._total_steps else 0.0
        progress = Table.grid(padding=(0, 2))
        progress.add_row(
            Text(f"epoch {self._epoch + 1}/{self._epochs}", style="bold"),
            ProgressBar(total=1.0, completed=share, width=30),
            Text(percent(share, 0)),
            Text(f"{duration(self.eta_s())} left", style="bold"),
        )
        figures = [f"step {self._step:,}/{self._total_steps:,}"]
        figures += _step_figures(self._values) if self._values else ["waiting for the first steps"]
        figures += _telemetry_figures(self._telemetry)
        if self._top1 is not None and self._best is not None:
            best, at = self._best
            figures.append(f"top-1 {number(self._top1)} % (best {number(best)} %, epoch {at + 1})")
        return Group(progress, Text("  ".join(figures)))


class _Lines:
    """Turns records into lines; remembers the totals that ``start`` announced."""

    def __init__(self) -> None:
        self._epochs: int | None = None
        self._total_steps: int | None = None

    def of(self, record: Record) -> Text | None:
        """The record's line, or None for kinds without one."""
        values = record.values
        if record.kind == "start":
            self._epochs = values.get("epochs")
            self._total_steps = values.get("total_steps")
            return None
        if record.kind == "warning":
            return Text(f"warning: {values.get('message')}", style="bold yellow")
        if record.kind == "step":
            return Text("  ".join([self._at(record), *_step_figures(values)]))
        if record.kind == "epoch":
            return Text("  ".join([self._at(record, step=False), *_epoch_figures(values)]))
        if record.kind in ("validation", "validation_ema"):
            style = "bold" if values.get("is_best") else ""
            figures = _validation_figures(record)
            return Text("  ".join([self._at(record, step=False), *figures]), style=style)
        if record.kind == "checkpoint":
            return Text("  ".join([self._at(record), *_checkpoint_figures(values)]), style="dim")
        if record.kind == "inference":
            return Text("  ".join(_inference_figures(values)))
        if record.kind == "data":
            return Text("  ".join(["data", f"{rate(values.get('images_per_s'))} images/s"]))
        return None

    def _at(self, record: Record, *, step: bool = True) -> str:
        where = f"epoch {record.epoch + 1}" + (f"/{self._epochs}" if self._epochs else "")
        if step:
            of = f"/{self._total_steps:,}" if self._total_steps else ""
            where += f"  step {record.step:,}{of}"
        return where


def _print_line(console: Console, line: Text) -> None:
    console.print(line, soft_wrap=not console.is_terminal)


def _step_figures(values: Mapping[str, Any]) -> list[str]:
    figures = [
        f"loss {number(values.get('loss'), 4)}",
        f"lr {_lr(values.get('lr'))}",
        f"{rate(values.get('images_per_s'))} images/s",
    ]
    step_time_s, data_wait_s = values.get("step_time_s"), values.get("data_wait_s")
    if step_time_s and data_wait_s is not None:
        figures.append(f"data wait {percent(data_wait_s / step_time_s)}")
    if values.get("memory_bytes") is not None:
        figures.append(f"memory {size(values['memory_bytes'])}")
    if values.get("loss_scale") is not None:
        figures.append(f"loss scale {values['loss_scale']:g}")
    if values.get("skipped_steps"):
        figures.append(f"skipped {values['skipped_steps']:,}")
    return figures


def _telemetry_figures(values: Mapping[str, Any]) -> list[str]:
    """What the node's devices do at present, as far as it is measured."""
    figures = []
    if values.get("power_w") is not None:
        figures.append(f"power {number(values['power_w'], 0)} W")
    if values.get("utilization") is not None:
        figures.append(f"busy {percent(values['utilization'], 0)}")
    if values.get("memory_bytes") is not None:
        figures.append(f"in use {size(values['memory_bytes'])}")
    if values.get("temperature_c") is not None:
        figures.append(f"{number(values['temperature_c'], 0)} °C")
    return figures


def _lr(lr: float | None) -> str:
    return "-" if lr is None else f"{lr:.4g}"


def _epoch_figures(values: Mapping[str, Any]) -> list[str]:
    figures = [
        f"train loss {number(values.get('loss'), 4)}",
        f"{rate(values.get('images_per_s'))} images/s",
        duration(values.get("time_s")),
    ]
    time_s, data_wait_s = values.get("time_s"), values.get("data_wait_s")
    if time_s and data_wait_s is not None:
        figures.append(f"data wait {percent(data_wait_s / time_s)}")
    return figures


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
        for name in ("mean", "p50", "p90", "p95", "p99")
        if values.get(f"latency_ms_{name}") is not None
    ]
    return [*figures, f"latency in ms: {', '.join(latencies)}"] if latencies else figures


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
    for label, text in rows:
        line = Text.assemble((f"{label:<8}", "bold"), text)
        console.print(line, soft_wrap=not console.is_terminal)


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
