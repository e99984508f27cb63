"""The table of every ``section.key``, read off the schema's dataclasses once."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass
from typing import Any

from image_classification.config.schema import SECTIONS
from image_classification.core.errors import nearest

IDENTITY = {
    "model.name": "--model",
    "precision.name": "--precision",
    "platform.name": "--platform",
    "run.mode": "--mode",
}
"""Keys that only the run's names set, and the option that gives each name."""


@dataclass(frozen=True)
class Key:
    """One setting: its dotted name, its type and its bounds.

    kind: element type (``str``, ``int``, ``float`` or ``bool``). length: None for a scalar, 0
    for a list of any length, n for a list of n. nonempty: the list has an element.
    words: strings taken beside numbers.
    """

    name: str
    section: str
    field: str
    kind: type
    optional: bool
    length: int | None
    default: Any
    doc: str
    choices: tuple[str, ...] | None
    minimum: float | None
    maximum: float | None
    pattern: str | None
    nonempty: bool
    words: tuple[str, ...]
    computed: bool

    @property
    def has_default(self) -> bool:
        """Whether the schema itself gives a value."""
        return self.default is not dataclasses.MISSING

    @property
    def short(self) -> str:
        """The name within its section."""
        return self.name.partition(".")[2]


def _shape(hint: Any) -> tuple[type, bool, int | None, tuple[str, ...]]:
    """Break a field's type into element kind, optional, list length, extra words."""
    arms = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    optional = type(None) in arms
    rest = [a for a in arms if a is not type(None)]
    if rest == [float, str]:
        return float, optional, None, ("dynamic",)
    (single,) = rest
    if typing.get_origin(single) is tuple:
        elements = typing.get_args(single)
        length = 0 if elements[-1] is Ellipsis else len(elements)
        return elements[0], optional, length, ()
    return single, optional, None, ()


def _read_schema() -> dict[str, Key]:
    table: dict[str, Key] = {}
    for section, cls in SECTIONS.items():
        hints = typing.get_type_hints(cls)
        for f in dataclasses.fields(cls):
            kind, optional, length, words = _shape(hints[f.name])
            name = f"{section}.{f.metadata.get('key', f.name)}"
            table[name] = Key(
                name=name,
                section=section,
                field=f.name,
                kind=kind,
                optional=optional,
                length=length,
                default=f.default,
                doc=f.metadata["doc"],
                choices=f.metadata.get("choices"),
                minimum=f.metadata.get("min"),
                maximum=f.metadata.get("max"),
                pattern=f.metadata.get("pattern"),
                nonempty=f.metadata.get("nonempty", False),
                words=words,
                computed=f.metadata.get("computed", False),
            )
    return table


KEYS: dict[str, Key] = _read_schema()


def unknown_key(name: str) -> str:
    """Word the message for a key that does not exist, with the nearest one that does."""
    section, dot, short = name.partition(".")
    if not dot:
        if name in SECTIONS:
            example = next(k for k in KEYS if k.startswith(f"{name}."))
            return f"{name!r} is a section; write its keys with a dot, such as {example!r}"
        homes = [k for k in KEYS if k.endswith(f".{name}")]
        if homes:
            return f"unknown key {name!r}; did you mean {' or '.join(map(repr, homes))}?"
        hint = nearest(name, KEYS)
        return f"unknown key {name!r}; " + (
            f"did you mean {hint!r}?" if hint else "keys are section.key, see --explain"
        )
    if section in SECTIONS:
        own = [k.short for k in KEYS.values() if k.section == section]
        hint = nearest(short, own)
        tail = f"did you mean {hint!r}?" if hint else f"{section} has {', '.join(own)}"
        return f"unknown key {name!r}; {tail}"
    hint = nearest(name, KEYS) or nearest(section, SECTIONS)
    tail = f"did you mean {hint!r}?" if hint else f"sections are {', '.join(SECTIONS)}"
    return f"unknown key {name!r}; {tail}"
