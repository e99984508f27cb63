"""A configuration file, read and checked: names, layers of settings, and the runs they make up.

Sections of the file: ``defaults``, ``precisions``, ``platforms``, ``recipes``, ``modes``,
``models`` and ``shared`` (only anchors). Keys of settings are written as in ``--set``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

from image_classification.config.keys import settable_key
from image_classification.config.schema import MODES, PRECISIONS
from image_classification.config.yaml_file import Located, load_yaml
from image_classification.core.errors import ConfigError, nearest, unknown

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED_FILE = _PACKAGE / "configs.yml"
# In a checkout the file is beside the package; setup.py copies it into the built package.
DEFAULT_FILE = _INSTALLED_FILE if _INSTALLED_FILE.exists() else _PACKAGE.parent / "configs.yml"

_SECTIONS = ("shared", "defaults", "precisions", "platforms", "recipes", "modes", "models")
_ENTRY_WORDS = ("recipes", "default_recipe", "sources", "assumptions")
_RECIPE_WORDS = ("sources", "assumptions")
_PLATFORM_WORDS = ("assumptions",)
_MODE_DATA_KEYS = ("data.backend", "data.path")


@dataclass(frozen=True)
class Setting:
    """A checked value and its line number."""

    value: Any
    line: int


Layer: TypeAlias = Mapping[str, Setting]


@dataclass(frozen=True)
class Block:
    """Settings, the ids of the published runs with these settings, and assumptions made."""

    settings: Layer
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
    """The content of a configuration file. name: the file's name in messages."""

    name: str
    defaults: Layer
    precisions: Mapping[str, Layer]
    platforms: Mapping[str, Block]
    recipes: Mapping[str, Layer]
    modes: Mapping[str, Layer]
    models: tuple[str, ...]
    entries: Mapping[tuple[str, str, str], Entry]
    """By (model, platform, precision)."""

    def runs(self) -> Iterator[ListedRun]:
        """Yield every combination that can be run, in the file's order."""
        for (model, platform, precision), entry in self.entries.items():
            for recipe in entry.recipes:
                default = recipe == entry.default_recipe
                yield ListedRun(model, platform, precision, recipe, default)

    def find(self, model: str, platform: str, precision: str) -> Entry:
        """Return the entry of these names.

        Raises:
            ConfigError: an unknown name (with the nearest one), or names without an entry (with
                the ones that have one).
        """
        for kind, name, valid in (
            ("model", model, self.models),
            ("precision", precision, tuple(self.precisions)),
            ("platform", platform, tuple(self.platforms)),
        ):
            if name not in valid:
                raise ConfigError(unknown(kind, name, valid))
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
    """Read and check a configuration file; None: the project's own ``configs.yml``.

    Raises:
        ConfigError: ``FILE:LINE: …`` for anything unknown, of the wrong type or out of range.
    """
    name = "configs.yml" if path is None else str(path)
    return _Checker(name).catalogue(load_yaml(path or DEFAULT_FILE, name))


