"""The kinds of figures there are: unit, name in tables, and which direction is better.

The figures of a report that runs are combined, compared and followed by.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from image_classification.core.types import RunReport
from image_classification.core.units import duration, number, rate

_BATCH = re.compile(r"(?P<figure>\w+?)_batch_(?P<batch>\d+)")


@dataclass(frozen=True)
class Figure:
    """One kind of figure. label: its name in tables; less: a smaller value is the better one."""

    unit: str
    label: str
    less: bool = False


_RATIO = "ratio"
_LATENCIES = {
    f"latency_ms_{name}": Figure("ms", f"latency {name}", less=True)
    for name in ("mean", "p50", "p90", "p95", "p99")
}
# Parts of a request's time at an inference server, and the words of its table.
_SERVER_PARTS = (
    "client_send",
    "network_server",
    "queue",
    "compute_input",
    "compute_infer",
    "compute_output",
    "client_recv",
)

FIGURES: dict[str, Figure] = {
    "top1": Figure("percent", "top-1"),
    "top1_low": Figure("percent", "top-1, lowest"),
    "top1_high": Figure("percent", "top-1, highest"),
    "top5": Figure("percent", "top-5"),
    "train_images_per_s": Figure("images/s", "training speed"),
    "train_images_per_s_xla": Figure("images/s", "training speed, XLA"),
    "train_speedup": Figure(_RATIO, "training speed-up"),
    "scalability": Figure(_RATIO, "scalability"),
    "time_to_train_min": Figure("min", "time to train", less=True),
    "time_to_train_speedup": Figure(_RATIO, "time to train, speed-up"),
    "power_w_per_device": Figure("W", "power a device", less=True),
    "memory_g_per_device": Figure("GiB", "memory a device", less=True),
    "inference_images_per_s": Figure("images/s", "inference"),
    "inference_images_per_s_speedup": Figure(_RATIO, "inference, speed-up"),
    **_LATENCIES,
    **{
        f"{name}_speedup": Figure(_RATIO, f"{figure.label}, speed-up")
        for name, figure in _LATENCIES.items()
    },
    **{
        f"{part}_ms": Figure("ms", f"server, {part.replace('_', ' ')}", less=True)
        for part in _SERVER_PARTS
    },
    "calibration_images_per_s": Figure("images/s", "calibration speed"),
    "fp32_model_images_per_s": Figure("images/s", "FP32 model's speed"),
    "qat_speed_ratio": Figure(_RATIO, "speed of quantisation-aware training"),
    "top1_gap_to_fp32": Figure("points", "top-1 below FP32", less=True),
}

ACCURACY = ("top1", "top5")
LATENCY = tuple(_LATENCIES)
INFERENCE = ("inference_images_per_s", *LATENCY)
TRAINING = (*ACCURACY, "train_images_per_s", "power_w_per_device", "memory_g_per_device")


def with_batch(figure: str, batch: int | None) -> str:
    """Name a figure in a report: ``latency_ms_p95_batch_64`` where it holds for one batch size."""
    return figure if batch is None else f"{figure}_batch_{batch}"


def split_batch(name: str) -> tuple[str, int | None]:
    """Undo `with_batch`."""
    found = _BATCH.fullmatch(name)
    return (found["figure"], int(found["batch"])) if found else (name, None)


def figure_name(name: str) -> str:
    """What a report's figure is called in tables: ``latency p95 at 64``, short for 80 columns."""
    figure, batch = split_batch(name)
    return label_with_batch(FIGURES[figure].label if figure in FIGURES else figure, batch)


def label_with_batch(label: str, batch: int | None) -> str:
    """Add the batch size that a figure holds for, if it holds for one only."""
    return label if batch is None else f"{label} at {batch}"


def figure_text(name: str, value: float | None) -> str:
    """A published or measured value with its unit."""
    if value is None:
        return "-"
    figure, _ = split_batch(name)
    unit = FIGURES[figure].unit if figure in FIGURES else ""
    if unit == "percent":
        return f"{number(value)} %"
    if unit == "images/s":
        return f"{rate(value)} images/s"
    return f"{number(value)} {'' if unit == _RATIO else unit}".rstrip()


_GIB = 2**30


@dataclass(frozen=True)
class Figure_measured:
    """One kind of figure.

    unit: ``percent``, ``images/s``, ``ms``, ``s``, ``W``, ``GiB``, ``J``, ``images/J``,
    ``epochs``, ``fraction`` or "" (a loss). less: a smaller value is the better one. judged_by:
    the threshold it is judged by, None where a change is neither good nor bad. by_seed: it varies
    with the seed, so that a repeated seed tells nothing new.
    """

    label: str
    unit: str
    less: bool = False
    judged_by: str | None = None
    by_seed: bool = False


_PERCENTILES = ("p50", "p95", "p99")
_LATENCIES_measured = ("mean", "p50", "p90", "p95", "p99")

