"""Training throughput over the number of devices, beside the ideal line and the published one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from image_classification.reporting.pictures.picture import LeftOut, Panel, Picture, Series, take
from image_classification.reporting.pictures.source import RunData
from image_classification.reporting.pictures.style import INK, RUNS, Look
from image_classification.reporting.published.verdict import load_published

_NAME, _TITLE = "scaling", "Scaling over devices"
_MARKERS = ("*", "p", "h", "8", "<", ">")


@dataclass(frozen=True)
class _Kind:
    """Runs that differ in their number of devices."""

    model: str
    precision: str
    device: str

    def __str__(self) -> str:
        return f"{self.model} {self.precision}, {self.device}"


def scaling(runs: Sequence[RunData]) -> Picture | LeftOut:
    """Draw images/s over devices for each model, precision and device of ``runs``."""
    kinds: dict[_Kind, list[tuple[int, float, RunData]]] = {}
    for run in runs:
        speed = run.number("results", "train", "images_per_s")
        if speed is not None and run.num_devices:
            kind = _Kind(run.text("name", "model"), run.text("name", "precision"), run.device)
            kinds.setdefault(kind, []).append((run.num_devices, speed, run))
    several = {kind: found for kind, found in kinds.items() if len({n for n, *_ in found}) > 1}
    if not several:
        why = "it takes training runs of one model, precision and device with several numbers of "
        return LeftOut(_NAME, _TITLE, f"{why}devices")
    series: list[Series] = []
    notes: list[str] = []
    for (kind, found), look in zip(several.items(), take(RUNS, len(several)), strict=True):
        points = sorted((n, speed) for n, speed, _ in found)
        name = f"{kind}, measured" if len(several) > 1 else "measured"
        series.append(_series(name, points, look))
        series.append(_ideal(points, "ideal" if len(several) == 1 else ""))
        batches = sorted({run.text("config", "batch", "per_device") for _, _, run in found})
        if len(batches) > 1:
            notes.append(f"{kind}: the runs differ in images a device: {', '.join(batches)}.")
    if len(several) == 1:
        notes.insert(0, f"{next(iter(several))}.")
    else:
        notes.append("Grey lines are ideal: as many times the fewest devices' throughput.")
    published = _published(several)
    for at, (label, points) in enumerate(published.items()):
        look = Look(INK, ":", _MARKERS[at % len(_MARKERS)], filled=False, width=1.0)
        series.append(_series(f"published, {label}", points, look))
    ticks = tuple(sorted({x for each in series for x in each.x}))
    panel = Panel("images/s", tuple(series), x_scale="log", y_scale="log", x_ticks=ticks)
    return Picture(_NAME, _TITLE, "devices", (panel,), tuple(notes))


def _series(label: str, points: Sequence[tuple[int, float]], look: Look) -> Series:
    return Series(label, tuple(float(n) for n, _ in points), tuple(s for _, s in points), look)


def _ideal(points: Sequence[tuple[int, float]], label: str) -> Series:
    fewest, most = points[0][0], points[-1][0]
    at_fewest = [speed for n, speed in points if n == fewest]
    each = sum(at_fewest) / len(at_fewest) / fewest
    ends = [(fewest, each * fewest), (most, each * most)]
    return _series(label, ends, Look("#7f7f7f", "--", width=1.2))


def _published(
    several: dict[_Kind, list[tuple[int, float, RunData]]],
) -> dict[str, list[tuple[int, float]]]:
    """The newest publication of each kind on these devices; of its own platforms if on none."""
    tables: dict[str, list[tuple[int, float]]] = {}
    for kind, found in several.items():
        platforms = {run.text("name", "platform") for _, _, run in found}
        by_run: dict[str, list[tuple[int, float]]] = {}
        hardware: dict[str, str] = {}
        for row in load_published():
            name = (row.hardware.device_name or "").casefold()
            same = row.platform in platforms or bool(name and name in kind.device.casefold())
            if (
                row.figure == "train_images_per_s"
                and (row.model, row.precision) == (kind.model, kind.precision)
                and row.num_devices is not None
                and row.run.named is not None
                and row.elsewhere is None
                and same
            ):
                by_run.setdefault(row.id, []).append((row.num_devices, row.value))
                hardware[row.id] = row.hardware.name or row.platform or "?"
        for run_id, points in by_run.items():
            if len(points) > 1:
                label = hardware[run_id] if len(several) == 1 else f"{kind}, {hardware[run_id]}"
                tables.setdefault(label, sorted(points))
    return tables
