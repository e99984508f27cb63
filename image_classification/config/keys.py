"""The settings by dotted name: reading and checking one value, and writing all of them out."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from dataclasses import dataclass
from typing import Any

from image_classification.config.schema import SECTIONS, RunConfig
from image_classification.core.errors import ConfigError, nearest, shortened, suggestion

MAX_INT = 2**31 - 1
"""Upper bound of whole numbers for which the schema has none."""

_NAME_OPTIONS = {
    "model.name": "--model",
    "precision.name": "--precision",
    "platform.name": "--platform",
    "run.mode": "--mode",
}
_KIND_TEXTS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_NULLS = ("null", "none", "~")
_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass(frozen=True, kw_only=True)
class Key:
    """One setting ``section.short``: its type and constraints; see `schema.setting`.

    kind: type of the value, or of the elements of a list. length: None for a single value, 0 for a
    list of any length, n for a list of n. words: texts allowed besides numbers.
    """

    section: str
    short: str
    field: str
    kind: type
    optional: bool
    length: int | None
    words: tuple[str, ...]
    default: Any
    doc: str
    choices: tuple[str, ...] = ()
    min: float | None = None
    max: float | None = None
    pattern: str = ""
    nonempty: bool = False
    null_word: str = ""
    computed: bool = False

    @property
    def name(self) -> str:
        """The dotted name."""
        return f"{self.section}.{self.short}"

    @property
    def has_default(self) -> bool:
        """Whether the schema has a default value."""
        return self.default is not dataclasses.MISSING

    def check(self, value: Any, where: str) -> Any:
        """Return ``value`` in the key's type: lists as tuples, whole numbers as floats if needed.

        Raises:
            ConfigError: wrong type, not one of the choices, or out of range. The message starts
                with ``where`` and names the nearest valid value.
        """
        if value is None and self.optional:
            return None
        if self.null_word and value in (None, self.null_word):
            return None
        if self.length is None or value is None:
            return self._check_element(value, where)
        name = f"{where}: {self.name}"
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{name} must be a list, got {value!r}")
        if not value and self.nonempty:
            raise ConfigError(f"{name} must have a value, got none ({self.doc})")
        if self.length and len(value) != self.length:
            raise ConfigError(f"{name} must have {self.length} values, got {len(value)}")
        return tuple(self._check_element(element, where) for element in value)

    def parse(self, text: str, where: str) -> Any:
        """Read ``text`` from the command line (lists as ``1,2,3``) and `check` it."""
        text = text.strip()
        if not text and self.length is None:
            # Usually an unset shell variable; never take it for a default.
            null = ", null for none," if self.optional else ""
            raise ConfigError(f"{where}: {self.name} is empty; give a value{null} or leave it out")
        if self.optional and text.casefold() in _NULLS:
            return None
        if self.length is None:
            return self.check(self._parse_element(text), where)
        parts = [part.strip() for part in text.strip("[]()").split(",")]
        return self.check([self._parse_element(part) for part in parts if part], where)

    def _parse_element(self, text: str) -> Any:
        if self.kind is bool:
            return _BOOLS.get(text.casefold(), text)
        number = whole_number(text) if self.kind is int else None
        return text if number is None else number

    def _check_element(self, value: Any, where: str) -> Any:
        if not self._has_kind(value):
            also = "".join(f" or {word!r}" for word in (*self.words, self.null_word) if word)
            if self.optional:
                also += " or null"
            shown = "null" if value is None else shortened(value)
            raise ConfigError(
                f"{where}: {self.name} must be {_KIND_TEXTS[self.kind]}{also}, got {shown}"
            )
        if self.kind is float and value not in self.words:
            value = float(value)
        if self.choices and value not in self.choices:
            raise ConfigError(
                f"{where}: {self.name} cannot be {value!r}{suggestion(value, self.choices)} "
                f"(valid: {', '.join(self.choices)})"
            )
        if self.pattern and not re.fullmatch(self.pattern, value):
            raise ConfigError(f"{where}: {self.name} cannot be {value!r} ({self.doc})")
        if self.kind in (int, float) and not isinstance(value, str):
            self._check_range(value, where)
        return value

    def _has_kind(self, value: Any) -> bool:
        if self.kind is not float:
            # In Python, a bool is an int.
            return type(value) is self.kind and value != ""
        if isinstance(value, bool) or value is None:
            return False
        if isinstance(value, str) and value in self.words:
            return True
        try:
            # YAML 1.1 reads 1e-4, which has no dot, as text.
            return math.isfinite(float(value))
        except (TypeError, ValueError, OverflowError):
            return False

    def _check_range(self, value: float, where: str) -> None:
        highest = MAX_INT if self.max is None and self.kind is int else self.max
        if self.min is not None and value < self.min:
            bound, limit = "or more", f"{self.min:g}"
        elif highest is not None and value > highest:
            bound, limit = "or less", str(highest) if self.kind is int else f"{highest:g}"
        else:
            return
        raise ConfigError(
            f"{where}: {self.name} must be {limit} {bound}, got {shortened(value)}; "
            f"the nearest valid value is {limit}"
        )


def whole_number(text: str) -> int | None:
    """Parse a whole number; None for other texts, and for those longer than 60 characters."""
    if len(text) <= 60 and re.fullmatch(r"[+-]?[0-9]+(_[0-9]+)*", text):
        return int(text)
    return None


def _read_keys() -> dict[str, Key]:
    keys = {}
    for section, cls in SECTIONS.items():
        hints = typing.get_type_hints(cls)
        for f in dataclasses.fields(cls):
            metadata = dict(f.metadata)
            hint = hints[f.name]
            types_allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
            optional = type(None) in types_allowed
            kinds = [kind for kind in types_allowed if kind is not type(None)]
            length = None
            if typing.get_origin(kinds[0]) is tuple:
                elements = typing.get_args(kinds[0])
                length = 0 if elements[-1] is Ellipsis else len(elements)
                kinds = [elements[0]]
            key = Key(
                section=section,
                short=metadata.pop("key", f.name),
                field=f.name,
                kind=kinds[0],
                optional=optional,
                length=length,
                words=("dynamic",) if str in kinds[1:] else (),
                default=f.default,
                **metadata,
            )
            keys[key.name] = key
    return keys


KEYS: dict[str, Key] = _read_keys()
"""Every setting by its dotted name, in the order of the sections."""


@dataclass(frozen=True)
class Override:
    """A setting that the user gave for this run. origin: how, for messages and provenance.

    ``batch.global`` may have the value None: one micro-batch per device, no accumulation.
    """

    key: str
    value: Any
    origin: str


def read_setting(text: str) -> Override:
    """Read the argument of ``--set section.key=value``. Raises ConfigError."""
    name, equals, value = text.partition("=")
    origin = f"--set {text}"
    if not equals:
        raise ConfigError(f"{origin}: write section.key=value")
    key = find_key(name.strip(), origin)
    return Override(key.name, key.parse(value, origin), origin)


def find_key(name: str, where: str) -> Key:
    """Return the key ``name``, or raise ConfigError ``WHERE: …`` with the nearest key."""
    if name not in KEYS:
        raise ConfigError(f"{where}: {_unknown_key(name)}")
    return KEYS[name]


def settable_key(name: str, where: str) -> Key:
    """Return the key ``name``; raise ConfigError if a file or a user may not set it."""
    key = find_key(name, where)
    if name in _NAME_OPTIONS:
        raise ConfigError(f"{where}: {name} is set by {_NAME_OPTIONS[name]}; use that")
    if key.computed:
        raise ConfigError(f"{where}: {name} is computed; set batch.per_device and batch.global")
    return key


def _unknown_key(name: str) -> str:
    section, dot, short = name.partition(".")
    if name in SECTIONS:
        example = next(key for key in KEYS if key.startswith(f"{name}."))
        return f"{name!r} is a section; write its keys with a dot, such as {example!r}"
    if not dot:
        hints = [key for key in KEYS if key.endswith(f".{name}")] or [nearest(name, KEYS)]
        other = "keys are section.key, see --explain"
    elif section in SECTIONS:
        own = [key.short for key in KEYS.values() if key.section == section]
        hints, other = [nearest(short, own)], f"{section} has {', '.join(own)}"
    else:
        hints = [nearest(name, KEYS) or nearest(section, SECTIONS)]
        other = f"sections are {', '.join(SECTIONS)}"
    hint = " or ".join(repr(hint) for hint in hints if hint)
    return f"unknown key {name!r}; {f'did you mean {hint}?' if hint else other}"


def to_dict(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Return ``{section: {key: value}}`` for JSON, with the keys of ``--set``."""
    content: dict[str, dict[str, Any]] = {}
    for key in KEYS.values():
        value = getattr(getattr(config, key.section), key.field)
        section = content.setdefault(key.section, {})
        section[key.short] = list(value) if isinstance(value, tuple) else value
    return content


