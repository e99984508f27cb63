"""The figures that are measured or published: name, label, unit, direction, how to read them.

A figure that holds for one batch size of inference has that size in its key:
``latency_ms_p95_batch_64``. A key without it is the figure's name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TYPE_CHECKING

from image_classification.core.units import duration, number, rate

if TYPE_CHECKING:
    from image_classification.reporting.report import InferenceResults, RunReport

_BATCH_KEY = re.compile(r"(?P<figure>\w+?)_batch_(?P<batch>\d+)")


@dataclass(frozen=True)
class Figure:
    """One kind of figure.

    unit: ``percent``, ``images/s``, ``ms``, ``s``, ``min``, ``W``, ``GiB``, ``J``, ``images/J``,
    ``epochs``, ``fraction``, ``ratio``, ``points`` or "" (a loss). lower_is_better: the direction.
    threshold: the threshold of `report compare` that applies, None where a change is neither good
    nor bad. varies_with_seed: repeating a seed gives no new sample of it.

    read: its value in a report, None where not measured. read_batch: its value in one row of the
    report's ``results.inference``. Figures that are only published have neither.
    """

    label: str
    unit: str
    lower_is_better: bool = False
    threshold: str | None = None
    varies_with_seed: bool = False
    read: Callable[[RunReport], float | None] | None = None
    read_batch: Callable[[InferenceResults], float | None] | None = None


def _validation(label: str, unit: str, key: str, *, section: str = "validation") -> Figure:
    return Figure(
        label,
        unit,
        lower_is_better=key == "loss",
        threshold=None if key == "loss" else key,
        varies_with_seed=True,
        read=attrgetter(f"results.{section}.{key}"),
    )


def _step_time(name: str) -> Figure:
    def read(report: RunReport) -> float | None:
        seconds: float | None = getattr(report.results.train.step_time_s, name)
        return None if seconds is None else 1000 * seconds

    return Figure(f"step time, {name}", "ms", lower_is_better=True, read=read)


def _latency(name: str) -> Figure:
    return Figure(
        f"latency {name}",
        "ms",
        lower_is_better=True,
        # A few slow passes move the upper percentiles by more than any release does.
        threshold="latency" if name in ("mean", "p50", "p90") else None,
        read_batch=attrgetter(f"latency_ms.{name}"),
    )


def _of_devices(report: RunReport, key: str) -> list[float]:
    """Return what each device's sensors measured; empty unless it was measured on every device."""
    values = [getattr(device, key) for device in report.telemetry.devices or ()]
    return [] if None in values else values


def mean_power_w(report: RunReport) -> float | None:
    """Return the mean power per device in W; None unless it was measured on every device."""
    watts = _of_devices(report, "power_w_mean")
    return sum(watts) / len(watts) if watts else None


def _peak_memory_gib(report: RunReport) -> float | None:
    peaks = _of_devices(report, "memory_peak_bytes")
    return max(peaks) / 2**30 if peaks else None


def _higher(label: str, unit: str, path: str, threshold: str | None = None) -> Figure:
    return Figure(label, unit, threshold=threshold, read=attrgetter(path))


def _lower(label: str, unit: str, path: str, *, varies_with_seed: bool = False) -> Figure:
    read = attrgetter(path)
    return Figure(label, unit, lower_is_better=True, varies_with_seed=varies_with_seed, read=read)


LATENCY_NAMES = ("mean", "p50", "p90", "p95", "p99")

_MEASURED: dict[str, Figure] = {
    "top1": _validation("top-1", "percent", "top1"),
    "top5": _validation("top-5", "percent", "top5"),
    "loss": _validation("loss", "", "loss"),
    "top1_ema": _validation("top-1, EMA", "percent", "top1", section="validation_ema"),
    "top5_ema": _validation("top-5, EMA", "percent", "top5", section="validation_ema"),
    "loss_ema": _validation("loss, EMA", "", "loss", section="validation_ema"),
    "target_epoch": _lower(
        "epoch of the target", "epochs", "results.target.epoch", varies_with_seed=True
    ),
    "target_time_s": _lower(
        "time to the target", "s", "results.target.time_s", varies_with_seed=True
    ),
    "train_images_per_s": _higher(
        "training speed", "images/s", "results.train.images_per_s", "throughput"
    ),
    **{f"step_time_ms_{name}": _step_time(name) for name in ("p50", "p95", "p99")},
    "data_wait_fraction": _lower(
        "waiting for data", "fraction", "results.train.data_wait_fraction"
    ),
    "data_images_per_s": _higher(
        "loading speed", "images/s", "results.data.images_per_s", "throughput"
    ),
    "inference_images_per_s": Figure(
        "inference", "images/s", threshold="throughput", read_batch=attrgetter("images_per_s")
    ),
    **{f"latency_ms_{name}": _latency(name) for name in LATENCY_NAMES},
    "memory_g_per_device": Figure(
        "memory per device", "GiB", lower_is_better=True, threshold="memory", read=_peak_memory_gib
    ),
    "power_w_per_device": Figure(
        "power per device", "W", lower_is_better=True, threshold="power", read=mean_power_w
    ),
    "energy_j": _lower("energy", "J", "telemetry.energy_j"),
    "images_per_joule": _higher("images per joule", "images/J", "telemetry.images_per_joule"),
    "time_total_s": _lower("time, total", "s", "results.time_s.total"),
}