class _Checker:
    def __init__(self, name: str) -> None:
        self._name = name

    def _error(self, at: Located, message: str) -> ConfigError:
        return ConfigError(f"{self._name}:{at.line}: {message}")

    def catalogue(self, root: Located) -> Catalogue:
        top = self._named(root, "section", _SECTIONS)
        empty = Located(None, root.line)
        sections = {name: top.get(name, empty) for name in _SECTIONS}
        precisions = self._named(sections["precisions"], "precision", PRECISIONS)
        modes = self._named(sections["modes"], "mode", MODES)
        platforms = {
            name: self._block(at, f"platform {name}", _PLATFORM_WORDS)
            for name, at in self._mapping(sections["platforms"], "platforms").items()
        }
        recipes = {
            name: self._layer(self._mapping(at, f"recipe {name}"))
            for name, at in self._mapping(sections["recipes"], "recipes").items()
        }
        models = self._mapping(sections["models"], "models")
        entries = {
            (model, platform, precision): self._entry(at, recipes)
            for model, on_platforms in models.items()
            for platform, in_precisions in self._named(
                on_platforms, "platform", tuple(platforms)
            ).items()
            for precision, at in self._named(in_precisions, "precision", tuple(precisions)).items()
        }
        return Catalogue(
            name=self._name,
            defaults=self._layer(self._mapping(sections["defaults"], "defaults")),
            precisions={
                name: self._layer(self._mapping(at, f"precision {name}"))
                for name, at in precisions.items()
            },
            platforms=platforms,
            recipes=recipes,
            modes={name: self._mode(name, at) for name, at in modes.items()},
            models=tuple(models),
            entries=entries,
        )

    def _mode(self, name: str, at: Located) -> Layer:
        content = self._mapping(at, f"mode {name}")
        for key, item in content.items():
            if not key.startswith("run.") and key not in _MODE_DATA_KEYS:
                raise self._error(
                    item,
                    f"mode {name} may set run.*, {' and '.join(_MODE_DATA_KEYS)} only, not "
                    f"{key!r}: a mode never changes a hyperparameter",
                )
        return self._layer(content)

    def _entry(self, at: Located, recipes: Mapping[str, Layer]) -> Entry:
        content = self._mapping(at, "the entry")
        block = self._block(at, "the entry", _ENTRY_WORDS)
        for word in ("recipes", "default_recipe"):
            if word not in content:
                raise self._error(at, f"the entry has no {word!r}")
        own = self._named(content["recipes"], "recipe", tuple(recipes))
        default = content["default_recipe"]
        if default.text not in own:
            raise self._error(default, unknown("default_recipe", default.text, own))
        blocks = {
            name: self._block(own[name], f"recipe {name}", _RECIPE_WORDS)
            for name in recipes
            if name in own
        }
        return Entry(block, blocks, default.text)

    def _block(self, at: Located, what: str, words: tuple[str, ...]) -> Block:
        content = self._mapping(at, what)
        texts = {
            word: self._texts(content[word], word)
            for word in ("sources", "assumptions")
            if word in content and word in words
        }
        return Block(self._layer(content, words), **texts)

    def _layer(self, content: Mapping[str, Located], words: tuple[str, ...] = ()) -> Layer:
        """Check settings; ``words`` are other keys of the mapping, not settings."""
        return {
            key: self._setting(key, at, words) for key, at in content.items() if key not in words
        }

    def _setting(self, name: str, at: Located, words: tuple[str, ...]) -> Setting:
        if "." not in name and nearest(name, words):
            raise self._error(at, f"unknown key {name!r}; did you mean {nearest(name, words)!r}?")
        where = f"{self._name}:{at.line}"
        key = settable_key(name, where)
        value: Any = at.value
        if isinstance(value, list):
            value = [item.value for item in value]
        elif isinstance(value, dict):
            raise self._error(at, f"{name} must be a value, not a mapping")
        elif key.kind is str and value is not None:
            value = at.text
        return Setting(key.check(value, where), at.line)

    def _mapping(self, at: Located, what: str) -> dict[str, Located]:
        if at.value is None:
            return {}
        if not isinstance(at.value, dict):
            raise self._error(at, f"{what} must be a mapping of names to settings")
        return at.value

    def _named(self, at: Located, what: str, valid: tuple[str, ...]) -> dict[str, Located]:
        content = self._mapping(at, what)
        for name, item in content.items():
            if name not in valid:
                raise self._error(item, unknown(what, name, valid))
        return content

    def _texts(self, at: Located, what: str) -> tuple[str, ...]:
        items = at.value if isinstance(at.value, list) else [at]
        for item in items:
            if not isinstance(item.value, str) or not item.value:
                raise self._error(item, f"{what} must be text, or a list of texts")
        return tuple(str(item.value) for item in items)
