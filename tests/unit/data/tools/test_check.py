import io
import os
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from image_classification.core.errors import DataError
from image_classification.data.formats.folder import open_index
from image_classification.data.tools import check, quarantine
from image_classification.data.tools.check import (
    CheckReport,
    ImageFacts,
    SplitReport,
    Spread,
    check_data_set,
    inspect_image,
    quarantine_list,
)
from image_classification.data.transforms import decode_rgb


def encoded(kind: str, mode: str = "RGB", **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def facts(content: bytes, name: str = "train/a/1.JPEG") -> ImageFacts:
    return inspect_image(np.frombuffer(bytearray(content), dtype=np.uint8), name)


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded("JPEG", exif=exif.tobytes())


def huge_png() -> bytes:
    """Return one row of a PNG whose header has 20,000 x 20,000 pixels."""
    content = bytearray(encoded("PNG"))
    content[16:24] = struct.pack(">II", 20_000, 20_000)
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "format_", "mode", "odd"),
    [
        (encoded("JPEG"), "jpeg", "RGB", ()),
        (encoded("JPEG", "L"), "jpeg", "L", ()),
        (encoded("JPEG", "CMYK"), "jpeg", "CMYK", ("cmyk",)),
        (rotated(), "jpeg", "RGB", ("exif_orientation",)),
        (encoded("PNG"), "png", "RGB", ("disguised",)),
        (encoded("WEBP"), "webp", "RGB", ("disguised",)),
        (encoded("GIF", "P"), "gif", "P", ("disguised",)),
    ],
)
def test_images_that_training_decodes_are_not_broken(
    content: bytes, format_: str, mode: str, odd: tuple[str, ...]
) -> None:
    found = facts(content)
    assert (found.broken, found.reason) == ("", "")
    assert (found.content_format, found.mode) == (format_, mode)
    assert found.odd == odd
    assert (found.width_px, found.height_px, found.num_bytes) == (64, 48, len(content))


@pytest.mark.parametrize(
    ("content", "kind", "reason"),
    [
        (b"", "empty", "the file is empty"),
        (encoded("JPEG")[:1500], "truncated", ""),
        (encoded("PNG")[:1500], "truncated", ""),
        (b"<html>404</html>", "undecodable", "it has no header of a JPEG"),
        (encoded("PPM"), "undecodable", "it has no header of a JPEG"),
        (huge_png(), "oversized", "20000 x 20000 pixels are more than"),
    ],
)
def test_images_that_training_refuses_are_broken(content: bytes, kind: str, reason: str) -> None:
    found = facts(content)
    assert found.broken == kind
    assert found.reason.startswith(reason)
    assert "replace" not in found.reason and "train/a" not in found.reason
    with pytest.raises(DataError):
        decode_rgb(np.frombuffer(bytearray(content), dtype=np.uint8), "it")


def test_a_name_without_extension_cannot_disguise_a_format() -> None:
    assert not facts(encoded("PNG"), "train-00001-of-00002#17").odd
    assert facts(encoded("PNG"), "train-000001.tar:a/1.jpg").odd == ("disguised",)


def test_spread_is_min_median_and_max() -> None:
    assert Spread.of(np.array([4, 1, 3, 9])) == Spread(1, 3.5, 9)
    assert Spread.of(np.array([], dtype=np.int64)) is None