# Parts of the time of one request to an inference server.
_SERVER_PARTS = (
    "client_send",
    "network_server",
    "queue",
    "compute_input",
    "compute_infer",
    "compute_output",
    "client_recv",
)

_PUBLISHED_ONLY: dict[str, Figure] = {
    "top1_low": Figure("top-1, lowest", "percent"),
    "top1_high": Figure("top-1, highest", "percent"),
    "train_images_per_s_xla": Figure("training speed, XLA", "images/s"),
    "train_speedup": Figure("training speed-up", "ratio"),
    "scalability": Figure("scaling factor", "ratio"),
    "scaling_efficiency": Figure("scaling efficiency", "fraction"),
    "time_to_train_min": Figure("time to train", "min", lower_is_better=True),
    "time_to_train_speedup": Figure("time to train, speed-up", "ratio"),
    "inference_images_per_s_speedup": Figure("inference, speed-up", "ratio"),
    **{
        f"latency_ms_{name}_speedup": Figure(f"latency {name}, speed-up", "ratio")
        for name in LATENCY_NAMES
    },
    **{
        f"{part}_ms": Figure(f"server, {part.replace('_', ' ')}", "ms", lower_is_better=True)
        for part in _SERVER_PARTS
    },
    "calibration_images_per_s": Figure("calibration speed", "images/s"),
    "fp32_model_images_per_s": Figure("FP32 model's speed", "images/s"),
    "qat_speed_ratio": Figure("speed of quantization-aware training", "ratio"),
    "top1_gap_to_fp32": Figure("top-1 below FP32", "points", lower_is_better=True),
}

FIGURES: dict[str, Figure] = {**_MEASURED, **_PUBLISHED_ONLY}
"""Every figure by name; those that a run measures come first, in the order of tables."""

ACCURACY = ("top1", "top5")
INFERENCE = ("inference_images_per_s", *(f"latency_ms_{name}" for name in LATENCY_NAMES))
TRAINING = (*ACCURACY, "train_images_per_s", "power_w_per_device", "memory_g_per_device")

_ORDER = {name: at for at, name in enumerate(FIGURES)}


def with_batch(name: str, batch: int | None) -> str:
    """Return the key of a figure: ``latency_ms_p95_batch_64`` where it holds for one batch size."""
    return name if batch is None else f"{name}_batch_{batch}"


def split_batch(key: str) -> tuple[str, int | None]:
    """Return name and batch size of a key; undoes `with_batch`."""
    found = _BATCH_KEY.fullmatch(key)
    return (found["figure"], int(found["batch"])) if found else (key, None)


def figure_of(key: str) -> Figure:
    """Return the figure with ``key``, labelled with its batch size if it holds for only one.

    A figure unknown to this release has its own name as label, and no unit.
    """
    name, batch = split_batch(key)
    figure = FIGURES.get(name) or Figure(name, "")
    return figure if batch is None else replace(figure, label=f"{figure.label} at {batch}")


def label_of(key: str) -> str:
    """Return what a figure is called in tables: ``latency p95 at 64``."""
    return figure_of(key).label


_UNIT_TEXTS = {"percent": "%", "fraction": "%", "s": "", "epochs": "", "J": "Wh", "ratio": ""}


def unit_text(key: str) -> str:
    """Return the unit of `plain_value`; "" for durations and for numbers without one."""
    unit = figure_of(key).unit
    return _UNIT_TEXTS.get(unit, unit)


def plain_value(key: str, value: float | None) -> str:
    """Write a value without its unit, for tables with a column for units; a dash for None."""
    name, unit = split_batch(key)[0], figure_of(key).unit
    if value is None:
        return "-"
    if unit == "s":
        return duration(value) if value else "0 s"
    if unit == "fraction":
        return number(100 * value, 1)
    if unit == "images/s":
        return rate(value)
    if unit == "J":  # a run takes millions of joules; people read watt-hours
        return rate(value / 3600)
    if unit == "epochs":
        return f"{value:.4g}"
    return number(value, 4 if name in ("loss", "loss_ema") else 2)


def plain_spread(key: str, spread: float | None) -> str:
    """Write a standard deviation in the same way."""
    if spread is not None and figure_of(key).unit == "images/s":
        return number(spread, 1)
    return plain_value(key, spread)


def value_text(key: str, value: float | None) -> str:
    """Write a value with its unit; a dash for None."""
    text = plain_value(key, value)
    return text if value is None else f"{text} {unit_text(key)}".rstrip()


def measured(report: RunReport) -> dict[str, float]:
    """Return every figure that the report has a value of, by key, in the order of tables."""
    found: dict[str, float | None] = {}
    for name, figure in FIGURES.items():
        if figure.read is not None:
            found[name] = figure.read(report)
        elif figure.read_batch is not None:
            for row in report.results.inference or ():
                found[with_batch(name, row.batch)] = figure.read_batch(row)
    known = {key: float(value) for key, value in found.items() if value is not None}
    return dict(sorted(known.items(), key=lambda item: order(item[0])))


def order(key: str) -> tuple[int, int]:
    """Sort keys as in `FIGURES`, but figures of inference by their batch size first."""
    name, batch = split_batch(key)
    if batch is None:
        return (_ORDER[name], 0)
    return (_ORDER["inference_images_per_s"], 100 * batch + _ORDER[name])
