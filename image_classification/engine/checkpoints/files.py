"""Checkpoints on disk: one folder per step, hashed, written under another name and renamed.

::

    checkpoints/step-0000000352/
        model.safetensors   weights and buffers, with what is needed to rebuild the model
        state.safetensors   optimizer tensors, moving average
        state.json          progress, loss scale, the configuration it belongs to
        manifest.json       sha256 and size of the three files above
    checkpoints/best.json   which step validated best

No file is a pickle. A checkpoint exists once its folder has its final name; the manifest tells
whether it is complete.
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
from safetensors import SafetensorError
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
MODEL, STATE, META, MANIFEST = (
    "model.safetensors",
    "state.safetensors",
    "state.json",
    "manifest.json",
)
_HASHED_FILES = (MODEL, STATE, META)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*-(\d{10,})")
_OLD_NAME = re.compile(rf"\.old-({_NAME.pattern})-\d+")
_BEST_TEMPORARY = re.compile(r"\.best\.json\.\d+\.tmp")

# Kept free on a full disk for the headers, best.json and the lines of the run's records.
_RESERVE_BYTES = 1 << 20


@dataclass(frozen=True)
class Snapshot:
    """The content of a checkpoint, on the host.

    model and state: tensors by name, in any memory layout. model_header: strings for the
    safetensors header. meta: JSON values (progress, loss scale, configuration).
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
    """Write the checkpoint of ``step`` into ``folder`` (the run's ``checkpoints/``).

    prefix: what the checkpoint folder's name starts with.

    Raises:
        WorkspaceError: it could not be written; earlier checkpoints are untouched and nothing
            incomplete has a checkpoint's name.
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
    # Before the first byte: filling the disk would fail the run's other files, which are written
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
    files = {
        name: {"sha256": sha256_of(folder / name), "bytes": (folder / name).stat().st_size}
        for name in _HASHED_FILES
    }
    _write_json(folder / MANIFEST, {"format": FORMAT, "files": files})
    sync_folder(folder)


def _write_json(path: Path, value: Any) -> None:
    with synced_file(path) as file:
        file.write(_json(value))


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def _rename(temporary: Path, final: Path) -> None:
    """Give a complete checkpoint its name, replacing an older one of the same step."""
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

    A checkpoint that was being replaced by one of the same step is restored if its replacement
    never got its name.
    """
    if not folder.is_dir():
        return
    for entry in list(os.scandir(folder)):
        if _BEST_TEMPORARY.fullmatch(entry.name):
            Path(entry.path).unlink(missing_ok=True)
        elif entry.name.startswith((".tmp-", ".old-")):
            old = _OLD_NAME.fullmatch(entry.name)
            final = folder / old[1] if old else None
            if final and not final.exists() and _damage(Path(entry.path)) is None:
                os.rename(entry.path, final)
            else:
                shutil.rmtree(entry.path, ignore_errors=True)


def verify(path: Path) -> None:
    """Check a checkpoint folder against its manifest.

    Raises:
        CheckpointError: a file is missing, cut short or changed; the message names it.
    """
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint at {path}: give an existing folder to --resume")
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        files = manifest["files"]
        expected = {name: (files[name]["sha256"], files[name]["bytes"]) for name in _HASHED_FILES}
        version = manifest["format"]
    except OSError as error:
        raise CheckpointError(
            f"{path} is not a whole checkpoint: {MANIFEST} cannot be read ({error.strerror}); "
            "use another one"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"damaged checkpoint {path}: {MANIFEST} is not readable; use another one"
        ) from error
    if version != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {version}; this release reads {FORMAT}"
        )
    for name, (digest, size_bytes) in expected.items():
        file = path / name
        try:
            found_bytes = file.stat().st_size
            same = found_bytes == size_bytes and sha256_of(file) == digest
        except OSError as error:
            raise CheckpointError(
                f"damaged checkpoint {path}: {name} cannot be read ({error.strerror}); "
                "use another one"
            ) from error
        if not same:
            raise CheckpointError(
                f"damaged checkpoint {path}: {name} does not match its hash "
                f"({found_bytes} bytes, {size_bytes} expected); use another one"
            )


