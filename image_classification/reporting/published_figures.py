"""The kinds of figures there are: unit, name in tables, and which direction is better."""

from __future__ import annotations

import re
from dataclasses import dataclass

from image_classification.reporting.plain import number, rate

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
