import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from image_classification.core.errors import DataError
from image_classification.data.formats import index as index_module
from image_classification.data.formats.folder import open_index
from image_classification.data.formats.index import Names, OpenFiles, VanishedError
from image_classification.data.tools import quarantine
from image_classification.data.tools.pack import FORMATS, pack


@pytest.fixture(params=["folder", *FORMATS])
def data_set(request: pytest.FixtureRequest, image_folder: Path, tmp_path: Path) -> Path:
    if request.param == "folder":
        return image_folder
    pack(image_folder, tmp_path / request.param, request.param)
    return tmp_path / request.param


def test_names_are_stored_end_to_end() -> None:
    names = Names.of([b"a", b"", "Kätzchen".encode(), b"\xff.jpg"])
    assert [names[i] for i in range(4)] == ["a", "", "Kätzchen", "\udcff.jpg"]
    kept = names.keep(np.array([3, 0], dtype=np.int64))
    assert [kept[i] for i in range(2)] == ["\udcff.jpg", "a"]


def test_an_index_can_be_pickled(data_set: Path) -> None:
    index = open_index(data_set, "train", 2)
    expected = [index.read(i).tobytes() for i in range(len(index))]
    copy = pickle.loads(pickle.dumps(index))
    assert [copy.name(i) for i in range(len(copy))] == [index.name(i) for i in range(len(index))]
    assert [copy.read(i).tobytes() for i in range(len(copy))] == expected
    again = index.with_columns({name: array.copy() for name, array in index.columns().items()})
    assert [again.read(i).tobytes() for i in range(len(again))] == expected


def test_quarantined_images_are_left_out_of_train(data_set: Path) -> None:
    whole = open_index(data_set, "train", 2)
    names = [whole.name(i) for i in range(len(whole))]
    out = {names[0]: "why", names[7]: "why", "train/cat/of-no-image.JPEG": "why"}
    quarantine.save(data_set / "quarantine.json", out)
    index = open_index(data_set, "train", 2)
    assert index.num_quarantined == 2
    left = [i for i in range(len(whole)) if i not in (0, 7)]
    assert [index.name(i) for i in range(len(index))] == [names[i] for i in left]
    assert index.labels.tolist() == whole.labels[left].tolist()
    for i, before in enumerate(left):
        assert index.read(i).tobytes() == whole.read(before).tobytes()


def test_quarantined_validation_images_raise_an_error(data_set: Path) -> None:
    name = open_index(data_set, "val", 2).name(3)
    quarantine.save(data_set / "quarantine.json", {name: "truncated"})
    with pytest.raises(DataError, match="1 of the 5 validation images"):
        open_index(data_set, "val", 2)
    assert len(open_index(data_set, "train", 2)) == 12


def test_a_missing_file_is_not_a_vanished_data_set(image_folder: Path) -> None:
    index = open_index(image_folder, "train", 2)
    (image_folder / "train" / "cat" / "3.JPEG").unlink()
    with pytest.raises(DataError, match=r"cat/3.JPEG: No such file") as caught:
        index.read(3)
    assert not isinstance(caught.value, VanishedError)
    assert len(index.read(4)) > 0


def test_a_named_pipe_raises_an_error(image_folder: Path) -> None:
    index = open_index(image_folder, "train", 2)
    (image_folder / "train" / "cat" / "3.JPEG").unlink()
    os.mkfifo(image_folder / "train" / "cat" / "3.JPEG")
    with pytest.raises(DataError, match="it is not a file"):
        index.read(3)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("how", ["removed", "replaced", "cut"])
@pytest.mark.parametrize("is_open", [False, True])
def test_a_lost_shard_raises_an_error(
    image_folder: Path, tmp_path: Path, name: str, how: str, is_open: bool
) -> None:
    pack(image_folder, tmp_path / name, name)
    index = open_index(tmp_path / name, "train", 2)
    if is_open:
        index.read(0)
    shard = next(p for p in (tmp_path / name).glob("train*") if p.suffix != ".idx")
    if how == "cut":
        with open(shard, "r+b") as file:
            file.truncate(100)
    elif how == "removed":
        shard.unlink()
    elif is_open:
        other = tmp_path / "other"
        other.write_bytes(shard.read_bytes())
        other.rename(shard)
    else:
        shard.unlink()
        shard.mkdir()
    with pytest.raises(VanishedError, match=str(shard)):
        index.read(len(index) - 1)


def test_the_least_recently_used_file_is_closed_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_module, "OPEN_FILES", 2)
    paths = [tmp_path / str(i) for i in range(4)]
    for path in paths:
        path.touch()
    files = OpenFiles()
    held = [files.get(str(path)) for path in paths[:2]]
    assert files.get(str(paths[0])) is held[0]
    files.get(str(paths[2]))  # closes 1, the least recently used
    assert files.get(str(paths[0])) is held[0]
    assert files.get(str(paths[1])) is not held[1]
    os.fstat(held[1].number)  # open for as long as someone has it
    number = held.pop().number
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(number)
