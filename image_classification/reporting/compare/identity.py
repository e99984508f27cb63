"""Which runs are the same named run, where two runs differ, and what each ran on."""

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

# Settings that affect neither what is learned nor how fast.
_IRRELEVANT = frozenset(
    {
        "data.path",  # replaced by the kind of data set: the folder differs between machines
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
_SOFTWARE = (
    "container",
    "driver",
    "cuda",
    "cudnn",
    "torch",
    "torchvision",
    "dali",
    "python",
    "git_commit",
)


@dataclass(frozen=True)
class Identity:
    """The name of a run: its five parts, and the number of devices over all nodes."""

    model: str
    precision: str
    mode: str
    platform: str
    recipe: str
    num_devices: int

    @classmethod
    def of(cls, run: RecordedRun) -> Identity:
        """Return the name of ``run``."""
        return cls(**asdict(run.report.name), num_devices=run.num_devices)

    @property
    def devices_text(self) -> str:
        """The number of devices in words: ``8 devices``."""
        return "1 device" if self.num_devices == 1 else f"{self.num_devices} devices"

    @property
    def text(self) -> str:
        """The whole name on one line: ``resnet50 AMP convergence DGX1V 90e, 8 devices``."""
        names = (self.model, self.precision, self.mode, self.platform, self.recipe)
        return f"{' '.join(name for name in names if name)}, {self.devices_text}"


def check_ignored(keys: Collection[str]) -> frozenset[str]:
    """Return the settings given with ``--ignore``.

    Raises:
        ConfigError: there is no such setting.
    """
    for key in keys:
        find_key(key, "--ignore")
    return frozenset(keys)


def differences(
    before: RecordedRun, after: RecordedRun, ignored: Collection[str] = ()
) -> list[str]:
    """Return in words why two runs are not the same named run: ``optim.lr 2.048 -> 1.0``."""
    old_settings, new_settings = _settings(before), _settings(after)
    names = _changed_names(before, after)
    # Settings that follow from a name that differs anyway.
    implied = {f"{section}.name" for section in names} | {f"run.{section}" for section in names}
    changed = [f"{name} {old} -> {new}" for name, (old, new) in names.items()]
    for key in sorted({*old_settings, *new_settings} - implied - set(ignored)):
        old, new = old_settings.get(key), new_settings.get(key)
        if old != new:
            changed.append(f"{key} {_text(old)} -> {_text(new)}")
    old, new = _changed_midway(before), _changed_midway(after)
    if old != new:
        changed.append(f"settings changed midway: {old} -> {new}")
    counts = [run.report.results.validation.images for run in (before, after)]
    if None not in counts and counts[0] != counts[1]:
        changed.append(f"validation images {counts[0]:,} -> {counts[1]:,}")
    return changed


def _settings(run: RecordedRun) -> dict[str, Any]:
    """Return the settings that affect the run's figures, by ``section.key``.

    A setting that did not exist when the report was made has its default, which is what the older
    release did. ``data set`` is the kind of data set, not its folder.
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
    relevant = {name: value for name, value in found.items() if name not in _IRRELEVANT}
    return relevant | {"data set": path if path in ("demo", "synthetic") else "a folder"}


def _changed_midway(run: RecordedRun) -> str:
    """Return in words which settings were changed when the run was continued."""
    changes = [
        f"{change} at step {start.step}"
        for start in run.report.results.starts or ()
        for change in start.changes
    ]
    return ", ".join(changes) or "none"


def _changed_names(before: RecordedRun, after: RecordedRun) -> dict[str, tuple[str, str]]:
    old, new = asdict(before.report.name), asdict(after.report.name)
    return {key: (old[key] or "none", new[key] or "none") for key in old if old[key] != new[key]}


def _text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, float):
        return f"{value:.6g}"
    return printable(str(value))[:60]


def listed(changes: Sequence[str]) -> str:
    """Join differences on one line; of many only the first."""
    shown = "; ".join(changes[:_SHOWN_DIFFERENCES])
    more = len(changes) - _SHOWN_DIFFERENCES
    return f"{shown}; and {more} more" if more > 0 else shown


def check_same(
    before: RecordedRun, after: RecordedRun, ignored: Collection[str], remedy: str
) -> None:
    """Refuse two runs that are not the same named run.

    Raises:
        WorkspaceError: they differ; the message says where, and ``remedy``.
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
            f"{printable(str(run.path))} is from a run that ended early, status "
            f"{ended.status!r}{message}: continue the run, or leave it out"
        )


def check_distinct(runs: Sequence[RecordedRun]) -> None:
    """Refuse a report that is given twice, also as a copy: it would count as two runs.

    Raises:
        WorkspaceError: naming both.
    """
    seen: dict[str, RecordedRun] = {}
    for run in runs:
        content = json.dumps(to_json(run.report), sort_keys=True)
        if content in seen:
            raise WorkspaceError(
                f"{printable(str(seen[content].path))} and {printable(str(run.path))} are the same "
                "report: give each run once"
            )
        seen[content] = run


def device_names(run: RecordedRun) -> str:
    """Return the names of the devices, or of the processor, without their number."""
    environment = run.report.environment
    names = ", ".join(environment.device_names)
    device = str(run.report.config["platform"]["device"])
    # With the CPU, the processor decides the speed; how many cores are used does not name it.
    return (environment.cpu or names or "cpu") if device == "cpu" else (names or device)


def environment_of(run: RecordedRun) -> dict[str, str]:
    """Return what a run ran on, by key; ``-`` for what the report does not have."""
    environment = run.report.environment
    found = {key: getattr(environment, key) for key in ("cpu", *_SOFTWARE)}
    known = {key: "-" if value is None else str(value) for key, value in found.items()}
    return {"device": device_names(run), **known}


def short_commit(commit: str) -> str:
    """Return the first digits of a commit, with its ``-dirty`` if it has that."""
    digits, dash, dirty = commit.partition("-")
    return f"{digits[:8]}{dash}{dirty}"


def run_json(run: RecordedRun) -> dict[str, Any]:
    """Return path, seed and time of a run, for JSON."""
    return {
        "path": str(run.path),
        "seed": run.seed,
        "ended_at": run.ended_at.isoformat(timespec="seconds"),
        "ended_at_is_file_time": not run.time_is_known,
    }
