"""Read YAML safely, with the line number of every value.

Only plain scalars, lists and mappings are allowed, no tags that construct objects. Anchors, aliases
and merge keys (``<<``) work; a merged value keeps its own line number.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from image_classification.core.errors import ConfigError

_TAG = "tag:yaml.org,2002:"
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Content: TypeAlias = "str | int | float | bool | list[Located] | dict[str, Located] | None"


@dataclass(frozen=True)
class Located:
    """A value and its line number, from 1. text: a scalar as written, such as ``no`` for false."""

    value: Content
    line: int
    text: str = ""


# Far above any real configuration, far below what takes a second or overflows the stack.
MAX_BYTES = 2**21
MAX_DEPTH = 32
MAX_VALUES = 200_000


class _Reader:
    def __init__(self, name: str) -> None:
        self.name = name
        self._values = 0
        self._counts: dict[int, int] = {}
        self._scalars = yaml.constructor.SafeConstructor()
        self._done: dict[int, Located] = {}
        self._open: set[int] = set()

    def fail(self, line: int, message: str) -> ConfigError:
        return ConfigError(f"{self.name}:{line}: {message}")

    def read(self, node: yaml.Node) -> Located:
        line = node.start_mark.line + 1
        if id(node) in self._done:
            self._count(self._counts[id(node)], line)
            return self._done[id(node)]
        before = self._values
        self._count(1, line)
        if id(node) in self._open:
            raise self.fail(line, "this anchor contains itself")
        self._open.add(id(node))
        if isinstance(node, yaml.MappingNode):
            self._expect_tag(node, "map", line)
            result = Located(self._mapping(node), line)
        elif isinstance(node, yaml.SequenceNode):
            self._expect_tag(node, "seq", line)
            result = Located([self.read(child) for child in node.value], line)
        else:
            assert isinstance(node, yaml.ScalarNode)
            result = Located(self._scalar(node, line), line, node.value)
        self._open.discard(id(node))
        self._done[id(node)] = result
        self._counts[id(node)] = self._values - before
        return result

    def _count(self, values: int, line: int) -> None:
        # An alias counts as all the values it stands for: code that walks the result visits each.
        self._values += values
        if self._values > MAX_VALUES:
            raise self.fail(
                line, f"more than {MAX_VALUES:,} values with aliases expanded; use fewer"
            )

    def _expect_tag(self, node: yaml.Node, kind: str, line: int) -> None:
        if node.tag != _TAG + kind:
            raise self.fail(line, f"the tag {node.tag!r} is not allowed; write plain values")

    def _scalar(self, node: yaml.ScalarNode, line: int) -> Content:
        kind = node.tag.removeprefix(_TAG)
        try:
            if kind in ("str", "timestamp"):
                return str(node.value)
            if kind == "null":
                return None
            if kind == "bool":
                return bool(self._scalars.construct_yaml_bool(node))
            if kind == "int":
                return int(self._scalars.construct_yaml_int(node))
            if kind == "float":
                return float(self._scalars.construct_yaml_float(node))
        except ValueError:
            shown = node.value if len(node.value) <= 60 else f"{node.value[:60]}…"
            raise self.fail(line, f"{shown!r} is not a {kind}") from None
        raise self.fail(line, f"the tag {node.tag!r} is not allowed; write plain values")

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Located]:
        own: dict[str, Located] = {}
        lines: dict[str, int] = {}
        merged: list[dict[str, Located]] = []
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.fail(line, "a key must be plain text")
            if key_node.tag == _TAG + "merge":
                merged.extend(self._merge_sources(value_node, line))
                continue
            key = key_node.value
            if key in own:
                raise self.fail(line, f"{key!r} is already set on line {lines[key]}; keep one")
            own[key], lines[key] = self.read(value_node), line
        for source in merged:
            for key, value in source.items():
                own.setdefault(key, value)
        return own

    def _merge_sources(self, node: yaml.Node, line: int) -> list[dict[str, Located]]:
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        sources = []
        for item in nodes:
            content = self.read(item).value
            if not isinstance(content, dict):
                raise self.fail(line, "<< must name a mapping, or a list of mappings")
            sources.append(content)
        return sources


def _check_depth(text: str, name: str) -> None:
    """Raise ConfigError for nesting beyond `MAX_DEPTH`, which could overflow the C stack."""
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                mark = event.start_mark
                at = f"{name}:{mark.line + 1}" if mark else name
                raise ConfigError(f"{at}: nested deeper than {MAX_DEPTH} levels; flatten it")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def load_yaml(path: Path, name: str) -> Located:
    """Read one YAML document. name: the file's name in messages.

    Raises:
        ConfigError: unreadable, not UTF-8, not YAML, a duplicate key (with both lines), a tag, an
            anchor that contains itself, or beyond `MAX_BYTES`, `MAX_DEPTH` or `MAX_VALUES`.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError(f"{name}: larger than {MAX_BYTES:,} bytes; not a configuration file")
        text = content.decode("utf-8")
    except OSError as e:
        reason = (e.strerror or str(e)).lower()
        raise ConfigError(
            f"cannot read the configuration file {path} ({reason}); --cfg_file names another"
        ) from None
    except UnicodeDecodeError as e:
        raise ConfigError(f"{name}: not UTF-8 text at byte {e.start}; save it as UTF-8") from None
    try:
        _check_depth(text, name)
        node = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        at = f"{name}:{mark.line + 1}" if mark else name
        raise ConfigError(f"{at}: not valid YAML: {e.problem or e.context}") from None
    except yaml.YAMLError as e:
        raise ConfigError(f"{name}: not valid YAML: {e}") from None
    if node is None:
        raise ConfigError(f"{name}: the file is empty")
    return _Reader(name).read(node)
