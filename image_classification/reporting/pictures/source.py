"""A run as its folder tells it: the report and the records with their times."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from image_classification.core.errors import WorkspaceError
from image_classification.core.types import RunReport
from image_classification.core.units import printable
from image_classification.reporting import report as run_file
from image_classification.reporting.figures import with_batch
from image_classification.reporting.published.verdict import Band, load_published
from image_classification.reporting.report import REPORT_NAME
from image_classification.reporting.sinks import TimedRecord, read_timed_metrics

METRICS_NAME = "metrics.jsonl"


@dataclass(frozen=True)
class RunData:
    """What pictures are made of.

    label: tells the run from those beside it. report: None for a run that was killed. records:
    empty where the report came without them.
    """

    label: str
    report: RunReport | None
    records: tuple[TimedRecord, ...] = ()

    def value(self, section: str, *keys: str) -> Any:
        """Return a value of the report; None where it or its section is not there."""
        found: Any = None if self.report is None else getattr(self.report, section)
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        return found

    def number(self, section: str, *keys: str) -> float | None:
        """The same for a number; None where it is not one."""
        return real(self.value(section, *keys))

    def text(self, section: str, *keys: str) -> str:
        """The same for words; empty where there are none."""
        found = self.value(section, *keys)
        return "" if found is None else printable(str(found))

    @property
    def num_devices(self) -> int | None:
        """Devices of the whole run."""
        each = self.number("config", "platform", "num_devices")
        nodes = self.number("config", "platform", "num_nodes")
        return None if each is None else int(each * (nodes or 1))

    @property
    def device(self) -> str:
        """The name of the run's devices, or of its platform."""
        devices = self.value("environment", "devices")
        first = devices[0] if isinstance(devices, Sequence) and devices else None
        name = first.get("name") if isinstance(first, Mapping) else first
        return str(name) if name else self.text("name", "platform")

    @property
    def steps_per_epoch(self) -> int | None:
        """As the first record that knows it says."""
        for timed in self.records:
            steps = real(timed.record.values.get("steps_per_epoch"))
            if steps:
                return int(steps)
        return None

    @property
    def resumed_at(self) -> list[int]:
        """The steps this run was resumed at, each once."""
        starts = (real(t.record.values.get("start_step")) for t in self.of("start"))
        return sorted({int(step) for step in starts if step})

    def of(self, *kinds: str) -> Iterator[TimedRecord]:
        """Yield the records of some kinds."""
        return (timed for timed in self.records if timed.record.kind in kinds)

    def over_epochs(self, kind: str, key: str) -> list[tuple[float, float]]:
        """Return (epochs done, value) of every record of ``kind`` that has ``key``."""
        steps = self.steps_per_epoch
        if steps is None:
            return []
        found = ((t.record.step / steps, real(t.record.values.get(key))) for t in self.of(kind))
        return [(epochs, value) for epochs, value in found if value is not None]

    def bands(self, *figures: str) -> tuple[Band, ...]:
        """The published figures this run may be compared with, as bands."""
        entries = self.report.published if self.report else ()
        comparable = {
            (str(entry.get("id")), entry["figure"], real(entry.get("published")))
            for entry in entries
            if isinstance(entry, Mapping)
            and entry.get("comparable")
            and entry.get("figure") in figures
        }
        if not comparable:
            return ()
        found: dict[str, Band] = {}
        for row in load_published():
            figure = with_batch(row.figure, row.batch)
            if (row.id, figure, row.value) in comparable:
                # The newest publication alone: several bands of one figure hide the curve.
                band = Band(
                    figure,
                    row.value - row.tolerance,
                    row.value + row.tolerance,
                    f"published {row.value:,} ± {row.tolerance:,.3g}",
                )
                found.setdefault(figure, band)
        return tuple(found.values())


def real(value: Any) -> float | None:
    """A finite number as float; None for anything else, as a damaged file may hold."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def read_run(path: Path) -> RunData:
    """Read a run's folder, or its report.json with the records beside it.

    Raises:
        WorkspaceError: neither a report nor records are there, or one of them is damaged.
    """
    folder = path.parent if path.is_file() else path
    report = path if path.is_file() else folder / REPORT_NAME
    if not report.exists() and not (folder / METRICS_NAME).exists():
        raise WorkspaceError(
            f"{printable(str(path))} has neither {REPORT_NAME} nor {METRICS_NAME}; "
            "name the folder of a run"
        )
    checked = run_file.read_run(report).report if report.exists() else None
    return with_records(folder, checked)


def with_records(folder: Path, report: RunReport | None) -> RunData:
    """Put a report and the records in its folder together.

    Raises:
        WorkspaceError: the records cannot be read, or a line is none.
    """
    metrics = folder / METRICS_NAME
    records = tuple(read_timed_metrics(metrics)) if metrics.exists() else ()
    return RunData(printable(folder.resolve().name), report, records)


_TELLING = (
    ("name", "model"),
    ("name", "precision"),
    ("name", "platform"),
    ("name", "recipe"),
    ("name", "mode"),
    ("config", "run", "seed"),
)


def with_labels(runs: Sequence[RunData]) -> list[RunData]:
    """Name each run by what tells it from the others: its names, devices, seed, else its folder."""
    told: list[list[str]] = [[] for _ in runs]
    for keys in _TELLING:
        values = [run.text(*keys) for run in runs]
        if len(set(values)) > 1:
            for words, value in zip(told, values, strict=True):
                words.append(f"{keys[-1]} {value or '?'}" if keys[-1] == "seed" else value or "?")
    devices = [run.num_devices for run in runs]
    if len(set(devices)) > 1:
        for words, count in zip(told, devices, strict=True):
            words.append(f"{count or '?'} device{'' if count == 1 else 's'}")
    labels = [" ".join(words) for words in told]
    named = [
        label if label and labels.count(label) == 1 else f"{label} {run.label}".strip()
        for run, label in zip(runs, labels, strict=True)
    ]
    # Folders of one name, of runs that do not differ.
    seen: Counter[str] = Counter()
    told_apart = []
    for label in named:
        seen[label] += 1
        told_apart.append(label if seen[label] == 1 else f"{label} ({seen[label]})")
    return [replace(run, label=label) for run, label in zip(runs, told_apart, strict=True)]
