"""A configuration file, read and checked: names, layers of settings, and the runs they make up.

Sections of the file: ``defaults``, ``precisions``, ``platforms``, ``recipes``, ``modes``,
``models`` and ``shared`` (only anchors). Keys of settings are written as in ``--set``. The YAML is
plain scalars, lists and mappings, with anchors, aliases and merge keys (``<<``) but no tags that
construct objects; a merged value keeps its own line number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from image_classification.config.keys import settable_key
from image_classification.config.schema import MODES, PRECISIONS
from image_classification.core.errors import ConfigError, nearest, shortened, suggestion, unknown

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED_FILE = _PACKAGE / "configs.yml"
# In a checkout the file is beside the package; setup.py copies it into the built package.
DEFAULT_FILE = _INSTALLED_FILE if _INSTALLED_FILE.exists() else _PACKAGE.parent / "configs.yml"

_SECTIONS = ("shared", "defaults", "precisions", "platforms", "recipes", "modes", "models")
_ENTRY_WORDS = ("recipes", "default_recipe", "sources", "assumptions")
_MODE_DATA_KEYS = ("data.backend", "data.path")

# Far above any real configuration, far below what takes a second or overflows the stack.
MAX_BYTES = 2**21
MAX_DEPTH = 32
MAX_VALUES = 200_000

_TAG = "tag:yaml.org,2002:"
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Layer: TypeAlias = Mapping[str, tuple[Any, str]]
"""Key -> its checked value, and the ``FILE:LINE`` of it."""


@dataclass(frozen=True)
class Block:
    """Settings, the ids of the published runs with these settings, and assumptions made.

    about: what a platform is, in one line.
    """

    settings: Layer
    about: str = ""
    sources: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """The configuration of a model on a platform in a precision: its settings and recipes."""

    block: Block
    recipes: Mapping[str, Block]
    default_recipe: str


@dataclass(frozen=True)
class ListedRun:
    """A combination of names that can be run. default: the recipe is the entry's default."""

    model: str
    platform: str
    precision: str
    recipe: str
    default: bool


@dataclass(frozen=True)
class Catalogue:
    """The content of a configuration file.

    name: the file's name in messages. entries: by (model, platform, precision).
    """

    name: str
    defaults: Layer
    precisions: Mapping[str, Layer]
    platforms: Mapping[str, Block]
    recipes: Mapping[str, Layer]
    modes: Mapping[str, Layer]
    models: tuple[str, ...]
    entries: Mapping[tuple[str, str, str], Entry]

    def runs(self) -> Iterator[ListedRun]:
        """Yield every combination that can be run, in the file's order."""
        for names, entry in self.entries.items():
            for recipe in entry.recipes:
                yield ListedRun(*names, recipe, default=recipe == entry.default_recipe)

    def find(self, model: str, platform: str, precision: str) -> Entry:
        """Return the entry of these valid names, or raise ConfigError with those that have one."""
        if (model, platform, precision) in self.entries:
            return self.entries[model, platform, precision]
        precisions = [p for m, f, p in self.entries if (m, f) == (model, platform)]
        if precisions:
            raise ConfigError(
                f"there is no {precision} configuration of {model} on {platform}; "
                f"it has {', '.join(precisions)}"
            )
        platforms = dict.fromkeys(f for m, f, _ in self.entries if m == model)
        raise ConfigError(
            f"there is no configuration of {model} on {platform}; "
            f"it has {', '.join(platforms) or 'none on any platform'}"
        )


