"""A data set gives the same images and batches in every format."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from image_classification.core.types import Batch
from image_classification.data.formats.folder import FORMATS, open_index, recognize
from image_classification.data.tools import pack as packing
from image_classification.engine.predictions import Predictions, evaluation_details
from tests.support.loaders import assert_same_batches, epoch_of, loader_spec, opened

CLASSES = ("Kätzchen", "n02085620", "owl")
IMAGES = {"train": 23, "val": 8}


@pytest.fixture(scope="module")
def data_sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The data set in each format, with grey, CMYK and misnamed images as in ImageNet."""
    root = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(0)
    for split, count in IMAGES.items():
        for i in range(count):
            folder = root / "folder" / split / CLASSES[i % len(CLASSES)]
            folder.mkdir(parents=True, exist_ok=True)
            blocks = rng.integers(0, 256, (4 + i % 3, 5, 3), dtype=np.uint8)
            image = Image.fromarray(blocks.repeat(9, 0).repeat(9, 1))
            name = ["a.b.JPEG", "a_b.JPEG", "x y.png", f"{i:04d}.JPEG"][min(i // 3, 3)]
            image = image.convert({1: "L", 2: "CMYK"}.get(i % 6, "RGB"))
            image.save(folder / name, "PNG" if i % 6 == 3 else "JPEG", quality=90)
    sets = {"folder": root / "folder"}
    for name in packing.FORMATS:
        sets[name] = root / name
        per = None if name == "recordio" else 5
        packing.pack(root / "folder", sets[name], name, shard_images=per)
    return sets


def test_every_format_is_covered(data_sets: dict[str, Path]) -> None:
    assert sorted(data_sets) == sorted(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("split", IMAGES)
def test_the_same_images_labels_and_counts(
    data_sets: dict[str, Path], name: str, split: str
) -> None:
    assert recognize(data_sets[name], split) == name
    folder = open_index(data_sets["folder"], split, 3)
    index = open_index(data_sets[name], split, 3)
    assert len(index) == IMAGES[split]
    assert index.classes == CLASSES
    assert index.labels.tolist() == folder.labels.tolist()
    for i in range(len(folder)):
        assert index.read(i).tobytes() == folder.read(i).tobytes()
    assert len({index.name(i) for i in range(len(index))}) == len(index)


def batches(root: Path, split: str, **changes: object) -> list[Batch]:
    spec = loader_spec(root, split=split, per_device_batch=4, num_classes=3, seed=5, **changes)
    return epoch_of(spec, epoch=1)


@pytest.mark.parametrize("name", packing.FORMATS)
@pytest.mark.parametrize("split", IMAGES)
def test_batches_are_equal_bit_for_bit(data_sets: dict[str, Path], name: str, split: str) -> None:
    expected = batches(data_sets["folder"], split)
    assert_same_batches(batches(data_sets[name], split), expected)
    assert_same_batches(batches(data_sets[name], split, format=name), expected)


@pytest.mark.parametrize("backend", ["pytorch", "dali-cpu"])
@pytest.mark.parametrize("name", packing.FORMATS)
def test_mistakes_have_the_same_thumbnails(
    data_sets: dict[str, Path], name: str, backend: str
) -> None:
    if backend == "dali-cpu":
        pytest.importorskip("nvidia.dali")
    count = IMAGES["val"]
    labels, shares = torch.zeros(count, dtype=torch.int64), torch.linspace(1, 0.5, count)
    found = Predictions(labels, labels + 1, shares.double(), 1 - shares.double())
    made = []
    for root, kind in ((data_sets["folder"], "pytorch"), (data_sets[name], backend)):
        spec = loader_spec(root, split="val", per_device_batch=4, num_classes=3, backend=kind)
        with opened(spec) as loader:
            details, thumbnails = evaluation_details(found, loader, 3)
        assert [mistake.problem for mistake in details.mistakes] == [None] * count
        assert details.classes == CLASSES
        made.append(thumbnails)
    assert made[0] == made[1] and len(made[0]) == count


@pytest.mark.slow
@pytest.mark.parametrize("name", packing.FORMATS)
def test_loader_processes_read_shards(data_sets: dict[str, Path], name: str) -> None:
    expected = batches(data_sets["folder"], "train")
    assert_same_batches(batches(data_sets[name], "train", workers=2), expected)


@pytest.mark.parametrize("source", packing.FORMATS)
def test_a_packed_data_set_can_be_packed_again(
    data_sets: dict[str, Path], tmp_path: Path, source: str
) -> None:
    for name in packing.FORMATS:
        packing.pack(data_sets[source], tmp_path / name, name)
        index = open_index(tmp_path / name, "train", 3)
        folder = open_index(data_sets["folder"], "train", 3)
        assert index.classes == CLASSES
        for i in range(len(folder)):
            assert index.read(i).tobytes() == folder.read(i).tobytes()


@pytest.mark.slow
def test_dalis_own_readers_find_the_same(data_sets: dict[str, Path], tmp_path: Path) -> None:
    """DALI's own readers of the three formats, in the order of the shards."""
    pytest.importorskip("nvidia.dali")
    from nvidia.dali import fn as operators
    from nvidia.dali import pipeline_def, tfrecord, types

    fn: Any = operators  # annotated for a single output only

    root = data_sets["tfrecord"]
    shards = sorted(root.glob("train-*"))
    indexes = []
    for shard in shards:
        content, at, lines = shard.read_bytes(), 0, []
        while at < len(content):
            length = 16 + int.from_bytes(content[at : at + 8], "little")
            lines.append(f"{at} {length}")
            at += length
        indexes.append(tmp_path / f"{shard.name}.idx")
        indexes[-1].write_text("\n".join(lines) + "\n")

    def from_tfrecord() -> tuple[object, object]:
        features: dict[str, Any] = {
            "image/encoded": tfrecord.FixedLenFeature([], tfrecord.string, ""),
            "image/class/label": tfrecord.FixedLenFeature([1], tfrecord.int64, -1),
        }
        read = fn.readers.tfrecord(
            path=[str(s) for s in shards], index_path=[str(i) for i in indexes], features=features
        )
        return read["image/encoded"], fn.cast(read["image/class/label"], dtype=types.INT32) - 1

    def from_recordio() -> tuple[object, object]:
        folder = data_sets["recordio"]
        return tuple(
            fn.readers.mxnet(
                path=[str(folder / "train.rec")], index_path=[str(folder / "train.idx")]
            )
        )

    def from_webdataset() -> tuple[object, object]:
        tars = sorted(str(p) for p in data_sets["webdataset"].glob("train-*.tar"))
        return tuple(
            fn.readers.webdataset(
                paths=tars, ext=["jpg;png", "cls"], missing_component_behavior="error"
            )
        )

    readers: dict[str, Callable[[], tuple[object, object]]] = {
        "tfrecord": from_tfrecord,
        "recordio": from_recordio,
        "webdataset": from_webdataset,
    }
    folder = open_index(data_sets["folder"], "train", 3)
    for name, reader in readers.items():
        pipeline = pipeline_def(batch_size=len(folder), num_threads=1, device_id=None)(reader)()
        pipeline.build()
        images, labels = pipeline.run()
        for i in range(len(folder)):
            assert np.array(images.at(i)).tobytes() == folder.read(i).tobytes(), name
            label = np.array(labels.at(i))
            text = label.tobytes().decode() if label.dtype == np.uint8 else label.item()
            assert int(text) == folder.labels[i], name