def explanation(config: RunConfig) -> dict[str, Any]:
    """Return what ``--explain --json`` prints: name, config, provenance and warnings."""
    return {
        "name": dataclasses.asdict(config.names),
        "config": to_dict(config),
        "provenance": dict(config.provenance),
        "warnings": list(config.warnings),
    }


def to_yaml(config: RunConfig) -> str:
    """Return the configuration as YAML, each value with its origin as a comment.

    Its content is that of `to_dict` plus ``name``, ``sources`` and ``warnings``.
    """
    lines = ["# Resolved configuration; each value with where it came from."]
    lines.append(f"name: {json.dumps(dataclasses.asdict(config.names), ensure_ascii=False)}")
    for section, content in to_dict(config).items():
        lines.append(f"{section}:")
        for short, value in content.items():
            origin = config.provenance[f"{section}.{short}"].replace("\n", " ")
            lines.append(f"  {short}: {_yaml_value(value):<24}  # {origin}")
    for name, texts in (("sources", config.sources), ("warnings", config.warnings)):
        lines.append(f"{name}: {json.dumps(list(texts), ensure_ascii=False)}")
    return "\n".join(lines) + "\n"


def _yaml_value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml_value, value))}]"
    text = json.dumps(value, ensure_ascii=False)
    # YAML 1.1 reads 5e-05, which has no dot, as text.
    return re.sub(r"^(-?\d+)e", r"\1.0e", text) if isinstance(value, float) else text