@lru_cache(maxsize=4)
def load_catalogue(path: Path | None = None) -> Catalogue:
    """Read and check a configuration file (None: ``configs.yml``).

    Raises ConfigError ``FILE:LINE: …`` for anything unknown, of the wrong type or out of range.
    """
    name = "configs.yml" if path is None else str(path)
    root = load_yaml(path or DEFAULT_FILE, name)
    top = _named(root, "section", _SECTIONS)
    sections = {section: top.get(section, Located(None, root.where)) for section in _SECTIONS}
    precisions = _named(sections["precisions"], "precision", PRECISIONS)
    modes = _named(sections["modes"], "mode", MODES)
    platforms = {
        platform: _block(at, f"platform {platform}", ("about", "assumptions"))
        for platform, at in _mapping(sections["platforms"], "platforms").items()
    }
    recipes = {
        recipe: _layer(_mapping(at, f"recipe {recipe}"))
        for recipe, at in _mapping(sections["recipes"], "recipes").items()
    }
    models = _mapping(sections["models"], "models")
    entries = {
        (model, platform, precision): _entry(at, recipes)
        for model, on_platforms in models.items()
        for platform, in_precisions in _named(on_platforms, "platform", platforms).items()
        for precision, at in _named(in_precisions, "precision", precisions).items()
    }
    return Catalogue(
        name=name,
        defaults=_layer(_mapping(sections["defaults"], "defaults")),
        precisions={
            precision: _layer(_mapping(at, f"precision {precision}"))
            for precision, at in precisions.items()
        },
        platforms=platforms,
        recipes=recipes,
        modes={mode: _mode(mode, at) for mode, at in modes.items()},
        models=tuple(models),
        entries=entries,
    )


def _mode(name: str, at: Located) -> Layer:
    content = _mapping(at, f"mode {name}")
    for key, item in content.items():
        if not key.startswith("run.") and key not in _MODE_DATA_KEYS:
            raise ConfigError(
                f"{item.where}: mode {name} may set run.*, {' and '.join(_MODE_DATA_KEYS)} only, "
                f"not {key!r}: a mode never changes a hyperparameter"
            )
    return _layer(content)


def _entry(at: Located, recipes: Mapping[str, Layer]) -> Entry:
    content = _mapping(at, "the entry")
    block = _block(at, "the entry", _ENTRY_WORDS)
    for word in ("recipes", "default_recipe"):
        if word not in content:
            raise ConfigError(f"{at.where}: the entry has no {word!r}")
    own = _named(content["recipes"], "recipe", recipes)
    default = content["default_recipe"]
    if default.text not in own:
        raise ConfigError(f"{default.where}: {unknown('default_recipe', default.text, own)}")
    blocks = {
        name: _block(own[name], f"recipe {name}", ("sources", "assumptions"))
        for name in recipes
        if name in own
    }
    return Entry(block, blocks, default.text)


def _block(at: Located, what: str, words: tuple[str, ...]) -> Block:
    content = _mapping(at, what)
    texts = {
        word: _texts(content[word], word)
        for word in ("sources", "assumptions")
        if word in content and word in words
    }
    about = _texts(content["about"], "about")[0] if "about" in words and "about" in content else ""
    return Block(_layer(content, words), about, **texts)


def _layer(content: Mapping[str, Located], words: tuple[str, ...] = ()) -> Layer:
    """Check settings; ``words`` are other keys of the mapping, not settings."""
    layer = {}
    for name, at in content.items():
        if name in words:
            continue
        if "." not in name and nearest(name, words):
            raise ConfigError(f"{at.where}: unknown key {name!r}{suggestion(name, words)}")
        key = settable_key(name, at.where)
        value: Any = at.value
        if isinstance(value, list):
            value = [item.value for item in value]
            if any(isinstance(item, (list, dict)) for item in value):
                raise ConfigError(f"{at.where}: {name} must be a plain value or a list of them")
        elif isinstance(value, dict):
            raise ConfigError(f"{at.where}: {name} must be a value, not a mapping")
        elif key.kind is str and value is not None:
            value = at.text
        layer[name] = key.check(value, at.where), at.where
    return layer


def _mapping(at: Located, what: str) -> dict[str, Located]:
    if at.value is None:
        return {}
    if not isinstance(at.value, dict):
        raise ConfigError(f"{at.where}: {what} must be a mapping of names to settings")
    return at.value


def _named(at: Located, what: str, valid: Iterable[str]) -> dict[str, Located]:
    content = _mapping(at, what)
    for name, item in content.items():
        if name not in valid:
            raise ConfigError(f"{item.where}: {unknown(what, name, valid)}")
    return content


