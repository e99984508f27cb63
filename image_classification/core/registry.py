"""A typed registry: name -> object, imported on first use."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar, cast

from image_classification.core.errors import ConfigError, unknown

T = TypeVar("T")


class Registry(Generic[T]):
    """Map names to objects, or to ``"module:attribute"`` texts that are imported on first use.

    So ``--list`` can name every model without importing torch.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T | str] = {}

    def add(self, name: str, target: T | str) -> None:
        """Register ``target`` under ``name``. Raises ValueError if it is already registered."""
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered twice")
        self._entries[name] = target

    def register(self, name: str) -> Callable[[T], T]:
        """Register the decorated object; see `add`."""

        def wrap(target: T) -> T:
            self.add(name, target)
            return target

        return wrap

    def get(self, name: str) -> T:
        """Return the object registered as ``name``. Raises ConfigError with the nearest name."""
        if name not in self._entries:
            raise ConfigError(unknown(self.kind, name, self._entries))
        entry = self._entries[name]
        if isinstance(entry, str):
            module, _, attribute = entry.partition(":")
            entry = self._entries[name] = getattr(importlib.import_module(module), attribute)
        return cast(T, entry)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
