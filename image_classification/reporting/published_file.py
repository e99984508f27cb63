"""Reading ``published.yml``: once a process, and only when figures are asked for."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any

import yaml

from image_classification.reporting.published_figures import FIGURES
from image_classification.reporting.published_rows import (
    Hardware,
    PublishedRow,
    PublishedRun,
    Recipe,
    RunName,
    Source,
)

try:  # libyaml's loader is ten times as fast, but not every PyYAML is built with it.
    from yaml import CSafeLoader as SafeLoader
except ImportError:
    from yaml import SafeLoader  # type: ignore[assignment]

# Columns of inference tables that are not figures of their own name.
_COLUMNS = {
    "images_per_s": "inference_images_per_s",
    "images_per_s_speedup": "inference_images_per_s_speedup",
}
# Words of `figures` that belong to another figure.
_PARTS = ("top1_spread", "top1_range", "speedup_over", "time_to_train_printed")


@cache
def _content() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("published.yml").read_text(encoding="utf-8")
    # The collector would walk the growing tree again and again, for a third of the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        content: dict[str, Any] = yaml.load(text, Loader=SafeLoader)
    finally:
        if collecting:
            gc.enable()
    return content


@cache
def load_runs() -> tuple[PublishedRun, ...]:
    """Read every run of ``published.yml``, in the file's order.

    Raises:
        ValueError: two runs share an id, or one has neither a name nor a reason.
    """
    content = _content()
    sources = {key: Source(**fields) for key, fields in content["sources"].items()}
    hardware = {key: Hardware(**fields) for key, fields in content["hardware"].items()}
    runs: dict[str, PublishedRun] = {}
    for entry in content["runs"]:
        run = _run(entry, sources, hardware)
        if run.id in runs:
            raise ValueError(f"published.yml: {run.id} appears twice")
        if (run.named is None) == (run.why_not is None):
            raise ValueError(f"published.yml: {run.id} needs either run or why_not")
        runs[run.id] = run
    return tuple(runs.values())


def _run(
    entry: Mapping[str, Any], sources: Mapping[str, Source], hardware: Mapping[str, Hardware]
) -> PublishedRun:
    source, what = entry["source"], entry["what"]
    device = what.get("hardware")
    return PublishedRun(
        id=entry["id"],
        model=what["model"],
        platform=what.get("platform"),
        precision=what.get("precision"),
        kind=what["kind"],
        hardware=hardware.get(device) or Hardware(device),
        num_devices=what.get("num_devices"),
        source=sources[source] if isinstance(source, str) else Source(**source),
        recipe=Recipe(**entry.get("recipe", {})),
        named=RunName(**entry["run"]) if "run" in entry else None,
        why_not=entry.get("why_not"),
        differs=entry.get("differs", {}),
        note=entry.get("note"),
    )


@cache
def load_published() -> tuple[PublishedRow, ...]:
    """Return every figure of ``published.yml``, in the file's order.

    Raises:
        ValueError: a figure appears twice, or is of no known kind.
    """
    return tuple(row for run in load_runs() for row in rows_of(run))


@cache
def rows_of(run: PublishedRun) -> tuple[PublishedRow, ...]:
    """Return the figures of one run: its own source's first, then those of other documents.

    Raises:
        ValueError: as `load_published`.
    """
    entry = _entries()[run.id]
    rows = tuple(_all_rows(entry, run))
    seen: set[tuple[str, str, int | None]] = set()
    for row in rows:
        if row.figure not in FIGURES:
            raise ValueError(f"published.yml: {run.id}: unknown figure {row.figure!r}")
        key = (row.id, row.figure, row.num_devices)
        # A printed table may have a batch size twice, with two measurements: both are kept.
        if key in seen and row.batch is None and row.requests is None:
            raise ValueError(f"published.yml: {key} appears twice")
        seen.add(key)
    return rows


@cache
def _entries() -> dict[str, dict[str, Any]]:
    return {entry["id"]: entry for entry in _content()["runs"]}


def _all_rows(entry: Mapping[str, Any], run: PublishedRun) -> Iterator[PublishedRow]:
    notes = entry.get("figure_notes", {})
    yield from _rows(entry, run, run.num_devices, {}, notes)
    for other in entry.get("others", ()):
        common = {"elsewhere": other["source"], "note": other.get("note")}
        common |= {key: other[key] for key in ("same_as", "epochs_stated") if key in other}
        yield from _rows(other, run, other.get("num_devices", run.num_devices), common, {})


def _rows(
    entry: Mapping[str, Any],
    run: PublishedRun,
    num_devices: int | None,
    common: Mapping[str, Any],
    notes: Mapping[str, str],
) -> Iterator[PublishedRow]:
    figures = entry.get("figures", {})
    printed = _by_devices(figures.get("time_to_train_printed"), num_devices)
    for end, value in zip(("low", "high"), figures.get("top1_range", ()), strict=False):
        yield PublishedRow(run, f"top1_{end}", value, num_devices, **common)
    for figure, given in figures.items():
        if figure in _PARTS:
            continue
        for devices, value in _by_devices(given, num_devices).items():
            own = dict(common)
            if figure in notes:
                own["note"] = notes[figure]
            if figure == "top1":
                own["spread"] = figures.get("top1_spread")
            elif figure == "train_speedup":
                own["over"] = figures.get("speedup_over")
            elif figure == "time_to_train_min":
                own["printed"] = printed.get(devices)
            yield PublishedRow(run, figure, value, devices, **own)
    for batch_or_requests, values in _table(entry.get("inference", "")):
        for figure, value in values.items():
            own = dict(common) | ({"note": notes[figure]} if figure in notes else {})
            yield PublishedRow(run, figure, value, num_devices, **batch_or_requests, **own)


def _by_devices(given: Any, num_devices: int | None) -> dict[int | None, Any]:
    return given if isinstance(given, dict) else {} if given is None else {num_devices: given}


def _table(text: str) -> Iterator[tuple[dict[str, Any], dict[str, float]]]:
    lines = [line.split() for line in text.splitlines()]
    for cells in lines[1:]:
        (what, *columns), (size, *values) = lines[0], cells
        key = "batch" if what == "batch" else "requests"
        yield (
            {key: int(size)},
            {
                _COLUMNS.get(column, column): float(value)
                for column, value in zip(columns, values, strict=True)
                if value != "-"
            },
        )
