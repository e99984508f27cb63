"""The cards at the top of a page: a run's main figures, as far as they were measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from image_classification.core.units import duration, number, percent, rate, size
from image_classification.reporting.figures import mean_power_w
from image_classification.reporting.published.verdict import newest
from image_classification.reporting.report import RunReport


@dataclass(frozen=True)
class Card:
    """One figure. detail: a smaller line below it. verdicts: (verdict, how many) in its place."""

    label: str
    value: str = ""
    unit: str = ""
    detail: str = ""
    verdicts: tuple[tuple[str, int], ...] = ()


def headline(report: RunReport) -> list[Card]:
    """Return accuracy, speed, time, memory, energy and verdicts."""
    return [*_accuracy(report), *_speed(report), *_resources(report), *_verdicts(report)]


def _accuracy(report: RunReport) -> Iterator[Card]:
    results = report.results
    average = results.validation_ema
    validation = average if average.top1 is not None else results.validation
    label = "top-1, EMA" if validation is average else "top-1"
    best, last, evaluated = results.best, results.last, results.evaluated
    if best.top1 is not None:
        parts = [f"epoch {best.epoch:g}"] if best.epoch is not None else []
        if last.step == best.step:
            parts.append("the last")
        elif last.top1 is not None and last.epoch is not None:
            parts.append(f"last {number(last.top1)} % (epoch {last.epoch:g})")
        yield Card(f"{label}, best", number(best.top1), "%", ", ".join(parts))
    elif validation.top1 is not None:
        parts = [] if validation.top5 is None else [f"top-5 {number(validation.top5)} %"]
        if validation.images is not None:
            parts.append(f"{validation.images:,} images")
        if evaluated.step is not None:
            parts.append(f"{evaluated.which} checkpoint, step {evaluated.step:,}")
        yield Card(label, number(validation.top1), "%", ", ".join(parts))


def _speed(report: RunReport) -> Iterator[Card]:
    results = report.results
    train, step_time_s = results.train, results.train.step_time_s
    if train.images_per_s is not None:
        wait = train.data_wait_fraction
        detail = "" if wait is None else f"{percent(wait)} of it waiting for data"
        yield Card("training speed", rate(train.images_per_s), "images/s", detail)
    if step_time_s.p50 is not None and report.name.mode != "convergence":
        detail = "" if step_time_s.p99 is None else f"p99 {number(1000 * step_time_s.p99, 1)} ms"
        yield Card("step time, p50", number(1000 * step_time_s.p50, 1), "ms", detail)
    rows = [row for row in results.inference or () if row.images_per_s is not None]
    if rows:
        best = max(rows, key=lambda row: row.images_per_s or 0)
        first = min(rows, key=lambda row: row.batch)
        yield Card(
            "inference speed", rate(best.images_per_s), "images/s", f"at batch size {best.batch}"
        )
        if first.latency_ms.mean is not None:
            label = f"latency at batch size {first.batch}"
            detail = "mean"
            if first.latency_ms.p99 is not None:
                detail += f"; p99 {number(first.latency_ms.p99)} ms"
            yield Card(label, number(first.latency_ms.mean), "ms", detail)
    if results.data.images_per_s is not None:
        yield Card("loading speed", rate(results.data.images_per_s), "images/s")


def _resources(report: RunReport) -> Iterator[Card]:
    time_s, telemetry = report.results.time_s, report.telemetry
    if time_s.total is not None:
        spent = (("training", time_s.train), ("validation", time_s.validation))
        known = [f"{name} {duration(part)}" for name, part in spent if part is not None]
        yield Card("time", duration(time_s.total), detail=", ".join(known))
    peaks = [each.memory_peak_bytes for each in telemetry.devices or ()]
    known_peaks = [peak for peak in peaks if peak is not None]
    if known_peaks:
        detail = "the highest of all devices" if len(peaks) > 1 else ""
        value, unit = size(max(known_peaks)).split()
        yield Card("peak memory", value, unit, detail)
    if telemetry.energy_j is not None:
        watt_hours, mean_w = telemetry.energy_j / 3600, mean_power_w(report)
        parts = [] if mean_w is None else [f"mean {number(mean_w, 0)} W per device"]
        if telemetry.images_per_joule is not None:
            parts.append(f"{number(telemetry.images_per_joule, 3)} images per joule")
        large = watt_hours >= 1000
        shown, unit = (watt_hours / 1000, "kWh") if large else (watt_hours, "Wh")
        yield Card("energy", number(shown), unit, ", ".join(parts))


def _verdicts(report: RunReport) -> Iterator[Card]:
    measured = (entry for entry in newest(report.published) if entry.measured is not None)
    counts = Counter(entry.verdict for entry in measured)
    if counts:
        yield Card("against the published figures", verdicts=tuple(counts.items()))
