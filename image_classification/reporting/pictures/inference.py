"""Latency against throughput, a point a batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from image_classification.reporting.pictures.picture import LeftOut, Panel, Picture, Series, take
from image_classification.reporting.pictures.source import RunData, real
from image_classification.reporting.pictures.style import INK, RUNS, Look
from image_classification.reporting.published.load import PublishedRow
from image_classification.reporting.published.verdict import load_published

_NAME, _TITLE = "latency", "Latency against throughput"
_MARKERS = ("*", "p", "h", "8", "<", ">")
_Point = tuple[float, float, int]


def latency(runs: Sequence[RunData]) -> Picture | LeftOut:
    """Draw mean and p99 latency of every run's batch sizes beside the published means."""
    series: list[Series] = []
    for run, look in zip(runs, take(RUNS, len(runs)), strict=True):
        name = run.label if len(runs) > 1 else "measured"
        means = _measured(run, "mean")
        if not means:
            continue
        series.append(_series(f"{name}, mean", means, look, named=True))
        tails = _measured(run, "p99")
        if tails:
            series.append(_series(f"{name}, p99", tails, look.lined("--", filled=False)))
    if not series:
        return LeftOut(_NAME, _TITLE, "no inference was measured")
    kinds = {(run.text("name", "model"), run.text("name", "precision")) for run in runs}
    platforms = {run.text("name", "platform") for run in runs}
    published = _published(kinds, platforms)
    for at, (label, points) in enumerate(published.items()):
        look = Look(INK, ":", _MARKERS[at % len(_MARKERS)], filled=False, width=1.0)
        series.append(_series(f"published, {label}, mean", points, look))
    notes = ["Numbers beside the points are batch sizes."]
    if not published:
        told = ", ".join(sorted(f"{model} at {precision}" for model, precision in kinds))
        notes.append(f"No latency is published of {told}.")
    panel = Panel("latency of a batch, ms", tuple(series), x_scale="log", y_scale="log")
    return Picture(_NAME, _TITLE, "images/s", (panel,), tuple(notes))


def _series(label: str, points: Sequence[_Point], look: Look, named: bool = False) -> Series:
    names = tuple(str(batch) for _, _, batch in points) if named else ()
    return Series(label, tuple(p[0] for p in points), tuple(p[1] for p in points), look, (), names)


def _measured(run: RunData, quantile: str) -> list[_Point]:
    rows = run.value("results", "inference")
    points = []
    for row in rows if isinstance(rows, Sequence) else ():
        if not isinstance(row, Mapping) or not isinstance(row.get("latency_ms"), Mapping):
            continue
        speed, ms = real(row.get("images_per_s")), real(row["latency_ms"].get(quantile))
        batch = real(row.get("batch"))
        if speed and ms and batch:
            points.append((speed, ms, int(batch)))
    return sorted(points, key=lambda point: point[2])


def _published(kinds: set[tuple[str, str]], platforms: set[str]) -> dict[str, list[_Point]]:
    """The newest publication's tables of the runs' platforms; of all platforms if of none."""
    rows = [
        row
        for row in load_published()
        if (row.model, row.precision) in kinds
        and row.run.named is not None
        and row.elsewhere is None
        and row.batch is not None
        and row.requests is None
    ]
    newest: dict[tuple[str | None, ...], str] = {}
    for row in rows:
        if row.figure == "latency_ms_mean":
            newest.setdefault((row.model, row.precision, row.platform), row.id)
    here = {key for key in newest if key[2] in platforms}
    wanted = {newest[key]: key for key in newest if not here or key in here}
    tables: dict[str, list[_Point]] = {}
    for run_id, (model, precision, _) in wanted.items():
        points = _table([row for row in rows if row.id == run_id])
        if points:
            hardware = next(row.hardware.name for row in rows if row.id == run_id)
            label = " ".join(
                part
                for part in (
                    model if len({kind[0] for kind in kinds}) > 1 else None,
                    precision if len({kind[1] for kind in kinds}) > 1 else None,
                    hardware,
                )
                if part
            )
            tables.setdefault(label, points)
    return tables


def _table(rows: Sequence[PublishedRow]) -> list[_Point]:
    speeds = {row.batch: row.value for row in rows if row.figure == "inference_images_per_s"}
    means = {row.batch: row.value for row in rows if row.figure == "latency_ms_mean"}
    return sorted(
        (
            (speeds[batch], means[batch], batch)
            for batch in speeds.keys() & means.keys()
            if batch is not None
        ),
        key=lambda point: point[2],
    )
