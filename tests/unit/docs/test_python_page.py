"""The examples of the Python reference run, and every public name is on the page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

import image_classification as ic

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "reference" / "python.md"


def blocks(path: Path) -> list[str]:
    found = re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)
    assert found
    return found


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be in a folder with ``photos/cat`` and ``photos/dog``, dark and bright noise."""
    random = np.random.default_rng(1)
    for name, level in (("cat", 60), ("dog", 190)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for n in range(24):
            pixels = random.normal(level, 20, (48, 60, 3)).clip(0, 255).astype(np.uint8)
            PIL.Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{n:03d}.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.filterwarnings(r"ignore:`torch\.jit\.:DeprecationWarning")
@pytest.mark.filterwarnings(r"ignore:photos .*:UserWarning")
@pytest.mark.usefixtures("narrow_networks", "no_pictures")
def test_examples_run_in_order(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for page in (PAGE, ROOT / "README.md"):
        for number, block in enumerate(blocks(page)):
            exec(compile(block, f"{page.name}, example {number + 1}", "exec"), names)
    printed = capsys.readouterr().out
    assert printed.count("epoch ") == 3
    assert re.search(r"^(cat|dog)$", printed, re.M)
    assert re.search(r"^top-1 \d+\.\d\d %, loss [\d.]+, 10 images$", printed, re.M)
    assert names["scores"].shape == (1, 2)
    assert names["tuned"].num_classes == 5
    assert (photos / "model.pt2").is_file()
    assert (photos / "runs" / "first" / "report.json").is_file()


def test_every_public_name_is_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name in ic.__all__:
        assert re.search(rf"\b{name}\b", page), name
