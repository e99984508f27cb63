"""Reproduce published ImageNet classification runs by name.

The names of `__all__` are imported on first use, so that importing the package needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from image_classification.api import (
        EvalTransform,
        evaluate,
        load_model,
        model_transforms,
        train,
    )
    from image_classification.config.resolve import resolve
    from image_classification.config.schema import RunConfig
    from image_classification.core.errors import DivergedError, UserError
    from image_classification.core.types import EvalResult, Record
    from image_classification.engine.stop import Stopped
    from image_classification.models import create_model, list_models
    from image_classification.models.classifier import Classifier

__version__ = "0.2.0"

__all__ = [
    "Classifier",
    "DivergedError",
    "EvalResult",
    "EvalTransform",
    "Record",
    "RunConfig",
    "Stopped",
    "UserError",
    "create_model",
    "evaluate",
    "list_models",
    "load_model",
    "model_transforms",
    "resolve",
    "train",
]

_MODULES = {
    "api": ("EvalTransform", "evaluate", "load_model", "model_transforms", "train"),
    "config.resolve": ("resolve",),
    "config.schema": ("RunConfig",),
    "core.errors": ("DivergedError", "UserError"),
    "core.types": ("EvalResult", "Record"),
    "engine.stop": ("Stopped",),
    "models": ("create_model", "list_models"),
    "models.classifier": ("Classifier",),
}


if not TYPE_CHECKING:  # type checkers know the names above, and report others

    def __getattr__(name: str) -> Any:
        for module, names in _MODULES.items():
            if name in names:
                value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
                globals()[name] = value
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
