"""``report.html``, the page of a run, and ``pictures.html``, the page of pictures alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from image_classification.core.files import write_atomically
from image_classification.core.units import number, percent, size
from image_classification.reporting.console.results import inference_table, result_rows
from image_classification.reporting.page.template import render
from image_classification.reporting.pictures.draw import Gallery
from image_classification.reporting.published.verdict import newest, published_table
from image_classification.reporting.report import RunReport, Telemetry, to_json
from image_classification.reporting.table import Column, Table, pairs

PAGE_NAME = "report.html"
PICTURES_PAGE_NAME = "pictures.html"


def write_page(
    report: RunReport,
    folder: Path,
    *,
    gallery: Gallery | None = None,
    provenance: Mapping[str, str] | None = None,
) -> Path:
    """Write ``report.html`` into the run's folder. See `run_page`.

    Raises:
        WorkspaceError: the page cannot be written.
    """
    path = folder / PAGE_NAME
    write_atomically(path, run_page(report, gallery, provenance=provenance))
    return path


def run_page(
    report: RunReport,
    gallery: Gallery | None = None,
    *,
    provenance: Mapping[str, str] | None = None,
) -> str:
    """Return the page of a run.

    gallery: the run's pictures, from `pictures.draw.draw_run`. provenance: the source of each
    ``section.key``.
    """
    name = asdict(report.name)
    first = newest(report.published)
    others = [entry for entry in report.published if entry not in first]
    inference, telemetry = report.results.inference, report.telemetry
    return render(
        "run",
        title=" ".join(name[key] for key in ("model", "precision", "platform", "mode")),
        wide=False,
        name=name,
        exit=report.exit,
        published=published_table(first, with_reasons=True) if first else None,
        others=published_table(others, with_reasons=True),
        results=pairs(result_rows(report)),
        inference=inference_table(inference) if inference else None,
        telemetry=_device_table(telemetry) if telemetry.devices else None,
        telemetry_totals=_telemetry_totals(telemetry),
        gallery=gallery,
        environment=pairs((k, _text(v)) for k, v in to_json(report.environment).items()),
        config={
            section: _settings_table(section, values, provenance)
            for section, values in report.config.items()
        },
    )


def write_pictures_page(gallery: Gallery, folder: Path, title: str) -> Path:
    """Write ``pictures.html``. Raises WorkspaceError."""
    path = folder / PICTURES_PAGE_NAME
    write_atomically(path, render("pictures", title=title, wide=False, gallery=gallery))
    return path


def _kilojoules(joules: float) -> str:
    return f"{number(joules / 1000, 2)} kJ"


def _throttling(shares: Mapping[str, float]) -> str:
    reasons = (f"{name.replace('_', ' ')} {percent(share, 0)}" for name, share in shares.items())
    return ", ".join(reasons) or "no"


_SENSORS: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "power_w_mean": ("mean power", lambda value: f"{number(value, 1)} W"),
    "power_w_max": ("max power", lambda value: f"{number(value, 1)} W"),
    "energy_j": ("energy", _kilojoules),
    "memory_peak_bytes": ("peak memory", size),
    "utilization_mean": ("mean utilization", percent),
    "temperature_c_max": ("max temperature", lambda value: f"{number(value, 0)} °C"),
    "clock_mhz_mean": ("mean clock", lambda value: f"{number(value, 0)} MHz"),
    "throttle_reasons": ("throttled, share of time", _throttling),
}


def _measured_sensors(telemetry: Telemetry) -> list[str]:
    """Return the sensors that at least one device has."""
    devices = telemetry.devices or ()
    return [key for key in _SENSORS if any(getattr(d, key) is not None for d in devices)]


def _device_table(telemetry: Telemetry) -> Table:
    keys = _measured_sensors(telemetry)
    return Table(
        (Column("device"), *(Column(_SENSORS[key][0], "number") for key in keys)),
        [
            (
                str(device.name),
                *(_measured(getattr(device, key), _SENSORS[key][1]) for key in keys),
            )
            for device in telemetry.devices or ()
        ],
    )


def _telemetry_totals(telemetry: Telemetry) -> Table:
    measured = _measured_sensors(telemetry)
    missing = [label for key, (label, _) in _SENSORS.items() if key not in measured]
    rows = [
        ("energy", _measured(telemetry.energy_j, _kilojoules)),
        ("images per joule", _measured(telemetry.images_per_joule, lambda v: number(v, 3))),
        ("not measured", ", ".join(missing)),
        ("source", _text(telemetry.source)),
    ]
    return pairs((label, text) for label, text in rows if text)


def _measured(value: Any, show: Callable[[Any], str]) -> str:
    return "not measured" if value is None else show(value)


def _settings_table(
    section: str, values: Mapping[str, Any], provenance: Mapping[str, str] | None
) -> Table:
    heads = [Column("key", css="code"), Column("value")]
    rows = [[key, _text(value)] for key, value in values.items()]
    if provenance is not None:
        heads.append(Column("source", css="soft"))
        for row, key in zip(rows, values, strict=True):
            row.append(provenance.get(f"{section}.{key}", "-"))
    return Table(heads, rows)


def _text(value: Any) -> str:
    """Write a value of JSON for people; a dash for null."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(
            _text(item) if key == "name" else f"{key} {_text(item)}" for key, item in value.items()
        )
    if isinstance(value, (list, tuple)):
        # Eight equal GPUs are one line, not eight.
        counts = Counter(_text(item) for item in value)
        return ", ".join(f"{n} x {item}" if n > 1 else item for item, n in counts.items()) or "none"
    return str(value)
