import json
import os
from pathlib import Path

import pytest

from image_classification.core import class_folders
from image_classification.core.errors import DataError
from image_classification.data.formats import folder
from image_classification.data.formats.folder import (
    is_class_folders,
    open_index,
    split_of_class_folders,
)
from image_classification.data.formats.split import SPLIT_FILE, SplitRule, write_split
from image_classification.data.tools import quarantine

COUNTS = {"cat": 20, "dog": 7, "owl": 2}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for name, count in COUNTS.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number}.jpg").write_bytes(b"photo")
    return root


def names(root: Path, split: str, rule: SplitRule = SplitRule()) -> list[str]:  # noqa: B008
    index = open_index(root, split, None, rule=rule)
    assert index.classes == tuple(COUNTS)
    found = [index.name(i) for i in range(len(index))]
    assert [index.classes[label] for label in index.labels] == [n.split("/")[0] for n in found]
    return found


def test_a_fifth_of_each_class_is_held_out(photos: Path) -> None:
    train, val = names(photos, "train"), names(photos, "val")
    assert not set(train) & set(val)
    assert len(train) + len(val) == sum(COUNTS.values())
    per_class = {name: sum(file.startswith(f"{name}/") for file in val) for name in COUNTS}
    assert per_class == {"cat": 4, "dog": 1, "owl": 1}


def test_the_split_depends_on_names_alone(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    val = names(photos, "val")
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: sorted(listdir(path), reverse=True))
    assert names(photos, "val") == val
    moved = photos.rename(photos.with_name("elsewhere"))
    assert names(moved, "val") == val
    assert names(moved, "val", SplitRule(seed=1)) != val
    (moved / "cat" / "new.jpg").write_bytes(b"photo")
    assert len(set(names(moved, "val")) - set(val)) <= 1


def test_the_fraction_leaves_an_image_on_both_sides(photos: Path) -> None:
    val = names(photos, "val", SplitRule(0.99))
    assert [sum(file.startswith(f"{name}/") for file in val) for name in COUNTS] == [19, 6, 1]
    assert len(names(photos, "val", SplitRule(1.0))) == sum(COUNTS.values())
    with pytest.raises(DataError, match="leaves no train images"):
        names(photos, "train", SplitRule(1.0))


def test_too_few_images_name_the_class(photos: Path) -> None:
    (photos / "owl" / "1.jpg").unlink()
    with pytest.raises(DataError, match=r"class owl of .* has 1 image: a split needs at least 2"):
        open_index(photos, "train", None)


def test_a_split_file_in_the_folder_is_used(photos: Path) -> None:
    split = split_of_class_folders(photos, SplitRule(0.5, seed=3))
    assert split is not None
    write_split(photos / SPLIT_FILE, photos, split)
    assert names(photos, "val") == list(split.val)
    assert str(photos / SPLIT_FILE) in open_index(photos, "val", None).notes[0]
    (photos / "cat" / "new.jpg").write_bytes(b"photo")
    assert names(photos, "val") == list(split.val)  # new images do not matter to it
    with pytest.raises(DataError, match=r"1 images are not listed in .* such as cat/new.jpg"):
        names(photos, "train")
    (photos / "cat" / "new.jpg").unlink()
    (photos / split.val[0]).unlink()
    assert names(photos, "train") == list(split.train)
    with pytest.raises(DataError, match=r"1 val images listed in .* are gone"):
        names(photos, "val")


def test_another_split_file(photos: Path, tmp_path: Path) -> None:
    split = split_of_class_folders(photos, SplitRule(0.5))
    assert split is not None
    file = tmp_path / "mine.json"
    write_split(file, photos, split)
    assert names(photos, "val", SplitRule(split_file=str(file))) == list(split.val)
    for content in ("[]", "{", json.dumps({"format": 1, "train": ["a"], "val": ["a"]})):
        file.write_text(content)
        with pytest.raises(DataError, match="is not a split file"):
            names(photos, "val", SplitRule(split_file=str(file)))
    with pytest.raises(DataError, match="cannot read"):
        names(photos, "val", SplitRule(split_file=str(tmp_path / "absent.json")))


def test_a_split_file_for_a_folder_with_val_is_refused(photos: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / "sorted" / split / "cat").mkdir(parents=True)
        (tmp_path / "sorted" / split / "cat" / "1.jpg").touch()
    with pytest.raises(DataError, match=r"data\.split_file mine\.json has no effect"):
        open_index(tmp_path / "sorted", "val", 1, rule=SplitRule(split_file="mine.json"))
    assert is_class_folders(photos) and not is_class_folders(tmp_path / "sorted")
    assert split_of_class_folders(tmp_path / "sorted", SplitRule()) is None


def test_broken_images_are_left_out_of_both_splits(photos: Path) -> None:
    val = names(photos, "val")
    quarantine.save(photos / quarantine.QUARANTINE_FILE, {val[0]: "empty", "cat/1.jpg": "empty"})
    kept = {*names(photos, "train"), *names(photos, "val")}
    assert len(kept) == sum(COUNTS.values()) - len({val[0], "cat/1.jpg"})
    assert not kept & {val[0], "cat/1.jpg"}


def test_skipped_files_and_folders_are_noted(photos: Path) -> None:
    (photos / "cat" / "notes.txt").touch()
    (photos / "cat" / "2019").mkdir()
    (photos / "unsorted.jpg").touch()
    _, note, unsorted = open_index(photos, "train", None).notes
    assert unsorted == f"skipped 1 image in {photos} itself, outside class folders"
    assert note.startswith(f"skipped 1 file in {photos}: 1 .txt, 1 folder inside class folders")


def test_images_without_class_folders(photos: Path) -> None:
    with pytest.raises(DataError, match=r"cat holds 20 images and no class folders: sort"):
        open_index(photos / "cat", "train", None)


def test_class_folders_of_unreadable_images_say_what_to_install(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in list(photos.glob("*/*")):
        file.rename(file.with_suffix(".heic"))
    monkeypatch.setattr(class_folders, "IMAGE_EXTENSIONS", (".jpg",))
    with pytest.raises(DataError, match=r"no image that can be read: .* 29 \.heic \(install"):
        open_index(photos, "train", None)


def test_class_folders_are_recognized(photos: Path) -> None:
    assert folder.recognize(photos, "val") == folder.FOLDER
    assert folder.has_split(photos, "val")
    folder.check_classes(photos, "val", 3)
    with pytest.raises(DataError, match="has 3 class folders, the model has 4"):
        open_index(photos, "val", 4)
    (photos / "empty").mkdir()
    with pytest.raises(DataError, match=r"class folder .*empty holds no image"):
        open_index(photos, "val", None)