def _damage(path: Path) -> str | None:
    """Return what is wrong with the checkpoint at ``path``; None if it is complete."""
    try:
        verify(path)
    except CheckpointError as error:
        return error.message
    return None


def load(path: Path) -> Snapshot:
    """Read a checkpoint after checking every hash.

    Raises:
        CheckpointError: missing or damaged.
    """
    verify(path)
    try:
        return Snapshot(
            model=load_file(path / MODEL),
            model_header={},
            state=load_file(path / STATE),
            meta=json.loads((path / META).read_bytes()),
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"damaged checkpoint {path}: {error}; use another one") from error


def listed(folder: Path) -> list[Saved]:
    """Return the checkpoints in ``folder`` sorted by step; incomplete ones have other names."""
    if not folder.is_dir():
        return []
    found = []
    for entry in os.scandir(folder):
        match = _NAME.fullmatch(entry.name)
        if match and entry.is_dir():
            found.append(Saved(Path(entry.path), int(match[1])))
    return sorted(found, key=lambda saved: saved.step)


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


def find(target: str, own_folder: Path) -> tuple[Saved | None, list[str]]:
    """Find what ``--resume TARGET`` names: ``auto``, a checkpoint folder or a run's folder.

    own_folder: the run's ``checkpoints/``, searched for ``auto``. Returns the checkpoint (None:
    ``auto`` in a run that has none yet) and warnings.

    Raises:
        CheckpointError: a named target that is missing or damaged, or ``auto`` where every
            checkpoint is damaged.
    """
    if target == "auto":
        saved, problems = newest_good(own_folder)
        if saved is None and problems:
            raise CheckpointError(
                f"no usable checkpoint in {own_folder} ({problems[0]}); remove the folder to "
                "start over"
            )
        return saved, problems
    path = Path(target)
    try:
        path.stat()
    except OSError as error:
        raise CheckpointError(
            f"no checkpoint at {path} ({error.strerror}): give an existing folder to --resume"
        ) from error
    inner = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    if path.is_dir() and listed(inner):
        saved, problems = newest_good(inner)
        if saved is None:
            raise CheckpointError(f"no usable checkpoint in {inner}: {problems[0]}")
        return saved, problems
    verify(path)
    return Saved(path, _step_of(path)), []


def _step_of(path: Path) -> int:
    match = _NAME.fullmatch(path.resolve().name)
    if match:
        return int(match[1])
    try:
        return int(json.loads((path / META).read_bytes())["progress"]["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"damaged checkpoint {path}: {META} names no step; use another one"
        ) from error


def note_best(folder: Path, saved: Saved, top1: float) -> None:
    """Write ``best.json``. Raises WorkspaceError."""
    content = {"checkpoint": saved.path.name, "step": saved.step, "top1": top1}
    write_atomically(folder / "best.json", _json(content))


def best_step(folder: Path) -> int | None:
    """Return the step of ``best.json``; None without that file.

    Raises:
        CheckpointError: the file is damaged.
    """
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

    The newest one always stays, since ``--resume auto`` needs it. To be called after a save: no
    checkpoint is deleted for one that is yet to be written. Raises OSError.
    """
    if keep < 0:
        return
    saved = listed(folder)
    kept = {s.step for s in saved[-max(keep, 1) :]} | set(protect)
    for old in saved:
        if old.step not in kept:
            # Renamed first, so that an interrupted delete leaves nothing with a checkpoint's name.
            doomed = folder / f".old-{old.step:010d}-{os.getpid()}"
            os.rename(old.path, doomed)
            shutil.rmtree(doomed, ignore_errors=True)
