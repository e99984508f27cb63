import io
import os
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.io import savemat  # type: ignore[import-untyped]

from image_classification.core.errors import DataError
from image_classification.data.tools import prepare as prepare_module
from image_classification.data.tools.prepare import ARCHIVES, KIT, prepare

SYNSETS = ("n01440764", "n01443537", "n01484850")
TRAIN = {name: [f"{name}_{i}.JPEG" for i in range(2 + k)] for k, name in enumerate(SYNSETS)}
VAL_CLASSES = (3, 1, 2, 3, 1)  # the kit's ids, in the order of the images


def content_of(name: str) -> bytes:
    return f"pixels of {name}".encode() * 9


def val_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def tar_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def meta_mat() -> bytes:
    """Return the kit's table: leaves first, then an inner node of the hierarchy."""
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = [(k + 1, name, "a fish", 0) for k, name in enumerate(SYNSETS)]
    rows.append((4, "n00001740", "entity", 3))
    table = np.array(rows, dtype=fields).reshape(-1, 1)
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": table})
    return buffer.getvalue()


def write_kit(folder: Path) -> None:
    truth = "".join(f"{k}\n" for k in VAL_CLASSES).encode()
    members = {
        f"{KIT}/readme.txt": b"",
        f"{KIT}/data/ILSVRC2012_validation_ground_truth.txt": truth,
        f"{KIT}/data/meta.mat": meta_mat(),
    }
    with tarfile.open(folder / f"{KIT}.tar.gz", "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def write_train(folder: Path) -> None:
    inner = {
        f"{name}.tar": tar_of({file: content_of(file) for file in files})
        for name, files in TRAIN.items()
    }
    (folder / ARCHIVES["train"]).write_bytes(tar_of(inner))


def val_members() -> dict[str, bytes]:
    names = [val_name(i + 1) for i in range(len(VAL_CLASSES))]
    return {name: content_of(name) for name in names}


def write_flat(folder: Path) -> None:
    (folder / "val").mkdir()
    for name, content in val_members().items():
        (folder / "val" / name).write_bytes(content)


@pytest.fixture
def official(tmp_path: Path) -> Path:
    folder = tmp_path / "official"
    folder.mkdir()
    write_train(folder)
    (folder / ARCHIVES["val"]).write_bytes(tar_of(val_members()))
    write_kit(folder)
    return folder


def images(root: Path, split: str) -> dict[str, list[str]]:
    """Return the image names per class, after checking their content."""
    found: dict[str, list[str]] = {}
    for path in sorted((root / split).glob("*/*")):
        assert path.read_bytes() == content_of(path.name)
        found.setdefault(path.parent.name, []).append(path.name)
    return found


EXPECTED_VAL = {
    name: [val_name(i + 1) for i, c in enumerate(VAL_CLASSES) if c == k + 1]
    for k, name in enumerate(SYNSETS)
}


def test_the_official_archives_become_class_folders(official: Path, tmp_path: Path) -> None:
    out, seen = tmp_path / "out", []
    before = sorted(path.name for path in official.iterdir())
    reports = prepare(
        official, out, progress=lambda split, done, total: seen.append(split * (done == total))
    )
    assert images(out, "train") == TRAIN
    assert images(out, "val") == EXPECTED_VAL
    assert (reports["train"].num_classes, reports["train"].num_new_images) == (3, 9)
    assert (reports["val"].num_classes, reports["val"].num_new_images) == (3, 5)
    assert seen == ["", "", "train", "", "", "val"]
    assert sorted(path.name for path in official.iterdir()) == before
    assert sorted(path.name for path in out.iterdir()) == ["train", "val"]


def test_an_unpacked_kit_is_read(official: Path, tmp_path: Path) -> None:
    with tarfile.open(official / f"{KIT}.tar.gz") as archive:
        archive.extractall(official, filter="data")
    (official / f"{KIT}.tar.gz").unlink()
    prepare(official, tmp_path / "out")
    assert images(tmp_path / "out", "val") == EXPECTED_VAL


def test_an_interrupted_run_is_continued(
    official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    place, placed = prepare_module._place_image, list[str]()

    def stop(target: Path, image: prepare_module._Image, label: str) -> None:
        if len(placed) == 3:
            raise KeyboardInterrupt
        placed.append(target.name)
        place(target, image, label)

    monkeypatch.setattr(prepare_module, "_place_image", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(official, out)
    assert [path.name for path in (out / "train").iterdir()] == [SYNSETS[0]]
    monkeypatch.undo()
    left = out / "train" / f".partial-{SYNSETS[1]}"  # as after SIGKILL
    left.mkdir()
    (left / "half").touch()
    reports = prepare(official, out)
    assert images(out, "train") == TRAIN
    assert not left.exists()
    assert (reports["train"].num_images, reports["train"].num_new_images) == (9, 7)
    assert prepare(official, out)["train"].num_new_images == 0


def test_a_class_folder_with_other_content_is_refused(official: Path, tmp_path: Path) -> None:
    prepare(official, tmp_path)
    (tmp_path / "train" / SYNSETS[1] / TRAIN[SYNSETS[1]][0]).write_bytes(b"")
    with pytest.raises(DataError, match=f"{SYNSETS[1]} exists but 1 of its 3 images"):
        prepare(official, tmp_path)


@pytest.mark.parametrize("linked", [True, False])
def test_a_flat_val_is_sorted_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: bool
) -> None:
    def refuse(*names: object) -> None:
        raise PermissionError(1, "no hard links")

    if not linked:
        monkeypatch.setattr(os, "link", refuse)
    write_flat(tmp_path)
    write_kit(tmp_path)
    prepare(tmp_path, tmp_path)
    assert images(tmp_path, "val") == EXPECTED_VAL
    flat = [path for path in (tmp_path / "val").iterdir() if path.is_file()]
    assert len(flat) == 5
    assert {path.stat().st_nlink for path in flat} == ({2} if linked else {1})
    prepare(tmp_path, tmp_path, delete_source=True)
    assert images(tmp_path, "val") == EXPECTED_VAL
    assert not any(path.is_file() for path in (tmp_path / "val").iterdir())


def test_the_archives_are_deleted_only_on_request(official: Path) -> None:
    prepare(official, official, delete_source=True)
    assert {path.name for path in official.iterdir()} == {"train", "val", f"{KIT}.tar.gz"}


@pytest.mark.parametrize("form", ["lines", "csv"])
def test_a_list_of_labels_is_read(tmp_path: Path, form: str) -> None:
    write_flat(tmp_path)
    rows = [(val_name(i + 1), SYNSETS[c - 1]) for i, c in enumerate(VAL_CLASSES)]
    if form == "lines":
        text = "".join(f"{name} {synset}\n" for name, synset in rows)
    else:
        lines = [f"{name[:-5]},{synset} 1 2 3 4 {synset} 5 6 7 8" for name, synset in rows]
        text = "\n".join(["ImageId,PredictionString", *lines])
    labels = tmp_path / "labels"
    labels.write_text(text)
    prepare(tmp_path, tmp_path / "out", labels=labels)
    assert images(tmp_path / "out", "val") == EXPECTED_VAL


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no image"),
        ("a.JPEG\n", ":1: 'a.JPEG' is not 'NAME.JPEG CLASS'"),
        ("a.JPEG ../x\n", ":1: .* is not"),
        ("a.JPEG .x\n", ":1: .* is not"),
        ("a.JPEG x\\y\n", ":1: .* is not"),
        ("a.JPEG x\na.JPEG y\n", ":2: a.JPEG has two classes"),
        ("a.JPEG x\n", f"has no class for {val_name(1)}"),
        (
            "".join(f"{val_name(i)} x\n" for i in range(1, 8)),
            "names 7 images but only 5 are there",
        ),
    ],
)
def test_an_unsuitable_list_of_labels_is_refused(tmp_path: Path, text: str, message: str) -> None:
    write_flat(tmp_path)
    (tmp_path / "labels").write_text(text)
    with pytest.raises(DataError, match=message):
        prepare(tmp_path, tmp_path / "out", labels=tmp_path / "labels")


