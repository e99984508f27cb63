"""Put ImageNet's official archives, or a flat ``val/``, into class folders.

A class's folder appears whole or not at all, so that an interrupted run is continued by starting
it again. Sources stay where they are unless their deletion is asked for.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from image_classification.core.errors import DataError
from image_classification.data.formats.folder import IMAGE_EXTENSIONS
from image_classification.data.tools.imagenet import ARCHIVES, find_labels, is_class_name

_SCRATCH = ".partial-"
"""Unfinished class folders; an index passes over names that start with a dot."""

_COPY_BYTES = 1 << 20
_SPARE = 1.02  # blocks are larger than the files' ends


SplitProgress = Callable[[str, int, int], None]
"""Called with the split, the bytes placed, and the bytes to place."""


@dataclass
class SplitReport:
    """What became of one split: classes and images it has now, and how much of it is new."""

    source: str
    num_classes: int = 0
    num_images: int = 0
    num_new_images: int = 0
    passed_over: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Source:
    """An image to place: ``size`` bytes, from a file of its own or from inside an archive."""

    name: str
    size: int
    path: Path | None = None
    member: tarfile.TarInfo | None = None


def prepare(
    source: Path,
    out: Path,
    *,
    labels: Path | None = None,
    delete_source: bool = False,
    progress: SplitProgress = lambda split, done, total: None,
) -> dict[str, SplitReport]:
    """Make ``out/train/<class>/`` and ``out/val/<class>/`` of what lies in ``source``.

    ``ILSVRC2012_img_train.tar`` (one tar a class inside), ``ILSVRC2012_img_val.tar``, or images
    directly in ``val/``; whichever of them is there. Validation classes come from ``labels`` or
    the kit (see `image_classification.data.tools.imagenet`). A flat ``val/`` is linked where the
    file system can, copied otherwise.

    Raises:
        DataError: nothing to prepare, an archive that is damaged or holds anything but plain
            files, no labels, no space, or a class folder there already that holds something else.
    """
    if not source.is_dir():
        raise DataError(f"no folder {source}: give the folder that holds {ARCHIVES['train']}")
    reports: dict[str, SplitReport] = {}
    try:
        train, val = source / ARCHIVES["train"], source / ARCHIVES["val"]
        used: list[Path] = []
        if train.is_file():
            reports["train"] = _prepare_train(train, out / "train", progress)
            used.append(train)
        if val.is_file():
            reports["val"] = _prepare_val_archive(val, out / "val", labels, progress)
            used.append(val)
        elif flat := _flat_images(source / "val"):
            reports["val"] = _prepare_flat(flat, source, out / "val", labels, progress)
            used.extend(image.path for image in flat if image.path is not None)
        if not reports:
            raise DataError(
                f"nothing to prepare in {source}: neither {ARCHIVES['train']} nor "
                f"{ARCHIVES['val']} nor images directly in val/ (class folders are ready as they "
                f"are)"
            )
        if delete_source:
            for path in used:
                path.unlink()
    except OSError as error:
        raise DataError(
            f"cannot prepare {source} into {out}: {error.filename or ''} {error.strerror}: check "
            f"space and permissions, then start it again to go on"
        ) from error
    return reports


def _prepare_train(path: Path, folder: Path, progress: SplitProgress) -> SplitReport:
    report = SplitReport(str(path))
    with _opened(path) as archive:
        inner = []
        for member in _plain_members(archive, path):
            name = PurePosixPath(member.name).name
            if not name.endswith(".tar") or not is_class_name(name.removesuffix(".tar")):
                report.passed_over.append(member.name)
                continue
            inner.append((name.removesuffix(".tar"), member))
        if not inner:
            raise DataError(f"{path} holds no <class>.tar: it is not the ImageNet train archive")
        if len({name for name, _ in inner}) != len(inner):
            raise DataError(f"{path} holds a class twice: get it again")
        _check_space(folder, sum(m.size for name, m in inner if not (folder / name).is_dir()))
        total, done = sum(member.size for _, member in inner), 0
        for name, member in inner:
            file = archive.extractfile(member)
            assert file is not None
            label = f"{path}:{member.name}"
            with _opened(label, file) as nested:
                images = _image_members(nested, label, report)
                _place_class(folder / name, images, nested, label, report)
            done += member.size
            progress("train", done, total)
    return report


def _prepare_val_archive(
    path: Path, folder: Path, labels: Path | None, progress: SplitProgress
) -> SplitReport:
    report = SplitReport(str(path))
    with _opened(path) as archive:
        images = _image_members(archive, str(path), report)
        by_class = _by_class(images, path.parent, labels)
        missing = [
            n for name, group in by_class.items() if not (folder / name).is_dir() for n in group
        ]
        _check_space(folder, sum(image.size for image in missing))
        _place_classes(by_class, folder, archive, str(path), report, progress)
    return report


def _prepare_flat(
    images: list[_Source], source: Path, folder: Path, labels: Path | None, progress: SplitProgress
) -> SplitReport:
    report = SplitReport(str(source / "val"))
    by_class = _by_class(images, source, labels)
    folder.mkdir(parents=True, exist_ok=True)
    if folder.stat().st_dev != (source / "val").stat().st_dev:
        _check_space(folder, sum(image.size for image in images))
    _place_classes(by_class, folder, None, report.source, report, progress)
    return report


def _place_classes(
    by_class: dict[str, list[_Source]],
    folder: Path,
    archive: tarfile.TarFile | None,
    label: str,
    report: SplitReport,
    progress: SplitProgress,
) -> None:
    total = sum(image.size for group in by_class.values() for image in group)
    done = 0
    for name, group in sorted(by_class.items()):
        _place_class(folder / name, group, archive, label, report)
        done += sum(image.size for image in group)
        progress("val", done, total)


def _place_class(
    folder: Path,
    images: list[_Source],
    archive: tarfile.TarFile | None,
    label: str,
    report: SplitReport,
) -> None:
    """Fill ``folder`` with ``images``, through a folder beside it; a finished one is left alone."""
    if not images:
        raise DataError(f"{label} holds no image for {folder.name}: get it again")
    report.num_classes += 1
    report.num_images += len(images)
    if folder.is_dir():
        _check_finished(folder, images, label)
        return
    scratch = folder.with_name(f"{_SCRATCH}{folder.name}")
    if scratch.exists():  # an earlier run was interrupted here
        shutil.rmtree(scratch)
    scratch.mkdir(parents=True)
    try:
        for image in images:
            _place_image(scratch / image.name, image, archive, label)
        os.rename(scratch, folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    report.num_new_images += len(images)


def _place_image(target: Path, image: _Source, archive: tarfile.TarFile | None, label: str) -> None:
    if image.path is not None:
        try:
            os.link(image.path, target)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(image.path, target)
        return
    assert archive is not None and image.member is not None
    try:
        content = archive.extractfile(image.member)
        assert content is not None
        with open(target, "xb") as file:
            shutil.copyfileobj(content, file, _COPY_BYTES)
            written = file.tell()
    except tarfile.TarError as error:
        raise _damaged(label, error) from error
    if written != image.size:
        raise _damaged(label, f"{image.name} is cut short")


def _check_finished(folder: Path, images: list[_Source], label: str) -> None:
    """Refuse a class folder that some other hand has filled, or that has lost files."""
    with os.scandir(folder) as entries:
        there = {entry.name: entry.stat().st_size for entry in entries}
    differing = [image.name for image in images if there.get(image.name) != image.size]
    if differing:
        raise DataError(
            f"{folder} is there but {len(differing)} of its {len(images)} images are missing or "
            f"differ from {label}, such as {differing[0]}: remove the folder and start again"
        )


def _by_class(images: list[_Source], folder: Path, labels: Path | None) -> dict[str, list[_Source]]:
    found = find_labels(folder, labels)
    by_class: dict[str, list[_Source]] = {}
    for image in images:
        by_class.setdefault(found.class_of(image.name), []).append(image)
    if len(images) < len(found):
        raise DataError(
            f"{found.source} names {len(found)} images but only {len(images)} are there: get the "
            f"rest, or give a list of these alone with --labels"
        )
    return by_class


def _flat_images(folder: Path) -> list[_Source]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        files = sorted((e for e in entries if _is_image(e.name)), key=lambda e: e.name)
    return [
        _Source(entry.name, entry.stat().st_size, path=Path(entry.path))
        for entry in files
        if entry.is_file(follow_symlinks=False)
    ]


def _image_members(archive: tarfile.TarFile, label: str, report: SplitReport) -> list[_Source]:
    images: dict[str, _Source] = {}
    for member in _plain_members(archive, label):
        name = PurePosixPath(member.name).name
        if not _is_image(name):
            report.passed_over.append(member.name)
        elif name in images:
            raise DataError(f"{label} holds {name} twice: get it again")
        else:
            images[name] = _Source(name, member.size, member=member)
    return list(images.values())


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_EXTENSIONS) and not name.startswith(".")


def _plain_members(archive: tarfile.TarFile, label: Path | str) -> Iterator[tarfile.TarInfo]:
    """Yield the files of ``archive``; folders are passed over.

    Raises:
        DataError: a link, a device, or a name that leads out of the archive; or it is damaged.
    """
    try:
        for member in archive:
            parts = PurePosixPath(member.name).parts
            odd = "\\" in member.name or "\0" in member.name
            if member.name.startswith("/") or ".." in parts or odd:
                raise DataError(
                    f"{label} holds {member.name!r}, which leads out of the archive: it is not "
                    f"ImageNet's; get it again"
                )
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise DataError(
                    f"{label} holds {member.name!r}, which is a link or a device, no file: it is "
                    f"not ImageNet's; get it again"
                )
            yield member
    except (tarfile.TarError, EOFError) as error:
        raise _damaged(label, error) from error


def _opened(label: Path | str, file: IO[bytes] | None = None) -> tarfile.TarFile:
    try:
        if file is None:
            return tarfile.open(label, "r:")
        return tarfile.open(fileobj=file, mode="r:")
    except tarfile.TarError as error:
        raise _damaged(label, error) from error


def _damaged(label: Path | str, why: object) -> DataError:
    return DataError(f"archive {label} is damaged ({why}): get it again")


def _check_space(folder: Path, num_bytes: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if num_bytes * _SPARE > free:
        raise DataError(
            f"{folder} needs {num_bytes * _SPARE / 1e9:.1f} GB and {free / 1e9:.1f} GB are free: "
            f"make room, or name another folder with -o"
        )
