"""Values on their way through the layers, each with a readable origin."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from image_classification.config.catalogue import Layer
from image_classification.config.checks import IDENTITY, KEYS, check_value, find_key
from image_classification.core.errors import ConfigError

SCHEMA_DEFAULT = "default (schema)"


@dataclass(frozen=True)
class Override:
    """One setting given on top of all layers, and how the user gave it.

    A None ``value`` of ``batch.global`` means as large as one micro-batch on every device.
    """

    key: str
    value: Any
    origin: str


class Values:
    """The settings of a run while they are put together: later layers win."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._origins: dict[str, str] = {}
        self._given: dict[str, str] = {}
        self._underneath: dict[str, Any] = {}
        for key in KEYS.values():
            if key.has_default:
                self.put(key.name, key.default, SCHEMA_DEFAULT)

    def put(self, key: str, value: Any, origin: str) -> None:
        """Set one value, replacing what an earlier layer said."""
        self._values[key] = value
        self._origins[key] = origin

    def put_layer(self, layer: Layer, file: str, name: str) -> None:
        """Lay the settings of one named layer of a configuration file over the others."""
        for key, setting in layer.items():
            self.put(key, setting.value, f"{file}:{setting.line}, {name}")

    def put_overrides(self, overrides: Iterable[Override]) -> None:
        """Lay the user's own settings over everything.

        Raises:
            ConfigError: unknown key, a value out of type or range, a key the names or a formula
                set, or two different values for one key.
        """
        for override in overrides:
            where = override.origin
            key = find_key(override.key, where)
            if key.name in IDENTITY:
                option = IDENTITY[key.name]
                raise ConfigError(f"{where}: {key.name} is set by {option}; use that")
            if key.computed:
                raise ConfigError(
                    f"{where}: {key.name} is computed; set batch.per_device and batch.global"
                )
            value = override.value
            if not (key.name == "batch.global" and value is None):
                value = check_value(key, value, where)
            if key.name in self._given and self._values[key.name] != value:
                raise ConfigError(
                    f"{key.name} is given twice: {self._values[key.name]} "
                    f"({self._given[key.name]}) and {value} ({where}); keep one"
                )
            self._underneath.setdefault(key.name, self._values.get(key.name))
            self.put(key.name, value, where)
            self._given[key.name] = where

    def given(self, key: str) -> bool:
        """Whether the user set ``key`` for this run."""
        return key in self._given

    def changed(self, key: str) -> bool:
        """Whether the user's setting of ``key`` differs from what the layers say."""
        return key in self._given and self._values[key] != self.underneath(key)

    def underneath(self, key: str) -> Any:
        """The layers' value of ``key``, before the user's own."""
        return self._underneath.get(key, self._values.get(key))

    def origin(self, key: str) -> str:
        """Where the value of ``key`` came from."""
        return self._origins[key]

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def missing(self) -> list[str]:
        """Keys no layer set, in the schema's order (formulas come last of all)."""
        return [k.name for k in KEYS.values() if not k.computed and k.name not in self._values]

    def values(self) -> Mapping[str, Any]:
        """Key -> value, in the schema's order."""
        return {name: self._values[name] for name in KEYS if name in self._values}

    def origins(self) -> dict[str, str]:
        """Key -> origin, in the schema's order."""
        return {name: self._origins[name] for name in KEYS if name in self._origins}


def without_line(origin: str) -> str:
    """Drop the line number from an origin, so that a moved line is not a changed value."""
    return re.sub(r"^([^,]*?):\d+, ", r"\1, ", origin)
