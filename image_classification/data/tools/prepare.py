"""Put ImageNet's official archives, or a flat ``val/``, into class folders.

Each class folder is filled under a temporary name and then renamed, so an interrupted run continues
when it is started again. The sources are kept unless ``delete_source`` is given.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from image_classification.core.errors import DataError
from image_classification.data.formats.folder import IMAGE_EXTENSIONS
from image_classification.data.tools.imagenet import ARCHIVES, find_labels, is_class_name
from image_classification.data.tools.parallel import Progress, no_progress

_SCRATCH = ".partial-"
"""Prefix of unfinished class folders; an index skips names that start with a dot."""

_COPY_BYTES = 1 << 20
_SPACE_MARGIN = 1.02  # files occupy whole blocks


@dataclass
class SplitReport:
    """What `prepare` did to one split: all its classes and images, and how many are new.

    skipped: names of the archive members that are not images.
    """

    source: str
    num_classes: int = 0
    num_images: int = 0
    num_new_images: int = 0
    skipped: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Image:
    """An image of ``size`` bytes to place: a file, or a member of an open archive."""

    name: str
    size: int
    path: Path | None = None
    archive: tarfile.TarFile | None = None
    member: tarfile.TarInfo | None = None


def prepare(
    source: Path,
    out: Path,
    *,
    labels: Path | None = None,
    delete_source: bool = False,
    progress: Progress = no_progress,
) -> dict[str, SplitReport]:
    """Make ``out/train/<class>/`` and ``out/val/<class>/`` from what is in ``source``.

    It takes ``ILSVRC2012_img_train.tar`` (one tar per class inside), ``ILSVRC2012_img_val.tar``,
    or images directly in ``val/``, whichever exist. The classes of the validation images come from
    ``labels`` or the development kit (see `imagenet.find_labels`). Images of a flat ``val/`` are
    hard-linked if the file system can, and copied otherwise. progress: in bytes.

    Raises:
        DataError: there is nothing to prepare, an archive is damaged or holds anything but plain
            files, there are no labels or not enough space, or a class folder exists already with
            other content.
    """
    if not source.is_dir():
        raise DataError(f"no folder {source}: give the folder that holds {ARCHIVES['train']}")
    reports: dict[str, SplitReport] = {}
    used: list[Path] = []
    train, val = source / ARCHIVES["train"], source / ARCHIVES["val"]
    try:
        if train.is_file():
            reports["train"] = _prepare_train(train, out / "train", progress)
            used.append(train)
        if val.is_file():
            reports["val"] = _prepare_val_archive(val, out / "val", labels, progress)
            used.append(val)
        elif flat := _flat_images(source / "val"):
            reports["val"] = _prepare_flat_val(flat, source, out / "val", labels, progress)
            used.extend(image.path for image in flat if image.path is not None)
        if not reports:
            raise DataError(
                f"nothing to prepare in {source}: neither {ARCHIVES['train']} nor "
                f"{ARCHIVES['val']} nor images directly in val/ (class folders can be used as they "
                f"are)"
            )
        if delete_source:
            for path in used:
                path.unlink()
    except OSError as error:
        raise DataError(
            f"cannot prepare {source} into {out}: {error.filename or ''} {error.strerror}: check "
            f"space and permissions, then start it again to continue"
        ) from error
    return reports


def _prepare_train(path: Path, folder: Path, progress: Progress) -> SplitReport:
    report = SplitReport(str(path))
    classes: dict[str, tarfile.TarInfo] = {}
    with _open_tar(path) as archive:
        for member in _plain_members(archive, path):
            name, extension = os.path.splitext(PurePosixPath(member.name).name)
            if extension != ".tar" or not is_class_name(name):
                report.skipped.append(member.name)
            elif name in classes:
                raise DataError(f"{path} holds the class {name} twice: download it again")
            else:
                classes[name] = member
        if not classes:
            raise DataError(f"{path} holds no <class>.tar: it is not the ImageNet train archive")
        missing = [m.size for name, m in classes.items() if not (folder / name).is_dir()]
        _check_space(folder, sum(missing))
        total, done = sum(member.size for member in classes.values()), 0
        for name, member in classes.items():
            label = f"{path}:{member.name}"
            with _open_tar(label, archive.extractfile(member)) as nested:
                _place_class(folder / name, _image_members(nested, label, report), label, report)
            done += member.size
            progress("train", done, total)
    return report


def _prepare_val_archive(
    path: Path, folder: Path, labels: Path | None, progress: Progress
) -> SplitReport:
    report = SplitReport(str(path))
    with _open_tar(path) as archive:
        by_class = _by_class(_image_members(archive, path, report), path.parent, labels)
        missing = [group for name, group in by_class.items() if not (folder / name).is_dir()]
        _check_space(folder, sum(image.size for group in missing for image in group))
        _place_val_classes(by_class, folder, report, progress)
    return report


def _prepare_flat_val(
    images: list[_Image], source: Path, folder: Path, labels: Path | None, progress: Progress
) -> SplitReport:
    report = SplitReport(str(source / "val"))
    by_class = _by_class(images, source, labels)
    folder.mkdir(parents=True, exist_ok=True)
    if folder.stat().st_dev != (source / "val").stat().st_dev:  # hard links need no space
        _check_space(folder, sum(image.size for image in images))
    _place_val_classes(by_class, folder, report, progress)
    return report


def _place_val_classes(
    by_class: dict[str, list[_Image]], folder: Path, report: SplitReport, progress: Progress
) -> None:
    sizes = {name: sum(image.size for image in group) for name, group in by_class.items()}
    done = 0
    for name, group in sorted(by_class.items()):
        _place_class(folder / name, group, report.source, report)
        done += sizes[name]
        progress("val", done, sum(sizes.values()))


def _place_class(folder: Path, images: list[_Image], label: str, report: SplitReport) -> None:
    """Fill ``folder`` with ``images`` under a temporary name, then rename it.

    A folder that exists already is compared by the sizes of its files and left as it is.
    """
    if not images:
        raise DataError(f"{label} holds no image for {folder.name}: download it again")
    report.num_classes += 1
    report.num_images += len(images)
    if folder.is_dir():
        _check_finished(folder, images, label)
        return
    scratch = folder.with_name(f"{_SCRATCH}{folder.name}")
    if scratch.exists():  # left by a killed run
        shutil.rmtree(scratch)
    scratch.mkdir(parents=True)
    try:
        for image in images:
            _place_image(scratch / image.name, image, label)
        os.rename(scratch, folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    report.num_new_images += len(images)


def _place_image(target: Path, image: _Image, label: str) -> None:
    if image.path is not None:
        try:
            os.link(image.path, target)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(image.path, target)
        return
    assert image.archive is not None and image.member is not None
    try:
        content = image.archive.extractfile(image.member)
        assert content is not None
        with open(target, "xb") as file:
            shutil.copyfileobj(content, file, _COPY_BYTES)
            num_written = file.tell()
    except tarfile.TarError as error:
        raise _damaged(label, error) from error
    if num_written != image.size:
        raise _damaged(label, f"{image.name} is cut short")


def _check_finished(folder: Path, images: list[_Image], label: str) -> None:
    """Refuse a class folder whose files are not those of an earlier run."""
    with os.scandir(folder) as entries:
        sizes = {entry.name: entry.stat().st_size for entry in entries}
    differing = [image.name for image in images if sizes.get(image.name) != image.size]
    if differing:
        raise DataError(
            f"{folder} exists but {len(differing)} of its {len(images)} images are missing or "
            f"differ from {label}, such as {differing[0]}: remove the folder and start again"
        )


def _by_class(images: list[_Image], folder: Path, labels: Path | None) -> dict[str, list[_Image]]:
    found = find_labels(folder, labels)
    by_class: dict[str, list[_Image]] = {}
    for image in images:
        by_class.setdefault(found.class_of(image.name), []).append(image)
    if len(images) < len(found):
        raise DataError(
            f"{found.source} names {len(found)} images but only {len(images)} are there: get the "
            f"rest, or give a list of just these with --labels"
        )
    return by_class


def _flat_images(folder: Path) -> list[_Image]:
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        files = sorted((e for e in entries if _is_image(e.name)), key=lambda e: e.name)
    return [
        _Image(entry.name, entry.stat().st_size, path=Path(entry.path))
        for entry in files
        if entry.is_file(follow_symlinks=False)
    ]


def _image_members(
    archive: tarfile.TarFile, label: Path | str, report: SplitReport
) -> list[_Image]:
    images: dict[str, _Image] = {}
    for member in _plain_members(archive, label):
        name = PurePosixPath(member.name).name
        if not _is_image(name):
            report.skipped.append(member.name)
        elif name in images:
            raise DataError(f"{label} holds {name} twice: download it again")
        else:
            images[name] = _Image(name, member.size, archive=archive, member=member)
    return list(images.values())


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_EXTENSIONS) and not name.startswith(".")


def _plain_members(archive: tarfile.TarFile, label: Path | str) -> Iterator[tarfile.TarInfo]:
    """Yield the regular files of ``archive``; folders are skipped.

    Raises:
        DataError: a link, a device, or a path outside the archive; or the archive is damaged.
    """
    try:
        for member in archive:
            parts = PurePosixPath(member.name).parts
            has_odd_chars = "\\" in member.name or "\0" in member.name
            if member.name.startswith("/") or ".." in parts or has_odd_chars:
                raise DataError(
                    f"{label} holds {member.name!r}, a path outside the archive: it is not "
                    f"ImageNet's archive; download it again"
                )
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise DataError(
                    f"{label} holds {member.name!r}, a link or a device instead of a file: it is "
                    f"not ImageNet's archive; download it again"
                )
            yield member
    except (tarfile.TarError, EOFError) as error:
        raise _damaged(label, error) from error


def _open_tar(label: Path | str, file: IO[bytes] | None = None) -> tarfile.TarFile:
    """Open the archive at the path ``label``, or read it from ``file``."""
    try:
        return tarfile.open(None if file else label, "r:", fileobj=file)
    except tarfile.TarError as error:
        raise _damaged(label, error) from error


def _damaged(label: Path | str, why: object) -> DataError:
    return DataError(f"archive {label} is damaged ({why}): download it again")


def _check_space(folder: Path, num_bytes: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if num_bytes * _SPACE_MARGIN > free:
        raise DataError(
            f"{folder} needs {num_bytes * _SPACE_MARGIN / 1e9:.1f} GB and {free / 1e9:.1f} GB are "
            f"free: free some space, or name another folder with -o"
        )
