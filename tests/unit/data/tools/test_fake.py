import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from image_classification.core.errors import DataError
from image_classification.data.tools.fake import (
    BROKEN,
    ODDITIES,
    FakeSpec,
    _encode,
    draw_size,
    make_fake,
    relative_path,
)


def files(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def broken_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fake") / "set"
    seen: list[tuple[str, int, int]] = []
    spec = FakeSpec(20, 3, 3, broken=True, seed=4)
    make_fake(root, spec, progress=lambda *step: seen.append(step))
    assert seen[-1] == ("images", 23, 23)
    return root


def test_all_images_are_written(broken_set: Path) -> None:
    names = set(files(broken_set)) - {"manifest.json"}
    expected = {relative_path("train", i, 3) for i in range(20)}
    expected |= {relative_path("val", i, 3) for i in range(3)}
    assert names == expected
    assert "train/n00000001/n00000001_0.JPEG" in names
    assert "val/n00000003/ILSVRC2012_val_00000003.JPEG" in names


def test_the_manifest_names_odd_and_broken_files(broken_set: Path) -> None:
    content = files(broken_set)
    manifest = json.loads(content["manifest.json"])
    assert set(manifest["odd"]) == set(ODDITIES) and set(manifest["broken"]) == set(BROKEN)
    odd = {
        kind: Image.open(io.BytesIO(content[names[0]])) for kind, names in manifest["odd"].items()
    }
    assert odd["cmyk"].mode == "CMYK"
    assert odd["grey"].mode == "L"
    assert odd["png"].format == "PNG"
    assert odd["exif"].getexif()[0x0112] == 6
    broken = {kind: content[names[0]] for kind, names in manifest["broken"].items()}
    assert broken["empty"] == b""
    assert broken["text"].startswith(b"<html>")
    with pytest.raises(OSError, match="truncated"):
        Image.open(io.BytesIO(broken["truncated"])).load()
    train = [size for name, size in content.items() if name.startswith("train/")]
    assert manifest["num_images"] == {"train": 20, "val": 3}
    assert manifest["num_bytes"]["train"] == sum(map(len, train))


def test_the_seed_determines_every_byte(broken_set: Path, tmp_path: Path) -> None:
    make_fake(tmp_path / "same", FakeSpec(20, 3, 3, broken=True, seed=4))
    assert files(tmp_path / "same") == files(broken_set)
    spec, other = FakeSpec(20, 3, 3, seed=4), FakeSpec(20, 3, 3, seed=5)
    assert _encode(spec, "train", 0) != _encode(other, "train", 0)
    assert _encode(spec, "train", 0) != _encode(spec, "val", 0)


@pytest.mark.slow
def test_worker_processes_write_the_same_files(broken_set: Path, tmp_path: Path) -> None:
    make_fake(tmp_path / "same", FakeSpec(20, 3, 3, broken=True, seed=4), workers=2)
    assert files(tmp_path / "same") == files(broken_set)


def test_image_sizes_are_distributed_as_in_imagenet() -> None:
    random = np.random.default_rng(0)
    sizes = np.array([draw_size(random) for _ in range(5000)])
    assert np.median(sizes, 0).tolist() == [500, 375]
    assert sizes.min() >= 75 and sizes.max() <= 3000
    assert 0.001 < (sizes.max(1) >= 2000).mean() < 0.02


def test_file_sizes_are_like_imagenet() -> None:
    spec = FakeSpec(1000, 100, 100)
    mean = np.mean([len(_encode(spec, "train", i)) for i in range(40)])
    assert 75_000 < mean < 150_000


def test_small_data_sets_have_no_odd_images(tmp_path: Path) -> None:
    assert not any(make_fake(tmp_path / "set", FakeSpec(2, 2, 2)).odd.values())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (FakeSpec(3, 0, 3), "at least one class"),
        (FakeSpec(3, 4, 4), "--images 3 is too few for 4 classes"),
        (FakeSpec(4, 4, 3), "--val-images 3 is too few"),
        (FakeSpec(4, 2, 2, broken=True), "--broken needs --images 16"),
        (FakeSpec(4, 2, 2, seed=-1), "--seed -1 is below 0"),
    ],
)
def test_impossible_specs_are_refused(tmp_path: Path, spec: FakeSpec, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make_fake(tmp_path / "set", spec)
    assert not any(tmp_path.iterdir())


def test_nothing_is_written_to_an_unusable_folder(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "thesis.tex").touch()
    with pytest.raises(DataError, match="is not an empty folder"):
        make_fake(tmp_path / "set", FakeSpec(2, 2, 2))
    with pytest.raises(DataError, match="cannot write the fake data set"):
        make_fake(tmp_path / "set" / "thesis.tex" / "below", FakeSpec(2, 2, 2))
    assert [path.name for path in tmp_path.rglob("*")] == ["set", "thesis.tex"]
