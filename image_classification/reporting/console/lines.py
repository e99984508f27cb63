"""What a record says on the screen: its figures in words, one line a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from image_classification.core.types import Record
from image_classification.core.units import (
    duration,
    number,
    other_topk,
    percent,
    rate,
    size,
)


@dataclass(frozen=True)
class Line:
    """Figures that stand beside one another; style: rich's, for all of them."""

    figures: Sequence[str]
    style: str = ""


class RecordLines:
    """Turns records into lines; remembers the totals that ``start`` announced."""

    def __init__(self) -> None:
        self._epochs: int | None = None
        self._total_steps: int | None = None

    def of(self, record: Record) -> Line | None:
        """The record's line, or None for kinds without one."""
        values = record.values
        if record.kind == "start":
            self._epochs = values.get("epochs")
            self._total_steps = values.get("total_steps")
            return None
        if record.kind == "warning":
            return Line([f"warning: {values.get('message')}"], "bold yellow")
        if record.kind == "step":
            return Line([self._at(record), *_step_figures(values)])
        if record.kind == "epoch":
            return Line([self._at(record, step=False), *_epoch_figures(values)])
        if record.kind in ("validation", "validation_ema"):
            style = "bold" if values.get("is_best") else ""
            return Line([self._at(record, step=False), *_validation_figures(record)], style)
        if record.kind == "checkpoint":
            return Line([self._at(record), *_checkpoint_figures(values)], "dim")
        if record.kind == "inference":
            return Line(_inference_figures(values))
        if record.kind == "data":
            return Line(["data", f"{rate(values.get('images_per_s'))} images/s"])
        return None

    def _at(self, record: Record, *, step: bool = True) -> str:
        where = f"epoch {record.epoch + 1}" + (f"/{self._epochs}" if self._epochs else "")
        if step:
            of = f"/{self._total_steps:,}" if self._total_steps else ""
            where += f"  step {record.step:,}{of}"
        return where


def _step_figures(values: Mapping[str, Any]) -> list[str]:
    figures = [
        f"loss {number(values.get('loss'), 4)}",
        f"lr {lr_text(values.get('lr'))}",
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


def lr_text(lr: float | None) -> str:
    """A learning rate to four significant digits; a dash where there is none."""
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
