"""The HTML pages ``report.html``, ``pictures.html`` and ``combined.html``.

They are rendered from the templates in ``templates/``; each page is self-contained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from image_classification.core.errors import WorkspaceError
from image_classification.core.files import write_atomically
from image_classification.core.units import duration, number, percent, rate, size
from image_classification.reporting import results as run_results
from image_classification.reporting.compare.combine import Combined, ratio_table, vendor_table
from image_classification.reporting.compare.groups import Group, figure_table, inference_table
from image_classification.reporting.compare.identity import environment_of, short_commit
from image_classification.reporting.figures import mean_power_w, value_text
from image_classification.reporting.page.evaluation import evaluation_section
from image_classification.reporting.published.verdict import applies, newest, published_table
from image_classification.reporting.report import (
    DeviceTelemetry,
    PublishedComparison,
    RunReport,
    Telemetry,
    to_json,
)
from image_classification.reporting.table import Column, Table, columns, pairs, to_html

if TYPE_CHECKING:
    from image_classification.reporting.pictures.draw import Gallery

_UNUSED_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "evaluate": ("optim", "schedule", "mixing", "ema"),
    "benchmark_inference": ("optim", "schedule", "loss", "mixing", "ema"),
    "benchmark_data": ("model", "optim", "schedule", "loss", "ema"),
}
"""Sections of the configuration that a mode does not read; they are in ``config.yml``."""

_VERSIONS = ("container", "driver", "cuda", "torch", "dali")


def write_page(
    report: RunReport,
    folder: Path,
    gallery: Gallery | None = None,
    provenance: Mapping[str, str] | None = None,
) -> Path:
    """Write ``report.html`` into the run's folder. See `run_page`. Raises WorkspaceError."""
    path = folder / "report.html"
    evaluation = None
    if report.results.evaluation.folder is not None:
        try:
            evaluation = evaluation_section(folder, report.results)
        except WorkspaceError as error:
            evaluation = {"problem": error.message}
    write_atomically(path, run_page(report, gallery, provenance, evaluation))
    return path


