"""A group of runs in the columns in which vendors of accelerators publish theirs."""

from __future__ import annotations

from collections.abc import Sequence

from image_classification.core.units import duration, number, rate
from image_classification.reporting.compare.combine import Group
from image_classification.reporting.compare.scaling import SPEED, Ratio
from image_classification.reporting.figures import plain_spread, split_batch, value_text
from image_classification.reporting.table import Table, columns

NOT_MEASURED = "not measured"


def vendor_row(group: Group, scalings: Sequence[Ratio]) -> dict[str, str]:
    """Return the text of every column; ``not measured`` where nothing is known."""
    return {
        "convergence criterion": _criterion(group),
        "configuration": _configuration(group),
        "performance": _performance(group),
        "accuracy": _accuracy(group),
        "power": _per_device(group, "power_w_per_device"),
        "scalability": _scalability(group, scalings),
        "memory": _per_device(group, "memory_g_per_device"),
        "stability": _stability(group),
    }


def vendor_table(groups: Sequence[Group], scalings: Sequence[Ratio]) -> Table:
    """Return one row per group."""
    rows = [{"run": group.identity.text, **vendor_row(group, scalings)} for group in groups]
    return Table(columns(*rows[0]), [tuple(row.values()) for row in rows])


def _criterion(group: Group) -> str:
    wanted = group.report.results.target.stop_at_top1
    if wanted is None:
        if group.identity.mode != "convergence":
            return f"none ({group.identity.mode})"
        epochs = group.report.config.get("schedule", {}).get("epochs")
        return f"none, trained for {epochs} epochs" if epochs else "none"
    text = f"top-1 {number(wanted)} %"
    reached = group.figures.get("target_epoch")
    if reached is None:
        return f"{text}: not reached"
    runs = sum("target_epoch" in run.figures for run in group.runs)
    share = "" if runs == len(group.runs) else f" in {runs} of {len(group.runs)} runs"
    time = group.figures.get("target_time_s")
    after = "" if time is None else f", {duration(time.mean)}"
    return f"{text}: reached{share} after epoch {reached.mean:.4g}{after}"


def _configuration(group: Group) -> str:
    batch = group.report.config["batch"]["per_device"]
    devices = f"{group.identity.num_devices} x {group.device_names}"
    return f"{devices}, batch {batch} per device, {group.identity.precision}"


def _performance(group: Group) -> str:
    """Return the speed of training, or of inference at its best batch size, or of loading."""
    if SPEED in group.figures:
        return f"{rate(group.figures[SPEED].mean)} images/s, training"
    inference = [key for key in group.figures if key.startswith("inference_images_per_s")]
    if inference:
        best = max(inference, key=lambda key: group.figures[key].mean)
        speed = rate(group.figures[best].mean)
        return f"{speed} images/s, inference, batch {split_batch(best)[1]}"
    loading = group.figures.get("data_images_per_s")
    return NOT_MEASURED if loading is None else f"{rate(loading.mean)} images/s, loading"


def _accuracy(group: Group) -> str:
    parts = []
    for key, label in (("top1", "top-1"), ("top5", "top-5"), ("top1_ema", "top-1, EMA")):
        if figure := group.figures.get(key):
            text = f"{label} {value_text(key, figure.mean)}"
            if figure.std is not None:
                text += f" ± {plain_spread(key, figure.std)} (n = {figure.n})"
            parts.append(text)
    return ", ".join(parts) or NOT_MEASURED


def _per_device(group: Group, key: str) -> str:
    figure = group.figures.get(key)
    if figure is None:
        return NOT_MEASURED
    return f"{value_text(key, figure.mean)} x {group.identity.num_devices}"


def _scalability(group: Group, scalings: Sequence[Ratio]) -> str:
    for ratio in scalings:
        if ratio.of == group.identity and ratio.value is not None:
            few, many = ratio.over.num_devices, ratio.of.num_devices
            return f"{number(ratio.value)} from {few} to {many} devices"
    return NOT_MEASURED


def _stability(group: Group) -> str:
    parts = []
    steps = [
        number(group.figures[key].mean, 1)
        for name in ("p50", "p95", "p99")
        if (key := f"step_time_ms_{name}") in group.figures
    ]
    if len(steps) == 3:
        parts.append(f"step p50 / p95 / p99 {' / '.join(steps)} ms")
    train = group.figures.get(SPEED)
    if train is not None and train.std is not None and train.mean > 0:
        parts.append(f"speed ± {100 * train.std / train.mean:.1f} % over {train.n} runs")
    return ", ".join(parts) or NOT_MEASURED
