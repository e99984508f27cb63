"""Checkpoints on disk: one folder per step, hashed, written under another name and renamed.

::

    checkpoints/step-0000000352/
        model.safetensors   weights and buffers, with what is needed to rebuild the model
        state.safetensors   optimizer tensors, moving average
        state.json          progress, loss scale, the configuration it belongs to
        manifest.json       sha256 and size of the three files above
    checkpoints/best.json   which step validated best

No file is a pickle. A folder gets a checkpoint's name once it is complete; the manifest shows
later damage.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from image_classification.core.errors import CheckpointError
from image_classification.core.files import (
    explained,
    sha256_of,
    sync_folder,
    synced_file,
    write_atomically,
)
from image_classification.models.weights import write_tensors

FORMAT = 1
MODEL, STATE, META = _HASHED_FILES = ("model.safetensors", "state.safetensors", "state.json")
MANIFEST = "manifest.json"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*-(\d{10,})")
_OLD_NAME = re.compile(rf"\.old-({_NAME.pattern})-\d+")

# Space to leave free on the disk for the headers, best.json and the lines of the run's records.
_RESERVE_BYTES = 1 << 20


@dataclass(frozen=True)
class Snapshot:
    """The content of a checkpoint, on the host.

    model, state: tensors by name, in any memory layout. model_header: for the safetensors header.
    meta: JSON values (progress, loss scale, configuration).
    """

    model: Mapping[str, torch.Tensor]
    model_header: Mapping[str, str]
    state: Mapping[str, torch.Tensor]
    meta: Mapping[str, Any]


@dataclass(frozen=True)
class Saved:
    """A checkpoint on disk."""

    path: Path
    step: int


def save(folder: Path, step: int, snapshot: Snapshot, prefix: str = "step") -> Saved:
    """Write the checkpoint of ``step`` as ``FOLDER/PREFIX-STEP``.

    Raises:
        WorkspaceError: it could not be written; earlier checkpoints are untouched.
    """
    final = folder / f"{prefix}-{step:010d}"
    temporary = folder / f".tmp-{step:010d}-{os.getpid()}"
    with explained(final, "write checkpoint"):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        _check_free_space(folder, snapshot)
        temporary.mkdir()
        try:
            _write(temporary, snapshot)
            _rename(temporary, final)
            sync_folder(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return Saved(final, step)


def _check_free_space(folder: Path, snapshot: Snapshot) -> None:
    # Checked before writing: a full disk would also fail the run's other files, which are written
    # at the same time. Some file systems report no sizes.
    tensors = (*snapshot.model.values(), *snapshot.state.values())
    needed_bytes = sum(t.numel() * t.element_size() for t in tensors) + _RESERVE_BYTES
    disk = os.statvfs(folder)
    if disk.f_blocks and disk.f_bavail * disk.f_frsize < needed_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _write(folder: Path, snapshot: Snapshot) -> None:
    with synced_file(folder / MODEL) as file:
        write_tensors(file, snapshot.model, {"format": "pt", **snapshot.model_header})
    with synced_file(folder / STATE) as file:
        write_tensors(file, snapshot.state)
    _write_json(folder / META, snapshot.meta)
    files = {name: _fingerprint(folder / name) for name in _HASHED_FILES}
    _write_json(folder / MANIFEST, {"format": FORMAT, "files": files})
    sync_folder(folder)


def _fingerprint(file: Path) -> dict[str, Any]:
    return {"sha256": sha256_of(file), "bytes": file.stat().st_size}


def _write_json(path: Path, value: Any) -> None:
    with synced_file(path) as file:
        file.write(_json(value))


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def _rename(temporary: Path, final: Path) -> None:
    """Rename a complete checkpoint to ``final``, replacing an older one of the same step."""
    old = final.with_name(f".old-{final.name}-{os.getpid()}")
    replacing = final.exists()
    if replacing:
        # Two renames: after a kill between them, `clean_up` restores the older one.
        os.rename(final, old)
    try:
        os.rename(temporary, final)
    except OSError:
        if replacing:
            os.rename(old, final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def clean_up(folder: Path) -> None:
    """Remove what killed processes left incomplete in ``folder``, whose lock the caller holds.

    A checkpoint that was being replaced by one of the same step is restored if its replacement was
    not renamed yet. Raises OSError, for example if the folder cannot be read.
    """
    if not folder.is_dir():
        return
    for path in list(folder.iterdir()):
        if path.match(".best.json.*.tmp"):
            path.unlink(missing_ok=True)
        elif path.name.startswith((".tmp-", ".old-")):
            old = _OLD_NAME.fullmatch(path.name)
            final = folder / old[1] if old else None
            if final and not final.exists() and _damage(path) is None:
                os.rename(path, final)
            else:
                shutil.rmtree(path, ignore_errors=True)


def verify(path: Path) -> None:
    """Raise CheckpointError, naming the file, unless the checkpoint matches its manifest."""
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint at {path}: give an existing folder to --resume")
    name = MANIFEST
    try:
        manifest = json.loads((path / name).read_bytes())
        version = manifest["format"]
        if version != FORMAT:
            raise CheckpointError(
                f"{path} has checkpoint format {version}; this release reads {FORMAT}"
            )
        for name in _HASHED_FILES:
            found, expected = _fingerprint(path / name), manifest["files"][name]
            if found != expected:
                sizes = f"{found['bytes']} bytes, {expected['bytes']} expected"
                raise CheckpointError(_damaged(path, f"{name} does not match its hash ({sizes})"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(_damaged(path, f"{name} cannot be read ({error})")) from error


def _damaged(path: Path, reason: str) -> str:
    return f"damaged checkpoint {path}: {reason}; use another one"


def _damage(path: Path) -> str | None:
    """Return what is wrong with the checkpoint at ``path``; None if nothing."""
    try:
        verify(path)
    except CheckpointError as error:
        return error.message
    return None


def load(path: Path) -> Snapshot:
    """Read a checkpoint after checking every hash. Raises CheckpointError as `verify`."""
    verify(path)
    try:
        return Snapshot(
            model=load_file(path / MODEL),
            model_header={},
            state=load_file(path / STATE),
            meta=json.loads((path / META).read_bytes()),
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(_damaged(path, str(error))) from error


def read_meta(path: Path) -> dict[str, Any]:
    """Return the JSON values of the checkpoint at ``path``. Raises CheckpointError."""
    try:
        content: dict[str, Any] = json.loads((path / META).read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(_damaged(path, f"{META} cannot be read ({error})")) from error
    return content


def listed(folder: Path) -> list[Saved]:
    """Return the checkpoints in ``folder`` sorted by step."""
    if not folder.is_dir():
        return []
    found = []
    for entry in os.scandir(folder):  # unlike glob, it raises where the folder cannot be read
        match = _NAME.fullmatch(entry.name)
        if match and entry.is_dir():
            found.append(Saved(Path(entry.path), int(match[1])))
    return sorted(found, key=lambda saved: saved.step)


def describe_newest(folder: Path) -> str:
    """Return which checkpoint is the newest, for an error message."""
    try:
        saved = listed(folder)
    except OSError:
        return "earlier checkpoints were not touched"
    return f"{saved[-1].path} is kept" if saved else "no checkpoint had been saved"


def newest_good(folder: Path) -> tuple[Saved | None, list[str]]:
    """Return the newest complete checkpoint, and what is wrong with newer ones."""
    problems: list[str] = []
    for saved in reversed(listed(folder)):
        problem = _damage(saved.path)
        if problem is None:
            return saved, problems
        problems.append(problem)
    return None, problems


def weights_file(path: Path) -> Path:
    """Return the file with the model of the checkpoint at ``path``."""
    return path / MODEL


def moving_average(path: Path) -> dict[str, torch.Tensor]:
    """Return the moving average in the checkpoint at ``path``; empty if it has none.

    Raises:
        CheckpointError: damaged.
    """
    try:
        with safe_open(path / STATE, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith("ema.")]  # noqa: SIM118
            return {name.removeprefix("ema."): file.get_tensor(name) for name in names}
    except FileNotFoundError:
        return {}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(_damaged(path, f"{STATE} cannot be read ({error})")) from error


def checkpoint_folder(target: str, own_folder: Path) -> Path | None:
    """Return the folder with the checkpoints of the run that ``--resume TARGET`` names.

    None if TARGET is a checkpoint itself. own_folder: the run's ``checkpoints/``, for ``auto``.

    Raises:
        CheckpointError: there is no such folder.
    """
    if target == "auto":
        return own_folder
    path = Path(target)
    try:
        path.stat()
        folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
        return folder if listed(folder) else None
    except OSError as error:
        raise CheckpointError(
            f"no checkpoint at {path} ({error.strerror}): give an existing folder to --resume"
        ) from error


def find(target: str, own_folder: Path, which: str = "last") -> tuple[Path | None, list[str]]:
    """Find what ``--resume TARGET`` names: ``auto``, a checkpoint folder or a run's folder.

    own_folder: the run's ``checkpoints/``, searched for ``auto``. which: of a run's checkpoints
    ``best``, ``last`` (the newest intact one) or a step. Returns the checkpoint (None: ``auto`` in
    a run that has none yet) and warnings.

    Raises:
        CheckpointError: a named target that is missing or damaged, or a folder where every
            checkpoint is damaged.
    """
    folder = checkpoint_folder(target, own_folder)
    if folder is None:
        verify(Path(target))
        return Path(target), []
    if which != "last":
        return _find_step(folder, which), []
    saved, problems = newest_good(folder)
    if saved is None and problems:
        remedy = "remove the folder to start over" if target == "auto" else "give another one"
        raise CheckpointError(f"no usable checkpoint in {folder} ({problems[0]}); {remedy}")
    return saved.path if saved else None, problems


def _find_step(folder: Path, which: str) -> Path:
    """Return the checkpoint ``best``, or that of a step, after checking its hashes."""
    best, saved = best_step(folder), listed(folder)
    steps = [f"{s.step} (best)" if s.step == best else str(s.step) for s in saved]
    there = f"{folder} has {', '.join(steps) or 'none'}"
    if which == "best" and best is None:
        raise CheckpointError(
            f"{folder.parent} names no best checkpoint (none was validated, or the best is in the "
            f"run that it continued): give --checkpoint last or a step ({there})"
        )
    step = best if which == "best" else int(which)
    found = [s.path for s in saved if s.step == step]
    if not found:
        name = f"best checkpoint (step {step})" if which == "best" else f"checkpoint of step {step}"
        raise CheckpointError(f"there is no {name}: {there}; give one of them to --checkpoint")
    verify(found[-1])
    return found[-1]


def note_best(folder: Path, saved: Saved, top1: float) -> None:
    """Write ``best.json``. Raises WorkspaceError."""
    content = {"checkpoint": saved.path.name, "step": saved.step, "top1": top1}
    write_atomically(folder / "best.json", _json(content))


def best_step(folder: Path) -> int | None:
    """Return the step of ``best.json``; None without that file. Raises CheckpointError."""
    try:
        return int(json.loads((folder / "best.json").read_bytes())["step"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / 'best.json'} is damaged: remove it (the checkpoints are not affected)"
        ) from error


def rotate(folder: Path, keep: int, protect: Iterable[int] = ()) -> None:
    """Delete all but the ``keep`` newest checkpoints (-1: keep all), never a protected step.

    The newest one always stays, since ``--resume auto`` needs it. Raises OSError.
    """
    if keep < 0:
        return
    saved = listed(folder)
    kept = {s.step for s in saved[-max(keep, 1) :]} | set(protect)
    for old in saved:
        if old.step not in kept:
            # Renamed first, so that no partly deleted folder has a checkpoint's name.
            doomed = folder / f".old-{old.step:010d}-{os.getpid()}"
            os.rename(old.path, doomed)
            shutil.rmtree(doomed, ignore_errors=True)
