"""Planned pictures of run folders, for the tests of pictures."""

from image_classification.reporting.pictures.draw import plan
from image_classification.reporting.pictures.picture import Picture
from image_classification.reporting.pictures.source import read_run


def planned(*folders):
    """Return the pictures of the runs in ``folders`` by name."""
    return {each.name: each for each in plan([read_run(folder) for folder in folders])}


def drawn_names(pictures):
    """Return the names of the pictures that are not left out."""
    return [name for name, each in pictures.items() if isinstance(each, Picture)]


def series_of(picture, panel=0):
    """Return the labeled series of one panel by label."""
    return {series.label: series for series in picture.panels[panel].series if series.label}