def test_missing_labels_are_an_error(tmp_path: Path) -> None:
    write_flat(tmp_path)
    with pytest.raises(DataError, match=r"put ILSVRC2012_devkit_t12\.tar\.gz there, or .*--labels"):
        prepare(tmp_path, tmp_path)
    with pytest.raises(DataError, match=r"cannot read .*absent: No such file"):
        prepare(tmp_path, tmp_path, labels=tmp_path / "absent")


@pytest.mark.parametrize("content", [b"", b"no gzip", b"\x1f\x8b\x08\0\0\0\0\0\0\x03garbage"])
def test_a_damaged_kit_is_an_error(tmp_path: Path, content: bytes) -> None:
    write_flat(tmp_path)
    (tmp_path / f"{KIT}.tar.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"devkit_t12\.tar\.gz is damaged"):
        prepare(tmp_path, tmp_path)


def link(name: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (tarfile.TarInfo("/tmp/x.JPEG"), "a path outside the archive"),
        (tarfile.TarInfo("../x.JPEG"), "a path outside the archive"),
        (tarfile.TarInfo("a/../../x.JPEG"), "a path outside the archive"),
        (tarfile.TarInfo("..\\x.JPEG"), "a path outside the archive"),
        (link("x.JPEG"), "a link or a device"),
        (link("x.JPEG", tarfile.LNKTYPE), "a link or a device"),
        (link("x.JPEG", tarfile.CHRTYPE), "a link or a device"),
        (link("x.JPEG", tarfile.FIFOTYPE), "a link or a device"),
    ],
)
@pytest.mark.parametrize("depth", [0, 1])
def test_only_plain_files_are_extracted(
    tmp_path: Path, member: tarfile.TarInfo, message: str, depth: int
) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(member)
    content = buffer.getvalue() if depth == 0 else tar_of({"n01440764.tar": buffer.getvalue()})
    (tmp_path / ARCHIVES["train"]).write_bytes(content)
    with pytest.raises(DataError, match=message):
        prepare(tmp_path, tmp_path / "out")
    assert not any(path.is_file() for path in (tmp_path / "out").rglob("*"))


@pytest.mark.parametrize("keep", [0, 100, 0.3, 0.5, 0.75])
def test_a_truncated_archive_leaves_no_incomplete_class(
    official: Path, tmp_path: Path, keep: float
) -> None:
    path = official / ARCHIVES["train"]
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if keep >= 1 else keep * len(content))])
    with pytest.raises(DataError, match="download it again"):
        prepare(official, tmp_path / "out")
    for name, files in images(tmp_path / "out", "train").items():
        assert files == TRAIN[name]


def test_too_little_space_is_an_error_before_extracting(
    official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(DataError, match=r"needs .* GB and .* GB are free: free some space.* -o"):
        prepare(official, tmp_path / "out")
    assert not any((tmp_path / "out" / "train").iterdir())


def test_nothing_to_prepare_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        prepare(tmp_path / "absent", tmp_path)
    with pytest.raises(DataError, match="nothing to prepare"):
        prepare(tmp_path, tmp_path)
