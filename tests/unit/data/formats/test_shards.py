import json
import os
from pathlib import Path

import numpy as np
import pytest

from image_classification.core.errors import DataError
from image_classification.data.formats.folder import check_classes, open_index, recognize
from image_classification.data.formats.shards import named_classes
from image_classification.data.tools.pack import pack


@pytest.fixture
def packed(image_folder: Path, tmp_path: Path) -> Path:
    pack(image_folder, tmp_path / "packed", "webdataset", shard_images=5)
    return tmp_path / "packed"


def cache_file(root: Path) -> Path:
    return root / ".train.index.npz"


def test_the_cached_index_is_used_until_a_shard_changes(packed: Path) -> None:
    before = cache_file(packed).stat().st_mtime_ns
    assert len(open_index(packed, "train", 2)) == 12
    assert cache_file(packed).stat().st_mtime_ns == before
    os.utime(packed / "train-000001.tar", ns=(1, 1))
    assert len(open_index(packed, "train", 2)) == 12
    assert cache_file(packed).stat().st_mtime_ns != before


@pytest.mark.parametrize("how", ["noise", "pickle", "offsets", "shards", "folder"])
def test_a_damaged_cached_index_is_replaced(packed: Path, how: str) -> None:
    with np.load(cache_file(packed)) as file:
        content = dict(file)
    cache_file(packed).unlink()
    if how == "noise":
        cache_file(packed).write_bytes(b"PK\x03\x04 no archive")
    elif how == "folder":
        cache_file(packed).mkdir()
    else:
        if how == "pickle":
            content["labels"] = np.array([{}] * 12, dtype=object)
        elif how == "offsets":
            content["offset"] = content["offset"] + 10**9
        else:
            content["shard"] = content["shard"] + 7
        np.savez(cache_file(packed).with_suffix(""), **content)
    index = open_index(packed, "train", 2)
    assert index.read(11).tobytes()[:2] == b"\xff\xd8"


def test_the_index_of_a_read_only_data_set_is_in_the_cache_folder(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGE_CLASSIFICATION_CACHE", str(tmp_path / "cache"))
    cache_file(packed).unlink()
    cache_file(packed).mkdir()  # what cannot be replaced by a file, for root as for others
    (cache_file(packed) / "x").touch()
    open_index(packed, "train", 2)
    files = list((tmp_path / "cache" / "indexes").iterdir())
    assert [f.name.endswith("-train.npz") for f in files] == [True]
    before = files[0].stat().st_mtime_ns
    open_index(packed, "train", 2)
    assert files[0].stat().st_mtime_ns == before


def test_missing_shards_are_named(packed: Path) -> None:
    (packed / "train-000001.tar").unlink()
    with pytest.raises(DataError, match=r"lacks 1 of the 3 train shards.*train-000001.tar"):
        open_index(packed, "train", 2)


def test_the_number_of_images_must_match_the_manifest(packed: Path) -> None:
    manifest = json.loads((packed / "pack.json").read_text())
    manifest["splits"]["train"]["images"] = 13
    (packed / "pack.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="hold 12 images, 13 were packed"):
        open_index(packed, "train", 2)
    (packed / "pack.json").write_text("{}")
    with pytest.raises(DataError, match=r"pack.json is damaged"):
        open_index(packed, "train", 2)


@pytest.mark.parametrize("num_classes", [1, 3, 1000])
def test_other_number_of_classes_than_the_model(packed: Path, num_classes: int) -> None:
    for has_names in (True, False):
        if not has_names:
            (packed / "classes.json").unlink()
        with pytest.raises(DataError, match=f"has 2 classes, the model has {num_classes}"):
            open_index(packed, "train", num_classes)
    check_classes(packed, "train", num_classes)  # the number of classes is unknown


def test_without_names_classes_are_numbers(packed: Path) -> None:
    (packed / "classes.json").unlink()
    assert open_index(packed, "train", 2).classes == ("0000", "0001")
    assert open_index(packed, "train", None).classes == ("0000", "0001")
    # A validation set need not have every class.
    assert open_index(packed, "val", 3).classes == ("0000", "0001", "0002")


@pytest.mark.parametrize("name", ["synset.txt", "labels.txt"])
def test_names_from_a_list(packed: Path, name: str) -> None:
    (packed / "classes.json").unlink()
    (packed / name).write_text("n01 tench, Tinca tinca\nn02 goldfish\n")
    assert open_index(packed, "train", 2).classes == ("n01", "n02")
    (packed / name).write_text("n01\n")
    with pytest.raises(DataError, match=r"label 1, its list of classes has 1 names"):
        open_index(packed, "train", 2)
    (packed / name).write_text("n01\nn01\n")
    with pytest.raises(DataError, match="not a list of class names"):
        open_index(packed, "train", 2)


def test_an_invalid_class_list(packed: Path) -> None:
    (packed / "classes.json").write_text('{"cat": 1}')
    with pytest.raises(DataError, match=r"classes.json is not a list of class names"):
        named_classes(packed)


def test_several_layouts_at_once_raise_an_error(packed: Path, image_folder: Path) -> None:
    (image_folder / "train").rename(packed / "train")
    (image_folder / "val").rename(packed / "val")
    with pytest.raises(DataError, match="as folder and as webdataset"):
        recognize(packed, "train")
    assert len(open_index(packed, "train", 2, "webdataset")) == 12
    assert len(open_index(packed, "train", 2, "folder")) == 12


def test_shards_in_folders_of_their_split(packed: Path) -> None:
    for name in ("classes.json", "pack.json"):
        (packed / name).unlink()
    (packed / "train").mkdir()
    for shard in packed.glob("train-*.tar"):
        shard.rename(packed / "train" / shard.name.removeprefix("train-"))
    index = open_index(packed, "train", 2)
    assert index.name(0).startswith("train/000000.tar:cat/")
    (packed / "train-000000.tar").touch()
    with pytest.raises(DataError, match="in several places"):
        open_index(packed, "train", 2)


def test_a_missing_format_raises_an_error(packed: Path) -> None:
    with pytest.raises(DataError, match="no train shards of format recordio"):
        open_index(packed, "train", 2, "recordio")
    with pytest.raises(DataError, match="no train/ folder"):
        open_index(packed, "train", 2, "folder")