def run_page(
    report: RunReport,
    gallery: Gallery | None = None,
    provenance: Mapping[str, str] | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> str:
    """Return the page of a run.

    gallery: the run's pictures, from `pictures.draw.draw_run`. provenance: the source of each
    ``section.key``. evaluation: from `evaluation_section`.
    """
    mode = report.name.mode
    names = {key: value for key, value in asdict(report.name).items() if value}
    if path := report.config.get("data", {}).get("path"):
        names["data"] = path
    if ended_at := report.environment.ended_at:
        in_utc = datetime.fromisoformat(ended_at).astimezone(timezone.utc)
        names["ended"] = f"{in_utc:%Y-%m-%d %H:%M} UTC"
    published = [entry for entry in report.published if applies(entry.figure, mode)]
    first = newest(published)
    others = [entry for entry in published if entry not in first]
    inference, telemetry = report.results.inference, report.telemetry
    environment = to_json(report.environment)
    command = environment.pop("command", None)
    return render(
        "run",
        title=report.title,
        names=names,
        exit=report.exit,
        warnings=report.warnings,
        cards=headline(report),
        command=command,
        published=_judged(entry for entry in first if entry.measured is not None),
        unmeasured=_judged(entry for entry in first if entry.measured is None),
        others=_judged(others),
        results=pairs(run_results.result_rows(report)),
        inference=run_results.inference_table(inference) if inference else None,
        telemetry=_telemetry_tables(telemetry) if telemetry.devices else None,
        gallery=gallery,
        evaluation=evaluation,
        environment=pairs((k, _text(v)) for k, v in environment.items() if v is not None),
        absent=[key for key, value in environment.items() if value is None],
        config={
            section: _settings_table(section, values, provenance)
            for section, values in report.config.items()
            if section not in _UNUSED_SECTIONS.get(mode, ())
        },
    )


def _judged(entries: Iterable[PublishedComparison]) -> Table:
    return published_table(list(entries), with_reasons=True)


@dataclass(frozen=True)
class Card:
    """One figure. detail: a smaller line below it. verdicts: (verdict, how many) in its place."""

    label: str
    value: str = ""
    unit: str = ""
    detail: str = ""
    verdicts: tuple[tuple[str, int], ...] = ()


def headline(report: RunReport) -> list[Card]:
    """Return the page's cards: accuracy, speed, time, memory, energy, verdicts."""
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


def write_pictures_page(gallery: Gallery, folder: Path, title: str) -> Path:
    """Write ``pictures.html``. Raises WorkspaceError."""
    path = folder / "pictures.html"
    write_atomically(path, render("pictures", title=title, gallery=gallery))
    return path


def combined_page(combined: Combined, gallery: Gallery | None = None) -> str:
    """Return the page of ``report combine``: pictures, vendor table, groups and ratios."""
    return render(
        "combined",
        title="; ".join(dict.fromkeys(group.identity.text for group in combined.groups)),
        gallery=gallery,
        vendor=vendor_table(combined),
        groups=[
            (
                group,
                {
                    "published": published_table(group.published, with_reasons=True),
                    "figures": figure_table(group),
                    "inference": inference_table(group),
                    "runs": _run_table(group),
                },
            )
            for group in combined.groups
        ],
        ratios=[
            ("Speed-up over full precision", ratio_table(combined.speedups, with_reasons=True)),
            ("Weak scaling", ratio_table(combined.scalings, with_reasons=True)),
        ],
    )


def render(template: str, **values: Any) -> str:
    """Return the page of ``templates/<template>.html.j2``; all text is escaped."""
    environment = Environment(
        loader=PackageLoader(__name__),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters["table"] = _table_html
    environment.filters["svg"] = _svg
    page = environment.get_template(f"{template}.html.j2").render(values)
    # Names of files need not be UTF-8; their other bytes are surrogates in Python.
    return page.encode(errors="replace").decode()


def _table_html(table: Table, stacked: bool = False) -> Markup:
    """Return the table without its title: the page has headings."""
    return Markup(to_html(replace(table, title=""), stacked=stacked))


def _svg(drawn: Any) -> Markup:
    from image_classification.reporting.pictures.draw import inline_svg

    return Markup(inline_svg(drawn))


def _run_table(group: Group) -> Table:
    heads = ("run", "seed", "ended (UTC)", "top-1", "images/s", *_VERSIONS, "git")
    rows = []
    for run in group.runs:
        environment = environment_of(run)
        rows.append(
            (
                run.label,
                str(run.seed),
                run.time_text,
                number(run.figures.get("top1")),
                number(run.figures.get("train_images_per_s"), 1),
                *(environment[key] for key in _VERSIONS),
                short_commit(environment["git_commit"]),
            )
        )
    return Table(columns(*heads, numbers=(1, 3, 4)), rows)


def _throttling(shares: Mapping[str, float]) -> str:
    reasons = (f"{name.replace('_', ' ')} {percent(share, 0)}" for name, share in shares.items())
    return ", ".join(reasons) or "no"


_SENSORS: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "power_w_mean": ("mean power", lambda value: f"{number(value, 1)} W"),
    "power_w_max": ("max power", lambda value: f"{number(value, 1)} W"),
    "energy_j": ("energy", partial(value_text, "energy_j")),
    "memory_peak_bytes": ("peak memory", size),
    "utilization_mean": ("mean utilization", percent),
    "temperature_c_max": ("max temperature", lambda value: f"{number(value, 0)} °C"),
    "clock_mhz_mean": ("mean clock", lambda value: f"{number(value, 0)} MHz"),
    "throttle_reasons": ("throttled, % of time", _throttling),
}


def _telemetry_tables(telemetry: Telemetry) -> dict[str, Any]:
    """Return the sensors of each device, the totals of the run, and what was not measured."""
    devices = telemetry.devices or ()
    shown = {
        key: sensor
        for key, sensor in _SENSORS.items()
        if any(getattr(device, key) is not None for device in devices)
    }

    def cell(device: DeviceTelemetry, key: str) -> str:
        value = getattr(device, key)
        return "not measured" if value is None else shown[key][1](value)

    rows = [(str(device.name), *(cell(device, key) for key in shown)) for device in devices]
    heads = ("device", *(label for label, _ in shown.values()))
    totals = []
    if telemetry.energy_j is not None:
        totals.append(("energy", value_text("energy_j", telemetry.energy_j)))
    if telemetry.images_per_joule is not None:
        totals.append(("images per joule", number(telemetry.images_per_joule, 3)))
    return {
        "devices": Table(columns(*heads, numbers=range(1, len(heads))), rows),
        "totals": pairs(totals),
        "missing": [label for key, (label, _) in _SENSORS.items() if key not in shown],
        "source": "" if telemetry.source is None else _text(telemetry.source),
    }


def _settings_table(
    section: str, values: Mapping[str, Any], provenance: Mapping[str, str] | None
) -> Table:
    heads = [Column("key", css="code"), Column("value", css="value")]
    rows = [[key, _text(value)] for key, value in values.items()]
    if provenance is not None:
        heads.append(Column("source", css="soft"))
        for row, key in zip(rows, values, strict=True):
            row.append(provenance.get(f"{section}.{key}", "-"))
    return Table(heads, rows)


def _text(value: Any) -> str:
    """Return a JSON value as readable text; a dash for null."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(
            _text(item) if key == "name" else f"{key} {_text(item)}" for key, item in value.items()
        )
    if isinstance(value, (list, tuple)):
        # Equal items are counted: eight equal GPUs are one item.
        counts = Counter(_text(item) for item in value)
        return ", ".join(f"{n} x {item}" if n > 1 else item for item, n in counts.items()) or "none"
    return str(value)