def _texts(at: Located, what: str) -> tuple[str, ...]:
    items = at.value if isinstance(at.value, list) else [at]
    for item in items:
        if not isinstance(item.value, str) or not item.value:
            raise ConfigError(f"{item.where}: {what} must be text, or a list of texts")
    return tuple(str(item.value) for item in items)


@dataclass(frozen=True)
class Located:
    """A value and its ``FILE:LINE``. text: a scalar as written, such as ``no`` for false."""

    value: str | int | float | bool | list[Located] | dict[str, Located] | None
    where: str
    text: str = ""


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


def _check_depth(text: str, name: str) -> None:
    """Raise ConfigError for nesting beyond `MAX_DEPTH`, which could overflow the C stack."""
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                at = f"{name}:{event.start_mark.line + 1}" if event.start_mark else name
                raise ConfigError(f"{at}: nested deeper than {MAX_DEPTH} levels; flatten it")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _Reader:
    """Convert YAML's nodes to `Located`.

    An alias counts as all the values it stands for: code that walks the result visits each.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._num_values = 0
        self._done: dict[int, tuple[Located, int]] = {}
        self._open: set[int] = set()
        self._scalars = yaml.constructor.SafeConstructor()

    def read(self, node: yaml.Node) -> Located:
        where = self._where(node)
        if id(node) in self._done:
            result, num_values = self._done[id(node)]
            self._count(num_values, where)
            return result
        before = self._num_values
        self._count(1, where)
        if id(node) in self._open:
            raise ConfigError(f"{where}: this anchor contains itself")
        self._open.add(id(node))
        if isinstance(node, yaml.ScalarNode):
            result = Located(self._scalar(node, where), where, node.value)
        elif node.tag != _TAG + ("map" if isinstance(node, yaml.MappingNode) else "seq"):
            raise _tag_error(node, where)
        elif isinstance(node, yaml.MappingNode):
            result = Located(self._content(node), where)
        else:
            result = Located([self.read(child) for child in node.value], where)
        self._open.discard(id(node))
        self._done[id(node)] = result, self._num_values - before
        return result

    def _where(self, node: yaml.Node) -> str:
        return f"{self._name}:{node.start_mark.line + 1}"

    def _count(self, num_values: int, where: str) -> None:
        self._num_values += num_values
        if self._num_values > MAX_VALUES:
            raise ConfigError(
                f"{where}: more than {MAX_VALUES:,} values with aliases expanded; use fewer"
            )

    def _content(self, node: yaml.MappingNode) -> dict[str, Located]:
        own: dict[str, Located] = {}
        lines: dict[str, int] = {}
        merged: list[dict[str, Located]] = []
        for key_node, value_node in node.value:
            where = self._where(key_node)
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"{where}: a key must be plain text")
            if key_node.tag == _TAG + "merge":
                sources = value_node.value if value_node.id == "sequence" else [value_node]
                for content in (self.read(source).value for source in sources):
                    if not isinstance(content, dict):
                        raise ConfigError(f"{where}: << must name a mapping, or a list of mappings")
                    merged.append(content)
                continue
            if key in own:
                raise ConfigError(f"{where}: {key!r} is already set on line {lines[key]}; keep one")
            own[key], lines[key] = self.read(value_node), key_node.start_mark.line + 1
        for content in merged:
            for key, value in content.items():
                own.setdefault(key, value)
        return own

    def _scalar(self, node: yaml.ScalarNode, where: str) -> Any:
        kind = node.tag.removeprefix(_TAG)
        if kind in ("str", "timestamp"):
            return node.value
        if kind not in ("null", "bool", "int", "float"):
            raise _tag_error(node, where)
        try:
            return self._scalars.construct_object(node)
        except (IndexError, KeyError, ValueError):
            raise ConfigError(f"{where}: {shortened(node.value)} is not a valid {kind}") from None


def _tag_error(node: yaml.Node, where: str) -> ConfigError:
    return ConfigError(f"{where}: the tag {node.tag!r} is not allowed; write plain values")
