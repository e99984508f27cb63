"""The data of pictures: a run's report and its records with their times."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from image_classification.core.errors import WorkspaceError
from image_classification.core.units import printable
from image_classification.reporting import run_folder
from image_classification.reporting.published.load import load_published
from image_classification.reporting.published.verdict import Band, band_of
from image_classification.reporting.report import REPORT_NAME, RunReport
from image_classification.reporting.sinks import TimedRecord, read_timed_metrics

METRICS_NAME = "metrics.jsonl"


@dataclass(frozen=True)
class RunData:
    """One run's report and records.

    label: distinguishes the run from others. report: None for a run that was killed. records:
    empty if the report came without them.
    """

    label: str
    report: RunReport | None
    records: tuple[TimedRecord, ...] = ()

    def value(self, section: str, *keys: str) -> Any:
        """Return a value of the report, or None if it is missing."""
        found: Any = self.report
        for key in (section, *keys):
            found = found.get(key) if isinstance(found, Mapping) else getattr(found, key, None)
        return found

    def number(self, section: str, *keys: str) -> float | None:
        """Return a value of the report if it is a finite number."""
        return real(self.value(section, *keys))

    def text(self, section: str, *keys: str) -> str:
        """Return a value of the report as printable text, empty if it is missing."""
        found = self.value(section, *keys)
        return "" if found is None else printable(str(found))

    @property
    def num_devices(self) -> int | None:
        """Number of devices over all nodes."""
        per_node = self.number("config", "platform", "num_devices")
        nodes = self.number("config", "platform", "num_nodes")
        return None if per_node is None else int(per_node * (nodes or 1))

    @property
    def training_loss_label(self) -> str:
        """What the training loss is: with smoothed or mixed labels it is no plain cross-entropy."""
        settings = (
            ("label smoothing", self.number("config", "loss", "label_smoothing")),
            ("mixup", self.number("config", "mixing", "mixup")),
            ("cutmix", self.number("config", "mixing", "cutmix")),
        )
        used = ", ".join(f"{name} {value:g}" for name, value in settings if value)
        if self.report is None:
            return "training loss"
        return f"training loss ({used})" if used else "training cross-entropy"

    @cached_property
    def steps_per_epoch(self) -> int | None:
        """Steps per epoch, from the first record that has it."""
        values = (real(timed.record.values.get("steps_per_epoch")) for timed in self.records)
        return next((int(steps) for steps in values if steps), None)

    @cached_property
    def begin_s(self) -> float:
        """Unix time of the earliest record, in seconds; 0 if no record has a time."""
        times = (t.unix_time_s for t in self.records if t.unix_time_s is not None)
        return min(times, default=0.0)

    @property
    def resumed_at(self) -> list[int]:
        """The steps at which the run was resumed, without duplicates."""
        starts = (real(t.record.values.get("start_step")) for t in self.of("start"))
        return sorted({int(step) for step in starts if step})

    def of(self, kind: str) -> Iterator[TimedRecord]:
        """Yield the records of one kind."""
        return (timed for timed in self.records if timed.record.kind == kind)

    def over_epochs(self, kind: str, key: str) -> list[tuple[float, float]]:
        """Return (epochs done, value) of every record of ``kind`` that has ``key``."""
        steps = self.steps_per_epoch
        if steps is None:
            return []
        found = ((t.record.step / steps, real(t.record.values.get(key))) for t in self.of(kind))
        return [(epochs, value) for epochs, value in found if value is not None]

    def bands(self, figure: str) -> tuple[Band, ...]:
        """Return the published value of ``figure`` as a band, if the run is comparable with it."""
        comparable = {
            (entry.id, entry.published)
            for entry in (self.report.published if self.report else ())
            if entry.comparable and entry.figure == figure
        }
        rows = (
            row
            for row in (load_published() if comparable else ())
            if row.key == figure and (row.id, row.value) in comparable
        )
        # Only the newest publication: several bands would hide the curve.
        newest = next(rows, None)
        return () if newest is None else (band_of(newest),)


def real(value: Any) -> float | None:
    """Return a finite number as float, and None for any other value of a damaged file."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def read_run(path: Path) -> RunData:
    """Read a run's folder, or its report.json and the records beside it.

    Raises:
        WorkspaceError: there is neither a report nor records, or one of them is damaged.
    """
    # os.path, because pathlib raises for a path that is too long or not permitted.
    is_file = os.path.isfile(path)
    folder = path.parent if is_file else path
    report = path if is_file else folder / REPORT_NAME
    has_report = os.path.exists(report)
    if not has_report and not os.path.exists(folder / METRICS_NAME):
        raise WorkspaceError(
            f"{printable(str(path))} has neither {REPORT_NAME} nor {METRICS_NAME}; "
            "give the folder of a run"
        )
    return with_records(folder, run_folder.read_run(report).report if has_report else None)


def with_records(folder: Path, report: RunReport | None) -> RunData:
    """Combine a report with the records in ``folder``.

    Raises:
        WorkspaceError: the records cannot be read, or a line is damaged.
    """
    metrics = folder / METRICS_NAME
    records = tuple(read_timed_metrics(metrics)) if metrics.exists() else ()
    return RunData(printable(folder.resolve().name), report, records)


def with_labels(runs: Sequence[RunData]) -> list[RunData]:
    """Label each run by its names, seed and devices where they differ, or else by its folder."""
    keys = ("model", "precision", "platform", "recipe", "mode")
    columns = [[run.text("name", key) or "?" for run in runs] for key in keys]
    columns.append([f"seed {run.text('config', 'run', 'seed') or '?'}" for run in runs])
    counts = [run.num_devices for run in runs]
    columns.append([f"{count or '?'} device{'' if count == 1 else 's'}" for count in counts])
    differing = [column for column in columns if len(set(column)) > 1]
    labels = [" ".join(column[i] for column in differing) for i in range(len(runs))]
    labeled = []
    seen: Counter[str] = Counter()
    for run, names in zip(runs, labels, strict=True):
        is_unique = names and labels.count(names) == 1
        label = names if is_unique else f"{names} {run.label}".strip()
        # Equal runs in folders of the same name are numbered.
        seen[label] += 1
        labeled.append(replace(run, label=f"{label} ({n})" if (n := seen[label]) > 1 else label))
    return labeled
