"""Put ImageNet's official archives, or a flat ``val/``, into class folders.

Each class folder is filled under a temporary name and then renamed, so an interrupted run continues
when it is started again. The sources are kept unless ``delete_source`` is given.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

from image_classification.core.class_folders import IMAGE_EXTENSIONS
from image_classification.core.errors import DataError
from image_classification.data.tools.parallel import Progress, no_progress

ARCHIVES = {"train": "ILSVRC2012_img_train.tar", "val": "ILSVRC2012_img_val.tar"}
KIT = "ILSVRC2012_devkit_t12"

_PARTIAL = ".partial-"
"""Prefix of unfinished class folders; an index skips names that start with a dot."""

_SPACE_MARGIN = 1.02  # files occupy whole blocks
# From untrusted files: no separators and no leading dot.
_SAFE_NAME = re.compile(r"[^./\\\x00\s][^/\\\x00\s]*")
_GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
_META = "data/meta.mat"
_KIT_FILE_MAX_BYTES = 64 << 20


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
    source: Path | tuple[tarfile.TarFile, tarfile.TarInfo]


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
    the file ``labels`` (lines ``NAME.JPEG CLASS``, or Kaggle's ``LOC_val_solution.csv``) or from
    the development kit in ``source``. Images of a flat ``val/`` are hard-linked if the file system
    can, and copied otherwise. progress: in bytes.

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
            report = reports["val"] = SplitReport(str(val))
            with _open_tar(val) as archive:
                images = _image_members(archive, val, report)
                _prepare_val(images, report, source, out / "val", labels, progress)
            used.append(val)
        elif images := _flat_images(source / "val"):
            report = reports["val"] = SplitReport(str(source / "val"))
            _prepare_val(images, report, source, out / "val", labels, progress)
            used += [source / "val" / image.name for image in images]
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
            if extension != ".tar" or not _SAFE_NAME.fullmatch(name):
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


def _prepare_val(
    images: list[_Image],
    report: SplitReport,
    source: Path,
    folder: Path,
    labels: Path | None,
    progress: Progress,
) -> None:
    origin, class_of = _find_labels(source, labels)
    by_class: dict[str, list[_Image]] = {}
    for image in images:
        stem = image.name.rsplit(".", 1)[0]
        # The kit's labels have only the number in the image's name.
        found = class_of.get(stem) or class_of.get("_" + stem.rpartition("_")[2])
        if found is None:
            raise DataError(
                f"{origin} has no class for {image.name}: give the list that belongs to these "
                f"images with --labels"
            )
        by_class.setdefault(found, []).append(image)
    if len(images) < len(class_of):
        raise DataError(
            f"{origin} names {len(class_of)} images but only {len(images)} are there: get the "
            f"rest, or give a list of just these with --labels"
        )
    sizes = {name: sum(image.size for image in group) for name, group in by_class.items()}
    folder.mkdir(parents=True, exist_ok=True)
    is_flat = isinstance(images[0].source, Path)
    # Hard links need no space.
    if not is_flat or folder.stat().st_dev != (source / "val").stat().st_dev:
        _check_space(folder, sum(n for name, n in sizes.items() if not (folder / name).is_dir()))
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
        with os.scandir(folder) as entries:
            sizes = {entry.name: entry.stat().st_size for entry in entries}
        differing = [image.name for image in images if sizes.get(image.name) != image.size]
        if differing:
            raise DataError(
                f"{folder} exists but {len(differing)} of its {len(images)} images are missing or "
                f"differ from {label}, such as {differing[0]}: remove the folder and start again"
            )
        return
    partial = folder.with_name(f"{_PARTIAL}{folder.name}")
    if partial.exists():  # left by a killed run
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    try:
        for image in images:
            _place_image(partial / image.name, image, label)
        os.rename(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    report.num_new_images += len(images)


def _place_image(target: Path, image: _Image, label: str) -> None:
    if isinstance(image.source, Path):
        try:
            os.link(image.source, target)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(image.source, target)
        return
    archive, member = image.source
    content = archive.extractfile(member)
    assert content is not None
    try:
        with open(target, "xb") as file:
            shutil.copyfileobj(content, file, length=1 << 20)
    except tarfile.TarError as error:
        raise _damaged(label, error) from error


def _flat_images(folder: Path) -> list[_Image]:
    if not folder.is_dir():
        return []
    return [
        _Image(path.name, path.stat().st_size, path)
        for path in sorted(folder.iterdir())
        if _is_image(path.name) and path.is_file() and not path.is_symlink()
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
            images[name] = _Image(name, member.size, (archive, member))
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
            name = member.name
            is_outside = name.startswith("/") or ".." in PurePosixPath(name).parts
            if is_outside or "\\" in name or "\0" in name:
                raise DataError(
                    f"{label} holds {name!r}, a path outside the archive: it is not ImageNet's "
                    f"archive; download it again"
                )
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise DataError(
                    f"{label} holds {name!r}, a link or a device instead of a file: it is not "
                    f"ImageNet's archive; download it again"
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


def _find_labels(folder: Path, labels: Path | None) -> tuple[str, dict[str, str]]:
    """Return the labels in the file ``labels``, or those of the kit in ``folder``.

    Their source comes first. Keys are names of images without extension, or ``_`` and their
    numbers in 8 digits if the labels come from the kit.
    """
    packed, unpacked = folder / f"{KIT}.tar.gz", folder / KIT
    try:
        if labels is not None:
            return str(labels), _read_label_list(labels)
        if unpacked.is_dir():
            files = {name: (unpacked / name).read_bytes() for name in (_GROUND_TRUTH, _META)}
            return str(unpacked), _kit_labels(unpacked, files)
        if packed.is_file():
            return str(packed), _kit_labels(packed, _read_packed_kit(packed))
    except OSError as error:
        raise DataError(
            f"cannot read {error.filename or labels or folder}: {error.strerror}: check the file"
        ) from error
    raise DataError(
        f"no classes of the validation images in {folder}: put {KIT}.tar.gz there, or give a list "
        f"with --labels (LOC_val_solution.csv, or lines 'NAME.JPEG CLASS')"
    )


def _read_label_list(path: Path) -> dict[str, str]:
    """Read lines ``NAME CLASS``, or the rows ``NAME,CLASS box …`` of LOC_val_solution.csv."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text: give a list of labels with --labels") from error
    labels: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.replace(",", " ").split()
        if not words or words[:2] == ["ImageId", "PredictionString"]:
            continue
        is_csv = "," in line
        if len(words) < 2 or (len(words) > 2 and not is_csv) or not _SAFE_NAME.fullmatch(words[1]):
            raise DataError(f"{path}:{number}: {line[:60]!r} is not 'NAME.JPEG CLASS': fix it")
        stem = words[0] if is_csv else words[0].rsplit(".", 1)[0]
        if labels.setdefault(stem, words[1]) != words[1]:
            raise DataError(f"{path}:{number}: {words[0]} has two classes: keep one of the lines")
    if not labels:
        raise DataError(f"{path} lists no image: give lines 'NAME.JPEG CLASS'")
    return labels


