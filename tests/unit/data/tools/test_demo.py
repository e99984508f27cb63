import hashlib
import os
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from image_classification.core.errors import DataError
from image_classification.data.formats.folder import open_index
from image_classification.data.tools.demo import ensure_demo, resolve_data_path, write_demo


def digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return total.hexdigest()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_demo(tmp_path_factory.mktemp("cache"))


def test_demo_is_a_stratified_folder_data_set(demo: Path) -> None:
    train, val = (open_index(demo, split, 10) for split in ("train", "val"))
    assert (len(train), len(val)) == (1437, 360)
    assert train.classes == val.classes == tuple("0123456789")
    for label in range(10):
        in_val = int((val.labels == label).sum())
        in_both = in_val + int((train.labels == label).sum())
        assert abs(in_val - 0.2 * in_both) <= 1
    numbers = [Path(i.where(k)).name for i in (train, val) for k in range(len(i))]
    assert len(set(numbers)) == 1797
    with Image.open(val.where(0)) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 64))


def test_demo_is_written_once_and_deterministic(demo: Path, tmp_path: Path) -> None:
    before = (demo / "manifest.json").stat().st_mtime_ns
    assert ensure_demo(demo.parent) == demo
    assert (demo / "manifest.json").stat().st_mtime_ns == before
    assert digest(write_demo(tmp_path / "again")) == digest(demo)
    assert stat.S_IMODE((tmp_path / "again").stat().st_mode) & 0o500 == 0o500
    assert os.listdir(tmp_path) == ["again"]


@pytest.mark.parametrize(
    "damage", ["image missing", "image truncated", "manifest missing", "manifest truncated"]
)
def test_incomplete_demo_is_replaced(tmp_path: Path, demo: Path, damage: str) -> None:
    folder = tmp_path / demo.name
    shutil.copytree(demo, folder, copy_function=os.link)
    kind, what = damage.split()
    file = folder / "manifest.json" if kind == "manifest" else next((folder / "val").glob("3/*"))
    content = file.read_bytes()
    file.unlink()
    if what == "truncated":
        file.write_bytes(content[:20])
    assert digest(ensure_demo(tmp_path)) == digest(demo)
    assert os.listdir(tmp_path) == [folder.name]


@pytest.mark.slow
def test_several_threads_may_make_it_at_once(tmp_path: Path, demo: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(ensure_demo, [tmp_path] * 3))
    assert set(folders) == {tmp_path / demo.name}
    assert digest(folders[0]) == digest(demo)
    assert os.listdir(tmp_path) == [demo.name]


def test_cache_folder_follows_the_environment(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("IMAGE_CLASSIFICATION_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(variable, raising=False)
    home_cache = tmp_path / "home" / ".cache" / "image-classification"
    xdg_cache = tmp_path / "xdg" / "image-classification"
    for cache in (home_cache, xdg_cache):
        cache.mkdir(parents=True)
        (cache / demo.name).symlink_to(demo)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert ensure_demo() == home_cache / demo.name
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert ensure_demo() == home_cache / demo.name
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert ensure_demo() == xdg_cache / demo.name
    monkeypatch.setenv("IMAGE_CLASSIFICATION_CACHE", str(demo.parent))
    assert ensure_demo() == demo
    assert resolve_data_path("demo") == demo


def test_unwritable_cache_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("IMAGE_CLASSIFICATION_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot write .*file.*: set IMAGE_CLASSIFICATION_CACHE"):
        ensure_demo()


def test_no_home_folder_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for variable in ("IMAGE_CLASSIFICATION_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(DataError, match=r"no home folder .*: set IMAGE_CLASSIFICATION_CACHE"):
        ensure_demo()


def test_write_demo_leaves_other_files_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match="is not empty"):
        write_demo(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_other_paths_are_unchanged() -> None:
    assert resolve_data_path("/imagenet") == Path("/imagenet")
    with pytest.raises(DataError, match=r"data\.backend"):
        resolve_data_path("synthetic")
