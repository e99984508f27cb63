import re
import shutil
from pathlib import Path

import pytest

from image_classification.core.errors import DataError
from image_classification.data.formats.folder import check_classes, open_index, recognize


def test_index_is_sorted_and_complete(image_folder: Path) -> None:
    (image_folder / "train" / "cat" / "a.PNG").touch()
    (image_folder / "train" / "cat" / "b.jpg").touch()
    (image_folder / "train" / "cat" / "notes.txt").touch()
    (image_folder / "train" / "cat" / "._0.JPEG").touch()
    (image_folder / "train" / ".cache").mkdir()
    (image_folder / "train" / "README.md").touch()
    index = open_index(image_folder, "train", 2)
    assert index.classes == ("cat", "dog")
    files = [*(f"cat/{i}.JPEG" for i in range(7)), "cat/a.PNG", "cat/b.jpg"]
    files += [f"dog/{i}.JPEG" for i in range(5)]
    paths = [index.where(i) for i in range(len(index))]
    assert paths == [str(image_folder / "train" / file) for file in files]
    assert index.labels.tolist() == [0] * 9 + [1] * 5


def test_file_names_outside_ascii_are_preserved(image_folder: Path) -> None:
    for split in ("train", "val"):
        (image_folder / split / "cat").rename(image_folder / split / "Kätzchen")
    index = open_index(image_folder, "val", 2)
    assert index.where(0) == str(image_folder / "val" / "Kätzchen" / "0.JPEG")


def error_of(root: Path, split: str = "train", num_classes: int = 2) -> str:
    with pytest.raises(DataError) as caught:
        open_index(root, split, num_classes)
    return caught.value.message


def test_no_data_set_names_every_remedy(tmp_path: Path) -> None:
    message = error_of(tmp_path / "imagenet")
    assert message.startswith(f"no data set at {tmp_path / 'imagenet'}:")
    assert f"docker run -v /your/imagenet:{tmp_path / 'imagenet'}" in message
    assert "'demo'" in message
    assert "'synthetic'" in message


def test_a_file_is_not_a_data_set(tmp_path: Path) -> None:
    archive = tmp_path / "imagenet.tar"
    archive.touch()
    assert "is not a folder" in error_of(archive)


def test_missing_split(image_folder: Path) -> None:
    shutil.rmtree(image_folder / "train")
    assert "has no train/ folder and no train shards" in error_of(image_folder)
    # Evaluation needs val/ alone.
    assert len(open_index(image_folder, "val", 2)) == 5


def test_empty_class_folder_is_named(image_folder: Path) -> None:
    for split in ("train", "val"):
        (image_folder / split / "emu").mkdir()
    assert str(image_folder / "train" / "emu") in error_of(image_folder, num_classes=3)


def test_different_classes_are_named(image_folder: Path) -> None:
    (image_folder / "val" / "dog").rename(image_folder / "val" / "wolf")
    for extra in "abcd":
        (image_folder / "train" / extra).mkdir()
    for split in ("train", "val"):
        message = error_of(image_folder, split)
        assert "only in train/: a, b, c and 2 more" in message
        assert "only in val/: wolf" in message


@pytest.mark.parametrize("num_classes", [1, 1000])
def test_other_number_of_classes_than_the_model(image_folder: Path, num_classes: int) -> None:
    message = error_of(image_folder, num_classes=num_classes)
    assert re.search(f"has 2 class folders, the model has {num_classes} classes", message)
    assert "--num_classes 2" in message


def test_flat_validation_folder_is_explained(image_folder: Path) -> None:
    for i, file in enumerate(sorted((image_folder / "val").glob("*/*"))):
        file.rename(image_folder / "val" / f"ILSVRC2012_val_{i:08d}.JPEG")
    for name in ("cat", "dog"):
        (image_folder / "val" / name).rmdir()
    for split in ("train", "val"):
        assert "holds 5 images and no class folders" in error_of(image_folder, split)


def test_empty_split_is_explained(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    assert "has no class folders" in error_of(tmp_path)


def test_unreadable_folder_is_named(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> list[str]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("image_classification.data.formats.folder.os.listdir", refuse)
    message = error_of(image_folder)
    assert message.startswith(f"cannot read {image_folder / 'train' / 'cat'}: Permission denied")


def test_check_classes_opens_no_class_folder(image_folder: Path) -> None:
    (image_folder / "train" / "cat" / "0.JPEG").unlink()
    shutil.rmtree(image_folder / "val" / "dog")
    (image_folder / "val" / "dog").mkdir()
    check_classes(image_folder, "train", 2)
    assert recognize(image_folder, "val") == "folder"


def test_paths_that_cannot_be_opened(image_folder: Path) -> None:
    assert "File name too long" in error_of(image_folder / ("a" * 300))
    assert "no data set at" in error_of(image_folder / "train" / "README" / "x")


def test_the_layout_may_be_named(image_folder: Path) -> None:
    named = open_index(image_folder, "val", 2, layout="folder")
    assert named.classes == open_index(image_folder, "val", 2).classes
