"""Which runs are the same named run, and where two of them differ."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from image_classification.config.keys import KEYS, find_key
from image_classification.core.errors import WorkspaceError
from image_classification.core.units import printable
from image_classification.reporting.report import to_json
from image_classification.reporting.run_folder import RecordedRun

# What says how a run is driven and recorded, but neither what is learnt nor how fast.
_FREE = frozenset(
    {
        "data.path",  # compared by its kind, below: one data set lies elsewhere on each machine
        "run.seed",
        "run.workspace",
        "run.resume",
        "run.allow_changes",
        "run.topk",
        "run.save_checkpoints",
        "run.save_every",
        "run.checkpoint_name",
        "run.keep_checkpoints",
        "run.on_save_error",
        "run.log_every_steps",
        "run.raport_file",
        "run.trackers",
        "run.max_restarts",
        "run.collective_timeout_s",
    }
)
_SHOWN_DIFFERENCES = 4


@dataclass(frozen=True)
class Identity:
    """What a run is called: its five names and how many devices it ran on, over all nodes."""

    model: str
    precision: str
    mode: str
    platform: str
    recipe: str
    num_devices: int

    @classmethod
    def of(cls, run: RecordedRun) -> Identity:
        """Return that of ``run``."""
        return cls(**asdict(run.report.name), num_devices=run.num_devices)

    @property
    def text(self) -> str:
        """The names on one line: ``resnet50 AMP convergence DGX1V 90e, 8 devices``."""
        names = (self.model, self.precision, self.mode, self.platform, self.recipe)
        devices = "1 device" if self.num_devices == 1 else f"{self.num_devices} devices"
        return f"{' '.join(name for name in names if name)}, {devices}"


def check_ignored(keys: Collection[str]) -> frozenset[str]:
    """Return the settings that may differ.

    Raises:
        ConfigError: there is no such setting.
    """
    for key in keys:
        find_key(key, "--ignore")
    return frozenset(keys)


def settings(run: RecordedRun) -> dict[str, Any]:
    """Return what decides the run's figures, by ``section.key``.

    A setting that did not exist when the report was made has its default: that is what was done
    before there was one. ``data`` is the kind of data set: its folder is no setting.
    """
    found = {
        f"{section}.{key}": value
        for section, values in run.report.config.items()
        for key, value in values.items()
    }
    for name, key in KEYS.items():
        if name not in found and key.has_default:
            default = key.default
            found[name] = list(default) if isinstance(default, tuple) else default
    path = found["data.path"]
    kept = {name: value for name, value in found.items() if name not in _FREE}
    kept["data set"] = path if path in ("demo", "synthetic") else "a folder"
    return kept


def differences(
    before: RecordedRun, after: RecordedRun, ignored: Collection[str] = ()
) -> list[str]:
    """Return in words where two runs are not the same named run: ``optim.lr 2.048 -> 1.0``."""
    theirs, ours = settings(before), settings(after)
    names = _changed_names(before, after)
    named = {f"{section}.name" for section in names} | {f"run.{section}" for section in names}
    changed = [f"{name} {old} -> {new}" for name, (old, new) in names.items()]
    for key in sorted({*theirs, *ours} - named):
        old, new = theirs.get(key), ours.get(key)
        if old != new and key not in ignored:
            changed.append(f"{key} {_text(old)} -> {_text(new)}")
    if _on_the_way(before) != _on_the_way(after):
        changed.append(f"on the way: {_on_the_way(before)} -> {_on_the_way(after)}")
    counts = [run.report.results.validation.images for run in (before, after)]
    if None not in counts and counts[0] != counts[1]:
        changed.append(f"validation images {counts[0]:,} -> {counts[1]:,}")
    return changed


def _on_the_way(run: RecordedRun) -> str:
    """Settings that were changed when the run was continued, in words."""
    changes = [
        f"{change} at step {start.step}"
        for start in run.report.results.starts or ()
        for change in start.changes
    ]
    return ", ".join(changes) or "no change"


def _changed_names(before: RecordedRun, after: RecordedRun) -> dict[str, tuple[str, str]]:
    old, new = asdict(before.report.name), asdict(after.report.name)
    return {key: (old[key] or "none", new[key] or "none") for key in old if old[key] != new[key]}


def listed(changes: Sequence[str]) -> str:
    """Join differences for one line, the first few of many."""
    shown = "; ".join(changes[:_SHOWN_DIFFERENCES])
    more = len(changes) - _SHOWN_DIFFERENCES
    return f"{shown}; and {more} more" if more > 0 else shown


def check_same(
    before: RecordedRun, after: RecordedRun, ignored: Collection[str], remedy: str
) -> None:
    """Refuse two runs that are not the same named run.

    Raises:
        WorkspaceError: they differ; the message names where, and ``remedy``.
    """
    changes = differences(before, after, ignored)
    if changes:
        files = f"{printable(str(before.path))} and {printable(str(after.path))}"
        only_settings = not _changed_names(before, after)
        more = ", or --ignore a setting that may differ" if only_settings else ""
        raise WorkspaceError(
            f"{files} are not the same named run ({listed(changes)}): {remedy}{more}"
        )


def check_finished(run: RecordedRun) -> None:
    """Refuse a run that ended early: its figures are not those of the named run.

    Raises:
        WorkspaceError: it ended early; the message says how.
    """
    if not run.finished:
        ended = run.report.exit
        message = f" ({ended.message})" if ended.message else ""
        raise WorkspaceError(
            f"{printable(str(run.path))} is of a run that ended early, status "
            f"{ended.status!r}{message}: continue it, or leave it out"
        )


def check_distinct(runs: Sequence[RecordedRun]) -> None:
    """Refuse one report given twice, or a copy of it: it would count as two runs.

    Raises:
        WorkspaceError: naming both.
    """
    seen: dict[str, RecordedRun] = {}
    for run in runs:
        # By content, so that a copy in another folder counts as the same.
        content = json.dumps(to_json(run.report), sort_keys=True)
        if content in seen:
            raise WorkspaceError(
                f"{printable(str(seen[content].path))} and {printable(str(run.path))} are the same "
                "report: give each run once"
            )
        seen[content] = run


def _text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, float):
        return f"{value:.6g}"
    return printable(str(value))[:60]


def device_names(run: RecordedRun) -> str:
    """Return the names of the devices it ran on, or of the processor, without their count."""
    environment = run.report.environment
    names = environment.device_names
    if run.report.config["platform"]["device"] == "cpu":
        # The count of usable cores belongs to the machine, and decides its speed.
        return str(environment.cpu or ", ".join(names) or "cpu")
    return ", ".join(names) or str(run.report.config["platform"]["device"])
