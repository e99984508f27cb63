from pathlib import Path

import pytest

from image_classification.core.errors import DataError
from image_classification.data.tools import quarantine


def test_load_returns_what_save_wrote(tmp_path: Path) -> None:
    images = {"val/b/2.JPEG": "truncated", "train/a/1 ä.JPEG": "the file is empty"}
    quarantine.save(tmp_path / "quarantine.json", images)
    assert quarantine.load(tmp_path) == images
    assert [path.name for path in tmp_path.iterdir()] == ["quarantine.json"]


def test_without_a_file_no_image_is_listed(tmp_path: Path) -> None:
    assert quarantine.load(tmp_path) == {}
    assert quarantine.load(tmp_path / "absent") == {}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"[" * 100_000,
        b'{"format": 2, "images": {}}',
        b'{"format": 1}',
        b'{"format": 1, "images": ["a"]}',
        b'{"format": 1, "images": {"a": 3}}',
    ],
)
def test_a_damaged_list_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "quarantine.json").write_bytes(content)
    with pytest.raises(DataError, match=r"quarantine\.json is .*: remove it, or"):
        quarantine.load(tmp_path)


def test_a_failed_save_leaves_no_other_files(tmp_path: Path) -> None:
    (tmp_path / "quarantine.json").mkdir()
    with pytest.raises(DataError, match=r"cannot write the quarantine list to .* -o"):
        quarantine.save(tmp_path / "quarantine.json", {"a": "b"})
    with pytest.raises(DataError, match="cannot write"):
        quarantine.save(tmp_path / "absent" / "quarantine.json", {"a": "b"})
    assert [path.name for path in tmp_path.iterdir()] == ["quarantine.json"]