def _read_packed_kit(path: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = "/".join(member.name.split("/")[-2:])
                if name in (_GROUND_TRUTH, _META) and member.isreg():
                    if member.size > _KIT_FILE_MAX_BYTES:
                        raise DataError(f"{path}: {member.name} is too large for a development kit")
                    file = archive.extractfile(member)
                    assert file is not None
                    found[name] = file.read()
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}): download it again") from error
    for name in (_GROUND_TRUTH, _META):
        if name not in found:
            raise DataError(f"{path} holds no {name}: get the development kit of tasks 1 and 2")
    return found


def _kit_labels(kit: Path, files: dict[str, bytes]) -> dict[str, str]:
    """Return the class of each image number; ``meta.mat`` has the names of the class ids."""
    from scipy.io import loadmat  # type: ignore[import-untyped]

    try:
        synsets = loadmat(io.BytesIO(files[_META]), squeeze_me=True)["synsets"]
        names = {
            int(synset["ILSVRC2012_ID"]): str(synset["WNID"])
            for synset in synsets
            if int(synset["num_children"]) == 0
        }
        ids = files[_GROUND_TRUTH].decode("ascii").split()
        labels = {f"_{number:08d}": names[int(i)] for number, i in enumerate(ids, start=1)}
    except Exception as error:  # scipy raises many kinds for a damaged MATLAB file
        raise DataError(f"cannot read the development kit {kit}: download it again") from error
    if not labels or not all(map(_SAFE_NAME.fullmatch, labels.values())):
        raise DataError(f"the development kit {kit} names no usable classes: download it again")
    return labels
