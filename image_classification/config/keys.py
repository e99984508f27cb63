"""Settings by dotted name: the table `KEYS`, and reading and checking one value."""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from dataclasses import dataclass
from typing import Any

from image_classification.config.schema import SECTIONS
from image_classification.core.errors import ConfigError, nearest

IDENTITY = {
    "model.name": "--model",
    "precision.name": "--precision",
    "platform.name": "--platform",
    "run.mode": "--mode",
}
"""Keys that only the run's names set, and the option of each name."""

MAX_INT = 2**31 - 1
"""Upper bound of whole numbers without a bound of their own."""

_KIND_TEXTS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_NULLS = ("null", "none", "~")
_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_SHOWN = 60


@dataclass(frozen=True)
class Key:
    """One setting: its dotted name, type and constraints.

    kind: type of the value, or of the elements of a list. length: None for a single value, 0 for a
    list of any length, n for a list of n. words: texts allowed besides numbers.
    """

    name: str
    field: str
    doc: str
    kind: type
    optional: bool
    length: int | None
    words: tuple[str, ...]
    default: Any
    choices: tuple[str, ...] | None
    minimum: float | None
    maximum: float | None
    pattern: str | None
    nonempty: bool
    computed: bool

    @property
    def section(self) -> str:
        """The section's name."""
        return self.name.partition(".")[0]

    @property
    def short(self) -> str:
        """The name within the section."""
        return self.name.partition(".")[2]

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
        if value is None:
            if self.optional:
                return None
            raise ConfigError(f"{where}: {self.name} must be {_KIND_TEXTS[self.kind]}, got null")
        if self.length is None:
            return self._check_element(value, where)
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: {self.name} must be a list, got {value!r}")
        if not value and self.nonempty:
            raise ConfigError(f"{where}: {self.name} must have a value, got none ({self.doc})")
        if self.length and len(value) != self.length:
            raise ConfigError(
                f"{where}: {self.name} must have {self.length} values, got {len(value)}"
            )
        return tuple(self._check_element(v, where) for v in value)

    def parse(self, text: str, where: str) -> Any:
        """Read ``text`` from the command line as the key's type; lists are written ``1,2,3``.

        Raises:
            ConfigError: as `check`.
        """
        text = text.strip()
        if not text and self.length is None:
            # Usually an unset shell variable; never take it for a default.
            null = ", null for none," if self.optional else ""
            raise ConfigError(f"{where}: {self.name} is empty; give a value{null} or leave it out")
        if self.optional and text.casefold() in _NULLS:
            return None
        if self.length is None:
            return self.check(self._parse_element(text), where)
        parts = [p.strip() for p in text.strip("[]()").split(",") if p.strip()]
        return self.check([self._parse_element(p) for p in parts], where)

    def _parse_element(self, text: str) -> Any:
        if self.kind is bool:
            return _BOOLS.get(text.casefold(), text)
        number = whole_number(text) if self.kind is int else None
        return text if number is None else number

    def _check_element(self, value: Any, where: str) -> Any:
        value = self._convert(value, where)
        if self.choices is not None and value not in self.choices:
            hint = nearest(value, self.choices)
            meant = f"; did you mean {hint!r}?" if hint else ""
            valid = ", ".join(self.choices)
            raise ConfigError(f"{where}: {self.name} cannot be {value!r}{meant} (valid: {valid})")
        if self.pattern is not None and not re.fullmatch(self.pattern, value):
            raise ConfigError(f"{where}: {self.name} cannot be {value!r} ({self.doc})")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            self._check_range(value, where)
        return value

    def _check_range(self, value: float, where: str) -> None:
        if self.minimum is not None and value < self.minimum:
            bound, limit = "or more", f"{self.minimum:g}"
        else:
            maximum = MAX_INT if self.maximum is None and self.kind is int else self.maximum
            if maximum is None or value <= maximum:
                return
            bound, limit = "or less", str(maximum) if self.kind is int else f"{maximum:g}"
        raise ConfigError(
            f"{where}: {self.name} must be {limit} {bound}, got {clipped(value)}; "
            f"the nearest valid value is {limit}"
        )

    def _convert(self, value: Any, where: str) -> Any:
        kind = self.kind
        if kind is str:
            if isinstance(value, str) and value:
                return value
        elif kind is bool or isinstance(value, bool):
            if kind is bool and isinstance(value, bool):
                return value
        elif kind is int and isinstance(value, int):
            return value
        elif kind is float:
            if isinstance(value, str) and value in self.words:
                return value
            # YAML 1.1 reads 1e-4, which has no dot, as text.
            if isinstance(value, (int, float, str)) and _is_finite(value):
                return float(value)
        also = "".join(f" or {w!r}" for w in self.words) + (" or null" if self.optional else "")
        raise ConfigError(
            f"{where}: {self.name} must be {_KIND_TEXTS[kind]}{also}, got {clipped(value)}"
        )


