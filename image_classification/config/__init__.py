"""Resolve names, recipes and options to one frozen, explained configuration, without torch."""

from image_classification.config.resolve import resolve
from image_classification.config.schema import RunConfig

__all__ = ["RunConfig", "resolve"]
