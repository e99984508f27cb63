"""The checked content of a configuration file: names, layers and the runs they make up.

Sections of the file: ``defaults``, ``precisions``, ``platforms``, ``recipes``, ``modes``,
``models`` and ``shared`` (anchors only). Settings are written with the dotted names ``--set``
takes. Everything is checked when the file is read, whichever run was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

from image_classification.config.checks import IDENTITY, check_value, find_key
from image_classification.config.schema import MODES, PRECISIONS
from image_classification.config.yaml_file import Located, load_yaml
from image_classification.core.errors import ConfigError, nearest, unknown

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED_FILE = _PACKAGE / "configs.yml"
# In a checkout the file stands beside the package; setup.py puts it into the built package.
DEFAULT_FILE = _INSTALLED_FILE if _INSTALLED_FILE.exists() else _PACKAGE.parent / "configs.yml"

_SECTIONS = ("shared", "defaults", "precisions", "platforms", "recipes", "modes", "models")
_ENTRY_WORDS = ("recipes", "default_recipe", "sources", "assumptions")
_RECIPE_WORDS = ("sources", "assumptions")
_PLATFORM_WORDS = ("assumptions",)
_MODE_DATA_KEYS = ("data.backend", "data.path")


@dataclass(frozen=True)
class Setting:
    """A checked value and the line it is written on."""

    value: Any
    line: int


Layer: TypeAlias = Mapping[str, Setting]


@dataclass(frozen=True)
class Block:
    """Settings with what they rest on: ids of published runs, and assumptions where silent."""

    settings: Layer
    sources: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One model on one platform in one precision: its settings and the recipes it has."""

    block: Block
    recipes: Mapping[str, Block]
    default_recipe: str


@dataclass(frozen=True)
class ListedRun:
    """One runnable combination of names; ``default`` marks the entry's default recipe."""

    model: str
    platform: str
    precision: str
    recipe: str
    default: bool


