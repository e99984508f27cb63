"""The tables at the end of a run: results, and the verdicts against the published figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from image_classification.core.types import RunReport
from image_classification.core.units import (
    duration,
    number,
    percent,
    rate,
)
from image_classification.reporting.figures import figure_name, figure_text, split_batch
from image_classification.reporting.published.verdict import newest

VERDICT_STYLES = {
    "reproduced": "bold green",
    "better": "bold cyan",
    "short": "bold red",
    "not-comparable": "dim",
}


def print_results(
    console: Console, report: RunReport, *, folder: Path, checkpoint: str | None = None
) -> None:
    """Print the end of a run. folder: the run's; checkpoint: the one to use, where there is one."""
    names = report.name
    title = " ".join(
        names[key] for key in ("model", "precision", "mode", "platform", "recipe") if names[key]
    )
    results = Table(title=title, title_justify="left", show_header=False, title_style="bold")
    results.add_column("what", style="bold", no_wrap=True)
    results.add_column("value", overflow="fold")
    for label, value in result_rows(report):
        results.add_row(label, Text(value))
    if checkpoint is not None:
        results.add_row("checkpoint", Text(checkpoint))
    results.add_row("folder", Text(str(folder)))
    console.print(results)
    if report.results["inference"]:
        console.print(_inference_table(report.results["inference"]))
    if report.published:
        first = newest(report.published)
        console.print(_published_table(first))
        for about, why in _reasons(first).items():
            console.print(Text.assemble((f"{about}: ", "dim"), why))
        rest = len(report.published) - len(first)
        if rest:
            figures = "figure" if rest == 1 else "figures"
            told = f"{rest} more {figures} of other publications in report.json"
            console.print(Text(told, style="dim"))


def result_rows(report: RunReport) -> Iterator[tuple[str, str]]:
    """Yield label and text of everything that was measured."""
    yield "devices", device_text(report)
    results = report.results
    for section, label in (("validation", "validation"), ("validation_ema", "validation, EMA")):
        figures = results[section]
        if figures["top1"] is not None:
            parts = [f"top-1 {number(figures['top1'])} %"]
            if figures["top5"] is not None:
                parts.append(f"top-5 {number(figures['top5'])} %")
            if figures["loss"] is not None:
                parts.append(f"loss {number(figures['loss'], 4)}")
            if figures["images"] is not None:
                parts.append(f"{figures['images']:,} images")
            yield label, ", ".join(parts)
    train = results["train"]
    if train["images_per_s"] is not None:
        parts = [f"{rate(train['images_per_s'])} images/s"]
        if train["images_per_s_per_device"] is not None:
            parts.append(f"{rate(train['images_per_s_per_device'])} a device")
        if train["data_wait_fraction"] is not None:
            parts.append(f"data wait {percent(train['data_wait_fraction'])}")
        yield "training", ", ".join(parts)
    step = train["step_time_s"]
    if step["p50"] is not None:
        yield (
            "step time",
            ", ".join(f"{q} {number(1000 * step[q], 1)} ms" for q in ("p50", "p95", "p99")),
        )
    if train["steps"]:
        epochs = "" if train["epochs"] is None else f" ({train['epochs']:.4g} epochs done)"
        yield "trained", f"{train['steps']:,} steps{epochs}"
    # Reports of earlier releases have neither of the next two.
    target = results.get("target") or {}
    if target.get("stop_at_top1") is not None:
        yield "target", _target_text(target)
    worlds = [start["world_size"] for start in results.get("starts") or ()]
    if len(set(worlds)) > 1:
        yield "processes", " -> ".join(f"{size}" for size in worlds)
    if results["data"]["images_per_s"] is not None:
        yield "loading", f"{rate(results['data']['images_per_s'])} images/s"
    if report.telemetry["energy_j"] is not None:
        yield "power", _power_text(report.telemetry)
    times = [
        f"{name} {duration(results['time_s'][key])}"
        for key, name in (
            ("total", "total"),
            ("train", "training"),
            ("validation", "validation"),
            ("first_step", "first step"),
        )
        if results["time_s"][key] is not None
    ]
    if times:
        yield "time", ", ".join(times)
    if report.exit["code"] != 0:
        yield "ended", f"{report.exit['status']}: {report.exit['message']}"


def _power_text(telemetry: dict[str, Any]) -> str:
    devices = telemetry["devices"]
    power_w = sum(device["power_w_mean"] for device in devices)
    parts = [f"mean {number(power_w, 1)} W", f"{number(telemetry['energy_j'] / 1000)} kJ"]
    if len(devices) > 1:
        parts[0] += f" of {len(devices)} devices"
    if telemetry["images_per_joule"] is not None:
        parts.append(f"{number(telemetry['images_per_joule'], 3)} images per joule")
    return ", ".join(parts)


def _target_text(target: dict[str, Any]) -> str:
    wanted = f"top-1 {number(target['stop_at_top1'])} %"
    if target["top1"] is None:
        return f"{wanted} not reached"
    return (
        f"{wanted} reached ({number(target['top1'])} %) after epoch {target['epoch']}, step "
        f"{target['step']:,}, in {duration(target['time_s'])}"
    )


def device_text(report: RunReport) -> str:
    """Count and name of the devices: ``8 x Tesla V100-SXM2-16GB``."""
    platform = report.config["platform"]
    count = platform["num_devices"] * platform["num_nodes"]
    devices = report.environment["devices"] or []
    names = sorted({_device_name(device) for device in devices})
    if not names and platform["device"] == "cpu":
        # One process a "device": the processor is shared, so its name is not counted.
        cpu = report.environment["cpu"] or "cpu"
        return cpu if count == 1 else f"{cpu}, {count} processes"
    return f"{count} x {', '.join(names) or platform['device']}"


def _device_name(device: Any) -> str:
    return str(device["name"] if isinstance(device, dict) else device)


def _reasons(entries: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Say what stands behind each verdict; of a table of batch sizes only what bars comparing."""
    reasons = {}
    for entry in entries:
        _, batch = split_batch(entry["figure"])
        if batch is None:
            reasons[f"{entry['id']}, {figure_name(entry['figure'])}"] = entry["why"]
        elif not entry["comparable"]:
            reasons.setdefault(entry["id"], entry["why"])
    return reasons


def _published_table(published: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="Against the published figures", title_justify="left", title_style="bold")
    table.add_column("figure", no_wrap=True)
    table.add_column("published", justify="right", no_wrap=True)
    table.add_column("measured", justify="right", no_wrap=True)
    table.add_column("ratio", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for entry in published:
        table.add_row(
            figure_name(entry["figure"]),
            figure_text(entry["figure"], entry["published"]),
            figure_text(entry["figure"], entry["measured"]),
            number(entry["ratio"], 3),
            Text(entry["verdict"], style=VERDICT_STYLES[entry["verdict"]]),
        )
    return table


def _inference_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Inference, latency in ms", title_justify="left", title_style="bold")
    for name in ("batch", "images/s", "mean", "p50", "p90", "p95", "p99"):
        table.add_column(name, justify="right")
    for row in rows:
        latency = row["latency_ms"]
        table.add_row(
            f"{row['batch']}",
            rate(row["images_per_s"]),
            *(number(latency[name]) for name in ("mean", "p50", "p90", "p95", "p99")),
        )
    return table
