"""Planned pictures of run folders, for the tests of pictures."""

from pathlib import Path

from image_classification.reporting.pictures.draw import plan
from image_classification.reporting.pictures.picture import LeftOut, Picture, Series
from image_classification.reporting.pictures.source import read_run


def planned(*folders: Path) -> dict[str, Picture | LeftOut]:
    """Return all pictures of the runs in ``folders`` by name."""
    return {each.name: each for each in plan([read_run(folder) for folder in folders])}


def drawn(name: str, *folders: Path) -> Picture:
    """Return one picture of the runs in ``folders``, which must not be left out."""
    picture = planned(*folders)[name]
    assert isinstance(picture, Picture), picture
    return picture


def why_left_out(name: str, *folders: Path) -> str:
    """Return why a picture of the runs in ``folders`` is left out."""
    picture = planned(*folders)[name]
    assert isinstance(picture, LeftOut)
    return picture.why


def drawn_names(pictures: dict[str, Picture | LeftOut]) -> list[str]:
    """Return the names of the pictures that are not left out."""
    return [name for name, each in pictures.items() if isinstance(each, Picture)]


def series_of(picture: Picture, panel: int = 0) -> dict[str, Series]:
    """Return the labeled series of one panel by label."""
    return {series.label: series for series in picture.panels[panel].series if series.label}