@dataclass(frozen=True)
class Catalogue:
    """A whole configuration file. ``name`` is how messages call the file."""

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
        """Yield every runnable combination, in the file's order."""
        for (model, platform, precision), entry in self.entries.items():
            for recipe in entry.recipes:
                default = recipe == entry.default_recipe
                yield ListedRun(model, platform, precision, recipe, default)

    def find(self, model: str, platform: str, precision: str) -> Entry:
        """Return the entry of these names.

        Raises:
            ConfigError: a name nobody has (with the nearest), or names that do not go together
                (with what there is).
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
        there = [p for m, f, p in self.entries if (m, f) == (model, platform)]
        if there:
            raise ConfigError(
                f"there is no {precision} configuration of {model} on {platform}; "
                f"it has {', '.join(there)}"
            )
        on = list(dict.fromkeys(f for m, f, _ in self.entries if m == model))
        raise ConfigError(
            f"there is no configuration of {model} on {platform}; "
            f"it has {', '.join(on) or 'none on any platform'}"
        )


@lru_cache(maxsize=4)
def load_catalogue(path: Path | None = None) -> Catalogue:
    """Read and check a configuration file; None: the project's own ``configs.yml``.

    Raises:
        ConfigError: ``FILE:LINE: …`` for whatever is unknown, mistyped or out of range.
    """
    name = "configs.yml" if path is None else str(path)
    return _Checker(name).catalogue(load_yaml(path or DEFAULT_FILE, name))


class _Checker:
    def __init__(self, name: str) -> None:
        self.name = name

    def fail(self, at: Located, message: str) -> ConfigError:
        return ConfigError(f"{self.name}:{at.line}: {message}")

    def mapping(self, at: Located, what: str) -> dict[str, Located]:
        if at.value is None:
            return {}
        if not isinstance(at.value, dict):
            raise self.fail(at, f"{what} must be a mapping of names to settings")
        return at.value

    def texts(self, at: Located, what: str) -> tuple[str, ...]:
        items = at.value if isinstance(at.value, list) else [at]
        for item in items:
            if not isinstance(item.value, str) or not item.value:
                raise self.fail(item, f"{what} must be text, or a list of texts")
        return tuple(str(item.value) for item in items)

    def layer(self, content: Mapping[str, Located], words: tuple[str, ...] = ()) -> Layer:
        return {
            key: self.setting(key, at, words) for key, at in content.items() if key not in words
        }

    def setting(self, name: str, at: Located, words: tuple[str, ...]) -> Setting:
        where = f"{self.name}:{at.line}"
        if name in IDENTITY:
            raise self.fail(at, f"{name} is set by {IDENTITY[name]}, not here")
        if "." not in name and nearest(name, words):
            raise self.fail(at, f"unknown key {name!r}; did you mean {nearest(name, words)!r}?")
        key = find_key(name, where)
        if key.computed:
            raise self.fail(at, f"{name} is computed; set batch.per_device and batch.global")
        value: Any = at.value
        if isinstance(value, list):
            value = [item.value for item in value]
        elif isinstance(value, dict):
            raise self.fail(at, f"{name} must be a value, not a mapping")
        elif key.kind is str and value is not None:
            value = at.text
        return Setting(check_value(key, value, where), at.line)

    def block(self, at: Located, what: str, words: tuple[str, ...]) -> Block:
        content = self.mapping(at, what)
        return Block(
            self.layer(content, words),
            *(
                self.texts(content[w], w) if w in content and w in words else ()
                for w in ("sources", "assumptions")
            ),
        )

    def named(self, at: Located, what: str, valid: tuple[str, ...]) -> dict[str, Located]:
        content = self.mapping(at, what)
        for name, item in content.items():
            if name not in valid:
                raise self.fail(item, unknown(what, name, valid))
        return content

    def catalogue(self, root: Located) -> Catalogue:
        top = self.named(root, "section", _SECTIONS)
        empty = Located(None, root.line)
        sections = {name: top.get(name, empty) for name in _SECTIONS}
        precisions = self.named(sections["precisions"], "precision", PRECISIONS)
        modes = self.named(sections["modes"], "mode", MODES)
        platforms = {
            name: self.block(at, f"platform {name}", _PLATFORM_WORDS)
            for name, at in self.mapping(sections["platforms"], "platforms").items()
        }
        recipes = {
            name: self.layer(self.mapping(at, f"recipe {name}"))
            for name, at in self.mapping(sections["recipes"], "recipes").items()
        }
        models = self.mapping(sections["models"], "models")
        entries = {}
        for model, on_platforms in models.items():
            known = self.named(on_platforms, "platform", tuple(platforms))
            for platform, in_precisions in known.items():
                for precision, at in self.named(
                    in_precisions, "precision", tuple(precisions)
                ).items():
                    entries[model, platform, precision] = self.entry(at, recipes)
        return Catalogue(
            name=self.name,
            defaults=self.layer(self.mapping(sections["defaults"], "defaults")),
            precisions={
                name: self.layer(self.mapping(at, f"precision {name}"))
                for name, at in precisions.items()
            },
            platforms=platforms,
            recipes=recipes,
            modes={name: self.mode(name, at) for name, at in modes.items()},
            models=tuple(models),
            entries=entries,
        )

    def mode(self, name: str, at: Located) -> Layer:
        content = self.mapping(at, f"mode {name}")
        for key, item in content.items():
            if not key.startswith("run.") and key not in _MODE_DATA_KEYS:
                raise self.fail(
                    item,
                    f"mode {name} may set run.*, {' and '.join(_MODE_DATA_KEYS)} only, not "
                    f"{key!r}: a mode never changes a hyperparameter",
                )
        return self.layer(content)

    def entry(self, at: Located, recipes: Mapping[str, Layer]) -> Entry:
        content = self.mapping(at, "the entry")
        block = self.block(at, "the entry", _ENTRY_WORDS)
        missing = [w for w in ("recipes", "default_recipe") if w not in content]
        if missing:
            raise self.fail(at, f"the entry has no {missing[0]!r}")
        own = self.named(content["recipes"], "recipe", tuple(recipes))
        default = content["default_recipe"]
        if default.text not in own:
            raise self.fail(default, unknown("default_recipe", default.text, own))
        return Entry(
            block,
            {
                name: self.block(own[name], f"recipe {name}", _RECIPE_WORDS)
                for name in recipes
                if name in own
            },
            default.text,
        )
