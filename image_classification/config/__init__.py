"""Names, recipes and options -> one frozen, explained configuration. Never imports torch."""

from image_classification.config.catalogue import Catalogue, ListedRun, load_catalogue
from image_classification.config.explain import explanation, to_dict, to_yaml
from image_classification.config.provenance import Override
from image_classification.config.resolve import resolve
from image_classification.config.schema import RunConfig, RunNames

__all__ = [
    "Catalogue",
    "ListedRun",
    "Override",
    "RunConfig",
    "RunNames",
    "explanation",
    "load_catalogue",
    "resolve",
    "to_dict",
    "to_yaml",
]
