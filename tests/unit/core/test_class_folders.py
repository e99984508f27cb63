import json
from pathlib import Path

import pytest

from image_classification.core.class_folders import (
    count_skipped,
    has_only_class_folders,
    is_image_name,
    own_classes,
    skipped_text,
)


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_image_names() -> None:
    assert all(map(is_image_name, ("a.JPEG", "b.jpg", "c.WebP", "d.tif", "e.gif", "f.bmp")))
    assert not any(map(is_image_name, (".a.jpg", "a.txt", "jpg")))


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["dog/1.jpg", "cat/1.png", ".cache/1.jpg", "readme.txt"], ("cat", "dog")),
        (["train/dog/1.jpg", "train/cat/1.png", "val/cat/1.png"], ("cat", "dog")),
        (["val/dog/1.jpg"], ("dog",)),
        (["train/n01440764/1.JPEG", "train/n01443537/2.JPEG"], None),  # a part of ImageNet
        (["dog/notes.txt", "cat/more/1.jpg"], None),
        (["1.jpg"], None),
    ],
)
def test_ones_own_classes(tmp_path: Path, names: list[str], classes: object) -> None:
    assert own_classes(str(make(tmp_path, *names))) == classes


def test_a_thousand_classes_are_taken_as_imagenet(tmp_path: Path) -> None:
    make(tmp_path, *(f"train/{label}/1.jpg" for label in range(1000)))
    assert own_classes(str(tmp_path)) is None


def test_packed_data_sets_list_their_classes(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text(json.dumps(["cat", "dog"]))
    assert own_classes(str(tmp_path)) == ("cat", "dog")
    (tmp_path / "classes.json").write_text("[")
    assert own_classes(str(tmp_path)) is None
    assert own_classes(str(tmp_path / "absent")) is None


def test_only_class_folders(tmp_path: Path) -> None:
    assert has_only_class_folders(make(tmp_path, "cat/1.jpg", "empty/notes.txt"))
    assert not has_only_class_folders(make(tmp_path, "val/cat/1.jpg"))


def test_skipped_files_are_counted_by_extension(tmp_path: Path) -> None:
    names = ["1.jpg", "2.txt", "3.TXT", "4.heicx", "README", ".hidden", "more/1.jpg"]
    make(tmp_path, *names)
    counts = count_skipped(tmp_path)
    assert counts == {".txt": 2, ".heicx": 1, "no extension": 1, "folders": 1}
    assert skipped_text({".txt": 2, ".heic": 10}, "photos") == (
        "skipped 12 files in photos: 10 .heic (install pillow-heif to read them), 2 .txt"
    )
    assert "1 folder inside class folders" in skipped_text(counts, "photos")
