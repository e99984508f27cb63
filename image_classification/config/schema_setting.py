"""How a setting is declared in the configuration's dataclasses."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def setting(default: Any = ..., *, doc: str, **meta: Any) -> Any:
    """Return a dataclass field with its help text; without a default it must be given.

    meta: ``choices``, ``min``, ``max`` and the like, checked by
    `image_classification.config.checks`.
    """
    metadata = {"doc": doc, **meta}
    if default is ...:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)
