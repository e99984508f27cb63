"""Decide which runs are the same named run; list differences and environments of runs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from image_classification.config.keys import KEYS
from image_classification.core.errors import WorkspaceError
from image_classification.core.units import finite, printable
from image_classification.reporting.run_folder import RecordedRun, find_reports, read_run

# Settings that affect neither what is learned nor how fast. The folder of the data set differs
# between machines, so `_settings` compares the kind of data set instead.
_IRRELEVANT = frozenset(
    {
        "data.path",
        "data.split_file",
        "run.seed",
        "run.workspace",
        "run.resume",
        "run.checkpoint",
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
_ENVIRONMENT_KEYS = (
    "cpu",
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


def read_below(
    folder: Path, check: Callable[[RecordedRun], None] = lambda run: None
) -> tuple[list[RecordedRun], list[str]]:
    """Read every report below ``folder``; return the runs, and why other reports are left out.

    check: raises WorkspaceError for a run to leave out.

    Raises:
        WorkspaceError: the folder cannot be listed or has no report.
    """
    runs: list[RecordedRun] = []
    left_out: list[str] = []
    for path in find_reports(folder):
        try:
            run = read_run(path)
            check(run)
        except WorkspaceError as error:
            left_out.append(error.message)
            continue
        runs.append(run)
    return runs, left_out


def group_equal(
    runs: Iterable[RecordedRun], ignored: Collection[str] = ()
) -> list[list[RecordedRun]]:
    """Group runs that have the same name and settings, in the order of each group's first run.

    Evaluations of different weights are in different groups.
    """
    groups: list[list[RecordedRun]] = []
    for run in runs:
        for group in groups:
            if not differences(group[0], run, ignored, weights=True):
                group.append(run)
                break
        else:
            groups.append([run])
    return groups


def differences(
    before: RecordedRun, after: RecordedRun, ignored: Collection[str] = (), weights: bool = False
) -> list[str]:
    """Return in words why two runs are not the same named run: ``optim.lr 2.048 -> 1.0``.

    weights: evaluations of different weights are not the same.
    """
    names = _changed_names(before, after)
    changed = [f"{name} {old} -> {new}" for name, (old, new) in names.items()]
    # These settings follow from a name that differs anyway.
    implied = {f"{name}.name" for name in names} | {f"run.{name}" for name in names}
    old_settings, new_settings = _settings(before), _settings(after)
    if None not in (run.report.results.weights_sha256 for run in (before, after)):
        implied.add("model.pretrained_from_file")  # the hash identifies it, wherever it is
    for key in sorted({*old_settings, *new_settings} - implied - set(ignored)):
        old, new = old_settings.get(key), new_settings.get(key)
        if old != new:
            changed.append(f"{key} {_text(old)} -> {_text(new)}")
    midway = [_changed_midway(run) for run in (before, after)]
    if midway[0] != midway[1]:
        changed.append(f"settings changed midway: {midway[0]} -> {midway[1]}")
    images = [run.report.results.validation.images for run in (before, after)]
    if None not in images and images[0] != images[1]:
        changed.append(f"validation images {images[0]:,} -> {images[1]:,}")
    sets = [run.report.results.validation_set for run in (before, after)]
    known = None not in sets and images[0] == images[1] and "data.path" not in ignored
    if known and sets[0] != sets[1]:
        changed.append(f"other validation images ({sets[0]} -> {sets[1]})")
    if weights and (of := weights_texts(before, after)) is not None:
        changed.append(f"weights {of[0]} -> {of[1]}")
    return changed


def weights_texts(before: RecordedRun, after: RecordedRun) -> tuple[str, str] | None:
    """Return what identifies the weights of two evaluations; None if they are the same.

    It is the hash of the file, or its path if a report of an earlier release has no hash.
    """
    runs = (before, after)
    if any(run.report.name.mode != "evaluate" for run in runs):
        return None
    hashes = [run.report.results.weights_sha256 for run in runs]
    if None not in hashes:
        old, new = (f"sha256 {str(digest)[:12]}" for digest in hashes)
    else:
        old, new = (_text(run.report.config["run"].get("resume")) for run in runs)
    return None if old == new else (old, new)


def _changed_names(before: RecordedRun, after: RecordedRun) -> dict[str, tuple[str, str]]:
    old, new = asdict(before.report.name), asdict(after.report.name)
    return {key: (old[key] or "none", new[key] or "none") for key in old if old[key] != new[key]}


def _settings(run: RecordedRun) -> dict[str, Any]:
    """Return the settings that affect the run's figures, by ``section.key``.

    A setting that did not exist when the report was made has its default, which is what the older
    release did.
    """
    found = {name: finite(key.default) for name, key in KEYS.items() if key.has_default}
    for section, values in run.report.config.items():
        found |= {f"{section}.{key}": value for key, value in values.items()}
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
    """Raise WorkspaceError with the differences and ``remedy`` unless both are one named run."""
    changes = differences(before, after, ignored)
    if changes:
        files = f"{printable(str(before.path))} and {printable(str(after.path))}"
        more = ", or --ignore a setting that may differ"
        raise WorkspaceError(
            f"{files} are not the same named run ({listed(changes)}): {remedy}"
            f"{'' if _changed_names(before, after) else more}"
        )


def check_finished(run: RecordedRun) -> None:
    """Raise WorkspaceError if the run ended early: its figures are not those of the named run."""
    if not run.finished:
        ended = run.report.exit
        message = f" ({ended.message})" if ended.message else ""
        raise WorkspaceError(
            f"{printable(str(run.path))} is from a run that ended early, status "
            f"{ended.status!r}{message}: continue the run, or leave it out"
        )


def device_names(run: RecordedRun) -> str:
    """Return the names of the devices, or of the processor, without their number."""
    environment = run.report.environment
    names = ", ".join(environment.device_names)
    device = str(run.report.config["platform"]["device"])
    # With the CPU, the processor decides the speed; how many cores are used does not name it.
    return (environment.cpu or names or "cpu") if device == "cpu" else (names or device)


def environment_of(run: RecordedRun) -> dict[str, str]:
    """Return what a run ran on, by key; ``-`` for what the report does not have."""
    found = {"device": device_names(run)}
    for key in _ENVIRONMENT_KEYS:
        value = getattr(run.report.environment, key)
        found[key] = "-" if value is None else str(value)
    return found


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