FIGURES_measured: dict[str, Figure_measured] = {
    "top1": Figure_measured("top-1", "percent", judged_by="top1", by_seed=True),
    "top5": Figure_measured("top-5", "percent", judged_by="top5", by_seed=True),
    "loss": Figure_measured("loss", "", less=True, by_seed=True),
    "top1_ema": Figure_measured("top-1, EMA", "percent", judged_by="top1", by_seed=True),
    "top5_ema": Figure_measured("top-5, EMA", "percent", judged_by="top5", by_seed=True),
    "loss_ema": Figure_measured("loss, EMA", "", less=True, by_seed=True),
    "target_epoch": Figure_measured("epoch of the target", "epochs", less=True, by_seed=True),
    "target_time_s": Figure_measured("time to the target", "s", less=True, by_seed=True),
    "train_images_per_s": Figure_measured("training speed", "images/s", judged_by="throughput"),
    **{
        f"step_time_ms_{name}": Figure_measured(f"step time, {name}", "ms", less=True)
        for name in _PERCENTILES
    },
    "data_wait_fraction": Figure_measured("waiting for data", "fraction", less=True),
    "data_images_per_s": Figure_measured("loading speed", "images/s", judged_by="throughput"),
    "inference_images_per_s": Figure_measured("inference", "images/s", judged_by="throughput"),
    **{
        f"latency_ms_{name}": Figure_measured(
            f"latency {name}",
            "ms",
            less=True,
            # A few slow passes move the upper percentiles by more than any release does.
            judged_by="latency" if name in ("mean", "p50", "p90") else None,
        )
        for name in _LATENCIES_measured
    },
    "memory_g_per_device": Figure_measured("memory a device", "GiB", less=True, judged_by="memory"),
    "power_w_per_device": Figure_measured("power a device", "W", less=True, judged_by="power"),
    "energy_j": Figure_measured("energy", "J", less=True),
    "images_per_joule": Figure_measured("images per joule", "images/J"),
    "time_total_s": Figure_measured("time, total", "s", less=True),
}
"""Every kind, in the order of tables; a figure of one batch size ends in ``_batch_N``."""

_ORDER = {key: at for at, key in enumerate(FIGURES_measured)}


def figure_of(key: str) -> Figure_measured:
    """Return the kind of the figure called ``key``."""
    return FIGURES_measured[split_batch(key)[0]]


def label_of(key: str) -> str:
    """What a figure is called in tables: ``latency p95 at 64``."""
    kind, batch = split_batch(key)
    return label_with_batch(FIGURES_measured[kind].label, batch)


# A run takes millions of joules; people read watt-hours.
_UNIT_TEXTS = {"percent": "%", "fraction": "%", "s": "", "epochs": "", "J": "Wh"}
_J_PER_WH = 3600


def unit_text(key: str) -> str:
    """The unit of `plain_value`; "" for durations, which carry theirs, and for bare numbers."""
    unit = figure_of(key).unit
    return _UNIT_TEXTS.get(unit, unit)


def plain_value(key: str, value: float | None) -> str:
    """A value without its unit, for a table that has a column for it; a dash for None."""
    unit = figure_of(key).unit
    if value is None:
        return "-"
    if unit == "s":
        return duration(value) if value else "0 s"
    if unit == "fraction":
        return number(100 * value, 1)
    if unit == "images/s":
        return rate(value)
    if unit == "J":
        return rate(value / _J_PER_WH)
    if unit == "epochs":
        return f"{value:.4g}"
    return number(value, 4 if unit == "" else 2)


def plain_spread(key: str, spread: float | None) -> str:
    """A standard deviation, likewise."""
    if spread is not None and figure_of(key).unit == "images/s":
        return number(spread, 1)
    return plain_value(key, spread)


def value_text(key: str, value: float | None) -> str:
    """A value with its unit; a dash for None."""
    text = plain_value(key, value)
    return text if value is None else f"{text} {unit_text(key)}".rstrip()


def measured(report: RunReport) -> dict[str, float]:
    """Return every figure that the report holds, by key, in the order of tables.

    percent for top-1 and top-5, images/s, ms, W and GiB (each device), s, J.
    """
    results = report.results
    train, times = results["train"], results["time_s"]
    target = results.get("target") or {}
    steps = train["step_time_s"]
    found: dict[str, float | None] = {
        "train_images_per_s": train["images_per_s"],
        "data_wait_fraction": train["data_wait_fraction"],
        "data_images_per_s": results["data"]["images_per_s"],
        "time_total_s": times["total"],
        "target_epoch": target.get("epoch"),
        "target_time_s": target.get("time_s"),
    }
    for section, suffix in (("validation", ""), ("validation_ema", "_ema")):
        for name in ("top1", "top5", "loss"):
            found[f"{name}{suffix}"] = results[section][name]
    for name in _PERCENTILES:
        found[f"step_time_ms_{name}"] = None if steps[name] is None else 1000 * steps[name]
    for row in results["inference"] or ():
        found[f"inference_images_per_s_batch_{row['batch']}"] = row["images_per_s"]
        for name in _LATENCIES_measured:
            found[f"latency_ms_{name}_batch_{row['batch']}"] = row["latency_ms"][name]
    found |= device_figures(report.telemetry)
    found |= {key: report.telemetry[key] for key in ("energy_j", "images_per_joule")}
    known = {key: float(value) for key, value in found.items() if value is not None}
    return dict(sorted(known.items(), key=lambda item: order(item[0])))


def order(key: str) -> tuple[int, int]:
    """Sort key: inference rows by batch size, the rest as in `FIGURES`."""
    kind, batch = split_batch(key)
    if batch is None:
        return (_ORDER[kind], 0)
    return (_ORDER["inference_images_per_s"], 100 * batch + _ORDER[kind])


def device_figures(telemetry: Mapping[str, Any]) -> dict[str, float | None]:
    """Return mean power (W) and highest peak memory (GiB) of a device, None where not measured."""
    devices = telemetry["devices"] or []
    watts = [device["power_w_mean"] for device in devices]
    peaks = [device["memory_peak_bytes"] for device in devices]
    # Of some devices only, it would pass for the figure of all.
    return {
        "power_w_per_device": sum(watts) / len(watts) if watts and None not in watts else None,
        "memory_g_per_device": max(peaks) / _GIB if peaks and None not in peaks else None,
    }
