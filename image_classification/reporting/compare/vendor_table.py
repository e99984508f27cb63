"""A group of runs in the columns in which vendors of accelerators publish theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from image_classification.core.units import duration, number, rate
from image_classification.reporting.compare.combine import Group, Spread
from image_classification.reporting.compare.identity import device_names
from image_classification.reporting.compare.scaling import Ratio
from image_classification.reporting.figures import plain_spread, value_text

NOT_MEASURED = "not measured"

COLUMNS = (
    "convergence criterion",
    "configuration",
    "performance",
    "accuracy",
    "power",
    "scalability",
    "memory",
    "stability",
)


def vendor_row(group: Group, scalings: Sequence[Ratio]) -> dict[str, str]:
    """Return the text of every one of `COLUMNS`; ``not measured`` where nothing is known."""
    count = group.identity.num_devices
    texts = (
        _criterion(group),
        _configuration(group),
        _performance(group),
        _accuracy(group),
        _times(group, "power_w_per_device", count),
        _scalability(group, scalings),
        _times(group, "memory_g_per_device", count),
        _stability(group),
    )
    return dict(zip(COLUMNS, texts, strict=True))


def _criterion(group: Group) -> str:
    wanted = group.report.results.target.stop_at_top1
    if wanted is None:
        if group.identity.mode != "convergence":
            return f"none ({group.identity.mode})"
        epochs: Any = group.report.config.get("schedule", {}).get("epochs")
        return f"none, trained for {epochs} epochs" if epochs else "none"
    text = f"top-1 {number(wanted)} %"
    reached = group.figures.get("target_epoch")
    if reached is None:
        return f"{text}: not reached"
    runs = len([run for run in group.runs if "target_epoch" in run.figures])
    share = "" if runs == len(group.runs) else f" in {runs} of {len(group.runs)} runs"
    time = group.figures.get("target_time_s")
    after = "" if time is None else f", {duration(time.mean)}"
    return f"{text}: reached{share} after epoch {reached.mean:.4g}{after}"


def _configuration(group: Group) -> str:
    batch = group.report.config["batch"]["per_device"]
    devices = f"{group.identity.num_devices} x {device_names(group.first)}"
    return f"{devices}, batch {batch} a device, {group.identity.precision}"


def _performance(group: Group) -> str:
    train = group.figures.get("train_images_per_s")
    if train is not None:
        return f"{rate(train.mean)} images/s, training"
    inference = {
        key: figure
        for key, figure in group.figures.items()
        if key.startswith("inference_images_per_s")
    }
    if inference:
        key, best = max(inference.items(), key=lambda item: item[1].mean)
        batch = key.rpartition("_")[2]
        return f"{rate(best.mean)} images/s, inference, batch {batch}"
    loading = group.figures.get("data_images_per_s")
    return NOT_MEASURED if loading is None else f"{rate(loading.mean)} images/s, loading"


def _accuracy(group: Group) -> str:
    parts = [
        f"{label} {_with_spread(key, group.figures[key])}"
        for key, label in (("top1", "top-1"), ("top5", "top-5"), ("top1_ema", "top-1, EMA"))
        if key in group.figures
    ]
    return ", ".join(parts) or NOT_MEASURED


def _with_spread(key: str, figure: Spread) -> str:
    text = value_text(key, figure.mean)
    if figure.std is None:
        return text
    return f"{text} ± {plain_spread(key, figure.std)} (n = {figure.n})"


def _times(group: Group, key: str, count: int) -> str:
    figure = group.figures.get(key)
    return NOT_MEASURED if figure is None else f"{value_text(key, figure.mean)} x {count}"


def _scalability(group: Group, scalings: Sequence[Ratio]) -> str:
    for ratio in scalings:
        if ratio.of == group.identity and ratio.value is not None:
            return (
                f"{number(ratio.value)} from {ratio.over.num_devices} to {ratio.of.num_devices} "
                "devices"
            )
    return NOT_MEASURED


def _stability(group: Group) -> str:
    parts = []
    steps = [group.figures.get(f"step_time_ms_{name}") for name in ("p50", "p95", "p99")]
    if None not in steps:
        shown = " / ".join(number(step.mean, 1) for step in steps if step is not None)
        parts.append(f"step p50 / p95 / p99 {shown} ms")
    train = group.figures.get("train_images_per_s")
    if train is not None and train.std is not None and train.mean > 0:
        parts.append(f"speed ± {100 * train.std / train.mean:.1f} % over {train.n} runs")
    return ", ".join(parts) or NOT_MEASURED
