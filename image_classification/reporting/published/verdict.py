"""The verdict of a run against the published figures.

A verdict needs a comparison that means something. Accuracy holds for any machine of the published
kind of device, as long as data, precision, global batch, learning rate, mixup and number of epochs
are the published ones. Speed, latency, power and memory hold for the same devices, as many of
them, with the same batch. Everything else is ``not-comparable``, and ``why`` says what differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from image_classification.config.schema import RunConfig
from image_classification.core.types import DevicesFound
from image_classification.reporting.figures import (
    ACCURACY,
    FIGURES,
    INFERENCE,
    device_figures,
    with_batch,
)
from image_classification.reporting.published.comparability import (
    accuracy_obstacles,
    inference_obstacles,
    training_obstacles,
)
from image_classification.reporting.published.load import (
    SPREADS,
    TOP1_TOLERANCE_POINTS,
    PublishedRow,
    load_published,
)
from image_classification.reporting.published.match import other_rows_for, rows_for

__all__ = [
    "TOP1_TOLERANCE_POINTS",
    "Band",
    "bands",
    "compare",
    "load_published",
    "newest",
    "rows_for",
]


@dataclass(frozen=True)
class Band:
    """A published figure with its tolerance, to draw beside a run's curve."""

    figure: str
    low: float
    high: float
    label: str


def compare(
    config: RunConfig,
    results: Mapping[str, Any],
    devices: DevicesFound,
    *,
    telemetry: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Compare a run's results with the published figures of its configuration.

    results, telemetry, environment: those sections of report.json. devices: those of this node, as
    found.

    Returns one entry a figure, as ``published`` in report.json: id, figure, unit, published,
    measured, ratio (measured over published), comparable, why, verdict. The figures of `rows_for`
    come first, then what other publications say of the same.
    """
    rows = [*rows_for(config), *other_rows_for(config)]
    software = (environment or {}).get("torch")
    return [
        _compare_row(row, config, results, devices, _measured(row, results, telemetry), software)
        for row in rows
    ]


def newest(entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the first entry of each figure: the one of the newest fitting publication."""
    first: dict[str, Mapping[str, Any]] = {}
    for entry in entries:
        first.setdefault(entry["figure"], entry)
    return list(first.values())


def _measured(
    row: PublishedRow, results: Mapping[str, Any], telemetry: Mapping[str, Any] | None
) -> float | None:
    if row.figure in ACCURACY:
        return _number((results.get("validation") or {}).get(row.figure))
    if row.figure == "train_images_per_s":
        return _number((results.get("train") or {}).get("images_per_s"))
    if row.figure in INFERENCE:
        found = [r for r in results.get("inference") or () if r["batch"] == row.batch]
        if not found:
            return None
        if row.figure == "inference_images_per_s":
            return _number(found[0]["images_per_s"])
        return _number(found[0]["latency_ms"][row.figure.removeprefix("latency_ms_")])
    return device_figures(telemetry)[row.figure] if telemetry else None


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _compare_row(
    row: PublishedRow,
    config: RunConfig,
    results: Mapping[str, Any],
    devices: DevicesFound,
    measured: float | None,
    software: str | None,
) -> dict[str, Any]:
    if row.figure in ACCURACY:
        obstacles = accuracy_obstacles(row, config, results)
    elif row.figure in INFERENCE:
        obstacles = inference_obstacles(row, config, devices)
    else:
        obstacles = training_obstacles(row, config, devices)
    if measured is None:
        verdict, why = "not-comparable", "not measured"
    elif obstacles:
        verdict, why = "not-comparable", "; ".join(obstacles)
    else:
        verdict, why = _judge(row, measured)
        version = row.run.source.speed_version
        if row.figure not in ACCURACY and software and version:
            why += f"; published with {version}, here torch {software}"
    note = row.note or (row.run.note if row.elsewhere is None else None)
    return {
        "id": row.id,
        "figure": with_batch(row.figure, row.batch),
        "unit": row.unit,
        "published": row.value,
        "measured": measured,
        "ratio": None if measured is None else measured / row.value,
        "comparable": verdict != "not-comparable",
        "why": why if measured is None or not note else f"{why} (the published figure: {note})",
        "verdict": verdict,
    }


def _judge(row: PublishedRow, measured: float) -> tuple[str, str]:
    # Rounded so that a difference that equals the tolerance in print is within it.
    difference, tolerance = round(measured - row.value, 6), round(row.tolerance, 6)
    if abs(difference) <= tolerance:
        verdict = "reproduced"
    else:
        verdict = "short" if (difference > 0) == FIGURES[row.figure].less else "better"
    if row.figure not in ACCURACY:
        allowed = 100 * row.relative_tolerance
        why = f"{100 * difference / row.value:+.1f} %, tolerance {allowed:.0f} %"
    elif row.spread is None:
        why = f"{difference:+.2f} points, tolerance {tolerance:.2f} (no spread printed)"
    else:
        why = (
            f"{difference:+.2f} points, tolerance {tolerance:.2f} "
            f"({SPREADS:.0f} x the printed spread of {row.spread:.2f})"
        )
    return verdict, why


def bands(config: RunConfig, comparisons: Sequence[Mapping[str, Any]]) -> list[Band]:
    """Turn the comparable entries of `compare` into bands for the plots."""
    comparable = {(entry["id"], entry["figure"]) for entry in comparisons if entry["comparable"]}
    return [
        Band(
            figure=with_batch(row.figure, row.batch),
            low=row.value - row.tolerance,
            high=row.value + row.tolerance,
            label=f"published {row.value:,} ± {row.tolerance:,.3g}",
        )
        for row in rows_for(config)
        if (row.id, with_batch(row.figure, row.batch)) in comparable
    ]
