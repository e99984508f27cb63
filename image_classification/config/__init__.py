"""Resolve names, recipes and options to one frozen, explained configuration, without torch."""

from image_classification.config.catalogue import Catalogue, ListedRun, load_catalogue
from image_classification.config.keys import Override, explanation, to_dict, to_yaml
from image_classification.config.resolve import LayeredRun, read_run, resolve
from image_classification.config.schema import RunConfig, RunNames

__all__ = [
    "Catalogue",
    "LayeredRun",
    "ListedRun",
    "Override",
    "RunConfig",
    "RunNames",
    "explanation",
    "load_catalogue",
    "read_run",
    "resolve",
    "to_dict",
    "to_yaml",
]
