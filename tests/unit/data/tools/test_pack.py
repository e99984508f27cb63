import io
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from image_classification.core.errors import ConfigError, DataError
from image_classification.data.formats import webdataset
from image_classification.data.formats.folder import open_index
from image_classification.data.tools import quarantine
from image_classification.data.tools.pack import FORMATS, pack
from image_classification.data.transforms import decode_rgb


@pytest.mark.parametrize("name", FORMATS)
def test_the_report_matches_the_files(image_folder: Path, tmp_path: Path, name: str) -> None:
    seen: list[tuple[str, int, int]] = []
    out = tmp_path / "out"
    shard_images = None if name == "recordio" else 5
    report = pack(
        image_folder,
        out,
        name,
        shard_images=shard_images,
        progress=lambda *step: seen.append(step),
    )
    assert (report.format, report.num_classes) == (name, 2)
    assert report.images == {"train": 12, "val": 5}
    assert report.shards == (
        {"train": 1, "val": 1} if name == "recordio" else {"train": 3, "val": 1}
    )
    assert report.num_reencoded == report.num_quarantined == 0
    assert seen == [("images", i, 34) for i in range(1, 35)]
    shards = [p for p in out.iterdir() if p.suffix not in (".json", ".npz", ".idx")]
    assert report.num_bytes == sum(p.stat().st_size for p in shards)
    assert len(shards) == sum(report.shards.values())
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_larger_images_are_resized(image_folder: Path, tmp_path: Path) -> None:
    before = open_index(image_folder, "train", 2)
    report = pack(image_folder, tmp_path / "out", "tfrecord", max_side=48, quality=80)
    after = open_index(tmp_path / "out", "train", 2)
    changed = 0
    for i in range(len(before)):
        old = Image.open(io.BytesIO(before.read(i).tobytes()))
        new = Image.open(io.BytesIO(after.read(i).tobytes()))
        if max(old.size) <= 48:
            assert after.read(i).tobytes() == before.read(i).tobytes()
        else:
            changed += 1
            assert max(new.size) == 48
            assert abs(new.size[0] / new.size[1] - old.size[0] / old.size[1]) < 0.03
            assert new.format == "JPEG"
    assert changed > 0
    assert report.num_reencoded >= changed


@pytest.mark.parametrize("name", FORMATS)
def test_photographs_without_splits_stay_upright_and_readable(tmp_path: Path, name: str) -> None:
    photos = tmp_path / "photos"
    exif = Image.Exif()
    exif[0x0112] = 6
    for label, kind in enumerate(("cat", "dog")):
        (photos / kind).mkdir(parents=True)
        for i, suffix in enumerate(("jpg", "webp", "bmp", "tiff", "gif")):
            image = Image.new("RGB", (60, 40), (90 * label, 40 * i, 0))
            image.save(photos / kind / f"{i}.{suffix}", exif=exif)
    for max_side in (None, 30):
        out = tmp_path / f"{max_side}"
        report = pack(photos, out, name, max_side=max_side)
        assert report.images == {"train": 8, "val": 2}
        for split in ("train", "val"):
            before, after = open_index(photos, split, 2), open_index(out, split, 2)
            for i in range(len(before)):
                old, new = (
                    decode_rgb(index.read(i), index.where(i), upright=True)
                    for index in (before, after)
                )
                is_tall = old.shape[1] > old.shape[2]
                assert is_tall == (new.shape[1] > new.shape[2])


def test_a_single_split_is_packed(image_folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(image_folder / "train")
    assert pack(image_folder, tmp_path / "out", "webdataset").images == {"val": 5}
    assert len(open_index(tmp_path / "out", "val", 2)) == 5


def test_quarantined_images_are_left_out(image_folder: Path, tmp_path: Path) -> None:
    (image_folder / "train" / "cat" / "2.JPEG").write_bytes(b"")
    with pytest.raises(DataError, match=r"cat/2.JPEG: the file is empty"):
        pack(image_folder, tmp_path / "out", "webdataset")
    quarantine.save(image_folder / "quarantine.json", {"train/cat/2.JPEG": "empty"})
    report = pack(image_folder, tmp_path / "out", "webdataset")
    assert (report.images["train"], report.num_quarantined) == (11, 1)


@pytest.mark.parametrize("name", FORMATS)
def test_a_failed_pack_leaves_nothing(image_folder: Path, tmp_path: Path, name: str) -> None:
    (image_folder / "val" / "dog" / "1.JPEG").write_bytes(b"no image")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(DataError, match=r"dog/1.JPEG: it has no header"):
        pack(image_folder, tmp_path / "out", name)
    assert sorted(tmp_path.iterdir()) == before


def test_the_files_are_read_back_and_compared(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = webdataset.write_sample

    def drop_last_byte(
        tar: tarfile.TarFile, key: str, extension: str, content: bytes, label: int
    ) -> str:
        return write(tar, key, extension, content[:-1], label)

    monkeypatch.setattr(webdataset, "write_sample", drop_last_byte)
    with pytest.raises(DataError, match="differ from what was written"):
        pack(image_folder, tmp_path / "out", "webdataset")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_files_is_refused(image_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").touch()
    with pytest.raises(DataError, match="exists already"):
        pack(image_folder, tmp_path / "out", "tfrecord")
    with pytest.raises(DataError, match="exists already"):
        pack(image_folder, tmp_path / "out" / "notes.txt", "tfrecord")
    with pytest.raises(DataError, match="cannot write the packed data set"):
        pack(image_folder, tmp_path / "out" / "notes.txt" / "deep", "tfrecord")


def test_a_full_disk_is_an_error(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(webdataset, "write_sample", full)
    with pytest.raises(DataError, match=r"No space left on device: name a writable folder"):
        pack(image_folder, tmp_path / "out", "webdataset")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tfrecord", {"max_side": 4}, "--max-side 4 is too small"),
        ("tfrecord", {"quality": 0}, "--quality 0"),
        ("tfrecord", {"shard_images": 0}, "--shard-images 0"),
        ("recordio", {"shard_images": 5}, "one file per split"),
    ],
)
def test_invalid_options_are_refused(
    image_folder: Path, tmp_path: Path, name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        pack(image_folder, tmp_path / "out", name, **options)


def test_a_missing_data_set_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data set at"):
        pack(tmp_path / "nothing", tmp_path / "out", "tfrecord")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no train/ folder"):
        pack(tmp_path / "empty", tmp_path / "out", "tfrecord")