def clipped(value: Any) -> str:
    """Return ``repr(value)``, cut to a length that fits into a message."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def whole_number(text: str) -> int | None:
    """Return the whole number that ``text`` is; None for other texts and for absurd lengths."""
    if len(text) <= _SHOWN and re.fullmatch(r"[+-]?[0-9]+(_[0-9]+)*", text):
        return int(text)
    return None


def _is_finite(value: float | str) -> bool:
    try:
        return math.isfinite(float(value))
    except (ValueError, OverflowError):
        return False


def _shape(hint: Any) -> tuple[type, bool, int | None, tuple[str, ...]]:
    """Return kind, optional, length and words of a field's type; see `Key`."""
    arms = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    optional = type(None) in arms
    rest = [a for a in arms if a is not type(None)]
    if rest == [float, str]:
        return float, optional, None, ("dynamic",)
    (single,) = rest
    if typing.get_origin(single) is tuple:
        elements = typing.get_args(single)
        return elements[0], optional, 0 if elements[-1] is Ellipsis else len(elements), ()
    return single, optional, None, ()


def _read_keys() -> dict[str, Key]:
    keys = {}
    for section, cls in SECTIONS.items():
        hints = typing.get_type_hints(cls)
        for f in dataclasses.fields(cls):
            kind, optional, length, words = _shape(hints[f.name])
            meta = f.metadata
            name = f"{section}.{meta.get('key', f.name)}"
            keys[name] = Key(
                name=name,
                field=f.name,
                doc=meta["doc"],
                kind=kind,
                optional=optional,
                length=length,
                words=words,
                default=f.default,
                choices=meta.get("choices"),
                minimum=meta.get("min"),
                maximum=meta.get("max"),
                pattern=meta.get("pattern"),
                nonempty=meta.get("nonempty", False),
                computed=meta.get("computed", False),
            )
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
    """Read the argument of ``--set section.key=value``.

    Raises:
        ConfigError: no ``=``, no such key, or a value that does not fit it.
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text}: write section.key=value")
    key = find_key(name.strip(), f"--set {text}")
    return Override(key.name, key.parse(value, f"--set {text}"), f"--set {text}")


def find_key(name: str, where: str) -> Key:
    """Return the key ``name``.

    Raises:
        ConfigError: no such key. The message starts with ``where`` and has the nearest key.
    """
    if name not in KEYS:
        raise ConfigError(f"{where}: {_unknown_key(name)}")
    return KEYS[name]


def settable_key(name: str, where: str) -> Key:
    """Return the key ``name``, which a file or a user may set; `find_key` otherwise.

    Raises:
        ConfigError: also for keys that the run's names set, or that are computed.
    """
    if name in IDENTITY:
        raise ConfigError(f"{where}: {name} is set by {IDENTITY[name]}; use that")
    key = find_key(name, where)
    if key.computed:
        raise ConfigError(f"{where}: {name} is computed; set batch.per_device and batch.global")
    return key


def _unknown_key(name: str) -> str:
    section, dot, short = name.partition(".")
    if name in SECTIONS:
        example = next(k for k in KEYS if k.startswith(f"{name}."))
        return f"{name!r} is a section; write its keys with a dot, such as {example!r}"
    if not dot:
        homes = [k for k in KEYS if k.endswith(f".{name}")]
        hint = " or ".join(map(repr, homes)) if homes else _quoted(nearest(name, KEYS))
        other = "keys are section.key, see --explain"
    elif section in SECTIONS:
        own = [k.short for k in KEYS.values() if k.section == section]
        hint, other = _quoted(nearest(short, own)), f"{section} has {', '.join(own)}"
    else:
        hint = _quoted(nearest(name, KEYS) or nearest(section, SECTIONS))
        other = f"sections are {', '.join(SECTIONS)}"
    return f"unknown key {name!r}; {f'did you mean {hint}?' if hint else other}"


def _quoted(text: str) -> str:
    return repr(text) if text else ""