def test_a_good_data_set_is_described(image_folder: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    report = check_data_set(image_folder, progress=lambda *step: seen.append(step))
    assert report.is_usable() and not report.notes and report.imagenet_1k == "no"
    train, val = report.splits["train"], report.splits["val"]
    assert (train.num_images, val.num_images) == (12, 5)
    assert train.classes == ("cat", "dog")
    assert train.images_per_class == Spread(5, 6, 7)
    assert train.width_px == Spread(40, 48, 56) and train.height_px == Spread(48, 48, 48)
    files = list((image_folder / "train").rglob("*.JPEG"))
    assert train.total_bytes == sum(path.stat().st_size for path in files)
    assert (train.formats, train.modes) == ({"jpeg": 12}, {"RGB": 12})
    assert seen == [
        *(("train", i, 12) for i in range(1, 13)),
        *(("val", i, 5) for i in range(1, 6)),
    ]


def damage(root: Path) -> None:
    cat = root / "train" / "cat"
    (cat / "0.JPEG").write_bytes(b"")
    whole = (cat / "1.JPEG").read_bytes()
    (cat / "1.JPEG").write_bytes(whole[: len(whole) // 2])
    (cat / "2.JPEG").write_text("no image")
    (cat / "3.JPEG").write_bytes(encoded("PNG"))
    (cat / "4.JPEG").write_bytes(encoded("JPEG", "CMYK"))
    (root / "val" / "dog" / "0.JPEG").unlink()
    os.mkfifo(root / "val" / "dog" / "0.JPEG")


def test_broken_images_are_listed_with_reasons(image_folder: Path) -> None:
    damage(image_folder)
    report = check_data_set(image_folder)
    train = report.splits["train"]
    assert train.broken["empty"] == ["train/cat/0.JPEG"]
    assert train.broken["truncated"] == ["train/cat/1.JPEG"]
    assert train.broken["undecodable"] == ["train/cat/2.JPEG"]
    assert train.odd["disguised"] == ["train/cat/3.JPEG"]
    assert train.odd["cmyk"] == ["train/cat/4.JPEG"]
    assert report.splits["val"].broken["unreadable"] == ["val/dog/0.JPEG"]
    assert not report.is_usable() and not report.problems
    assert set(report.broken) == {*(f"train/cat/{i}.JPEG" for i in range(3)), "val/dog/0.JPEG"}
    assert all(report.broken.values())


@pytest.mark.slow
def test_worker_processes_give_the_same_report(
    image_folder: Path,
) -> None:
    damage(image_folder)
    assert check_data_set(image_folder, workers=1) == check_data_set(image_folder)


def test_an_existing_quarantine_list_is_ignored_and_replaced(image_folder: Path) -> None:
    old = {"train/cat/0.JPEG": "broken once", "val/cat/0.JPEG": "broken once"}
    quarantine.save(image_folder / quarantine.QUARANTINE_FILE, old)
    report = check_data_set(image_folder)
    assert report.splits["train"].num_images == 12
    assert quarantine_list(image_folder, report) == {}
    # If val cannot be checked, the entries of the existing list are kept.
    shutil.rmtree(image_folder / "val")
    assert quarantine_list(image_folder, check_data_set(image_folder)) == old


def test_listed_train_images_do_not_make_a_run_fail(image_folder: Path) -> None:
    (image_folder / "train" / "cat" / "0.JPEG").write_bytes(b"")
    report = check_data_set(image_folder)
    assert not report.is_usable() and report.is_usable(report.broken)
    assert report.failures() == {"train/cat/0.JPEG": "the file is empty"}
    # Validation skips no image, and training needs at least one.
    (image_folder / "val" / "cat" / "0.JPEG").write_bytes(b"")
    report = check_data_set(image_folder)
    assert report.failures(report.broken).keys() == {"val/cat/0.JPEG"}
    for path in (image_folder / "train").glob("*/*"):
        path.write_bytes(b"")
    report = check_data_set(image_folder)
    assert len(report.failures(report.broken)) == 13


def flatten(root: Path) -> None:
    for path in list((root / "val").glob("*/*")):
        path.rename(root / "val" / f"{path.parent.name}_{path.name}")
    for name in ("cat", "dog"):
        (root / "val" / name).rmdir()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (flatten, r"val holds 5 images and no class folders, .* dataset prepare"),
        (lambda root: (root / "val" / "owl").mkdir(), r"different classes \(only in val/: owl\)"),
        (lambda root: shutil.rmtree(root / "val"), "has no val/ folder"),
        (lambda root: shutil.rmtree(root / "val" / "cat"), r"only in train/: cat"),
    ],
)
def test_what_prevents_a_run_from_starting_is_a_problem(
    image_folder: Path, change: Callable[[Path], None], problem: str
) -> None:
    change(image_folder)
    report = check_data_set(image_folder)
    assert len(report.problems) == 1 and not report.is_usable()
    assert re.search(problem, report.problems[0])


def test_a_data_set_with_only_val_is_usable(image_folder: Path) -> None:
    shutil.rmtree(image_folder / "train")
    report = check_data_set(image_folder)
    assert report.is_usable() and report.splits.keys() == {"val"}
    assert report.notes == ["there are no train images: only evaluation is possible"]


def test_files_without_an_image_extension_are_noted(image_folder: Path) -> None:
    for name in ("dog/9.mp4", "dog/notes.txt", "cat/more.txt"):
        (image_folder / "train" / name).write_bytes(b"")
    report = check_data_set(image_folder)
    assert report.is_usable() and report.splits["train"].num_images == 12
    assert report.notes == [f"skipped 3 files in {image_folder / 'train'}: 2 .txt, 1 .mp4"]


def test_broken_images_of_class_folders_are_left_out_before_the_split(image_folder: Path) -> None:
    for split in ("train", "val"):
        (image_folder / split).rename(image_folder.parent / split)
    root = image_folder.parent / "train"
    report = check_data_set(root)
    assert report.is_usable() and not report.has_split_folders
    held_out = open_index(root, "val", 2).name(0)
    (root / held_out).write_bytes(b"no image")
    report = check_data_set(root)
    assert report.broken.keys() == {held_out}
    assert not report.is_usable() and report.is_usable([held_out])
    quarantine.save(root / quarantine.QUARANTINE_FILE, report.broken)
    splits = [open_index(root, split, 2) for split in ("train", "val")]
    assert sum(map(len, splits)) == 11
    assert held_out not in [index.name(i) for index in splits for i in range(len(index))]


def test_file_names_that_are_not_utf8_are_kept(image_folder: Path) -> None:
    name = os.fsdecode(b"train/cat/\xff\n.JPEG")
    (image_folder / name).write_bytes(b"")
    report = check_data_set(image_folder)
    assert report.broken.keys() == {name}
    quarantine.save(
        image_folder / quarantine.QUARANTINE_FILE, quarantine_list(image_folder, report)
    )
    index = open_index(image_folder, "train", 2)
    assert (len(index), index.num_quarantined) == (12, 1)


def test_a_missing_data_set_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data set at"):
        check_data_set(tmp_path / "absent")
    with pytest.raises(DataError, match="no train/ folder"):
        check_data_set(tmp_path)


def test_imagenet_is_recognized_by_classes_and_counts() -> None:
    between = (f"n{number:08d}" for number in range(2_000_000, 2_000_998))
    synsets = ("n01440764", *between, "n15075141")
    numbers = tuple(f"{number:03d}" for number in range(1000))

    def report_of(classes: tuple[str, ...], **counts: int) -> CheckReport:
        splits = {s: SplitReport("folder", classes, count, None) for s, count in counts.items()}
        report = CheckReport("imagenet", splits)
        check._recognize_imagenet(report)
        return report

    for classes in (synsets, numbers):
        assert report_of(classes, train=1_281_167, val=50_000).imagenet_1k == "complete"
    report = report_of(synsets, train=1_281_160, val=50_000)
    assert report.imagenet_1k == "incomplete" and report.is_usable()
    assert report.notes == [
        "these are ImageNet-1k's classes, but train has 1,281,160 images where ImageNet-1k has "
        "1,281,167"
    ]
    assert report_of(synsets, val=50_000).imagenet_1k == "incomplete"
    assert report_of(numbers, train=1_281_160, val=50_000).imagenet_1k == "no"
    for others in (synsets[:-1], ("n01440763", *synsets[1:]), (*synsets[:-1], "n2")):
        assert report_of(others, train=1_281_160, val=50_000).imagenet_1k == "no"
